"""Environments of the verifiers library: its tasksets, tools, environments and rewards, with turns of kray's policy.

An episode runs as in verifiers, as one task on the session host's event loop. Its model calls come to a chat API in this
process (model_endpoint.py): what is new in a call is the observation that the policy reads, its answer is the policy's next
turn, so that nothing that was sampled is encoded again. The prompts are those of a source of kind verifiers, which says in
each prompt's metadata which task of which taskset it is.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kray.environments.interface import Observation
from kray.environments.live import checked_range, mapped_reward
from kray.environments.model_endpoint import Call, ModelEndpoint
from kray.environments.transcript import Transcript
from kray.records import Prompt
from kray.rewards.verifiers import Reward

logger = logging.getLogger(__name__)

# Environment variable of the host through which verifiers reads the key of the chat API.
_KEY_VARIABLE = "KRAY_MODEL_ENDPOINT_KEY"
# Harnesses in whose place kray's own is used unless the configuration names one.
_GENERAL_HARNESSES = ("bash", "null")


class Verifiers:
    """Environments of verifiers."""

    stops: tuple[str, ...] = ()

    def __init__(
        self,
        id: str = "",
        env: Mapping[str, Any] | None = None,
        role: str = "",
        reward_range: Sequence[float] = (0.0, 1.0),
    ):
        """Read the options.

        Args:
            id: Environment that plays the tasks, as verifiers' env.id; "": the taskset's own, else single turns with tools.
            env: Further fields of its configuration, such as {judge: {model: ..., client: {base_url: ...}}}.
            role: The role that the policy plays; "": the only one that has no model of its own in `env`.
            reward_range: Lowest and highest reward, which become 0 and 1.

        Raises:
            ValueError: An option is invalid.
        """
        self.id, self.config, self.role = id, dict(env or {}), role
        if named := {"id", "taskset"} & set(self.config):
            raise ValueError(f"env.{min(named)}: the environment is options.id, the taskset that of the prompts")
        self.low, self.high = checked_range(reward_range)
        self.endpoint = ModelEndpoint()
        self._served: dict[str, ServedEnvironment] = {}

    def check(self) -> None:
        """Refuse to run without the package."""
        if importlib.util.find_spec("verifiers") is None:
            raise ValueError('verifiers is not installed: pip install "kray[verifiers]"')

    async def start(self) -> None:
        """Import verifiers and start the chat API."""
        from kray.environments.verifiers_harness import register

        register()
        # Model calls that end a conversation are logged as failures, once for each.
        logging.getLogger("verifiers").setLevel(logging.ERROR)
        await self.endpoint.start()
        os.environ[_KEY_VARIABLE] = self.endpoint.key

    async def ready(self, prompt: Prompt) -> None:
        """Load the prompt's taskset and start the tool servers that its tasks share."""
        await self.served(prompt).ready()

    def opening(self, prompt: Prompt) -> Observation | None:
        """Return "": an episode of one agent begins with the prompt. Others may add to it."""
        return "" if self.served(prompt).begins_with_prompt else None

    def session(self, prompt: Prompt, seed: int) -> VerifiersSession:
        """Return a session that has not been opened. The seed is not used: tasks of verifiers have none."""
        return VerifiersSession(self, prompt)

    async def close(self) -> None:
        """End tool servers and the chat API."""
        await asyncio.gather(*(served.close() for served in self._served.values()), return_exceptions=True)
        await self.endpoint.close()

    def served(self, prompt: Prompt) -> ServedEnvironment:
        """Return the environment of a prompt's taskset.

        Raises:
            ValueError: The prompt is no task of verifiers, or its environment cannot be created.
        """
        task = prompt.metadata.get("verifiers")
        if not task:
            raise ValueError(f"prompt {prompt.id} is no task of verifiers: prompts.train.kind must be verifiers")
        key = json.dumps([task["taskset"], task["config"]], sort_keys=True)
        if key not in self._served:
            self._served[key] = ServedEnvironment(self._configured(task["taskset"], task["config"]), self.role)
        return self._served[key]

    def _configured(self, taskset: str, config: Mapping[str, Any]) -> Any:
        """Return the configuration of an environment, with kray's harness and processes of this machine by default."""
        from verifiers.v1.configs.agent import agent_config_fields
        from verifiers.v1.configs.env import default_agent_harness
        from verifiers.v1.utils.loaders import env_config_type, resolve_env_config

        from kray.environments.verifiers_harness import HARNESS

        raw: dict[str, Any] = {"id": self.id, "taskset": {"id": taskset, **config}, **self.config}
        for name, agent in agent_config_fields(env_config_type(taskset, self.id)()).items():
            given = dict(raw.get(name) or {})
            usual = (agent.harness or default_agent_harness(taskset)).id
            if usual in _GENERAL_HARNESSES:
                given.setdefault("harness", {"id": HARNESS})
            given.setdefault("runtime", {"type": "subprocess"})
            raw[name] = given
        return resolve_env_config(raw)


