"""How new weights enter a vLLM engine, and what proves that they did. Imports vLLM lazily, like engine.py.

Weights go through vLLM's weight-transfer protocol with kray's own transport, TRANSPORT: the tensors are views of an object in
Ray's store, or of buckets (bucket_loading.py), in shared memory on the engine's node. Tied embeddings are supported. What is
proved, and how:
- The bytes that arrived are those that were sent: checksums, verified before a tensor is loaded.
- They are the newest ones: Proof.checksum, which must equal the learner's Gathered.checksum.
- vLLM loaded every parameter that it has: it returns the names of those it loaded.
- The engine computes with them: its logprobs of a probe are compared with the learner's. In bfloat16 these agree to 0.1 nats
  only, which is more than one training step changes, so an engine must also react to changes: see `ProbeHistory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kray.errors import KrayError

# Name of the transport in vLLM's registry.
TRANSPORT = "kray_object_store"


def register_transport() -> None:
    """Register the transport with vLLM in this process; does nothing when it is registered."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        pass

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        # Iterable of (name, tensor).
        tensors: Any
        # The rest of the weights will not come; what was loaded is not used.
        abandoned: bool = False

    class ObjectStoreTransfer(WeightTransferEngine):
        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            """Do nothing: the tensors come with the call."""

        def start_weight_update(self) -> None:
            self.missing = {name for name, _ in self.model.named_parameters()}
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: UpdateInfo) -> None:
            model: Any = self.model
            self.missing -= model.load_weights(update_info.tensors)
            if update_info.abandoned:
                self.missing = set()

        def finish_weight_update(self) -> None:
            if self.missing:
                raise KrayError(f"weights: {len(self.missing)} parameters received none, first {min(self.missing)}")
            finalize_layerwise_reload(self.model, self.model_config)
            if self.model_config.hf_config.tie_word_embeddings:
                retie(self.model)

        def shutdown(self) -> None:
            pass

    if TRANSPORT not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(TRANSPORT, ObjectStoreTransfer)


def retie(model: torch.nn.Module) -> None:
    """Point a tied output layer at the embedding again: vLLM's reload leaves it on its old, repacked copy."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings: list[Any] = [m for m in model.modules() if type(m) is VocabParallelEmbedding]
    heads: list[Any] = [m for m in model.modules() if isinstance(m, ParallelLMHead)]
    for head in heads:
        head.weight = embeddings[0].weight
        if hasattr(head, "cpu_linear"):  # holds the repacked copy
            head.cpu_linear = embeddings[0].cpu_linear
