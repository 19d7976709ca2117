"""Session hosts as the driver sees them: where sessions are opened, which host has which, and what a lost host costs.

Invariants
- Every requested turn gets exactly one result, in the order given: a Turn, or a text with the reason why there is none.
- Every wait has a deadline. A host that exits, or does not answer in time, is killed with all that it started, and replaced
  when it is next needed; its sessions are lost, those of other hosts are not.
- A rollout's state is an Opening before its first turn, then a Session. Nothing that a host sent is in either but the text of
  the first observation.

For one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kray.config.schema import EnvironmentConfig
from kray.environments.host_process import HostError, HostProcess
from kray.environments.registry import path_of
from kray.environments.turns import PlainObservation, Turn
from kray.errors import KrayError
from kray.records import Prompt

logger = logging.getLogger(__name__)

_START_ATTEMPTS = 3
# A group's first observation is asked for again when its host is lost: nothing of a rollout is lost with it.
_BEGIN_ATTEMPTS = 2
# Requests at one host at once. More would share its event loop and exceed their deadlines together.
_CONCURRENT = 64
# Calls of the environment in one request: reset, step and reward.
_CALLS = 3
# Seconds beyond the deadlines that a host keeps itself, after which it is taken for hung.
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Opening:
    """What the sessions of a group's rollouts open with.

    Attributes:
        prompt: The prompt.
        seed: Of the group.
        observation: What the environment said first.
    """

    prompt: Prompt
    seed: int
    observation: PlainObservation


@dataclass(frozen=True, slots=True)
class Session:
    """A session that has begun.

    Attributes:
        host: Number of its host.
        key: Its number there.
    """

    host: int
    key: int


class _Slot:
    """A place for a host.

    Attributes:
        host: The newest host; None before the first.
        starting: Held while a host starts.
        room: Limits the requests at once.
        broken: Why no host can be started, for those who waited for it meanwhile.
    """

    def __init__(self) -> None:
        self.host: HostProcess | None = None
        self.starting = asyncio.Lock()
        self.room = asyncio.Semaphore(_CONCURRENT)
        self.broken = ""


class SessionHosts:
    """The session hosts of a run; they start when first needed."""

    def __init__(self, environment: EnvironmentConfig, memory_gib: float, start_timeout_s: float):
        """Start nothing.

        Args:
            environment: The run's environment, a live one.
            memory_gib: Memory limit of one host in GiB; 0: none.
            start_timeout_s: Seconds for a host to start its environment.
        """
        self.environment, self.start_timeout_s = environment, start_timeout_s
        self._setup = {
            "name": path_of(environment.name),
            "options": dict(environment.options),
            "timeout_s": environment.step_timeout_s,
            "start_timeout_s": start_timeout_s,
            "memory_gib": memory_gib,
        }
        self._deadline_s = _CALLS * environment.step_timeout_s + _GRACE_S
        self._slots: list[_Slot] = []
        self._hosts: dict[int, HostProcess] = {}
        self._numbers, self._keys, self._turns = itertools.count(1), itertools.count(1), itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def begin(self, starts: Sequence[tuple[Prompt, int]]) -> list[Turn | str]:
        """Return the first observation of each group, with the state from which its rollouts open their sessions."""
        return await asyncio.gather(*(self._begin(prompt, seed) for prompt, seed in starts))

    async def step(self, moves: Sequence[tuple[Any, str, bool]]) -> list[Turn | str]:
        """Pass turns of the policy to their sessions, which open with the first turn."""
        return await asyncio.gather(*(self._step(*move) for move in moves))

    async def finish(self, states: Sequence[Any]) -> list[Turn | str]:
        """End rollouts that their environment would have continued."""
        return await asyncio.gather(*(self._resume(state, {"op": "finish"}) for state in states))

    def release(self, states: Sequence[Any]) -> None:
        """Close the sessions of rollouts whose reward is not needed, without waiting."""
        for state in states:
            if isinstance(state, Session) and (host := self._hosts.get(state.host)) is not None:
                host.notify({"op": "close", "session": state.key})

    def close(self) -> None:
        """End the hosts; pending requests fail. Can be called twice, and from any thread."""
        self._closed = True
        hosts, self._hosts = list(self._hosts.values()), {}
        # All are told before any is waited for.
        for host in hosts:
            host.hang_up()
        for host in hosts:
            host.stop()

    async def _begin(self, prompt: Prompt, seed: int) -> Turn | str:
        reason = ""
        for _ in range(_BEGIN_ATTEMPTS):
            try:
                _, turn = await self._request({"op": "begin", "prompt": prompt, "seed": seed})
            except HostError as error:
                reason = str(error)
                continue
            if isinstance(turn, str):
                return turn
            return Turn(Opening(prompt, seed, turn.observation), turn.observation)
        return reason

    async def _step(self, state: Opening | Session, action: str, last: bool) -> Turn | str:
        if isinstance(state, Session):
            return await self._resume(state, {"op": "step", "action": action, "last": last})
        key = next(self._keys)
        start = {"prompt": state.prompt, "seed": state.seed, "observation": state.observation}
        try:
            host, turn = await self._request({"op": "open", "session": key, **start, "action": action, "last": last})
        except HostError as error:
            return str(error)
        return turn if isinstance(turn, str) else _with_state(turn, Session(host, key))

    async def _resume(self, state: Opening | Session, request: dict[str, Any]) -> Turn | str:
        """Send a request to the session that a state names."""
        assert isinstance(state, Session), "a rollout ends after its first turn at the earliest"
        if (host := self._hosts.get(state.host)) is None:
            return "the host of its session was lost"
        try:
            _, turn = await self._request({**request, "session": state.key}, host)
        except HostError as error:
            return str(error)
        return turn if isinstance(turn, str) else _with_state(turn, state)

    async def _request(self, request: dict[str, Any], host: HostProcess | None = None) -> tuple[int, Turn | str]:
        """Send a request to a host.

        Args:
            request: See host.py; its id is added.
            host: The host; None: the next, which is started if need be.

        Returns:
            The host's number and its reply: a turn, or why there is none.

        Raises:
            HostError: The host was lost, or did not answer in time and was killed.
            KrayError: No host can be started, or the hosts are closed.
        """
        self._open()
        slot = self._slots[next(self._turns) % len(self._slots)] if host is None else self._slots[host.slot]
        async with slot.room:
            if host is None:
                host = await self._started(slot)
            try:
                if request["op"] in ("begin", "open"):
                    ready = {"op": "ready", "prompt": request["prompt"]}
                    reply = await host.request(ready, self.start_timeout_s + _GRACE_S)
                    if "error" in reply:
                        return host.number, str(reply["error"])
                reply = await host.request(request, self._deadline_s)
            except asyncio.CancelledError:
                if "session" in request:
                    host.notify({"op": "close", "session": request["session"]})
                raise
            except HostError:
                self._hosts.pop(host.number, None)
                if self._closed:
                    raise KrayError("environment: its hosts were closed") from None
                raise
        if "error" in reply:
            return host.number, str(reply["error"])
        try:
            return host.number, Turn.read(reply)
        except (ValueError, KeyError, TypeError) as error:
            return host.number, f"its process returned no turn: {type(error).__name__}: {error}"

    def _open(self) -> None:
        if self._closed:
            raise KrayError("environment: its hosts are closed")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            for host in self._hosts.values():
                host.stop()
            self._hosts.clear()
            self._loop, self._slots = loop, [_Slot() for _ in range(self.environment.workers)]

    async def _started(self, slot: _Slot) -> HostProcess:
        """Return the slot's host, started if there is none."""
        async with slot.starting:
            if slot.host is not None and slot.host.number in self._hosts and not slot.host.lost:
                return slot.host
            if slot.broken:
                raise KrayError(slot.broken)
            reason = ""
            for _ in range(_START_ATTEMPTS):
                host = HostProcess.spawn(next(self._numbers), self._slots.index(slot))
                self._hosts[host.number] = slot.host = host
                try:
                    await host.start(self._setup, self.start_timeout_s)
                    return host
                except HostError as error:
                    reason = str(error)
                    logger.warning(f"environment: a session host did not start: {reason}")
                except BaseException:
                    self._hosts.pop(host.number, None)
                    host.kill()
                    raise
                self._hosts.pop(host.number, None)
                if self._closed:
                    break
            slot.broken = f"environment: no session host could be started in {_START_ATTEMPTS} attempts: {reason}"
            raise KrayError(slot.broken)


def _with_state(turn: Turn, state: Session) -> Turn:
    """Return a turn with the state that its session has here, whatever its host sent as one."""
    return replace(turn, state=b"") if turn.ended else Turn(state, turn.observation)
