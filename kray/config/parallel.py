"""Over how many GPUs the layers of a model can be divided in an engine. Pure."""

from __future__ import annotations

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
        possible = self.possible()
        below, above = max(n for n in possible if n < gpus), min((n for n in possible if n > gpus), default=0)
        nearest = f"{below} and {above} work" if above else f"{below} works"
        return f"rollout.gpus_per_engine {gpus}: the model has {found}, which {gpus} GPUs cannot divide; {nearest}"

    def possible(self) -> list[int]:
        """Return the numbers of GPUs that can divide all of it, from 1 on."""
        return [gpus for gpus in range(1, MOST_GPUS + 1) if not self.obstacle(gpus)]
