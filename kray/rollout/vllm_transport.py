"""How new weights enter a vLLM engine, and what proves that they did.

Imported by vLLM itself, in every process that holds a part of the model, before the model is loaded: it is the module of the
option worker_extension_cls (kray/rollout/engine_spec.py). So it needs no plugin that an installation would have to know.

Weights go through vLLM's weight-transfer protocol with kray's own transport, TRANSPORT. In an engine of one process the tensors
are views of an object in Ray's store, in shared memory on the engine's node, or of buckets (receiving_engine.py); the processes
of a larger engine read buckets from memory that is shared with them. Tied embeddings are supported. What is proved, and how:
- The bytes that arrived are those that were sent: checksums, verified by each process before a tensor is loaded.
- They are the newest ones: Proof.checksum, which must equal the learner's Gathered.checksum.
- vLLM loaded every parameter that it has: it returns the names of those it loaded.
- The engine computes with them: its logprobs of a probe are compared with the learner's. In bfloat16 these agree to 0.1 nats
  only, which is more than one training step changes, so an engine must also react to changes: see `ProbeHistory`.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from kray.errors import KrayError
from kray.rollout.engine_spec import TRANSPORT
from kray.weight_sync.buckets import Bucket

# prctl's option, of linux/prctl.h.
PR_SET_PDEATHSIG = 1


class WorkerExtension:
    """What vLLM adds to the class of its workers: nothing. Its module registers the transport where it is imported."""


@dataclass
class InitInfo(WeightTransferInitInfo):
    """What the transport is initialized with: nothing."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """Some of the tensors of a version.

    Attributes:
        tensors: Iterable of (name, tensor); a Bucket in an engine of several processes.
        abandoned: The rest of the version will not come, and another one is loaded before the model is used.
    """

    tensors: Any
    abandoned: bool = False


class SharedMemoryTransfer(WeightTransferEngine):
    """Loads tensors that lie in memory of this machine."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Do nothing: the tensors come with the call."""

    def start_weight_update(self) -> None:
        """Begin a version."""
        used = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        # Not a tied output layer, which has no name in `used`, nor what vLLM computes from weights, such as the scales of
        # rounded ones, which the model as it was built does not have.
        self.missing = used & {name for name, _ in self.model.named_parameters()}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load some of its tensors."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load some of its tensors."""
        model: Any = self.model
        self.missing -= model.load_weights(iter(update_info.tensors))
        if isinstance(update_info.tensors, Bucket):
            own_buffered(model, update_info.tensors)
        if update_info.abandoned:
            self.missing = set()

    def finish_weight_update(self) -> None:
        """Compute with the version from now on.

        Raises:
            KrayError: A parameter received no weights.
        """
        if self.missing:
            raise KrayError(f"weights: {len(self.missing)} parameters received none, first {min(self.missing)}")
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_config.tie_word_embeddings:
            retie(self.model)

    def shutdown(self) -> None:
        """Do nothing: nothing is open."""


def own_buffered(model: torch.nn.Module, bucket: Bucket) -> None:
    """Copy what vLLM has buffered of a bucket.

    It loads a layer when all its tensors are there, and those that it pads at the end of a version.
    """
    for module in model.modules():
        for _, call in get_layerwise_info(module).loaded_weights:
            for name, value in call.arguments.items():
                if isinstance(value, torch.Tensor) and bucket.holds(value):
                    call.arguments[name] = value.clone()


def retie(model: torch.nn.Module) -> None:
    """Point a tied output layer at the embedding again: vLLM's reload leaves it on its old, repacked copy."""
    embeddings: list[Any] = [m for m in model.modules() if type(m) is VocabParallelEmbedding]
    heads: list[Any] = [m for m in model.modules() if isinstance(m, ParallelLMHead)]
    for head in heads:
        head.weight = embeddings[0].weight
        if hasattr(head, "cpu_linear"):  # holds the repacked copy
            head.cpu_linear = embeddings[0].cpu_linear


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends.

    vLLM's processes end by themselves when they see that it has, which one that waits for another in a collective does not.
    """
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return  # the model is in the actor's own process
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before.
    if os.getppid() != parent.pid:
        os._exit(1)


end_with_parent()
if TRANSPORT not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(TRANSPORT, SharedMemoryTransfer)
