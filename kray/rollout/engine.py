"""One vLLM engine in one actor. Only this module, its neighbours vllm_*.py and kray/serve/policy_api.py import vLLM.

Everything that touches vLLM happens in one thread of this process, which runs commands between two steps of the engine. The
actor's other threads only enqueue commands and collect results, so a long step blocks none of them. The model is in this
process, or divided among processes that vLLM starts beside it, which end when this one does.

- Rollout i of a group is sampled with the task's seed + i, whatever else is in the batch and however the group was split.
- Weights are replaced between two steps, and the reply to them is a proof (vllm_transport.py). Rollouts that are running
  continue with the new weights and the keys and values that the old ones computed; vLLM reports which version sampled which
  token. Prompts that the prefix cache knows from old weights are not used by later tasks.
- Commands (submit, cancel, update) run one after the other, in the order in which they were given.
- After the first failure of that thread, or the end of one of vLLM's processes, every call fails with that failure: the
  engine's owner must end the process.
"""

from __future__ import annotations

import copy
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

import numpy as np
import ray

from kray.cluster.gpus import require_device
from kray.cluster.process_identity import this_process
from kray.records import Rollout, RolloutTask
from kray.rollout.engine_spec import EngineSpec
from kray.rollout.outcome import EngineReport, rollout_of
from kray.rollout.stopwatch import Stopwatch
from kray.rollout.vllm_adapters import adapter_request, load_adapters, perturbed_adapters
from kray.weight_sync.flat_weights import FlatWeights
from kray.weight_sync.proof import ProbeHistory, Proof, perturbed
from kray.weight_sync.shared_buckets import SharedBuckets

# Share of max_sequences: so many ended rollouts are worth a report although no task is finished.
REPORT_SHARE = 0.125
# Seconds between two checks, while a command is waited for, whether the engine has failed.
FAILURE_POLL_S = 1.0


@dataclass(slots=True)
class _RunningTask:
    """A task and its finished rollouts; each rollout is a request of its own to vLLM, so a straggler delays no other."""

    task: RolloutTask
    finished: list[Rollout] = field(default_factory=list)


