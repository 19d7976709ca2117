"""One vLLM engine in one actor; with transfer.py and kray/serve/policy_api.py, the only module that imports vLLM.

Everything that touches vLLM happens in one thread of this process, which takes commands between two steps of the engine.
The actor's other threads only put commands in and take results out, so a long step blocks nobody.

- Rollout i of a group is sampled with the task's seed + i, whatever else is in the batch and however the group was split.
- Weights are replaced between two steps of the engine, and what it then answers is a proof (transfer.py).
  Rollouts that are under way go on with the new weights (and the keys and values that the old ones computed); vLLM tells
  which version sampled which token. Prompts that the prefix cache knows from old weights are not found by later tasks.
- Orders (submit, cancel, update) are carried out one after the other, in the order in which they were given.
- After the first failure of that thread the engine answers every call with that failure: its owner must end it.
"""

from __future__ import annotations

import copy
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from kray.records import Rollout, RolloutTask
from kray.rollout.outcome import EngineReport
from kray.rollout.vllm_transport import TRANSPORT, register_transport
from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.proof import Proof, Reactions, Stopwatch, exaggerated

NEWS = 0.125  # share of max_sequences: so many ended rollouts are worth a report, though no task is whole
CPU_STEP_TOKENS = 8192  # prompt tokens that one step may take in on CPU


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine needs to start. context_tokens: prompt plus response. reads_text: tasks may have `stops`. overlap: new
    weights may come while rollouts run."""

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
    reads_text: bool = False
    overlap: bool = False

    def environment(self) -> dict[str, str]:
        """Environment variables of the actor's process; vLLM reads them when it is imported."""
        return {
            "OMP_NUM_THREADS": str(max(1, self.cpus)),  # more threads than cores make an engine ten times slower
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would put every engine of a node on the same cores
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: starts faster, can be fed between steps
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            # New weights are repacked in memory that glibc would give back, to have each of its pages cleared next time.
            "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            # oneDNN keeps 1,024 kernels, one for each batch size and layer: 300 MiB that take hundreds of steps to fill.
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
            "DO_NOT_TRACK": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


@dataclass(slots=True)
class _Running:
    """A task under way: one request to vLLM for each rollout, so that a straggler does not hide that the others ended."""

    task: RolloutTask
    finished: list[Rollout] = field(default_factory=list)


class Engine:
    """The body of a rollout actor (Ray runs its methods in several threads)."""

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        self._commands: queue.SimpleQueue[tuple[Callable[..., Any], tuple, Future]] = queue.SimpleQueue()
        self._report = EngineReport()
        self._news = threading.Condition()
        self._failure: str | None = None
        self._roused = False
        self._version = -1  # of the weights
        self._tasks: dict[int, _Running] = {}
        self._unheard = 0  # rollouts that ended since the last report
        self._reactions = Reactions()
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

    def collect(self, timeout_s: float) -> EngineReport:
        """What has finished since the last call; waits up to timeout_s for something to report, or for `rouse`."""
        with self._news:
            self._news.wait_for(self._has_news, timeout_s)
            self._raise_failure()
            report, self._report, self._roused, self._unheard = self._report, EngineReport(), False, 0
            return report

    def _has_news(self) -> bool:
        much = self._unheard >= NEWS * self.spec.max_sequences
        return bool(self._report.finished or self._report.refused or self._failure or self._roused or much)

    def rouse(self) -> None:
        """Ends the wait of `collect`, or of its next call."""
        with self._news:
            self._roused = True
            self._news.notify_all()

    @ray.method(concurrency_group="orders")
    def update(self, version: int, weights: FlatWeights, probe: list[int]) -> Proof:
        """Takes new weights; the proof says what it now thinks of the probe's tokens after the first."""
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
        register_transport()
        options: dict[str, Any] = {"dtype": spec.dtype, "weight_transfer_config": {"backend": TRANSPORT}}
        device: dict[str, Any] = {
            "gpu_memory_utilization": spec.gpu_memory_share,
            "tensor_parallel_size": max(1, spec.gpus),
        }
        if spec.overlap:  # a batch that is under way while weights change would be told as sampled by the new ones
            device["async_scheduling"] = False
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
                skip_tokenizer_init=not spec.reads_text,  # tokens in, tokens out
                max_model_len=spec.context_tokens,
                max_num_seqs=spec.max_sequences,
                enforce_eager=spec.eager,
                enable_prefix_caching=True,  # a group shares its prompt, a conversation's turn what came before it
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
            prompt = {"prompt_token_ids": list(task.prompt_tokens), "cache_salt": f"version {self._version}"}
            sampling = task.sampling
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=task.seed + task.first_index,
                stop_token_ids=list(sampling.stop_token_ids),
                stop=list(sampling.stops),
                logprobs=0,  # of the sampled token alone
                flat_logprobs=True,
                detokenize=bool(sampling.stops),  # to look for them; the tokens are what counts
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,  # it is this task's alone: vLLM's deep copy was a third of the time to add a task
            )
            try:
                for i in range(task.rollouts):
                    if i:
                        params = copy.copy(params)
                        params.seed = task.seed + task.first_index + i
                    self._engine.add_request(f"{task.id}/{i}", prompt, params)
            except (
                VLLMClientError,
                ValueError,
            ) as error:  # the prompt's own fault: too long, or a token that does not exist
                with self._news:
                    self._report.refused.append((task.id, str(error)))
                    self._news.notify_all()
            else:
                self._tasks[task.id] = _Running(task)

    def _abort(self, task_ids: list[int]) -> None:
        known = [task_id for task_id in task_ids if task_id in self._tasks]
        self._engine.abort_request([f"{name}/{i}" for name in known for i in range(self._tasks[name].task.rollouts)])
        for task_id in known:
            del self._tasks[task_id]

    def _step(self) -> list[Any]:
        """One step; what was no task's."""
        started = time.monotonic()
        outputs = self._engine.step()
        finished, progress, others, ended = [], {}, [], 0
        for output in outputs:  # FINAL_ONLY: a rollout's output is always its last
            name, _, i = output.request_id.partition("/")
            running = self._tasks.get(int(name)) if i else None
            if running is None:
                others.append(output)
                continue
            ended += 1
            running.finished.append(_rollout(running.task, int(i), output.outputs[0]))
            if len(running.finished) == running.task.rollouts:
                del self._tasks[int(name)]
                finished.append((int(name), sorted(running.finished, key=lambda rollout: rollout.index)))
            else:
                progress[int(name)] = len(running.finished)
        busy_s = time.monotonic() - started

        with self._news:
            self._report.finished += finished
            self._report.progress |= progress
            for task_id, _ in finished:
                self._report.progress.pop(task_id, None)
            self._report.busy_s += busy_s
            self._unheard += ended
            if self._has_news():
                self._news.notify_all()
        return others

    def _update(self, version: int, weights: FlatWeights, probe: list[int]) -> Proof:
        clock = Stopwatch()
        self._load(clock.each("verify", weights.verified()))
        self._engine.set_weight_version(str(version))
        self._version = version
        clock.done("load")
        logprobs = self._ask(probe)
        clock.done("probe")
        if not self._tasks:  # among others in a batch the probe's last bits say nothing
            ignored = self._reactions.ignored(weights, probe, logprobs)
            if ignored:
                logprobs = self._doubt(weights, ignored, probe, logprobs)
                clock.done("doubt")
            self._reactions.remember(weights, probe, logprobs)
        return Proof(logprobs, weights.checksum, clock.seconds)

    def _load(self, tensors: Iterable[tuple[str, Any]]) -> None:
        self._rpc("start_weight_update", {})
        self._rpc("update_weights", {"update_info": {"tensors": tensors}})
        self._rpc("finish_weight_update", {})

    def _doubt(self, weights: FlatWeights, ignored: list[str], probe: list[int], before: np.ndarray) -> np.ndarray:
        """Raises when the engine does not even react to a great change of the tensors whose change it ignored."""
        self._load(exaggerated(weights, ignored).verified())
        if np.array_equal(self._ask(probe), before, equal_nan=True):
            raise RuntimeError(
                f"{len(ignored)} tensors changed, first {ignored[0]}, but what the engine computes did not"
            )
        self._load(weights.verified())
        return self._ask(probe)

    def _rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self._engine.collective_rpc(method, kwargs=kwargs)

    def _ask(self, probe: list[int]) -> np.ndarray:
        """(P - 1,) logprobs of the probe's tokens after the first."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        self._engine.add_request("probe", {"prompt_token_ids": probe, "cache_salt": "probe"}, params)
        answers: list[Any] = []
        while not answers:  # tasks that are under way take part in these steps
            answers = [output for output in self._step() if output.request_id == "probe" and output.finished]
        pairs = zip(probe[1:], answers[0].prompt_logprobs[1:], strict=True)
        return np.array([position[token].logprob for token, position in pairs], dtype=np.float32)


def _rollout(task: RolloutTask, number: int, output: Any) -> Rollout:
    """vLLM's CompletionOutput as the task's rollout of this number, counted from 0."""
    flat = output.logprobs
    return Rollout(
        prompt_id=task.prompt_id,
        index=task.first_index + number,
        tokens=np.array(output.token_ids, dtype=np.int32),
        logprobs=np.array([flat.logprobs[i] for i in flat.start_indices], dtype=np.float32),
        finish_reason=str(output.finish_reason),
        policy_versions=tuple((int(s.version), s.start, s.end) for s in output.weight_versions or ()),
    )


def _vllm_version() -> str:
    import vllm

    return vllm.__version__
