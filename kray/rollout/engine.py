"""One vLLM engine in one actor; the only module that imports vLLM.

Everything that touches vLLM happens in one thread of this process, which takes commands between two steps of the engine.
The actor's other threads only put commands in and take results out, so a long step blocks nobody.

- Rollout i of a group is sampled with the task's seed + i, whatever else is in the batch and however the group was split.
- Weights are replaced through vLLM's weight-transfer protocol, tied embeddings included, and only while nothing runs.
- Orders (submit, cancel, update) are carried out one after the other, in the order in which they were given.
- After the first failure of that thread the engine answers every call with that failure: its owner must end it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from kray.records import Rollout, RolloutTask
from kray.weights import FlatWeights

CPU_STEP_TOKENS = 8192  # prompt tokens that one step may take in on CPU


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine needs to start. context_tokens: prompt plus response."""

    model_path: str
    dtype: str
    context_tokens: int
    max_sequences: int
    cpus: int
    gpus: int
    kv_cache_gib: float
    gpu_memory_share: float
    eager: bool
    seed: int

    def environment(self) -> dict[str, str]:
        """Environment variables of the actor's process; vLLM reads them when it is imported."""
        return {
            "OMP_NUM_THREADS": str(max(1, self.cpus)),  # more threads than cores make an engine ten times slower
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would put every engine of a node on the same cores
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: starts faster, can be fed between steps
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


@dataclass(slots=True)
class Report:
    """What an engine has to tell since the last report. busy_s: seconds in which it was stepping."""

    finished: list[tuple[int, list[Rollout]]] = field(default_factory=list)  # (task id, its rollouts by index)
    refused: list[tuple[int, str]] = field(default_factory=list)  # (task id, why the engine cannot run it)
    busy_s: float = 0.0


class Engine:
    """The body of a rollout actor (Ray runs its methods in several threads)."""

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        self._commands: queue.SimpleQueue[tuple[Callable[..., Any], tuple, Future]] = queue.SimpleQueue()
        self._report = Report()
        self._news = threading.Condition()
        self._failure: str | None = None
        self._tasks: dict[str, RolloutTask] = {}  # vLLM's request id -> task
        self._ready: Future = Future()
        threading.Thread(target=self._live, name="engine", daemon=True).start()

    # -- called by the pool -------------------------------------------------------------------------------------------

    def start(self) -> dict[str, Any]:
        """Returns once the model is loaded: process id and version of vLLM."""
        return self._ready.result()

    @ray.method(concurrency_group="orders")
    def submit(self, tasks: list[RolloutTask]) -> None:
        """Adds work; all tasks of one call enter the same batch, in this order."""
        self._command(self._add, tasks)

    @ray.method(concurrency_group="orders")
    def cancel(self, task_ids: list[int]) -> None:
        """Drops tasks; unknown ids are ignored, and nothing is reported for them any more."""
        self._command(self._abort, task_ids)

    def collect(self, timeout_s: float) -> Report:
        """What has finished since the last call; waits up to timeout_s for something to report."""
        with self._news:
            self._news.wait_for(lambda: self._report.finished or self._report.refused or self._failure, timeout_s)
            self._raise_failure()
            report, self._report = self._report, Report()
            return report

    @ray.method(concurrency_group="orders")
    def update(self, version: int, weights: FlatWeights, probe: list[int]) -> np.ndarray:
        """Takes new weights and returns what it now thinks of the probe: (P - 1,) logprobs of its tokens after the first."""
        return self._command(self._update, version, weights, probe)

    def _command(self, function: Callable[..., Any], *args: Any) -> Any:
        self._raise_failure()
        future: Future = Future()
        self._commands.put((function, args, future))
        return future.result()

    def _raise_failure(self) -> None:
        if self._failure:
            raise RuntimeError(f"the engine has failed before: {self._failure}")

    # -- the engine's thread ------------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._engine = self._make_engine()
            self._ready.set_result({"pid": os.getpid(), "vllm": _vllm_version()})
            while True:
                self._obey()
                self._step()
        except BaseException as error:  # reported to every later call; the pool ends this process
            with self._news:
                self._failure = "".join(traceback.format_exception(error)[-4:]).strip()
                self._news.notify_all()
            if not self._ready.done():
                self._ready.set_exception(error)
            while True:
                function, _, future = self._commands.get()
                future.set_exception(RuntimeError(f"{function.__name__.strip('_')}: {self._failure}"))

    def _obey(self) -> None:
        """Runs every command that waits; without work, waits for one."""
        while not self._commands.empty() or not self._engine.has_unfinished_requests():
            function, args, future = self._commands.get()
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
                raise

    def _make_engine(self) -> Any:
        from vllm import EngineArgs, LLMEngine

        spec = self.spec
        _register_transport()
        options: dict[str, Any] = {"dtype": spec.dtype, "weight_transfer_config": {"backend": TRANSPORT}}
        device: dict[str, Any] = {
            "gpu_memory_utilization": spec.gpu_memory_share,
            "tensor_parallel_size": max(1, spec.gpus),
        }
        if spec.gpus == 0:
            # With chunked prefill vLLM 0.32 dies on CPU when a seeded request's prompt is cut by a chunk.
            device = {
                "kv_cache_memory_bytes": int(spec.kv_cache_gib * 2**30),
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(CPU_STEP_TOKENS, spec.context_tokens),
            }
        return LLMEngine.from_engine_args(
            EngineArgs(
                model=spec.model_path,
                skip_tokenizer_init=True,  # tokens in, tokens out
                max_model_len=spec.context_tokens,
                max_num_seqs=spec.max_sequences,
                enforce_eager=spec.eager,
                enable_prefix_caching=True,  # a group shares its prompt
                logprobs_mode="processed_logprobs",  # of the distribution that was sampled, after temperature
                distributed_executor_backend="uni",
                generation_config="vllm",  # the task says how to sample; a model's own defaults must not
                disable_log_stats=True,
                seed=spec.seed,
                **options,
                **device,
            )
        )

    def _add(self, tasks: list[RolloutTask]) -> None:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        for task in tasks:
            sampling = task.sampling
            params = SamplingParams(
                n=task.rollouts,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=task.seed + task.first_index,  # vLLM gives sample i of n the seed + i
                stop_token_ids=list(sampling.stop_token_ids),
                logprobs=0,  # of the sampled token alone
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,  # it is this task's alone: vLLM's deep copy was a third of the time to add a task
            )
            name = f"{task.id}"
            try:
                self._engine.add_request(name, {"prompt_token_ids": list(task.prompt_tokens)}, params)
            except (
                VLLMClientError,
                ValueError,
            ) as error:  # this prompt's own fault: too long, or a token that does not exist
                with self._news:
                    self._report.refused.append((task.id, str(error)))
                    self._news.notify_all()
            else:
                self._tasks[name] = task

    def _abort(self, task_ids: list[int]) -> None:
        names = [f"{task_id}" for task_id in task_ids if f"{task_id}" in self._tasks]
        self._engine.abort_request(names)
        for name in names:
            del self._tasks[name]

    def _step(self) -> None:
        started = time.monotonic()
        outputs = self._engine.step()
        finished = []
        for output in outputs:
            task = self._tasks.pop(output.request_id, None)  # FINAL_ONLY: an output is always the last
            if task is not None:
                rollouts = sorted((_rollout(task, one) for one in output.outputs), key=lambda rollout: rollout.index)
                finished.append((task.id, rollouts))
        busy_s = time.monotonic() - started

        with self._news:
            self._report.finished += finished
            self._report.busy_s += busy_s
            if finished:
                self._news.notify_all()

    def _update(self, version: int, weights: FlatWeights, probe: list[int]) -> np.ndarray:
        if self._tasks:
            raise RuntimeError(f"new weights came while {len(self._tasks)} tasks were running")
        self._rpc("start_weight_update", {})
        self._rpc("update_weights", {"update_info": {"tensors": weights.tensors()}})
        self._rpc("finish_weight_update", {})
        self._forget_prefixes()
        self._engine.set_weight_version(str(version))
        return self._ask(probe)

    def _forget_prefixes(self) -> None:
        """What was computed with other weights must not be reused."""
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache still holds blocks of old weights")

    def _rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self._engine.collective_rpc(method, kwargs=kwargs)

    def _ask(self, probe: list[int]) -> np.ndarray:
        """(P - 1,) logprobs of the probe's tokens after the first."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        self._engine.add_request("probe", {"prompt_token_ids": probe}, params)
        found: list[float] = []
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    pairs = zip(probe[1:], output.prompt_logprobs[1:], strict=True)
                    found = [position[token].logprob for token, position in pairs]
        self._forget_prefixes()
        return np.array(found, dtype=np.float32)


def _rollout(task: RolloutTask, output: Any) -> Rollout:
    """vLLM's CompletionOutput as a Rollout."""
    flat = output.logprobs
    return Rollout(
        prompt_id=task.prompt_id,
        index=task.first_index + output.index,
        tokens=np.array(output.token_ids, dtype=np.int32),
        logprobs=np.array([flat.logprobs[i] for i in flat.start_indices], dtype=np.float32),
        finish_reason=str(output.finish_reason),
        policy_versions=tuple((int(s.version), s.start, s.end) for s in output.weight_versions or ()),
    )


def _vllm_version() -> str:
    import vllm

    return vllm.__version__


TRANSPORT = "kray_object_store"


def _register_transport() -> None:
    """Makes kray's CPU transport known to vLLM: the tensors are views of a buffer in Ray's object store."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        pass

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        tensors: list

    class ObjectStoreTransfer(WeightTransferEngine):
        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            pass  # nothing to connect: the buffer comes with the call

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))  # synchronous, nothing to wait for on CPU

        def receive_weights(self, update_info: UpdateInfo) -> None:
            model: Any = self.model
            model.load_weights(iter(update_info.tensors))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            if self.model_config.hf_config.tie_word_embeddings:
                self._retie()

        def _retie(self) -> None:
            """vLLM's reload leaves a tied output layer on its old, repacked copy: point it at the embedding again."""
            embeddings = [m for m in self.model.modules() if type(m) is VocabParallelEmbedding]
            heads: list[Any] = [m for m in self.model.modules() if isinstance(m, ParallelLMHead)]
            for head in heads:
                head.weight = embeddings[0].weight
                head.quant_method.process_weights_after_loading(head)

        def shutdown(self) -> None:
            pass

    if TRANSPORT not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(TRANSPORT, ObjectStoreTransfer)
