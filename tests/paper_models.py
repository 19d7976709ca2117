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
