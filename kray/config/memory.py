"""Bytes that a configuration needs: of learner ranks, engines, rank 0's node and a checkpoint. Pure.

Parameters, gradients, optimizer states and weights are counted as FSDP2 and AdamW allocate them. Activations, gathered layers,
buffers and an engine's working memory are estimates of what is held at the worst moment.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from kray.config.devices import dtype_of
from kray.config.engine_options import CACHE_KEY, step_tokens
from kray.config.model_sizes import ModelSizes
from kray.config.rounding import rounds_cache, rounds_weights
from kray.config.schema import KrayConfig
from kray.config.train_schema import OFFLOAD_PART_BYTES, reduces_each_microbatch

GIB = 2**30
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
# Logits that kray/train/logprobs.py holds at once, and bytes of each at the worst moment of its forward pass: in the compute
# dtype, in float32, divided by the temperature, their probabilities and three terms of the entropy, and a mask.
CHUNK_LOGITS = 2**26
LOGIT_BYTES = 27
# Bytes that an engine's sampler needs for each logit.
SAMPLER_BYTES = 12
# Seconds of a weight update are computed from these bytes a second, which are assumed, not measured on the machine.
BANDWIDTHS = {
    "gather and copy to the host": 6e9,
    "checksums": 8e9,
    "into the object store": 4e9,
    "network": 1.25e9,
    "verification": 8e9,
    "load": 6e9,
}


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one learner rank on its device.

    Attributes:
        parameters: float32 shards; none with train.offload all, and then no gradients, moments and start model either.
        reference: The start model's shards in the compute dtype, for train.kl without LoRA.
        gradients: float32 shards.
        whole_gradients: float32 gradients of all parameters, where they are not reduced after each micro-batch.
        optimizer: Two moments of each trained parameter, in train.moments; with train.offload optimizer what a part of them
            needs beyond the memory of activations and logits, which are gone by then.
        gathered: Whole layers in the compute dtype, while they are used, and with train.offload all the float32 copy of one.
        buffers: Of the reduction of a layer's gradient.
        activations: Of one micro-batch, or of this rank's part of it (train.context_parallel), without what
            train.activation_offload has moved to main memory.
        logits: Of one chunk.
    """

    parameters: int
    reference: int
    gradients: int
    whole_gradients: int
    optimizer: int
    gathered: int
    buffers: int
    activations: int
    logits: int

    @property
    def state(self) -> int:
        """Bytes of what FSDP2 and AdamW hold."""
        return self.parameters + self.reference + self.gradients + self.whole_gradients + self.optimizer

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(getattr(self, part.name) for part in fields(self))


def rank_memory(config: KrayConfig, sizes: ModelSizes) -> RankMemory:
    """Return the memory of a learner rank, of the first one, whose shards are the largest."""
    train, ranks = config.train, config.train.ranks
    # Ranks over which one copy is sharded.
    shared = ranks // train.replicas
    compute = ELEMENT_BYTES[dtype_of(config)]
    shards = sum(weight.shard(shared) for weight in sizes.weights)
    trained = sum(weight.shard(shared) for weight in sizes.weights if weight.trained)
    # A single rank that reduces nothing before the end turns its whole gradient into its shard, layer by layer.
    early = reduces_each_microbatch(train, sizes.trained)
    whole = 0 if early or (ranks == 1 and train.offload != "all") else 4 * sizes.trained
    largest, outside = sizes.largest_layer, sizes.of_layer(-1)
    tokens = part_tokens(config)
    activations = tokens * activation_bytes(config, sizes)
    logits = LOGIT_BYTES * min(CHUNK_LOGITS, tokens * sizes.vocabulary)
    # On CPU the device is main memory: what leaves it is still there.
    offload = train.offload if train.gpus_per_rank else "none"
    kept = 0 if offload == "all" else 1
    moments = 2 * ELEMENT_BYTES[train.moments] * trained * kept
    if offload == "optimizer":
        largest_shard = max((w.shard(shared) for w in sizes.weights if w.trained), default=0)
        part = max(OFFLOAD_PART_BYTES, 2 * ELEMENT_BYTES[train.moments] * largest_shard)
        moments = max(0, min(part, moments) - activations - logits)
    return RankMemory(
        parameters=4 * shards * kept,
        reference=compute * shards * kept if train.kl and config.model.lora is None else 0,
        gradients=4 * trained * kept,
        whole_gradients=whole,
        optimizer=moments,
        # One layer is used, the next one arrives in a buffer and is copied out of it.
        gathered=compute * (outside + 3 * largest) + 4 * max(largest, outside) * (1 - kept),
        buffers=(compute + 4) * sizes.largest_trained,
        activations=activations,
        logits=logits,
    )


