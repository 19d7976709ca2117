"""The sizes of a model that follow from its configuration, as far as memory depends on them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kray.config.parallel import LayerCounts
from kray.config.schema import TinyPolicyConfig


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter.

    Attributes:
        rows: Its first dimension, which FSDP2 divides over the ranks.
        columns: Elements of a row.
        trained: Whether it is trained.
        layer: Index of its decoder layer; -1 outside of them.
    """

    rows: int
    columns: int
    trained: bool
    layer: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    def shard(self, ranks: int) -> int:
        """Return the elements that the first rank holds; FSDP2 pads every rank's part to as many."""
        return -(-self.rows // ranks) * self.columns


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a model.

    Attributes:
        weights: Its parameters, a tied one once, those of adapters too.
        served: Elements of the parameters that engines hold, where adapters are merged.
        vocabulary: Tokens.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        intermediate: Width of the feed-forward layers.
        queries: Query heads times their size.
        keys: Key heads times their size; as many values.
        heads: Query heads.
        key_heads: Key heads.
        read_whole: Whether rank 0 reads the whole model, because ranks cannot read their own rows of its files.
    """

    weights: tuple[Weight, ...]
    served: int
    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    read_whole: bool = False

    @property
    def counts(self) -> LayerCounts:
        """What an engine's GPUs divide among themselves."""
        return LayerCounts(self.heads, self.key_heads, self.intermediate, self.vocabulary)

    @property
    def elements(self) -> int:
        """Number of elements of all parameters."""
        return sum(weight.elements for weight in self.weights)

    @property
    def trained(self) -> int:
        """Number of elements that are trained."""
        return sum(weight.elements for weight in self.weights if weight.trained)

    @property
    def served_matrices(self) -> int:
        """Number of elements of the matrices in decoder layers that engines hold."""
        adapters = self.trained < self.elements
        matrices = (weight for weight in self.weights if weight.layer >= 0 and weight.columns > 1)
        return sum(weight.elements for weight in matrices if not (adapters and weight.trained))

    def of_layer(self, layer: int) -> int:
        """Return the elements of a decoder layer, or of all that is outside of them (-1)."""
        return sum(weight.elements for weight in self.weights if weight.layer == layer)

    @property
    def largest_trained(self) -> int:
        """Number of trained elements of the largest decoder layer, or of all that is outside of them if that is more."""
        found: dict[int, int] = {}
        for weight in self.weights:
            found[weight.layer] = found.get(weight.layer, 0) + weight.trained * weight.elements
        return max(found.values(), default=0)

    @property
    def largest_layer(self) -> int:
        """Number of elements of the largest decoder layer."""
        return max((self.of_layer(layer) for layer in {w.layer for w in self.weights} - {-1}), default=0)


def tiny_sizes(tiny: TinyPolicyConfig, vocabulary: int) -> ModelSizes:
    """Return the sizes of a tiny policy, a Qwen3, without making it.

    Args:
        tiny: Its settings.
        vocabulary: Tokens of its tokenizer.
    """
    hidden, inner = tiny.hidden_size, tiny.intermediate_size
    # As kray/train/tiny_policy.py makes them: a multiple of 32.
    head = 32 * -(-hidden // (32 * tiny.heads))
    queries, keys = tiny.heads * head, tiny.kv_heads * head
    shapes = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    # Norms of queries and keys, and before attention and feed-forward part.
    shapes += [(head, 1), (head, 1), (hidden, 1), (hidden, 1)]
    outside = [(vocabulary, hidden), (hidden, 1)] + [(vocabulary, hidden)] * (not tiny.tie_embeddings)
    weights = [Weight(rows, columns, True, layer) for layer in range(tiny.layers) for rows, columns in shapes]
    weights += [Weight(rows, columns, True, -1) for rows, columns in outside]
    served = sum(weight.elements for weight in weights)
    counts = (vocabulary, tiny.layers, hidden, inner, queries, keys, tiny.heads, tiny.kv_heads)
    return ModelSizes(tuple(weights), served, *counts)