class Engine:
    """A rollout engine; as an actor, Ray runs its methods in several threads."""

    def __init__(self, spec: EngineSpec, waits: bool = False):
        """Start loading the model in a thread of its own and return at once.

        Args:
            spec: Settings of the engine.
            waits: Import vLLM alone, and load the model when `begin` is called.
        """
        self.spec = spec
        self._begun = threading.Event()
        if not waits:
            self._begun.set()
        self._commands: queue.SimpleQueue[tuple[Callable[..., Any], tuple, Future]] = queue.SimpleQueue()
        self._report = EngineReport()
        # Guards the report and is notified when there is something to collect.
        self._report_changed = threading.Condition()
        self._failure: str | None = None
        self._woken = False
        # Of the weights that are loaded; -1 for those of the model's folder.
        self._version = -1
        # Names the adapters to vLLM; None before any were loaded, and where weights come whole.
        self._adapters: Any = None
        self._tasks: dict[int, _RunningTask] = {}
        # Rollouts that ended since the last report.
        self._unreported = 0
        # Tokens of the step under way.
        self._sampled = 0
        self._probe_history = ProbeHistory()
        self._buckets = SharedBuckets(spec.bucket_bytes) if spec.parts > 1 else None
        self._ready: Future = Future()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    # -- called by the pool -------------------------------------------------------------------------------------------

    def start(self) -> dict[str, Any]:
        """Wait until the model is loaded.

        Returns:
            "pid", the process id, "process", what identifies the process, and "vllm", the version of vLLM.
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

    def begin(self) -> None:
        """Load the model, where the engine was told to wait."""
        self._begun.set()

    def ping(self) -> None:
        """Answer at once, also while the engine computes or loads weights; a stopped process does not."""

    def wake(self) -> None:
        """End the wait of the current or the next call of `collect`."""
        with self._report_changed:
            self._woken = True
            self._report_changed.notify_all()

    @ray.method(concurrency_group="commands")
    def update(self, version: int, weights: FlatWeights, probe: list[int]) -> Proof:
        """Load new weights and prove them.

        Args:
            version: The policy version of the weights.
            weights: The weights.
            probe: (P,) token ids to score with them.
        """
        return self._command(self._update, version, weights, probe)

    def _command(self, function: Callable[..., Any], *args: Any) -> Any:
        self._raise_failure()
        future: Future = Future()
        self._commands.put((function, args, future))
        while not wait([future], FAILURE_POLL_S).done:
            self._raise_failure()
        return future.result()

    def _raise_failure(self) -> None:
        if self._failure:
            raise RuntimeError(f"the engine failed earlier: {self._failure}")

    def _fail(self, reason: str) -> None:
        """Report a failure to every later call, unless there was another before; the pool ends this process."""
        with self._report_changed:
            self._failure = self._failure or reason
            self._report_changed.notify_all()

    # -- the engine's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._engine = self._make_engine()
            self._watch_processes()
            self._count_tokens()
            self._ready.set_result({"pid": os.getpid(), "process": this_process(), "vllm": _vllm_version()})
            while True:
                self._run_pending_commands()
                self._step()
        except BaseException as error:
            self._fail("".join(traceback.format_exception(error)[-4:]).strip())
            if not self._ready.done():
                self._ready.set_exception(error)
            while True:
                function, _, future = self._commands.get()
                future.set_exception(RuntimeError(f"{function.__name__.strip('_')}: {self._failure}"))

    def _may_step(self) -> bool:
        return self._engine.has_unfinished_requests()

    def _run_pending_commands(self) -> None:
        """Run every pending command; where there is nothing to compute, wait for one."""
        while not self._commands.empty() or not self._may_step():
            function, args, future = self._commands.get()
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
                raise

    def _make_engine(self) -> Any:
        from vllm import EngineArgs, LLMEngine

        self._begun.wait()
        require_device(self.spec.gpus)
        return LLMEngine.from_engine_args(EngineArgs(**self.spec.vllm_options()))

    def _watch_processes(self) -> None:
        """Watch vLLM's processes: without one of them a step may never end."""
        if self.spec.parts == 1:
            return
        processes = {worker.proc.sentinel: worker.proc for worker in self._engine.model_executor.workers}

        def watch() -> None:
            ended = processes[connection.wait(list(processes))[0]]
            self._fail(f"vLLM's process {ended.name} (pid {ended.pid}) ended")

        threading.Thread(target=watch, name="watch", daemon=True).start()

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
                    self._engine.add_request(f"{task.id}/{i}", prompt, params, lora_request=self._adapters)
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
            running.finished.append(rollout_of(running.task, int(i), output.outputs[0]))
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
        start, clock = self._start_logprobs(probe), Stopwatch()
        self._load(weights, clock)
        logprobs = self._serve_version(version, probe, clock)
        # In a batch with other requests the last bits of the probe's logprobs vary.
        if not self._tasks:
            unchanged = self._probe_history.changed_without_effect(weights, probe, logprobs)
            if unchanged:
                logprobs = self._verify_sensitivity(weights, unchanged, probe, logprobs)
                clock.done("sensitivity")
            self._probe_history.record(weights, probe, logprobs)
        return Proof(logprobs, weights.checksum, clock.seconds, start)

    def _start_logprobs(self, probe: list[int]) -> np.ndarray | None:
        """Return the probe's logprobs with the weights of the model's folder, which the learner has read as well."""
        return None if self._version >= 0 or self._tasks else self._score_probe(probe)

    def _serve_version(self, version: int, probe: list[int], clock: Stopwatch) -> np.ndarray:
        """Name the version that was loaded and return its logprobs of the probe."""
        self._engine.set_weight_version(str(version))
        self._version = version
        clock.done("load")
        self._loaded(clock)
        logprobs = self._score_probe(probe)
        clock.done("probe")
        return logprobs

    def _loaded(self, clock: Stopwatch) -> None:
        """Do what is due between new weights and their proof; see sleeping_engine.py."""

    def _load(self, weights: FlatWeights, clock: Stopwatch) -> None:
        if self.spec.adapters is not None:
            load_adapters(self._engine, self.spec.adapters, clock.each("verify", weights.verified()))
            self._adapters = adapter_request()
            return
        self._rpc("start_weight_update", {})
        for tensors in self._for_vllm(weights, clock):
            self._rpc("update_weights", {"update_info": {"tensors": tensors}})
        self._rpc("finish_weight_update", {})

    def _for_vllm(self, weights: FlatWeights, clock: Stopwatch) -> Iterable[Iterable[tuple[str, Any]]]:
        """Yield the (name, tensor) pairs in as many portions as vLLM gets them in; each is verified while it is read."""
        if self._buckets is None:
            return [clock.each("verify", weights.verified())]
        return clock.each("copy", self._buckets.fill(weights))

    def _verify_sensitivity(
        self, weights: FlatWeights, names: list[str], probe: list[int], before: np.ndarray
    ) -> np.ndarray:
        """Raise RuntimeError when even a large change of the named tensors does not change the probe's logprobs."""
        changed = perturbed(weights, names) if self.spec.adapters is None else perturbed_adapters(weights)
        self._load(changed, Stopwatch())
        if np.array_equal(self._score_probe(probe), before, equal_nan=True):
            raise RuntimeError(f"{len(names)} tensors changed, first {names[0]}, but the engine's logprobs did not")
        self._load(weights, Stopwatch())
        return self._score_probe(probe)

    def _rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self._engine.collective_rpc(method, kwargs=kwargs)

    def _score_probe(self, probe: list[int]) -> np.ndarray:
        """Return the (P - 1,) float32 logprobs of the probe's tokens after the first."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        prompt = {"prompt_token_ids": probe, "cache_salt": "probe"}
        self._engine.add_request("probe", prompt, params, lora_request=self._adapters)
        found: list[Any] = []
        while not found:  # running tasks take part in these steps
            found = [output for output in self._step() if output.request_id == "probe" and output.finished]
        pairs = zip(probe[1:], found[0].prompt_logprobs[1:], strict=True)
        return np.array([position[token].logprob for token, position in pairs], dtype=np.float32)


def _vllm_version() -> str:
    import vllm

    return vllm.__version__
