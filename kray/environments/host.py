"""A session host: one process with one live environment and many sessions on one event loop.

Requests come by a socket, see frames.py: first
{name, options, timeout_s, start_timeout_s, memory_gib}; then, by id and in any number at
once,

    {id, op: "ready", prompt}                   wait until sessions of this prompt can be opened
    {id, op: "begin", prompt, seed}             the group's first observation
    {id, op: "open", session, prompt, seed, observation, action, last}
                                                a rollout's first turn; its session must begin with this observation
    {id, op: "step", session, action, last}     a later turn
    {id, op: "finish", session}                 the end of a rollout that the environment would have continued
    {id, op: "close", session}                  the end of a rollout whose reward is not needed

Every request is answered once, by {id, observation, ended, reward, detail} or {id, error}; {ready} or {error} is the first
message. Each call of the environment has timeout_s seconds, "ready" has start_timeout_s; a session that ends, fails or takes
longer is closed. The host exits when the driver closes the socket or dies, and closes its sessions first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Coroutine
from typing import Any

from kray.environments.frames import read_request, reply_frame
from kray.environments.live import LiveEnvironment, Session
from kray.environments.registry import load_environment
from kray.environments.turns import Turn, checked_observation, reward_turn
from kray.rewards.worker import limit_memory
from kray.text import describe

# Seconds to close all sessions and the environment at the end. The driver waits a little longer, then kills the host.
CLOSE_TIMEOUT_S = 3.0
_ERROR_CHARACTERS = 1000


class Sessions:
    """The sessions of a host."""

    def __init__(self, environment: LiveEnvironment, timeout_s: float, start_timeout_s: float):
        """Open nothing.

        Args:
            environment: The environment, started.
            timeout_s: Seconds for each call of a session.
            start_timeout_s: Seconds until the environment must be ready for a session.
        """
        self.environment, self.timeout_s, self.start_timeout_s = environment, timeout_s, start_timeout_s
        self.open: dict[int, Session] = {}
        self._closing: set[asyncio.Task] = set()

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request and return its reply."""
        key = request.get("session")
        try:
            turn = await getattr(self, f"_{request['op']}")(request)
        # SystemExit, too: an environment that calls sys.exit must not end the other sessions.
        except (Exception, SystemExit) as error:
            self.drop(key)
            return {"id": request["id"], "error": _describe(error)}
        if turn.ended:
            self.drop(key)
        return {"id": request["id"], **turn.plain()}

    def drop(self, key: int | None) -> None:
        """Close a session in the background, if it is open."""
        session = self.open.pop(key, None) if key is not None else None
        if session is not None:
            self._closing.add(task := asyncio.create_task(_quietly(session.close())))
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all sessions and the environment."""
        for key in list(self.open):
            self.drop(key)
        if self._closing:
            await asyncio.wait(self._closing, timeout=CLOSE_TIMEOUT_S / 2)
        await self.environment.close()

    async def _ready(self, request: dict[str, Any]) -> Turn:
        await self._limited(self.environment.ready(request["prompt"]), "start", self.start_timeout_s)
        return Turn(b"")

    async def _begin(self, request: dict[str, Any]) -> Turn:
        observation = self.environment.opening(request["prompt"])
        if observation is None:
            # Rollouts have keys from 1 on.
            key = -request["id"]
            self.open[key] = self.environment.session(request["prompt"], request["seed"])
            try:
                observation = await self._limited(self.open[key].reset(), "reset")
            finally:
                self.drop(key)
        return Turn(b"", checked_observation(observation))

    async def _open(self, request: dict[str, Any]) -> Turn:
        session = self.environment.session(request["prompt"], request["seed"])
        self.open[request["session"]] = session
        observation = checked_observation(await self._limited(session.reset(), "reset"))
        if observation != request["observation"]:
            raise ValueError(
                "the environment is not reproducible at reset: with the same prompt and seed a rollout began with "
                f"{str(observation)!r:.200}, its group with {str(request['observation'])!r:.200}"
            )
        return await self._step(request)

    async def _step(self, request: dict[str, Any]) -> Turn:
        session = self._session(request["session"])
        observation, done = await self._limited(session.step(request["action"]), "step")
        if done or request["last"]:
            return await self._finish(request)
        return Turn(b"", checked_observation(observation))

    async def _finish(self, request: dict[str, Any]) -> Turn:
        session = self._session(request["session"])
        return reward_turn(await self._limited(session.reward(), "reward"), self.environment)

    async def _close(self, request: dict[str, Any]) -> Turn:
        return Turn(b"", ended=True)

    def _session(self, key: int) -> Session:
        if key not in self.open:
            raise ValueError("its session has ended")
        return self.open[key]

    async def _limited(self, call: Coroutine[Any, Any, Any], what: str, timeout_s: float | None = None) -> Any:
        """Return what the call returns; TimeoutError after timeout_s, whether or not it can be cancelled."""
        task = asyncio.create_task(call)
        key = "" if timeout_s else " (environment.step_timeout_s)"
        timeout_s = timeout_s or self.timeout_s
        try:
            await asyncio.wait({task}, timeout=timeout_s)
        finally:
            if not task.done():
                task.cancel()
                task.add_done_callback(_retrieve)
        if not task.done():
            raise TimeoutError(f"timeout after {timeout_s:g} s{key} in {what}")
        return task.result()


def _retrieve(task: asyncio.Task) -> None:
    """Take the exception of a call that nobody waits for, which asyncio would log."""
    if not task.cancelled():
        task.exception()


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(Exception):
        await work


def _describe(error: BaseException) -> str:
    text = describe(error, _ERROR_CHARACTERS)
    if isinstance(error, TimeoutError):
        return text.removeprefix("TimeoutError: ")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return text + place


async def _serve(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    threading.Thread(target=_end_with_driver, args=(connection.fileno(),), daemon=True).start()
    setup = await read_request(reader)
    limit_memory(setup["memory_gib"])
    environment: LiveEnvironment | None = None
    sessions: Sessions | None = None
    running: set[asyncio.Task] = set()

    async def reply(request: dict[str, Any]) -> None:
        assert sessions is not None
        writer.write(reply_frame(await sessions.answer(request)))

    try:
        try:
            environment = load_environment(setup["name"])(**setup["options"])
            await environment.start()
        except Exception as error:
            writer.write(reply_frame({"error": _describe(error)}))
            await writer.drain()
            return
        sessions = Sessions(environment, setup["timeout_s"], setup["start_timeout_s"])
        writer.write(reply_frame({"ready": True}))
        while True:
            request = await read_request(reader)
            running.add(task := asyncio.create_task(reply(request)))
            task.add_done_callback(running.discard)
    except (EOFError, ConnectionError):
        pass
    finally:
        for task in running:
            task.cancel()
        with contextlib.suppress(Exception):
            if sessions is not None:
                await asyncio.wait_for(sessions.close(), CLOSE_TIMEOUT_S)
            elif environment is not None:
                await asyncio.wait_for(environment.close(), CLOSE_TIMEOUT_S)


def _end_with_driver(descriptor: int) -> None:
    """Exit when the driver has closed the socket, also where an environment blocks the event loop."""
    watch = select.poll()
    # Hang-up and error are always polled for.
    watch.register(descriptor, getattr(select, "POLLRDHUP", 0))
    watch.poll()
    time.sleep(CLOSE_TIMEOUT_S + 0.5)
    os._exit(1)


def main(descriptor: int) -> None:
    """Serve until the driver closes its end of the socket `descriptor`."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="environment: %(name)s: %(message)s")
    asyncio.run(_serve(socket.socket(fileno=descriptor)))
    sys.stderr.flush()
    # Threads that an environment started must not keep the process running.
    os._exit(0)
