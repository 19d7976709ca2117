"""The policy behind OpenAI's API: one vLLM engine in each replica. Besides kray/rollout the only module that imports vLLM.

Requests, responses, errors and streams are vLLM's own (vllm.entrypoints.openai); this module starts its engine and puts the
gate before its handlers. Ray Serve LLM (`ray.serve.llm`) would do the same with more processes: it pins another vLLM than
kray does, needs a second deployment before each engine, and has neither key nor limits.

- Weights are read from safetensors only, and no code in the model's folder is run.
- A replica whose engine has failed fails its health check, so Serve replaces it.
- No prompt and no response is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kray.config.engine_options import step_tokens
from kray.rollout.engine_spec import cpu_options, vllm_environment
from kray.serve.gate import Gate, Limits, Refusal, health
from kray.serve.replica_server import stay_local

# Seconds for the engine's processes to exit, and for a health check.
SHUTDOWN_S = 10.0
# Tokens of a completion that names none, as in OpenAI's API.
DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Settings of a replica.

    Attributes:
        folder: Folder of the Hugging Face model.
        name: Name of the model in the API.
        context: Tokens of prompt and response together.
        max_tokens: Response tokens that one request may ask for, over all its samples.
        sequences: Responses that one engine generates at a time.
        cpus: CPU cores of a replica.
        gpus: GPUs of a replica.
        kv_cache_gib: Memory for keys and values on CPU, in GiB.
        gpu_memory_share: Share of each GPU's memory that vLLM may use, in (0, 1].
        eager: Run without CUDA graphs and compilation.
        chat_template_kwargs: Variables of the chat template, where a request gives no others.
    """

    folder: str
    name: str
    context: int
    max_tokens: int
    sequences: int
    cpus: int
    gpus: int
    kv_cache_gib: float
    gpu_memory_share: float = 0.85
    eager: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the replica's process, which vLLM reads on import."""
        # Everything is in the folder.
        return vllm_environment(self.cpus) | {"HF_HUB_OFFLINE": "1"}

    def engine_options(self) -> dict[str, Any]:
        """Return vLLM's options by their names on its command line."""
        options: dict[str, Any] = {
            "model": self.folder,
            "served_model_name": [self.name],
            "load_format": "safetensors",
            "trust_remote_code": False,
            "default_chat_template_kwargs": dict(self.chat_template_kwargs) or None,
            "max_model_len": self.context,
            "max_num_seqs": self.sequences,
            "max_num_batched_tokens": step_tokens({}, self.gpus, self.sequences, self.context),
            "enforce_eager": self.eager,
            "enable_prefix_caching": True,
            "distributed_executor_backend": "uni",
            "enable_log_requests": False,
            "disable_log_stats": True,
        }
        if self.gpus:
            return options | {"gpu_memory_utilization": self.gpu_memory_share}
        return options | cpu_options(self.kv_cache_gib)


class Policy:
    """A replica of the service."""

    def __init__(self, spec: PolicySpec, limits: Limits, key_digest: str):
        """Create a replica and load the model.

        Args:
            spec: Settings of the replica.
            limits: Limits of requests.
            key_digest: Digest of the key, "" for none.
        """
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        from kray.serve.meters import Meters

        stay_local()
        self.spec, self.limits, self.key_digest = spec, limits, key_digest
        self.meters = Meters("policy")
        self.settings = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        for name, value in spec.engine_options().items():
            assert hasattr(self.settings, name), name
            setattr(self.settings, name, value)
        arguments = AsyncEngineArgs.from_cli_args(self.settings)
        self.engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[self._counter()])

    def _counter(self) -> Any:
        """Return a class that counts the tokens which vLLM reports after each step of the engine."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        meters = self.meters

        class Tokens(StatLoggerBase):
            def __init__(self, vllm_config: Any, engine_index: int = 0):
                pass

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                if iteration_stats is not None:
                    meters.count_tokens(iteration_stats.num_prompt_tokens, iteration_stats.num_generation_tokens)

            def log_engine_initialized(self) -> None:
                pass

        return Tokens

    async def __serve_build_asgi_app__(self) -> Any:
        """vLLM's routes for models, completions and chat, with its errors, behind the gate."""
        from fastapi import FastAPI, Request
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.api_router import create_completion
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.models.api_router import router as models
        from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

        app = FastAPI(title="kray policy", openapi_url=None)
        await init_app_state(self.engine, app.state, self.settings, await self.engine.get_supported_tasks())
        # When the engine fails, vLLM stops the server in this attribute; here Serve's health check does it.
        app.state.server = SimpleNamespace()

        async def complete(request, raw_request):  # type: ignore[no-untyped-def]
            self._check_tokens(request.n, request.max_tokens or DEFAULT_COMPLETION_TOKENS, prompts_in(request.prompt))
            return await create_completion(request, raw_request)

        async def chat(request, raw_request):  # type: ignore[no-untyped-def]
            self._check_tokens(request.n, request.max_completion_tokens or request.max_tokens or self.spec.context, 1)
            return await create_chat_completion(request, raw_request)

        # Set here because vLLM's classes cannot be named in annotations before vLLM is imported.
        complete.__annotations__ = {"request": CompletionRequest, "raw_request": Request}
        chat.__annotations__ = {"request": ChatCompletionRequest, "raw_request": Request}
        app.post("/v1/completions")(complete)
        app.post("/v1/chat/completions")(chat)
        app.include_router(models)
        init_exception_handler(app)
        health(app, self.check_health)
        app.add_middleware(Gate, limits=self.limits, key_digest=self.key_digest, meters=self.meters)
        return app

    def _check_tokens(self, samples: int | None, tokens: int, prompts: int) -> None:
        wanted = (samples or 1) * tokens * prompts
        if wanted > self.spec.max_tokens:
            raise Refusal(
                413,
                f"the request asks for up to {wanted} response tokens ({prompts} prompts x {samples or 1} samples x "
                f"{tokens}); this server allows {self.spec.max_tokens} a request",
                "tokens",
                "max_tokens",
            )

    async def check_health(self) -> None:
        """Raise when the engine has failed; called by Serve."""
        await asyncio.wait_for(self.engine.check_health(), SHUTDOWN_S)

    def __del__(self) -> None:
        if engine := getattr(self, "engine", None):
            engine.shutdown(timeout=SHUTDOWN_S)


def prompts_in(prompt: Any) -> int:
    """Return the number of prompts in the `prompt` of a completion; a text or a list of tokens is one."""
    batch = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return len(prompt) if batch else 1
