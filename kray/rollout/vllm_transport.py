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

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kray.records import KrayError
from kray.weight_sync.flat_weights import FlatWeights

TRANSPORT = "kray_object_store"


@dataclass(frozen=True, slots=True)
class Proof:
    """What an engine answers to new weights.

    logprobs: (P - 1,) float32 of the probe's tokens after the first. checksum: of the weights that it loaded, as
    FlatWeights.checksum. seconds: verify, load, probe and, when it was doubted, doubt.
    """

    logprobs: np.ndarray
    checksum: str
    seconds: dict[str, float]


class Stopwatch:
    """Seconds by part of a job, from its making on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def done(self, part: str) -> None:
        """The time since the last call was this part's, but for what `each` has counted meanwhile."""
        now = time.monotonic()
        self.seconds[part] = now - self._since
        self._since = now

    def each(self, part: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items; the time that they take to come is this part's."""
        self.seconds[part] = 0.0
        iterator = iter(items)
        while True:
            started = time.monotonic()
            item = next(iterator, None)
            passed = time.monotonic() - started
            self.seconds[part] += passed
            self._since += passed
            if item is None:
                return
            yield item


class Reactions:
    """Notices an engine that answers a probe as before although its weights have changed.

    The same weights and the same probe, alone in its batch, give the same bits on the CPU, so equal bits after a change
    are suspicious: the weights did not arrive where the engine computes. Or the change was too small for the probe, or in
    weights that the probe does not use. `exaggerated` tells these apart: an engine that takes weights in reacts to it.
    Weights with equal checksums (a step that changed nothing) raise no suspicion. Where equal weights do not give equal
    bits, nothing is noticed and nothing is suspected.
    """

    def __init__(self) -> None:
        self._checksums: dict[str, int] = {}
        self._probe: tuple[int, ...] = ()
        self._answer = np.zeros(0, dtype=np.float32)

    def ignored(self, weights: FlatWeights, probe: Sequence[int], answer: np.ndarray) -> list[str]:
        """The tensors that changed since the last `remember`, when the answer to the same probe did not."""
        if tuple(probe) != self._probe or not np.array_equal(answer, self._answer, equal_nan=True):
            return []
        return [entry.name for entry in weights.manifest if self._checksums.get(entry.name) != entry.checksum]

    def remember(self, weights: FlatWeights, probe: Sequence[int], answer: np.ndarray) -> None:
        self._checksums = {entry.name: entry.checksum for entry in weights.manifest}
        self._probe, self._answer = tuple(probe), answer


def exaggerated(weights: FlatWeights, names: Sequence[str]) -> FlatWeights:
    """The weights with the named tensors reversed and negated: a change that no probe overlooks."""
    chosen = set(names)
    return FlatWeights.pack([(name, _turned(t) if name in chosen else t) for name, t in weights.tensors()])


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    turned = tensor.reshape(-1).flip(0).reshape(tensor.shape)
    return -turned if tensor.is_floating_point() else turned


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
