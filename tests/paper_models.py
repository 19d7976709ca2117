"""Sizes of large models as their configurations on the hub state them, without the hub and without weights."""

from __future__ import annotations

from dataclasses import fields

from kray.config.model_sizes import ModelSizes, Weight

# Hub id -> what matters of its config.json; heads have 128 numbers, embeddings and output layer are two matrices.
PAPER = {
    "Qwen/Qwen2.5-Math-7B": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "Qwen/Qwen2.5-32B": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "meta-llama/Llama-3.3-70B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


def paper_sizes(path: str) -> ModelSizes:
    """Return the sizes of a model, all of whose weights are trained."""
    described = PAPER[path]
    hidden, inner, layers = (described[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, key_heads, vocabulary = (
        described["num_attention_heads"],
        described["num_key_value_heads"],
        described["vocab_size"],
    )
    queries, keys = 128 * heads, 128 * key_heads
    shapes = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries), (hidden, 1), (hidden, 1)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    shapes += [(queries, 1), (keys, 1), (keys, 1)] * (described["model_type"] == "qwen2")
    weights = [Weight(*shape, True, layer) for layer in range(layers) for shape in shapes]
    weights += [Weight(*shape, True, -1) for shape in ((vocabulary, hidden), (vocabulary, hidden), (hidden, 1))]
    known = {
        "weights": tuple(weights),
        "served": sum(weight.elements for weight in weights),
        "vocabulary": vocabulary,
        "layers": layers,
        "hidden": hidden,
        "intermediate": inner,
        "queries": queries,
        "keys": keys,
        "heads": heads,
        "key_heads": key_heads,
    }
    return ModelSizes(**{field.name: known[field.name] for field in fields(ModelSizes) if field.name in known})


def qwen(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head: int,
    inner: int,
    vocabulary: int,
    tied: bool,
    rank: int = 0,
) -> ModelSizes:
    """The sizes of a Qwen2.5, with adapters of this rank if it is not 0."""
    queries, keys, whole = heads * head, kv_heads * head, not rank
    linear = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    linear += [(inner, hidden), (inner, hidden), (hidden, inner)]
    small = [(queries, 1), (keys, 1), (keys, 1), (hidden, 1), (hidden, 1)]
    weights = [Weight(*shape, whole, layer) for layer in range(layers) for shape in linear + small]
    outside = [(vocabulary, hidden), (hidden, 1), *([] if tied else [(vocabulary, hidden)])]
    weights += [Weight(*shape, whole, -1) for shape in outside]
    served = sum(weight.elements for weight in weights)
    if rank:
        pairs = [pair for rows, columns in linear for pair in ((rank, columns), (rows, rank))]
        weights += [Weight(*shape, True, layer) for layer in range(layers) for shape in pairs]
    return ModelSizes(tuple(weights), served, vocabulary, layers, hidden, inner, queries, keys, heads, kv_heads)


# Models of the configurations for small cards.
SMALL_PAPER = {
    "0.5b": qwen(896, 24, 14, 2, 64, 4864, 151936, True),
    "1.5b": qwen(1536, 28, 12, 2, 128, 8960, 151936, True),
    "7b-lora": qwen(3584, 28, 28, 4, 128, 18944, 152064, False, 16),
}
