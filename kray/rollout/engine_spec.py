"""What a rollout engine is started with, and what every vLLM of kray needs on CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kray.config.engine_options import step_tokens
from kray.config.threads import KERNEL_CACHES
from kray.rollout.adapters import AdapterSpec

# Name of kray's transport of weights in vLLM's registry, and the class whose module registers it: vLLM imports the module in
# every process that holds a part of the model.
TRANSPORT = "kray_shared_memory"
WORKER_EXTENSION = "kray.rollout.vllm_transport.WorkerExtension"
# Most bytes of weights that an engine's actor hands to vLLM's processes at a time, unless a single tensor is larger.
BUCKET_BYTES = 512 * 2**20
# Tokens whose keys and values are kept, and shared by the rollouts of a prompt, together: the fewest for which vLLM's kernel on
# CPU is made. With vLLM's 128, prompts of fewer tokens are computed again for each rollout.
CPU_BLOCK_TOKENS = 32


def vllm_environment(threads: int) -> dict[str, str]:
    """Return the environment variables of a process that runs vLLM, which reads them on import.

    Args:
        threads: Threads with which it computes on CPU.
    """
    return {
        # More threads than cores make an engine ten times slower.
        "OMP_NUM_THREADS": str(max(1, threads)),
        # Binding would put every engine of a node on the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The sockets of a process group of one, which torch would open at the address of the machine's name.
        "GLOO_SOCKET_IFNAME": "lo",
    }


def cpu_options(kv_cache_gib: float) -> dict[str, Any]:
    """Return the options that vLLM needs on CPU.

    Args:
        kv_cache_gib: Memory for keys and values, in GiB.
    """
    return {
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
        # With chunked prefill vLLM 0.32 crashes on CPU when a seeded request's prompt is cut by a chunk.
        "enable_chunked_prefill": False,
        "block_size": CPU_BLOCK_TOKENS,
    }


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Settings of an engine's process and of its vLLM.

    Attributes:
        model_path: Folder of the Hugging Face model.
        dtype: "float32" or "bfloat16".
        context_tokens: Longest prompt plus response, in tokens.
        max_sequences: Rollouts that it generates at a time.
        cpus: CPU cores that it asks Ray for.
        gpus: GPUs that it asks Ray for, all on one node.
        kv_cache_gib: Memory for keys and values on CPU, in GiB.
        gpu_memory_share: Share of each GPU's memory that vLLM may use, in (0, 1].
        eager: Run without CUDA graphs and compilation.
        seed: vLLM's own seed; every task carries another.
        reads_text: Tasks may have text `stops`, so vLLM needs the tokenizer.
        overlap: New weights may arrive while rollouts run.
        threads: Threads with which it computes on CPU; 0: as many as `cpus`.
        tensor_parallel: Parts into which each layer is divided, each in a process of its own; 0: one for each GPU.
        bucket_bytes: Most bytes of weights that the actor hands to these processes at a time, unless a single tensor is larger.
        vllm: Further options of vLLM, by their names in EngineArgs.
        env: Environment variables of the actor's process, in place of kray's own.
        sleeps: It shares its device with a learner rank.
        adapters: LoRA adapters that it takes instead of whole weights; None: it takes whole weights.
    """

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
    threads: int = 0
    tensor_parallel: int = 0
    bucket_bytes: int = BUCKET_BYTES
    vllm: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    sleeps: bool = False
    adapters: AdapterSpec | None = None

    @property
    def parts(self) -> int:
        """Number of parts of the model; with several, vLLM computes in as many processes beside the actor's."""
        return self.tensor_parallel or max(1, self.gpus)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the actor's process."""
        # Ray hides no GPU from an actor that asks for none.
        hidden = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        own = vllm_environment((self.threads or self.cpus) // self.parts) | {
            # In the actor's own process vLLM's scheduler starts faster and takes commands between steps.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # New weights are repacked in memory that glibc would give back, to have each of its pages cleared next time.
            "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            **KERNEL_CACHES,
        }
        return own | hidden | dict(self.env)

    def vllm_options(self) -> dict[str, Any]:
        """Return the options of the engine's vLLM by their names in EngineArgs; those of `vllm` come last."""
        device: dict[str, Any] = {"gpu_memory_utilization": self.gpu_memory_share}
        if self.overlap:
            # A batch in progress while weights change would be reported as sampled by the new ones.
            device["async_scheduling"] = False
        if self.sleeps:
            device["enable_sleep_mode"] = True
        if self.gpus == 0:
            # vLLM refuses its sleep mode there.
            device = cpu_options(self.kv_cache_gib / self.parts)
        own = {
            "model": self.model_path,
            "dtype": self.dtype,
            # Prompts and results are tokens.
            "skip_tokenizer_init": not self.reads_text,
            "max_model_len": self.context_tokens,
            "max_num_seqs": self.max_sequences,
            "max_num_batched_tokens": step_tokens(self.vllm, self.gpus, self.max_sequences, self.context_tokens),
            "enforce_eager": self.eager,
            # A group shares its prompt, a conversation's turn all that came before it.
            "enable_prefix_caching": True,
            # Logprobs of the distribution that was sampled, after temperature.
            "logprobs_mode": "processed_logprobs",
            "tensor_parallel_size": self.parts,
            # uni computes in this process alone: it would wait for the others for ever.
            "distributed_executor_backend": "uni" if self.parts == 1 else "mp",
            "worker_extension_cls": WORKER_EXTENSION,
            "weight_transfer_config": {"backend": TRANSPORT},
            # Sampling parameters come with the task, never from the model's folder.
            "generation_config": "vllm",
            "disable_log_stats": True,
            "seed": self.seed,
        }
        adapters = self.adapters.vllm_options() if self.adapters else {}
        return own | device | adapters | dict(self.vllm)
