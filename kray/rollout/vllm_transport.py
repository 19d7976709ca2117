"""How new weights enter a vLLM engine, and how it is proved that they did. With engine.py, all that imports vLLM.

Weights go through vLLM's weight-transfer protocol with a transport of kray's own, TRANSPORT: the tensors are views of an
object in Ray's store, in shared memory on the node of the engine. Tied embeddings are included. What is proved, and by what:
- The bytes that came are those that were sent: checksums, verified before a tensor is loaded.
- They are the newest ones: Proof.checksum, which the learner's Gathered.checksum must equal.
- vLLM loaded something into every parameter that it has: it names those it loaded.
- The engine computes with them: its logprobs of a probe, which are compared with the learner's. In bfloat16 these agree to
  .1 nats only, which is more than a step changes. So an engine must also react: see `Reactions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kray.errors import KrayError

TRANSPORT = "kray_object_store"


def register_transport() -> None:
    """Makes the transport known to vLLM in this process."""
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
        tensors: Any  # iterable of (name, tensor)

    class ObjectStoreTransfer(WeightTransferEngine):
        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            pass  # nothing to connect: the tensors come with the call

        def start_weight_update(self) -> None:
            self.missing = {name for name, _ in self.model.named_parameters()}
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))  # synchronous, nothing to wait for on CPU

        def receive_weights(self, update_info: UpdateInfo) -> None:
            model: Any = self.model
            self.missing -= model.load_weights(update_info.tensors)

        def finish_weight_update(self) -> None:
            if self.missing:
                raise KrayError(f"weights: {len(self.missing)} parameters got none, first {min(self.missing)}")
            finalize_layerwise_reload(self.model, self.model_config)
            if self.model_config.hf_config.tie_word_embeddings:
                retie(self.model)

        def shutdown(self) -> None:
            pass

    if TRANSPORT not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(TRANSPORT, ObjectStoreTransfer)


def retie(model: torch.nn.Module) -> None:
    """vLLM's reload leaves a tied output layer on its old, repacked copy: point it at the embedding again."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings: list[Any] = [m for m in model.modules() if type(m) is VocabParallelEmbedding]
    heads: list[Any] = [m for m in model.modules() if isinstance(m, ParallelLMHead)]
    for head in heads:
        head.weight = embeddings[0].weight
        if hasattr(head, "cpu_linear"):  # what the repacked copy hides in; the embedding has just got one of its own
            head.cpu_linear = embeddings[0].cpu_linear
