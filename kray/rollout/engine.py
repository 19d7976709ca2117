"""One vLLM engine in one actor. Only this module, vllm_transport.py and kray/serve/policy_api.py import vLLM.

Everything that touches vLLM happens in one thread of this process, which runs commands between two steps of the engine. The
actor's other threads only enqueue commands and collect results, so a long step blocks none of them.

- Rollout i of a group is sampled with the task's seed + i, whatever else is in the batch and however the group was split.
- Weights are replaced between two steps, and the reply to them is a proof (vllm_transport.py). Rollouts that are running
  continue with the new weights and the keys and values that the old ones computed; vLLM reports which version sampled which
  token. Prompts that the prefix cache knows from old weights are not used by later tasks.
- Commands (submit, cancel, update) run one after the other, in the order in which they were given.
- After the first failure of that thread every call fails with that failure: the engine's owner must end the process.
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

from kray.cluster.gpus import require_device
from kray.records import Rollout, RolloutTask
from kray.rollout.bucket_loading import JoinedTransfer, load_buckets
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.outcome import EngineReport
from kray.rollout.stopwatch import Stopwatch
from kray.rollout.vllm_transport import TRANSPORT, register_transport
from kray.weight_sync.buckets import joined
from kray.weight_sync.channel import Feed, TransferBroken
from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.proof import ProbeHistory, Proof, perturbed

# Share of max_sequences: so many ended rollouts are worth a report although no task is finished.
REPORT_SHARE = 0.125


@dataclass(slots=True)
class _RunningTask:
    """A task and its finished rollouts; each rollout is a request of its own to vLLM, so a straggler delays no other."""

    task: RolloutTask
    finished: list[Rollout] = field(default_factory=list)


class Engine:
    """A rollout engine; as an actor, Ray runs its methods in several threads."""

    def __init__(self, spec: EngineSpec):
        """Start loading the model in a thread of its own and return at once."""
        self.spec = spec
        self._commands: queue.SimpleQueue[tuple[Callable[..., Any], tuple, Future]] = queue.SimpleQueue()
        self._report = EngineReport()
        # Guards the report and is notified when there is something to collect.
        self._report_changed = threading.Condition()
        self._failure: str | None = None
        self._woken = False
        # Of the weights that are loaded; -1 for those of the model's folder.
        self._version = -1
        self._tasks: dict[int, _RunningTask] = {}
        # Rollouts that ended since the last report.
        self._unreported = 0
        # Tokens of the step under way.
        self._sampled = 0
        self._probe_history = ProbeHistory()
        self._transfer = JoinedTransfer()
        self._ready: Future = Future()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    # -- called by the pool -------------------------------------------------------------------------------------------

    def start(self) -> dict[str, Any]:
        """Wait until the model is loaded.

        Returns:
            "pid", the process id, "vllm", the version of vLLM, "node", Ray's id of the node, and "gpus", the ids of the GPUs.
        """
        return self._ready.result()

    @ray.method(concurrency_group="commands")
    def submit(self, tasks: list[RolloutTask]) -> None:
        """Add tasks; all tasks of one call enter the same batch, in this order."""
        self._command(self._add, tasks)

    @ray.method(concurrency_group="commands")
    def cancel(self, task_ids: list[int]) -> None:
        """Drop tasks, of which nothing is reported from now on; unknown ids are ignored."""
        self._command(self._abort, task_ids)

    def collect(self, timeout_s: float) -> EngineReport:
        """Return what has finished since the last call.

        Args:
            timeout_s: Longest wait for something to report or for `wake`.

        Raises:
            RuntimeError: The engine has failed.
        """
        with self._report_changed:
            self._report_changed.wait_for(self._has_report, timeout_s)
            self._raise_failure()
            report, self._report, self._woken, self._unreported = self._report, EngineReport(), False, 0
            return report

    def _has_report(self) -> bool:
        many = self._unreported >= REPORT_SHARE * self.spec.max_sequences
        return bool(self._report.finished or self._report.refused or self._failure or self._woken or many)

    def wake(self) -> None:
        """End the wait of the current or the next call of `collect`."""
        with self._report_changed:
            self._woken = True
            self._report_changed.notify_all()

    @ray.method(concurrency_group="commands")
    def update(self, version: int, weights: FlatWeights | list[ray.ObjectRef], probe: list[int]) -> Proof:
        """Load new weights and prove them.

        Args:
            version: The policy version of the weights.
            weights: The weights, or references to buckets of them.
            probe: (P,) token ids to score with them.
        """
        if isinstance(weights, list):
            weights = joined(ray.get(weights))
        return self._command(self._update, version, weights, probe)

    def join(self, feed: Feed) -> None:
        """Join a transfer of weights, which `receive` then loads."""
        self._transfer.join(feed)

    @ray.method(concurrency_group="commands")
    def receive(self, version: int, probe: list[int]) -> Proof | str:
        """Load the weights of the transfer that was joined, while they arrive, and prove them.

        Args:
            version: The policy version of the weights.
            probe: (P,) token ids to score with them.

        Returns:
            The proof; or, where `update` has to load them from the object store, the reason.
        """
        return self._command(self._receive, version, probe)

    def _command(self, function: Callable[..., Any], *args: Any) -> Any:
        self._raise_failure()
        future: Future = Future()
        self._commands.put((function, args, future))
        return future.result()

    def _raise_failure(self) -> None:
        if self._failure:
            raise RuntimeError(f"the engine failed earlier: {self._failure}")

    # -- the engine's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._engine = self._make_engine()
            self._count_tokens()
            place = {"node": ray.get_runtime_context().get_node_id(), "gpus": ray.get_gpu_ids()}
            self._ready.set_result({"pid": os.getpid(), "vllm": _vllm_version(), **place})
            while True:
                self._run_pending_commands()
                self._step()
        except BaseException as error:
            # Reported to every later call; the pool ends this process.
            with self._report_changed:
                self._failure = "".join(traceback.format_exception(error)[-4:]).strip()
                self._report_changed.notify_all()
            if not self._ready.done():
                self._ready.set_exception(error)
            while True:
                function, _, future = self._commands.get()
                future.set_exception(RuntimeError(f"{function.__name__.strip('_')}: {self._failure}"))

    def _run_pending_commands(self) -> None:
        """Run every pending command; without unfinished requests, wait for one."""
        while not self._commands.empty() or not self._engine.has_unfinished_requests():
            function, args, future = self._commands.get()
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
                raise

    def _make_engine(self) -> Any:
        from vllm import EngineArgs, LLMEngine

        require_device(self.spec.gpus)
        register_transport()
        arguments = self.spec.vllm_options() | {"weight_transfer_config": {"backend": TRANSPORT}}
        return LLMEngine.from_engine_args(EngineArgs(**arguments))

    def _count_tokens(self) -> None:
        """Count the tokens of every step: vLLM reports those of ended rollouts alone (FINAL_ONLY)."""
        processor = self._engine.output_processor
        process = processor.process_outputs

        def counted(outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
            self._sampled += sum(len(output.new_token_ids) for output in outputs)
            return process(outputs, *args, **kwargs)

        processor.process_outputs = counted

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
                # Of the sampled token alone.
                logprobs=0,
                flat_logprobs=True,
                # Text is needed only to find the stops.
                detokenize=bool(sampling.stops),
                output_kind=RequestOutputKind.FINAL_ONLY,
                # No one else changes these parameters, and vLLM's deep copy was a third of the time to add a task.
                skip_clone=True,
            )
            try:
                for i in range(task.rollouts):
                    if i:
                        params = copy.copy(params)
                        params.seed = task.seed + task.first_index + i
                    self._engine.add_request(f"{task.id}/{i}", prompt, params)
            except (VLLMClientError, ValueError) as error:
                # The prompt is too long or holds a token that does not exist.
                with self._report_changed:
                    self._report.refused.append((task.id, str(error)))
                    self._report_changed.notify_all()
            else:
                self._tasks[task.id] = _RunningTask(task)

    def _abort(self, task_ids: list[int]) -> None:
        known = [task_id for task_id in task_ids if task_id in self._tasks]
        self._engine.abort_request([f"{name}/{i}" for name in known for i in range(self._tasks[name].task.rollouts)])
        for task_id in known:
            del self._tasks[task_id]

    def _step(self) -> list[Any]:
        """Run one step and return the outputs that belong to no task."""
        started, self._sampled = time.monotonic(), 0
        outputs = self._engine.step()
        finished, progress, others, ended = [], {}, [], 0
        for output in outputs:  # one for each rollout that ended (FINAL_ONLY)
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

        with self._report_changed:
            self._report.finished += finished
            self._report.progress |= progress
            for task_id, _ in finished:
                self._report.progress.pop(task_id, None)
            self._report.busy_s += busy_s
            self._report.sampled += self._sampled
            self._unreported += ended
            if self._has_report():
                self._report_changed.notify_all()
        return others

    def _update(self, version: int, weights: FlatWeights, probe: list[int]) -> Proof:
        clock = Stopwatch()
        self._load(clock.each("verify", weights.verified()))
        logprobs = self._serve_version(version, probe, clock)
        # In a batch with other requests the last bits of the probe's logprobs vary.
        if not self._tasks:
            unchanged = self._probe_history.changed_without_effect(weights, probe, logprobs)
            if unchanged:
                logprobs = self._verify_sensitivity(weights, unchanged, probe, logprobs)
                clock.done("sensitivity")
            self._probe_history.record(weights, probe, logprobs)
        return Proof(logprobs, weights.checksum, clock.seconds)

    def _receive(self, version: int, probe: list[int]) -> Proof | str:
        clock = Stopwatch()
        try:
            weights = FlatWeights(load_buckets(self._rpc, clock.each("wait", self._transfer.buckets())), [])
        except TransferBroken as error:
            return str(error)
        logprobs = self._serve_version(version, probe, clock)
        if not self._tasks:
            if self._probe_history.changed_without_effect(weights, probe, logprobs):
                # `update` finds out which, with all tensors at hand.
                return "the logprobs of the probe are those of the version before"
            self._probe_history.record(weights, probe, logprobs)
        return Proof(logprobs, weights.checksum, clock.seconds)

    def _serve_version(self, version: int, probe: list[int], clock: Stopwatch) -> np.ndarray:
        """Name the version that was loaded and return its logprobs of the probe."""
        self._engine.set_weight_version(str(version))
        self._version = version
        clock.done("load")
        logprobs = self._score_probe(probe)
        clock.done("probe")
        return logprobs

    def _load(self, tensors: Iterable[tuple[str, Any]]) -> None:
        self._rpc("start_weight_update", {})
        self._rpc("update_weights", {"update_info": {"tensors": tensors}})
        self._rpc("finish_weight_update", {})

    def _verify_sensitivity(
        self, weights: FlatWeights, names: list[str], probe: list[int], before: np.ndarray
    ) -> np.ndarray:
        """Raise RuntimeError when even a large change of the named tensors does not change the probe's logprobs."""
        self._load(perturbed(weights, names).verified())
        if np.array_equal(self._score_probe(probe), before, equal_nan=True):
            raise RuntimeError(f"{len(names)} tensors changed, first {names[0]}, but the engine's logprobs did not")
        self._load(weights.verified())
        return self._score_probe(probe)

    def _rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self._engine.collective_rpc(method, kwargs=kwargs)

    def _score_probe(self, probe: list[int]) -> np.ndarray:
        """Return the (P - 1,) float32 logprobs of the probe's tokens after the first."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        self._engine.add_request("probe", {"prompt_token_ids": probe, "cache_salt": "probe"}, params)
        found: list[Any] = []
        while not found:  # running tasks take part in these steps
            found = [output for output in self._step() if output.request_id == "probe" and output.finished]
        pairs = zip(probe[1:], found[0].prompt_logprobs[1:], strict=True)
        return np.array([position[token].logprob for token, position in pairs], dtype=np.float32)


def _rollout(task: RolloutTask, number: int, output: Any) -> Rollout:
    """Convert vLLM's CompletionOutput to the task's rollout of this number, counted from 0."""
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


# The actor class; commands have a thread of their own, so that they run in order and block no report.
EngineActor: Any = ray.remote(concurrency_groups={"commands": 1})(Engine)  # type: ignore[call-overload]