def state_in_main_memory(config: KrayConfig, sizes: ModelSizes) -> int:
    """Return the bytes of a rank's state that are in main memory: by train.offload, or while an engine has its GPU."""
    train, ranks = config.train, config.train.ranks // config.train.replicas
    if not train.gpus_per_rank or not (config.rollout.colocate or train.offload != "none"):
        return 0
    shards = sum(weight.shard(ranks) for weight in sizes.weights)
    trained = sum(weight.shard(ranks) for weight in sizes.weights if weight.trained)
    reference = ELEMENT_BYTES[dtype_of(config)] * shards if train.kl and config.model.lora is None else 0
    moments = 2 * ELEMENT_BYTES[train.moments] * trained
    if train.offload == "all":
        return 4 * shards + 4 * trained + moments + reference
    return moments + (4 * shards + reference if config.rollout.colocate else 0)


def longest_rollout(config: KrayConfig) -> int:
    """Return the most tokens of a prompt and its response, which are never divided."""
    return config.prompts.max_tokens + config.rollout.max_response_tokens


def context_tokens(config: KrayConfig) -> int:
    """Return the context length of the engines."""
    return config.rollout.max_context_tokens or longest_rollout(config)


def microbatch_tokens(config: KrayConfig) -> int:
    """Return the most tokens of one forward pass; a step of few rollouts has fewer than train allows."""
    train = config.train
    step = -(-config.plan.budget // (train.ranks // train.context_parallel * train.updates)) * longest_rollout(config)
    return max(longest_rollout(config), min(train.microbatch_tokens, step))


def part_tokens(config: KrayConfig) -> int:
    """Return the most tokens that a rank computes of one forward pass."""
    return -(-microbatch_tokens(config) // config.train.context_parallel)


def activation_bytes(config: KrayConfig, sizes: ModelSizes) -> int:
    """Return the bytes that the backward pass keeps for each token, with attention that stores no scores.

    Of a layer: the input of both norms in float32 and their outputs, queries, keys, values and the output of attention, and
    four tensors of the feed-forward part. With context parallelism attention keeps as much of all tokens for some heads, and
    the output of its own tokens besides.
    """
    compute, together = ELEMENT_BYTES[dtype_of(config)], config.train.context_parallel
    norms = 2 * (4 * sizes.hidden + 2 * compute * sizes.hidden)
    attention = 2 * compute * (sizes.queries + sizes.keys)
    if together > 1:
        keys = sizes.keys // sizes.key_heads * sizes.counts.key_heads_for(together)
        attention = compute * (3 * sizes.queries + 2 * keys)
    layer = norms + attention + 4 * compute * sizes.intermediate
    outside = compute * sizes.hidden + norms // 2
    if config.train.activation_checkpointing:
        # With offload one layer's input leaves while the next one is computed.
        kept = 2 if _offloads(config) else sizes.layers
        return kept * compute * sizes.hidden + layer + outside
    return sizes.layers * layer + outside


def _offloads(config: KrayConfig) -> bool:
    """Return whether activations leave the memory that they are computed in; on CPU that is main memory."""
    return config.train.activation_offload and config.train.gpus_per_rank > 0


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes of one engine on its device, of one with several GPUs on each.

    Attributes:
        weights: In the compute dtype, or rounded.
        working: For activations of a step and for sampling.
        cache: For keys and values; None on a GPU whose memory is unknown.
        token: Keys and values of one token.
    """

    weights: int
    working: int
    cache: int | None
    token: int

    def sequences(self, tokens: int) -> int | None:
        """Return how many sequences of so many tokens the cache holds."""
        return None if self.cache is None else max(0, self.cache) // (self.token * tokens)


def engine_memory(config: KrayConfig, sizes: ModelSizes, gpu_bytes: int | None) -> EngineMemory:
    """Return the memory of an engine; several GPUs divide its layers, and each has the norms and the sampler's logits.

    Args:
        config: The configuration.
        sizes: Of the model.
        gpu_bytes: Memory of a GPU, None where it is not known.
    """
    rollout, compute, gpus = config.rollout, ELEMENT_BYTES[dtype_of(config)], max(1, config.rollout.gpus_per_engine)
    # Of the layers, linear ones have one byte for each weight; embeddings, norms and the output layer stay as they are.
    rounded = sizes.served_matrices if rounds_weights(rollout.vllm) else 0
    weights = -(-(compute * (sizes.served - rounded) + rounded) // gpus)
    keys = sizes.counts.key_heads_on_each(gpus) * sizes.keys // sizes.key_heads
    token = 2 * sizes.layers * keys * (1 if rounds_cache(rollout.vllm) else compute)
    tokens = step_tokens(rollout.vllm, rollout.gpus_per_engine, rollout.max_sequences, context_tokens(config))
    width = (2 * sizes.intermediate + sizes.queries) // gpus + 2 * keys + 3 * sizes.hidden
    working = tokens * compute * width + SAMPLER_BYTES * rollout.max_sequences * sizes.vocabulary
    cache: int | None = int(rollout.kv_cache_gib * GIB)
    if rollout.gpus_per_engine:
        cache = None if gpu_bytes is None else int(rollout.gpu_memory_share * gpu_bytes) - weights - working
    # Of each GPU, and whatever the share of it.
    return EngineMemory(weights, working, rollout.vllm.get(CACHE_KEY) or cache, token)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes in main memory of the node of rank 0, beside what ranks and engines on CPU hold themselves, and on disk.

    Attributes:
        start: While the ranks read the model: beside its shards each holds one tensor's rows. The whole model where rank 0
            must read it whole.
        gathered: Rank 0's whole weights at an update, or its adapters (rollout.lora adapter); a single rank on CPU in float32
            hands over its own. With rollout.sync_bucket_mib two buckets and one whole tensor.
        version: One version of these in the object store; 0 with rollout.sync_bucket_mib.
        late: The same, which is there with rollout.sync_bucket_mib only while an engine starts late.
        activations: Inputs of layers that all ranks keep there (train.activation_offload).
        saving: Copies of the shards of all ranks while a checkpoint is written.
        checkpoint: A checkpoint on disk, without what the driver adds.
    """

    start: int
    gathered: int
    version: int
    late: int
    activations: int
    saving: int
    checkpoint: int


def sent_bytes(config: KrayConfig, sizes: ModelSizes) -> int:
    """Return the bytes that engines get at an update: the whole weights, or adapters."""
    adapters = config.model.lora is not None and config.rollout.lora == "adapter"
    return ELEMENT_BYTES[dtype_of(config)] * (sizes.trained if adapters else sizes.served)


def host_memory(config: KrayConfig, sizes: ModelSizes) -> HostMemory:
    """Return what the node of rank 0 and the disk need, with all ranks on that node."""
    version = sent_bytes(config, sizes)
    own = config.train.ranks == 1 and not config.train.gpus_per_rank and dtype_of(config) == "float32"
    own = own and config.model.lora is None
    train = config.train
    saved = (4 + 2 * ELEMENT_BYTES[train.moments]) * sizes.trained
    rows = 4 * train.ranks * max(weight.shard(train.ranks // train.replicas) for weight in sizes.weights)
    inputs = ELEMENT_BYTES[dtype_of(config)] * sizes.layers * sizes.hidden * part_tokens(config)
    activations = train.ranks * inputs if _offloads(config) else 0
    start = 4 * sizes.elements if sizes.read_whole else rows
    gathered, late = 0 if own else version, 0
    if bucket := config.rollout.sync_bucket_mib * 2**20:
        largest = ELEMENT_BYTES[dtype_of(config)] * max(weight.elements for weight in sizes.weights)
        gathered = 2 * max(min(bucket, version), largest) + largest
        version, late = 0, version
    return HostMemory(start, gathered, version, late, activations, train.replicas * saved, saved)


def update_seconds(config: KrayConfig, sizes: ModelSizes, one_node: bool) -> dict[str, float]:
    """Return the seconds of each part of a weight update by BANDWIDTHS.

    Args:
        config: The configuration.
        sizes: Of the model.
        one_node: Ranks and engines are on one node.
    """
    sent = sent_bytes(config, sizes)
    parts = {name: sent / rate for name, rate in BANDWIDTHS.items()}
    if not (config.rollout.gpus_per_engine or config.train.gpus_per_rank):
        del parts["gather and copy to the host"]
        one_node = True
    if one_node:
        del parts["network"]
    if config.rollout.sync_bucket_mib:
        del parts["into the object store"]
    return parts
