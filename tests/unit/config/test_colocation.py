"""An engine and a learner rank on one card: what is refused, where they are placed, and what fits on 24 GB."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from paper_models import SMALL_PAPER as SIZES

from kray.cluster.resources import missing_gpus, required_gpus
from kray.config import KrayConfig, load_config
from kray.config.cluster_file import Cluster, Group
from kray.config.memory import GIB, rank_memory, state_in_main_memory
from kray.config.memory_check import CONTEXT, Devices, memory_rows, require_fits
from kray.config.placement import place, requested
from kray.config.preview import derived
from kray.config.validation import problems
from kray.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
# What a card of 24 GB has at least.
CARD = int(22.5 * GIB)


def one_card(name: str, *overrides: str) -> KrayConfig:
    return load_config(str(CONFIGS / f"one-card-{name}.yaml"), list(overrides))


def test_the_models_have_the_sizes_that_their_publisher_states():
    assert SIZES["0.5b"].elements == 494_032_768
    assert SIZES["1.5b"].elements == 1_543_714_304
    assert SIZES["7b-lora"].served == 7_615_616_512


@pytest.mark.parametrize(
    ("overrides", "keys", "message"),
    [
        (
            ("async.max_staleness=1", "train.tis=2"),
            "async.max_staleness",
            "max_staleness 1 has them overlap: set it to 0",
        ),
        (("rollout.engines=2",), "rollout.engines", "one engine beside each rank: rollout.engines 2"),
        (("rollout.min_engines=0",), "rollout.min_engines", "rollout.min_engines must equal train.ranks 1"),
        (
            ("train.gpus_per_rank=0",),
            "rollout.gpus_per_engine",
            "rollout.gpus_per_engine 1 must equal train.gpus_per_rank 0",
        ),
    ],
)
def test_what_cannot_share_a_device_is_refused(overrides, keys, message):
    config = load_config(str(CONFIGS / "one-card-0.5b.yaml"), list(overrides), checked=False)
    (found,) = problems(config)
    assert {"rollout.colocate", keys} <= set(found.keys)
    assert message in found.message
    config.rollout.colocate = False
    assert not problems(config)


def cluster(gpus: float, cpus: float = 8) -> Cluster:
    return Cluster("one.yaml", "RayCluster", (Group("head", cpus, gpus, 1, 1),), None)


def test_one_card_is_enough_for_both():
    config = one_card("0.5b")
    fit = place(config, cluster(1))
    assert fit.ranks == fit.engines == Counter(head=1)
    assert (fit.engines_always, fit.nodes) == (1, Counter(head=1))
    assert requested(config) == (2, 1)
    assert required_gpus(config) == 1
    assert not missing_gpus(config, 1)
    rows = dict(derived(config, 64, 64))
    assert rows["actors request"] == "{CPU: 2, GPU: 1}"
    assert rows["engines"].endswith("each on the device of a rank")
    config.rollout.colocate = False
    assert requested(config) == (2, 2)
    assert "have both share one (rollout.colocate=true)" in missing_gpus(config, 1)
    with pytest.raises(ConfigError, match=r"engines of .* do not fit"):
        place(config, cluster(1))


def test_a_bundle_holds_the_cpus_of_both():
    config = one_card("0.5b", "rollout.cpus_per_engine=4", "train.cpus_per_rank=4")
    assert place(config, cluster(1)).engines == Counter(head=1)
    with pytest.raises(ConfigError, match=r"1 learner ranks, each with its engine, of \{CPU: 8, GPU: 1\} do not fit"):
        place(config, cluster(1, 7))


@pytest.mark.parametrize("name", SIZES)
def test_configurations_for_one_card_fit_on_it(name):
    config = one_card(name)
    require_fits(config, SIZES[name], Devices(gpu=CARD))
    rows = dict(memory_rows(config, SIZES[name], Devices(gpu=CARD)))
    assert "while it sleeps" in rows["  beside an engine"]
    assert "in main memory" in rows["  in main memory"] or "GiB" in rows["  in main memory"]


def test_a_small_model_needs_no_offload():
    assert one_card("0.5b").train.offload == "none"


@pytest.mark.parametrize(
    ("name", "overrides", "gib", "advice"),
    [
        ("1.5b", ("train.offload=none",), 22.5, "train.offload=optimizer needs"),
        ("7b-lora", ("train.offload=none",), 22.5, "train.offload=all needs"),
        ("7b-lora", ("train.offload=none",), 44.5, ""),
        (
            "1.5b",
            ("train.offload=all", "train.microbatch_tokens=1536"),
            5,
            "no offload, micro-batches or recomputation",
        ),
    ],
)
def test_a_rank_is_offered_the_memory_that_an_engine_leaves(name, overrides, gib, advice):
    config = one_card(name, *overrides)
    if not advice:
        require_fits(config, SIZES[name], Devices(gpu=int(gib * GIB)))
        return
    with pytest.raises(
        ConfigError, match=r"its GPU has .* and nccl and the 2\.00 GiB of an engine that sleeps"
    ) as error:
        require_fits(config, SIZES[name], Devices(gpu=int(gib * GIB)))
    assert advice in str(error.value)


def test_an_engine_leaves_room_for_a_rank_that_is_away():
    config = one_card("0.5b", "rollout.gpu_memory_share=0.99")
    with pytest.raises(ConfigError, match=r"rollout\.gpu_memory_share=0\.95 fits"):
        require_fits(config, SIZES["0.5b"], Devices(gpu=CARD))
    assert (1 - 0.95) * CARD >= CONTEXT


def test_bytes_of_a_rank_by_place():
    sizes = SIZES["1.5b"]
    kept, moments, whole = (one_card("1.5b", f"train.offload={place}") for place in ("none", "optimizer", "all"))
    a, b, c = (rank_memory(config, sizes) for config in (kept, moments, whole))
    assert a.optimizer == 8 * sizes.elements
    # The largest parameter's moments come to the device when activations and logits are gone.
    assert b.optimizer == max(0, 8 * 151936 * 1536 - b.activations - b.logits)
    assert (b.parameters, b.gradients) == (a.parameters, a.gradients)
    assert c.parameters == c.gradients == c.optimizer == c.whole_gradients == 0
    assert c.gathered > a.gathered
    assert [state_in_main_memory(config, sizes) / sizes.elements for config in (kept, moments, whole)] == [12, 12, 16]
    kept.rollout.colocate = moments.rollout.colocate = whole.rollout.colocate = False
    assert [state_in_main_memory(config, sizes) / sizes.elements for config in (kept, moments, whole)] == [0, 8, 16]
    late = one_card("1.5b", "train.offload=all", "train.reduce_each_microbatch=false")
    assert rank_memory(late, sizes).whole_gradients == 4 * sizes.elements
