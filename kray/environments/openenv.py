"""Environments behind an OpenEnv server: reset, step and state as JSON messages of one WebSocket a session.

The messages are those of openenv 0.10 (openenv.core.env_server.types). The client is kray's own: openenv's opens a new
session, without a reset, when its connection is lost, and its package needs other versions of packages that vLLM needs.
The server runs where it is, given by its address, or is started on this machine, by another Python if need be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from kray.environments.interface import Observation
from kray.environments.live import checked_range, mapped_reward
from kray.environments.local_server import LocalServer
from kray.environments.openenv_text import ActionError, ActionReader, check_shown, observation_text
from kray.records import Prompt
from kray.rewards.verifiers import Reward

logger = logging.getLogger(__name__)

# Seconds for a server to answer a question about its health or schema.
_HEALTH_TIMEOUT_S = 5.0
# Seconds between attempts to open a session at a server that has no room for another.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_UVICORN = ("--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning")
_MAX_MESSAGE_BYTES = 100 * 2**20


class OpenEnv:
    """Environments behind an OpenEnv server.

    A turn that is no action is answered with the reason, "error: ...", and the conversation goes on.
    """

    stops: tuple[str, ...] = ()

    def __init__(
        self,
        url: str = "",
        app: str = "",
        command: str = "",
        python: str = "",
        folder: str = "",
        start_timeout_s: float = 45.0,
        key_env: str = "",
        reset: Mapping[str, Any] | None = None,
        arguments: Mapping[str, str] | None = None,
        action: str = "auto",
        action_fields: Mapping[str, Any] | None = None,
        pattern: str = "",
        observation: str = "",
        role: str = "user",
        reward: str = "sum",
        reward_range: Sequence[float] = (0.0, 1.0),
    ):
        """Read the options; exactly one of url, app and command is needed.

        Args:
            url: Address of a server that runs, http://... or https://...
            app: pkg.module:app of a server to start with uvicorn on 127.0.0.1, one for each environment process.
            command: Command of a server to start, with {port} for its port.
            python: Python interpreter for `app`, which then gets no PYTHONPATH; "": kray's own.
            folder: Folder from which the server is started and its modules are imported.
            start_timeout_s: Seconds for a started server to answer.
            key_env: Environment variable with a key that the server of `url` asks for, sent as a bearer token.
            reset: Arguments of every reset. The fields of a prompt's answer that is a JSON object are arguments as well, and
                go before these. `seed` is the group's unless it is given.
            arguments: Arguments from the prompt: name -> id, text or answer.
            action: How a turn becomes an action. A field's name: the text goes there, as the field's type. json: the turn
                is a JSON object. auto: the only field that an action must have, else json.
            action_fields: Further fields of every action.
            pattern: Regular expression whose group 1 is the action, at its last match in the turn.
            observation: Field that the policy reads, or a text with {field} in it. "": the only field, or all as JSON.
            role: Role of the chat message with an observation; "": it is appended to the policy's text.
            reward: What the rewards of the steps come to: sum, last, state.FIELD (of the state at the end), or verifier
                (the prompt's verifier judges the last turn).
            reward_range: Lowest and highest reward, which become 0 and 1.

        Raises:
            ValueError: An option is invalid.
        """
        _check_options(url, app, command, reward, start_timeout_s, arguments or {})
        self.url, self.key_env, self.folder, self.start_timeout_s = url.rstrip("/"), key_env, folder, start_timeout_s
        self.own_python = bool(python)
        uvicorn = [python or sys.executable, "-m", "uvicorn", app, *_UVICORN]
        self.command = [] if url else uvicorn if app else shlex.split(command)
        check_shown(observation)
        self.resets, self.arguments = dict(reset or {}), dict(arguments or {})
        self.reader = ActionReader(action, action_fields or {}, pattern)
        self.shown, self.role, self.rewarded = observation, role, reward
        self.low, self.high = checked_range(reward_range)
        self.field = self.kind = ""
        self._server: LocalServer | None = None
        self._http: aiohttp.ClientSession | None = None
        self._suspicion: asyncio.Task | None = None
        self._warned = False

    def check(self) -> None:
        """Refuse a folder that does not exist and a program that cannot be found."""
        import shutil

        if self.folder and not os.path.isdir(self.folder):
            raise ValueError(f"openenv: folder {self.folder!r} does not exist")
        if self.command and shutil.which(self.command[0], path=None) is None:
            made = (
                "; `make openenv` makes it, and a submitted job needs its absolute path"
                if ".venv-openenv" in self.command[0]
                else ""
            )
            raise ValueError(f"openenv: {self.command[0]!r} cannot be found or run{made}")

    async def start(self) -> None:
        """Start the server if it is to run here, and read the schema of its actions."""
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No limit: every session has a connection of its own.
        self._http = aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0))
        if self.command:
            self._server = LocalServer(self.command, self.folder, self.start_timeout_s, self.own_python)
        await self._ensure_server()
        limit = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
        async with self._http.get(f"{self.address}/schema", timeout=limit) as reply:
            reply.raise_for_status()
            self.field, self.kind = self.reader.resolve((await reply.json())["action"])

    def opening(self, prompt: Prompt) -> None:
        """Know no first observation without a session."""
        return None

    def session(self, prompt: Prompt, seed: int) -> OpenEnvSession:
        """Return a session that has not been opened."""
        return OpenEnvSession(self, prompt, seed)

    async def close(self) -> None:
        """End the connections and a server that was started here."""
        if self._suspicion is not None:
            self._suspicion.cancel()
        if self._server is not None:
            await self._server.close()
        if self._http is not None:
            await self._http.close()

    @property
    def address(self) -> str:
        """The server's address."""
        return self.url if self._server is None else self._server.url

    async def ready(self, prompt: Prompt) -> None:
        """Start a server of ours that has exited again."""
        await self._ensure_server()

    async def _ensure_server(self) -> None:
        if self._server is not None:
            await self._server.ensure(self._healthy)

    async def connect(self) -> aiohttp.ClientWebSocketResponse:
        """Open a connection, which is a session of the server."""
        assert self._http is not None
        return await self._http.ws_connect(f"{self.address}/ws", max_msg_size=_MAX_MESSAGE_BYTES)

    def lost(self) -> ConnectionError:
        """Return the error of a session whose connection has ended."""
        ended = self._server.ended() if self._server is not None else ""
        return ConnectionError(ended or "the server closed the connection")

    def suspect(self) -> None:
        """Replace a server of ours that does not even answer whether it is healthy, since a session got no answer."""
        if self._server is not None and (self._suspicion is None or self._suspicion.done()):
            self._suspicion = asyncio.create_task(self._replace_if_hung(self._server))

    def wait_for_room(self, message: str) -> None:
        """Log, once, that sessions wait for each other at the server."""
        if not self._warned:
            logger.warning(
                f"the OpenEnv server takes no further session ({message}); rollouts wait up to environment.step_timeout_s "
                "for one to end. Its max_concurrent_envs should be the number of a step's rollouts"
            )
        self._warned = True

    async def _healthy(self, url: str) -> bool:
        assert self._http is not None
        limit = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
        try:
            async with self._http.get(f"{url}/health", timeout=limit) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def _replace_if_hung(self, server: LocalServer) -> None:
        if server.running and not await self._healthy(server.url):
            logger.warning(f"the OpenEnv server does not answer after {_HEALTH_TIMEOUT_S:g} s and is replaced")
            server.kill()


class OpenEnvSession:
    """One rollout: one connection, one environment of the server."""

    def __init__(self, environment: OpenEnv, prompt: Prompt, seed: int):
        self.environment = environment
        own = {name: getattr(prompt, field) for name, field in environment.arguments.items()}
        self.arguments = {"seed": seed, **environment.resets, **_arguments_of(prompt), **own}
        self.rewards: list[float] = []
        self.over = False
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def reset(self) -> Observation:
        """Connect and reset; wait while the server has no room for a session."""
        pause = _FIRST_PAUSE_S
        while True:
            self._socket = await self.environment.connect()
            reply = await self._ask({"type": "reset", "data": self.arguments})
            if reply["type"] != "error" or reply["data"].get("code") != "CAPACITY_REACHED":
                break
            self.environment.wait_for_room(str(reply["data"].get("message")))
            await self._socket.close()
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE_S, 2 * pause)
        text = self._observed(self._checked(reply))
        # The first observation continues the prompt, since no template allows two messages of the user in a row.
        return f"\n\n{text}" if text and self.environment.role else text

    async def step(self, action: str) -> tuple[Observation, bool]:
        """Take the action of a turn; a turn that is none is answered with the reason."""
        if self.over:
            return "", True
        environment = self.environment
        try:
            message = {"type": "step", "data": environment.reader.read(action, environment.field, environment.kind)}
        except ActionError as error:
            return self._shown(f"error: {error}"), False
        reply = await self._ask(message)
        if reply["type"] == "error" and reply["data"].get("code") == "VALIDATION_ERROR":
            return self._shown(f"error: {_validation(reply['data'])}"), False
        return self._shown(self._observed(self._checked(reply))), self.over

    async def reward(self) -> Reward | None:
        """Return what the rewards of the steps come to."""
        environment, steps = self.environment, len(self.rewards)
        if environment.rewarded == "verifier":
            return None
        if environment.rewarded == "sum":
            value = sum(self.rewards)
        elif environment.rewarded == "last":
            value = self.rewards[-1] if self.rewards else 0.0
        else:
            field = environment.rewarded.removeprefix("state.")
            state = (await self._ask({"type": "state"}))["data"]
            if not isinstance(value := state.get(field), int | float):
                raise ValueError(f"the state's field {field!r} is {value!r:.80}, not a number; it has {list(state)}")
        mapped = mapped_reward(float(value), environment.low, environment.high)
        return Reward(mapped, f"{environment.rewarded} {value:g} after {steps} rewarded step{'s' * (steps != 1)}")

    async def close(self) -> None:
        """End the server's session."""
        if self._socket is not None and not self._socket.closed:
            with contextlib.suppress(ConnectionError, RuntimeError):
                await self._socket.send_str(json.dumps({"type": "close"}))
            await self._socket.close()

    async def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message and return the reply."""
        assert self._socket is not None
        try:
            # A server without room replies before it is asked, and closes.
            with contextlib.suppress(ConnectionError):
                await self._socket.send_str(json.dumps(message))
            received = await self._socket.receive()
        except asyncio.CancelledError:
            self.environment.suspect()
            raise
        if received.type is not aiohttp.WSMsgType.TEXT:
            # A moment for an exit of the server to be noticed, which is the better reason.
            await asyncio.sleep(0.2)
            raise self.environment.lost()
        reply = json.loads(received.data)
        if not isinstance(reply, dict) or not isinstance(reply.get("data"), dict) or "type" not in reply:
            raise ValueError(f"the server sent what is no reply: {received.data:.200}")
        return reply

    def _checked(self, reply: Mapping[str, Any]) -> Mapping[str, Any]:
        if reply["type"] == "error":
            data = reply["data"]
            raise RuntimeError(f"the server failed ({data.get('code')}): {data.get('message')}")
        return reply["data"]

    def _observed(self, data: Mapping[str, Any]) -> str:
        """Note reward and end; return the observation as text."""
        if data.get("reward") is not None:
            self.rewards.append(float(data["reward"]))
        self.over = bool(data.get("done"))
        return observation_text(data.get("observation") or {}, self.environment.shown)

    def _shown(self, text: str) -> Observation:
        return [{"role": self.environment.role, "content": text}] if self.environment.role else text


def _arguments_of(prompt: Prompt) -> dict[str, Any]:
    """Return the arguments of the reset that a prompt's answer holds."""
    if not prompt.answer.lstrip().startswith("{"):
        return {}
    try:
        arguments = json.loads(prompt.answer)
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _validation(data: Mapping[str, Any]) -> str:
    """Return the first reason why an action is invalid."""
    first: Mapping[str, Any] = next(iter(data.get("errors") or ()), {})
    place = ".".join(str(part) for part in first.get("loc", ()))
    return f"{place}: {first['msg']}" if place and "msg" in first else str(data.get("message") or "invalid action")


def _check_options(
    url: str, app: str, command: str, reward: str, start_timeout_s: float, arguments: Mapping[str, str]
) -> None:
    """Raise ValueError unless these options of OpenEnv can be used."""
    if sum(map(bool, (url, app, command))) != 1:
        raise ValueError("give one of url, app and command")
    if url and not url.startswith(("http://", "https://")):
        raise ValueError(f"url must begin with http:// or https://, not {url!r}")
    if command and "{port}" not in command:
        raise ValueError("command must hold {port}, the port that the server is to listen on")
    if not (reward in ("sum", "last", "verifier") or reward.removeprefix("state.") not in (reward, "")):
        raise ValueError(f"reward must be sum, last, verifier or state.FIELD, not {reward!r}")
    if not start_timeout_s > 0:
        raise ValueError(f"start_timeout_s must be above 0, not {start_timeout_s}")
    if unknown := [field for field in arguments.values() if field not in ("id", "text", "answer")]:
        raise ValueError(f"arguments: {unknown[0]!r} is not one of id, text and answer")