class ServedEnvironment:
    """An environment of verifiers over one taskset, with its tasks.

    Attributes:
        env: verifiers' environment.
        role: The role that the policy plays.
        begins_with_prompt: Whether the policy reads the prompt and nothing else at first.
    """

    def __init__(self, config: Any, role: str):
        """Create the environment; nothing is started.

        Args:
            config: Its configuration.
            role: The role that the policy plays; "": the only one without a model of its own.

        Raises:
            ValueError: It has several such roles.
        """
        from verifiers.v1.configs.agent import agent_config_fields
        from verifiers.v1.envs.single_agent import SingleAgentEnv
        from verifiers.v1.utils.loaders import load_environment

        self.env: Any = load_environment(config)
        open_roles = [
            name for name, agent in agent_config_fields(self.env.config).items() if not (agent.client and agent.model)
        ]
        if role not in ("", *open_roles) or (not role and len(open_roles) != 1) or len(open_roles) > 1:
            raise ValueError(
                f"the roles without model and client are {open_roles}: the policy plays one; give the others both in "
                f"environment.options.env, as in {{{open_roles[-1] if open_roles else 'judge'}: {{model: ..., client: "
                "{base_url: ...}}}"
            )
        self.role = open_roles[0]
        self.begins_with_prompt = type(self.env) is SingleAgentEnv
        self._tasks: list[Any] = []
        self._rest: Any = None
        self._loading = asyncio.Lock()
        self._serving: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None

    async def ready(self) -> None:
        """Start what all episodes share. Whoever waits may be cancelled: the start goes on for the others."""
        if self._serving is None or (self._serving.done() and not self._serving.cancelled()):
            self._started = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(self._started))
        assert self._started is not None
        await asyncio.shield(self._started)

    async def close(self) -> None:
        """End what all episodes share."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    async def task(self, prompt: Prompt) -> Any:
        """Return a prompt's task.

        Raises:
            ValueError: The taskset has another task in its place.
        """
        wanted = prompt.metadata["verifiers"]
        async with self._loading:
            if len(self._tasks) <= wanted["idx"]:
                await asyncio.to_thread(self._load, wanted["idx"] + 1)
        task = self._tasks[wanted["idx"]] if wanted["idx"] < len(self._tasks) else None
        if task is None or task.key != wanted["key"]:
            raise ValueError(
                f"taskset {wanted['taskset']} has another task {wanted['idx']} than when the prompts were loaded: it must give "
                "the same tasks each time"
            )
        return task

    def _load(self, count: int) -> None:
        """Load the first tasks, in a thread; tasksets may be long or without an end."""
        if self._rest is None:
            self._rest = iter(self.env.taskset)
        self._tasks += itertools.islice(self._rest, count - len(self._tasks))

    async def _serve(self, started: asyncio.Future[None]) -> None:
        try:
            async with self.env.serving():
                started.set_result(None)
                await asyncio.Event().wait()
        except Exception as error:
            if not started.done():
                started.set_exception(error)
        finally:
            started.cancel()


class VerifiersSession:
    """One rollout: one episode, whose model calls are the policy's turns."""

    def __init__(self, environment: Verifiers, prompt: Prompt):
        self.environment, self.prompt = environment, prompt
        self.served = environment.served(prompt)
        self.transcript = Transcript(prompt.metadata["verifiers"]["messages"])
        self._calls: asyncio.Queue[Call] = asyncio.Queue()
        self._call: Call | None = None
        self._episode: asyncio.Task[Any] | None = None
        self._traces: list[str] = []

    async def reset(self) -> Observation:
        """Start the episode and wait for its first model call."""
        from verifiers.v1.clients import EvalClientConfig, ModelContext

        endpoint = self.environment.endpoint
        context = ModelContext(
            model="policy", client=EvalClientConfig(base_url=endpoint.url, api_key_var=_KEY_VARIABLE)
        )
        task = await self.served.task(self.prompt)
        self._episode = asyncio.create_task(self.served.env.run_episode(task, context, on_trace=self._register))
        observation = await self._next()
        if observation is None:
            self._judge()
            raise ValueError("the episode ended without a turn of the policy")
        return self._read(observation)

    async def step(self, action: str) -> tuple[Observation, bool]:
        """Answer the model call with the policy's turn and wait for the next one, or for the end of the episode."""
        assert self._call is not None
        self._call.answer(self.transcript.answer(action, self._call.tools))
        self._call = None
        observation = await self._next()
        return ("", True) if observation is None else (self._read(observation), False)

    async def reward(self) -> Reward:
        """Return the reward that the environment gave; an episode that would go on ends as one without room for more."""
        assert self._episode is not None
        while not self._episode.done():
            if self._call is not None:
                self._call.answer(None)
                self._call = None
            await self._next(read=False)
        return self._judge()

    async def close(self) -> None:
        """End the episode."""
        for trace in self._traces:
            self.environment.endpoint.forget(trace)
        if self._episode is not None and not self._episode.done():
            self._episode.cancel()
            await asyncio.gather(self._episode, return_exceptions=True)

    def _register(self, trace: Any) -> None:
        self._traces.append(trace.id)
        self.environment.endpoint.register(trace.id, self._calls)

    def _read(self, observation: tuple[dict[str, str], ...]) -> Observation:
        """Return new messages as the policy reads them: as messages after a prompt of messages, else as text."""
        if self.prompt.messages is not None and observation:
            return observation
        return "\n\n".join(message["content"] for message in observation)

    async def _next(self, read: bool = True) -> tuple[dict[str, str], ...] | None:
        """Return what is new to the policy in the next model call; None when the episode has ended."""
        assert self._episode is not None
        asking = asyncio.create_task(self._calls.get())
        try:
            await asyncio.wait({asking, self._episode}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return None
            self._call = asking.result()
        finally:
            asking.cancel()
        return self.transcript.advance(self._call.messages) if read else ()

    def _judge(self) -> Reward:
        """Return the episode's reward.

        Raises:
            ValueError: The episode failed, or the policy's role did not run exactly once.
        """
        assert self._episode is not None
        episode = self._episode.result()
        if not episode.ok:
            errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
            raise ValueError(f"the episode failed: {errors[-1].type}: {errors[-1].message}" if errors else "it failed")
        traces = [trace for trace in episode.traces if trace.agent.name in (None, "", self.served.role)]
        if len(traces) != 1:
            raise ValueError(
                f"the policy's role ran {len(traces)} times in the episode; kray trains on one conversation"
            )
        given = {name: reward.value for name, reward in traces[0].rewards.items() if reward is not None}
        value = mapped_reward(float(traces[0].reward), self.environment.low, self.environment.high)
        return Reward(value, ", ".join(f"{name} {number:g}" for name, number in given.items()))
