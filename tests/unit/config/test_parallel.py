"""Which numbers of GPUs can divide a model, by vLLM's own rules."""

from __future__ import annotations

import pytest

from kray.config.parallel import LayerCounts

SMOLLM2_135M = LayerCounts(9, 3, 1536, 49152)
QWEN_7B = LayerCounts(28, 4, 18944, 152064)
QWEN_32B = LayerCounts(40, 8, 27648, 152064)
LLAMA_70B = LayerCounts(64, 8, 28672, 128256)


@pytest.mark.parametrize(
    ("counts", "possible"),
    [
        (SMOLLM2_135M, [1, 3]),
        (QWEN_7B, [1, 2, 4]),
        (QWEN_32B, [1, 2, 4, 8]),
        (LLAMA_70B, [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_models_and_the_gpus_that_divide_them(counts, possible):
    assert counts.possible() == possible
    assert [gpus for gpus in range(1, 65) if not counts.problem(gpus)] == possible


@pytest.mark.parametrize(
    ("counts", "gpus", "message"),
    [
        (
            SMOLLM2_135M,
            2,
            "2: the model has 9 attention heads (num_attention_heads), which 2 GPUs cannot divide; 1 and 3 work",
        ),
        (
            SMOLLM2_135M,
            9,
            "feed-forward layers of width 1,536 (intermediate_size), which 9 GPUs cannot divide; 3 works",
        ),
        (LayerCounts(12, 3, 1536, 49152), 2, "3 key-value heads (num_key_value_heads)"),
        (LayerCounts(12, 6, 1536, 100), 6, "a vocabulary of 128 tokens (vocab_size 100, padded)"),
        (QWEN_7B, 8, "28 attention heads (num_attention_heads), which 8 GPUs cannot divide; 4 works"),
        (QWEN_7B, 3, "2 and 4 work"),
    ],
)
def test_a_number_that_cannot_is_refused_with_the_models_own(counts, gpus, message):
    problem = counts.problem(gpus)
    assert problem.startswith(f"rollout.gpus_per_engine {gpus}: the model has ")
    assert message in problem


def test_key_heads_are_divided_or_repeated():
    assert [LLAMA_70B.key_heads_on_each(gpus) for gpus in (1, 2, 8, 16)] == [8, 4, 1, 1]


def test_learner_ranks_divide_attention_heads():
    assert [n for n in range(1, 33) if not QWEN_7B.context_problem(n, 32 * n)] == [1, 2, 4, 7, 14, 28]
    problem = QWEN_7B.context_problem(8, 16)
    assert problem.startswith("train.context_parallel 8: the model has 28 attention heads (num_attention_heads)")
    # 7 and 14 divide the heads, but not the ranks.
    assert problem.endswith("which 8 ranks cannot divide; 4 works")
    assert QWEN_7B.context_problem(8, 56).endswith("; 7 and 14 work")
    # Key heads are repeated where there are fewer, or where they cannot be divided.
    assert [QWEN_7B.key_heads_for(n) for n in (2, 4, 7, 14)] == [4, 4, 28, 28]


def test_what_is_not_known_is_not_refused():
    assert LayerCounts(0, 0, 0, 0).problem(3) == ""
    assert LayerCounts(0, 0, 0, 0).context_problem(3, 3) == ""
