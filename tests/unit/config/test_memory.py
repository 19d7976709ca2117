"""Bytes of a configuration, their sums, and what is refused with the nearest setting that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from kray.config import KrayConfig, ModelConfig, RolloutConfig, TrainConfig
from kray.config.cluster_file import Cluster, Group
from kray.config.memory import GIB, engine_memory, host_memory, microbatch_tokens, rank_memory, update_seconds
from kray.config.memory_check import CONTEXT, Devices, gib, memory_rows, require_fits
from kray.config.model_sizes import ModelSizes, Weight
from kray.config.schema import LoraConfig
from kray.driver.components import engine_spec
from kray.errors import ConfigError

H200, A100, CARD = 140 * GIB, 80 * GIB, 24 * GIB


def decoder(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int, bias: bool) -> ModelSizes:
    """The sizes of a Qwen2.5 (bias) or Llama with untied embeddings and heads of 128."""
    queries, keys = 128 * heads, 128 * kv_heads
    shapes = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries), (hidden, 1), (hidden, 1)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    shapes += [(queries, 1), (keys, 1), (keys, 1)] * bias
    weights = [Weight(*shape, True, layer) for layer in range(layers) for shape in shapes]
    weights += [Weight(*shape, True, -1) for shape in [(vocabulary, hidden), (vocabulary, hidden), (hidden, 1)]]
    counts = (vocabulary, layers, hidden, inner, queries, keys, heads, kv_heads)
    return ModelSizes(tuple(weights), sum(w.elements for w in weights), *counts)


SMALL = decoder(24, 896, 4864, 7, 1, 151936, True)
QWEN_7B = decoder(28, 3584, 18944, 28, 4, 152064, True)
QWEN_32B = decoder(64, 5120, 27648, 40, 8, 152064, True)
LLAMA_70B = decoder(80, 8192, 28672, 64, 8, 128256, False)


def config(ranks: int = 8, engines: int = 8, gpus: int = 1, **train) -> KrayConfig:
    found = KrayConfig(model=ModelConfig(path="x"))
    found.train = TrainConfig(ranks=ranks, gpus_per_rank=gpus, **train)
    found.rollout = RolloutConfig(engines=engines, gpus_per_engine=gpus, max_response_tokens=3072)
    found.prompts.max_tokens = 1024
    found.plan.budget = 1024
    return found


def longer(chosen: KrayConfig) -> KrayConfig:
    """With responses of which one needs more memory than a GPU has left."""
    chosen.rollout.max_response_tokens = 130_000
    return chosen


def test_the_models_have_the_sizes_that_their_publishers_state():
    assert QWEN_7B.elements == 7_615_616_512
    assert QWEN_32B.elements == 32_763_876_352
    assert LLAMA_70B.elements == 70_553_706_496


@pytest.mark.parametrize(("sizes", "whole_gb"), [(QWEN_7B, 30.5), (QWEN_32B, 131), (LLAMA_70B, 282)])
def test_states_of_large_models(sizes, whole_gb):
    memory = rank_memory(config(reduce_each_microbatch=False), sizes)
    assert memory.whole_gradients / 1e9 == pytest.approx(whole_gb, rel=0.005)
    shard = sizes.elements / 8
    assert memory.parameters == memory.gradients == pytest.approx(4 * shard, rel=1e-3)
    assert memory.optimizer == 2 * memory.gradients
    early = rank_memory(config(), sizes)
    # The default reduces gradients of this size after each micro-batch.
    assert early.whole_gradients == 0
    assert memory.total - early.total == memory.whole_gradients


def test_parts_add_up_and_follow_their_keys():
    memory = rank_memory(config(), QWEN_7B)
    assert memory.total == memory.state + memory.gathered + memory.buffers + memory.activations + memory.logits
    assert rank_memory(config(kl=0.1), QWEN_7B).reference == memory.parameters // 2
    assert memory.reference == 0
    assert rank_memory(config(activation_checkpointing=True), QWEN_7B).activations < memory.activations / 5
    assert rank_memory(config(microbatch_tokens=8192), QWEN_7B).activations == memory.activations // 2
    # A rollout is never divided.
    assert rank_memory(config(microbatch_tokens=16), QWEN_7B).activations == memory.activations // 4
    one = rank_memory(config(ranks=1), QWEN_7B)
    assert one.whole_gradients == 0
    assert one.parameters == 4 * QWEN_7B.elements


def test_shards_are_padded_to_the_first_rank():
    assert [Weight(5, 7, True, 0).shard(ranks) for ranks in (1, 2, 3, 8)] == [35, 21, 14, 7]


def test_only_what_is_trained_has_gradients_and_moments():
    frozen = tuple(Weight(w.rows, w.columns, w.rows == 3584, w.layer) for w in QWEN_7B.weights)
    lora = ModelSizes(frozen, QWEN_7B.served, 152064, 28, 3584, 18944, 3584, 512, 28, 4)
    chosen = config(kl=0.1)
    chosen.model.lora = LoraConfig()
    memory = rank_memory(chosen, lora)
    assert memory.parameters == rank_memory(config(), QWEN_7B).parameters
    assert memory.gradients < memory.parameters / 1.5
    assert memory.reference == 0
    assert host_memory(chosen, lora).checkpoint == 12 * lora.trained


def test_copies_hold_more_and_moments_less():
    plain = rank_memory(config(), QWEN_7B)
    copies = rank_memory(config(replicas=2), QWEN_7B)
    assert copies.state == rank_memory(config(ranks=4), QWEN_7B).state == pytest.approx(2 * plain.state, rel=1e-3)
    small = rank_memory(config(moments="bfloat16"), QWEN_7B)
    assert small.optimizer == plain.optimizer // 2
    assert host_memory(config(replicas=2), QWEN_7B).saving == 2 * 12 * QWEN_7B.elements
    saved = host_memory(config(replicas=2, moments="bfloat16"), QWEN_7B)
    assert (saved.checkpoint, saved.saving) == (8 * QWEN_7B.elements, 16 * QWEN_7B.elements)


def test_context_parallelism_divides_activations_and_logits():
    checkpointing = {"activation_checkpointing": True, "microbatch_tokens": 4096}
    plain = rank_memory(config(**checkpointing), QWEN_7B)
    parts = rank_memory(config(**checkpointing, context_parallel=4), QWEN_7B)
    assert parts.state == plain.state
    # Of the layer that is computed: the output of attention is kept twice.
    output = 2 * QWEN_7B.queries * 4096
    assert parts.activations == (plain.activations + output) // 4
    small = {"microbatch_tokens": 1024}
    logits = [rank_memory(config(14, **small, context_parallel=n), QWEN_7B).logits for n in (1, 14)]
    # A chunk holds fewer logits than a whole rollout has; only its part has fewer than a chunk.
    assert logits == [27 * 2**26, 27 * -(-4096 // 14) * QWEN_7B.vocabulary]
    moved = config(**checkpointing, activation_offload=True)
    whole = host_memory(moved, QWEN_7B).activations
    moved.train.context_parallel = 4
    assert host_memory(moved, QWEN_7B).activations == whole // 4
    shown = dict(memory_rows(moved, QWEN_7B, Devices()))["  activations"]
    assert "at 1,024 tokens of 4,096 (train.context_parallel), recomputed" in shown
    # Four ranks that compute together get four times as many rollouts of a small step.
    few = config(microbatch_tokens=10**6)
    few.plan.budget = 16
    assert microbatch_tokens(few) == 2 * 4096
    few.train.context_parallel = 4
    assert microbatch_tokens(few) == 8 * 4096


def test_inputs_of_layers_move_to_main_memory():
    kept = config(activation_checkpointing=True)
    moved = config(activation_checkpointing=True, activation_offload=True)
    inputs = 28 * 3584 * 2 * 16384
    saved = rank_memory(kept, QWEN_7B).activations - rank_memory(moved, QWEN_7B).activations
    assert saved == inputs * 26 // 28
    assert (host_memory(kept, QWEN_7B).activations, host_memory(moved, QWEN_7B).activations) == (0, 8 * inputs)
    assert "inputs of layers" in dict(memory_rows(moved, QWEN_7B, Devices()))["  in an update"]
    on_cpu = config(gpus=0, activation_checkpointing=True, activation_offload=True)
    assert host_memory(on_cpu, QWEN_7B).activations == 0


def test_keys_and_values_of_an_engine():
    memory = engine_memory(config(), QWEN_7B, A100)
    assert memory.token == 57344
    assert memory.weights == 2 * QWEN_7B.elements
    assert memory.cache == int(0.85 * A100) - memory.weights - memory.working
    assert memory.sequences(4096) == memory.cache // (57344 * 4096)
    assert engine_memory(config(), QWEN_7B, None).sequences(4096) is None
    on_cpu = engine_memory(config(gpus=0), SMALL, None)
    assert on_cpu.cache == GIB
    assert on_cpu.weights == 4 * SMALL.elements


@pytest.mark.parametrize("sequences", [256, 4096, 16_384])
@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("vllm", [{}, {"max_num_batched_tokens": 20_000}, {"enable_chunked_prefill": False}])
def test_the_step_that_is_counted_is_the_one_that_engines_are_started_with(sequences, gpus, vllm):
    chosen = config(gpus=gpus)
    chosen.rollout.max_sequences, chosen.rollout.vllm = sequences, vllm
    chosen.rollout.max_context_tokens = 30_000
    tokens = engine_spec(chosen, "x").vllm_options()["max_num_batched_tokens"]
    chosen.rollout.vllm = {**vllm, "max_num_batched_tokens": tokens}
    given = engine_memory(chosen, SMALL, A100).working
    chosen.rollout.vllm = vllm
    assert engine_memory(chosen, SMALL, A100).working == given
    chosen.rollout.vllm = {"max_num_batched_tokens": tokens + 1}
    assert engine_memory(chosen, SMALL, A100).working > given


def test_gpus_of_an_engine_divide_weights_and_keys():
    chosen = config()
    one, parts = engine_memory(chosen, LLAMA_70B, A100), {}
    for gpus in (2, 4, 8, 16):
        chosen.rollout.gpus_per_engine = gpus
        parts[gpus] = engine_memory(chosen, LLAMA_70B, A100)
        assert parts[gpus].weights == -(-one.weights // gpus)
    assert [parts[gpus].token for gpus in (2, 4, 8)] == [one.token // gpus for gpus in (2, 4, 8)]
    # 8 key heads: on 16 GPUs each is held twice.
    assert parts[16].token == parts[8].token
    assert one.sequences(4096) == 0
    assert 1 == parts[2].sequences(4096) < parts[4].sequences(4096) < parts[8].sequences(4096)
    chosen.rollout.gpus_per_engine = 4
    rows = dict(memory_rows(chosen, LLAMA_70B, Devices(gpu=A100)))
    assert rows["each of an engine's 4 GPUs"].startswith("32.9 GiB weights + about ")


def test_host_store_and_update():
    host = host_memory(config(), QWEN_7B)
    # Each of the ranks reads its rows of one tensor after the other.
    assert host.start == 4 * 152064 * 3584
    assert host_memory(config(), replace(QWEN_7B, read_whole=True)).start == 4 * QWEN_7B.elements
    assert (host.version, host.gathered) == (2 * QWEN_7B.elements, host.version)
    assert host.saving == host.checkpoint == 12 * QWEN_7B.elements
    # A single rank on CPU hands over the tensors that it trains.
    assert host_memory(config(ranks=1, gpus=0), SMALL).gathered == 0
    assert 20 < sum(update_seconds(config(), QWEN_7B, one_node=False).values()) < 30
    assert "network" not in update_seconds(config(gpus=0), SMALL, one_node=False)
    # Nothing crosses a network on one node, and buckets are not put into the object store.
    alone = update_seconds(config(), QWEN_7B, one_node=True)
    assert set(alone) == set(update_seconds(config(), QWEN_7B, one_node=False)) - {"network"}
    bucketed = config()
    bucketed.rollout.sync_bucket_mib = 512
    assert set(update_seconds(bucketed, QWEN_7B, one_node=True)) == set(alone) - {"into the object store"}
    shown = dict(memory_rows(config(ranks=32, engines=32), LLAMA_70B, Devices()))["new weights in engines"]
    assert shown.startswith("about 230 s, if GB/s are: ")
    assert "network" in shown
    assert "network" not in dict(memory_rows(config(ranks=4, engines=4), QWEN_7B, Devices()))["new weights in engines"]


def test_adapters_are_what_is_sent_where_engines_take_them():
    chosen = config()
    chosen.model.lora, chosen.rollout.lora = LoraConfig(rank=16), "adapter"
    sizes = replace(QWEN_7B, weights=(*(replace(w, trained=False) for w in QWEN_7B.weights), Weight(3584, 16, True, 0)))
    host = host_memory(chosen, sizes)
    assert (host.version, host.gathered) == (2 * 3584 * 16, 2 * 3584 * 16)
    assert sum(update_seconds(chosen, sizes, one_node=False).values()) < 0.001
    chosen.rollout.lora = "merged"
    assert host_memory(chosen, sizes).version == 2 * sizes.served


def test_offload_saves_nothing_where_the_device_is_main_memory():
    kept = rank_memory(config(gpus=0), QWEN_7B)
    for place in ("optimizer", "all"):
        found = rank_memory(config(gpus=0, offload=place, reduce_each_microbatch=True), QWEN_7B)
        assert (found.parameters, found.gradients, found.optimizer) == (kept.parameters, kept.gradients, kept.optimizer)


def test_a_rank_leaves_room_for_cuda():
    chosen = config(activation_checkpointing=True)
    chosen.rollout.gpus_per_engine = 0
    needed = rank_memory(chosen, QWEN_7B).total + CONTEXT
    require_fits(chosen, QWEN_7B, Devices(gpu=needed))
    with pytest.raises(ConfigError, match=r"beside the 1\.00 GiB of CUDA and nccl"):
        require_fits(chosen, QWEN_7B, Devices(gpu=needed - 1))
    chosen.train.gpus_per_rank, chosen.rollout.gpus_per_engine, chosen.rollout.gpu_memory_share = 0, 1, 1.0
    with pytest.raises(ConfigError, match=r"than the 1\.00 GiB that CUDA takes of it; rollout\.gpu_memory_share=0\.98"):
        require_fits(chosen, QWEN_7B, Devices(gpu=A100))


def test_no_more_ranks_are_proposed_than_the_cluster_holds():
    chosen = config(ranks=8, activation_checkpointing=True, activation_offload=True, microbatch_tokens=4096)
    chosen.rollout.gpus_per_engine = 0

    def advice(nodes: int) -> str:
        cluster = Cluster("c.yaml", "RayCluster", (Group("head", 1000, 8 * nodes, 1, 1),), None)
        with pytest.raises(ConfigError) as error:
            require_fits(chosen, LLAMA_70B, Devices(gpu=A100, cluster=cluster))
        return str(error.value).partition("); ")[2]

    assert advice(4).startswith("train.ranks=32 needs")
    assert advice(1).startswith("train.offload=all needs")


def test_an_engine_beside_a_rank_is_not_told_to_take_several_gpus():
    chosen = config(ranks=8, offload="all", activation_checkpointing=True, activation_offload=True)
    chosen.rollout.colocate = True
    with pytest.raises(ConfigError, match=r"tokens; rollout\.colocate=false rollout\.gpus_per_engine=2 fits one"):
        require_fits(chosen, LLAMA_70B, Devices(gpu=A100))


def test_buckets_take_as_much_for_every_model():
    found = []
    for sizes in (QWEN_7B, QWEN_32B):
        chosen = config()
        chosen.rollout.sync_bucket_mib = 512
        tensor = 2 * sizes.vocabulary * sizes.hidden
        assert host_memory(chosen, sizes).gathered == 2 * max(GIB // 2, tensor) + tensor
        found.append(dict(memory_rows(chosen, sizes, Devices()))["  at an update"])
    assert found[0] == "3.05 GiB in buckets + 14.2 GiB in the object store where an engine starts late"


def test_the_table_names_every_part():
    rows = dict(memory_rows(config(), QWEN_7B, Devices(gpu=A100)))
    assert rows["parameters"] == "7,615,616,512, all trained; computed in bfloat16"
    assert rows["memory of a rank"].endswith(" of 80.0 GiB")
    assert rows["  exactly"] == "3.55 GiB parameters + 3.55 GiB gradients + 7.09 GiB optimizer"
    assert "sequences of 4,096 tokens" in rows["  keys and values"]
    assert rows["a checkpoint"] == "85.1 GiB on disk, 2 are kept"
    assert "network 1.25" in rows["new weights in engines"]
    whole = dict(memory_rows(config(reduce_each_microbatch=False), QWEN_7B, Devices()))
    assert "28.4 GiB whole ones" in whole["  exactly"]
    assert "give --gpu-gib" in whole["  keys and values"]


@pytest.mark.parametrize(("count", "text"), [(3 * 2**20, "3 MiB"), (GIB // 2, "0.50 GiB"), (12.34 * GIB, "12.3 GiB")])
def test_bytes_as_text(count, text):
    assert gib(count) == text


@pytest.mark.parametrize(
    ("chosen", "sizes", "gpu", "advice"),
    [
        (config(), QWEN_7B, H200, ""),
        (config(reduce_each_microbatch=False, microbatch_tokens=4096), QWEN_7B, A100, ""),
        (
            config(reduce_each_microbatch=False, microbatch_tokens=8192),
            QWEN_7B,
            A100,
            "train.reduce_each_microbatch=true needs",
        ),
        (config(), QWEN_7B, A100, "train.activation_checkpointing=true needs"),
        (
            config(activation_checkpointing=True),
            QWEN_7B,
            CARD,
            "train.offload=optimizer train.activation_offload=true needs",
        ),
        (config(ranks=1, activation_checkpointing=True), QWEN_7B, A100, "train.offload=optimizer needs"),
        (config(ranks=4, activation_checkpointing=True), LLAMA_70B, A100, "); train.offload=all needs"),
        (
            config(ranks=4, activation_checkpointing=True, offload="all", activation_offload=True),
            LLAMA_70B,
            16 * GIB,
            "; no offload, number of ranks",
        ),
        (
            config(ranks=16, activation_checkpointing=True),
            LLAMA_70B,
            A100,
            "train.offload=optimizer train.activation_offload=true needs",
        ),
        (config(ranks=1024, activation_checkpointing=True), LLAMA_70B, 8 * GIB, "use model.lora, a smaller model"),
        (longer(config(activation_checkpointing=True)), QWEN_7B, A100, "train.activation_offload=true needs"),
        (
            longer(config(activation_checkpointing=True, activation_offload=True)),
            QWEN_7B,
            48 * GIB,
            "train.context_parallel=2 needs",
        ),
        # Nothing else divides a rollout: not more ranks.
        (
            longer(config(ranks=1024, activation_checkpointing=True)),
            QWEN_7B,
            32 * GIB,
            "train.activation_offload=true train.context_parallel=2 needs",
        ),
        (longer(config(ranks=1024, activation_checkpointing=True, packing=False)), QWEN_7B, 32 * GIB, "use model.lora"),
    ],
)
def test_a_rank_that_cannot_fit_is_refused_with_the_nearest_setting(chosen, sizes, gpu, advice):
    chosen.rollout.gpus_per_engine = 0
    if not advice:
        require_fits(chosen, sizes, Devices(gpu=gpu))
        return
    with pytest.raises(ConfigError) as error:
        require_fits(chosen, sizes, Devices(gpu=gpu))
    assert str(error.value).startswith(
        f"train.ranks: a rank needs {gib(rank_memory(chosen, sizes).total)} and its GPU has"
    )
    assert advice in str(error.value)


def test_what_is_proposed_fits():
    for sizes in (QWEN_7B, QWEN_32B, LLAMA_70B):
        for gpu in (CARD, A100, H200):
            for ranks in (1, 8, 64):
                chosen = config(ranks=ranks)
                chosen.rollout.gpus_per_engine = 0
                try:
                    require_fits(chosen, sizes, Devices(gpu=gpu))
                except ConfigError as error:
                    proposed = str(error).partition("); ")[2].partition(" needs ")[0]
                    if "=" not in proposed:
                        continue
                    values = dict(part.removeprefix("train.").split("=") for part in proposed.split())
                    for name, text in values.items():
                        setattr(chosen.train, name, yaml.safe_load(text))
                    require_fits(chosen, sizes, Devices(gpu=gpu))


@pytest.mark.parametrize(
    ("sizes", "gpu", "rollout", "advice"),
    [
        (QWEN_7B, A100, {}, ""),
        (QWEN_32B, A100, {}, ""),
        (QWEN_32B, 74 * GIB, {"gpu_memory_share": 0.85}, "rollout.gpu_memory_share=0.9 fits one"),
        (QWEN_7B, CARD, {"max_response_tokens": 200_000}, "rollout.max_response_tokens="),
        (QWEN_7B, CARD, {"max_response_tokens": 200_000}, " or rollout.gpus_per_engine=2 fits one"),
        (LLAMA_70B, A100, {}, "tokens; rollout.gpus_per_engine=2 fits one"),
        (LLAMA_70B, A100, {"gpus_per_engine": 2}, ""),
        (LLAMA_70B, CARD, {"gpus_per_engine": 2}, "of each of its 2 GPUs, and needs 65.7 GiB for weights"),
        (LLAMA_70B, CARD, {"gpus_per_engine": 2}, "tokens; rollout.gpus_per_engine=8 fits one"),
        (LLAMA_70B, GIB, {}, "no number of GPUs makes it fit: choose a smaller model"),
    ],
)
def test_an_engine_without_room_for_one_sequence_is_refused(sizes, gpu, rollout, advice):
    chosen = config()
    chosen.train.gpus_per_rank = 0
    for key, value in rollout.items():
        setattr(chosen.rollout, key, value)
    if not advice:
        require_fits(chosen, sizes, Devices(gpu=gpu))
        return
    with pytest.raises(ConfigError) as error:
        require_fits(chosen, sizes, Devices(gpu=gpu))
    assert str(error.value).startswith("rollout.gpu_memory_share: an engine has ")
    assert advice in str(error.value)


@pytest.mark.parametrize(
    ("engines", "machine", "advice"),
    [
        (4, 64 * GIB, ""),
        (4, 24 * GIB, "rollout.engines=3 needs"),
        (1, 148 * GIB // 10, "rollout.kv_cache_gib=0.5 needs"),
        (1, 4 * GIB, "choose a smaller model"),
    ],
)
def test_main_memory_is_counted_for_actors_on_cpu(engines, machine, advice):
    chosen = config(ranks=1, engines=engines, gpus=0)
    chosen.rollout.kv_cache_gib = 1.0
    # 0.63 billion parameters: 9.4 GiB for the learner, 2.4 + 1 for each engine, 2.4 for a version of the weights.
    if not advice:
        require_fits(chosen, SMALL, Devices(machine=machine))
        return
    with pytest.raises(ConfigError) as error:
        require_fits(chosen, SMALL, Devices(machine=machine))
    assert "of main memory, and this machine has" in str(error.value)
    assert advice in str(error.value)


def test_nothing_is_refused_where_memory_is_unknown():
    require_fits(config(), LLAMA_70B, Devices())
