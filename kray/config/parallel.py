"""Over how many GPUs the layers of a model can be divided in an engine, and its heads over learner ranks. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Most GPUs of an engine, more than a node has.
MOST_GPUS = 64
# vLLM pads the vocabulary to a multiple of this.
VOCABULARY_BLOCK = 64


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """What tensor parallelism divides, by the names that models give it in their configuration; 0: not known.

    Attributes:
        num_attention_heads: Query heads.
        num_key_value_heads: Key heads; on more GPUs than there are, each is held several times.
        intermediate_size: Width of the feed-forward layers.
        vocab_size: Tokens.
    """

    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int

    def obstacle(self, gpus: int) -> str:
        """Return what so many GPUs cannot divide, "" where they can divide all."""
        heads, keys, inner = self.num_attention_heads, self.num_key_value_heads, self.intermediate_size
        padded = -(-self.vocab_size // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
        if heads % gpus:
            return f"{heads} attention heads (num_attention_heads)"
        if keys and keys % gpus and gpus % keys:
            return f"{keys} key-value heads (num_key_value_heads)"
        if inner % gpus:
            return f"feed-forward layers of width {inner:,} (intermediate_size)"
        return f"a vocabulary of {padded:,} tokens (vocab_size {self.vocab_size:,}, padded)" if padded % gpus else ""

    def key_heads_on_each(self, gpus: int) -> int:
        """Return how many key heads one of so many GPUs holds."""
        return max(1, self.num_key_value_heads // gpus)

    def problem(self, gpus: int) -> str:
        """Return why engines of so many GPUs are impossible, with the nearest numbers that are not; "" where they are."""
        if gpus <= 1 or not (found := self.obstacle(gpus)):
            return ""
        nearest = _nearest(self.possible(), gpus)
        return f"rollout.gpus_per_engine {gpus}: the model has {found}, which {gpus} GPUs cannot divide; {nearest}"

    def context_problem(self, together: int, ranks: int) -> str:
        """Return why learner ranks cannot divide the attention heads, with the nearest numbers that can; "" where they can.

        Args:
            together: train.context_parallel.
            ranks: train.ranks, a multiple of it.
        """
        heads = self.num_attention_heads
        if not heads % together:
            return ""
        shared = math.gcd(heads, ranks)
        nearest = _nearest([n for n in range(1, shared + 1) if not shared % n], together)
        found = f"{heads} attention heads (num_attention_heads), which {together} ranks cannot divide"
        return f"train.context_parallel {together}: the model has {found}; {nearest}"

    def key_heads_for(self, together: int) -> int:
        """Return how many key heads so many learner ranks hold together; they repeat some where they cannot divide them."""
        return math.lcm(self.num_key_value_heads, together)

    def possible(self) -> list[int]:
        """Return the numbers of GPUs that can divide all of it, from 1 on."""
        return [gpus for gpus in range(1, MOST_GPUS + 1) if not self.obstacle(gpus)]


def _nearest(possible: list[int], wanted: int) -> str:
    """Return the possible numbers next to one that is not possible, as "4 works" or "4 and 8 work"."""
    below, above = max(n for n in possible if n < wanted), min((n for n in possible if n > wanted), default=0)
    return f"{below} and {above} work" if above else f"{below} works"
