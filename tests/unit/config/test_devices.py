"""Defaults that depend on the devices: what a new run gets, and that a resumed one keeps what it began with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kray.config import load_config, to_yaml, warnings
from kray.config.devices import dtype_of, eager_of
from kray.config.resume import load_resumed, note_changes
from kray.config.schema import KrayConfig
from kray.config.train_schema import TrainConfig, reduces_each_microbatch
from kray.errors import ConfigError

ENGINES, RANKS = "rollout.gpus_per_engine=1", "train.gpus_per_rank=1"


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: x}\n")
    return lambda *overrides, **options: load_config(file, list(overrides), **options)


@pytest.mark.parametrize(
    ("overrides", "dtype", "eager"),
    [
        ((), "float32", True),
        ((ENGINES, RANKS), "bfloat16", False),
        ((ENGINES,), "bfloat16", False),
        ((RANKS,), "bfloat16", True),
        ((ENGINES, RANKS, "model.dtype=float32", "rollout.eager=true"), "float32", True),
        (("model.dtype=bfloat16", "rollout.eager=false"), "bfloat16", False),
        (("model.dtype=auto", "rollout.eager=null"), "float32", True),
    ],
)
def test_type_and_graphs_follow_the_devices_unless_given(load, overrides, dtype, eager):
    config = load(*overrides)
    assert (config.model.dtype, config.rollout.eager) == (dtype, eager)


def test_a_configuration_made_in_python_is_read_alike():
    config = KrayConfig()
    assert (dtype_of(config), eager_of(config)) == ("float32", True)
    config.train.gpus_per_rank = config.rollout.gpus_per_engine = 1
    assert (dtype_of(config), eager_of(config)) == ("bfloat16", False)


@pytest.mark.parametrize(
    ("given", "ranks", "trained", "expected"),
    [
        (None, 2, 2**30, False),
        (None, 2, 2**30 + 1, True),
        (None, 1, 10**11, False),
        (False, 8, 10**11, False),
        (True, 2, 10, True),
    ],
)
def test_gradients_are_reduced_early_where_whole_ones_are_large(given, ranks, trained, expected):
    train = TrainConfig(ranks=ranks, reduce_each_microbatch=given)
    assert reduces_each_microbatch(train, trained) is expected


def old_run(folder, *lines: str) -> None:
    """A run folder whose configuration names these lines' keys as an earlier version wrote them."""
    folder.mkdir()
    begun = load_config(folder.parent / "c.yaml", [ENGINES, RANKS, "train.ranks=4"])
    text = to_yaml(begun)
    for line in lines:
        key = line.strip().partition(":")[0]
        text = "\n".join(f"  {line}" if row.strip().startswith(f"{key}:") else row for row in text.split("\n"))
    (folder / "config.yaml").write_text(text)


def test_a_run_of_an_earlier_version_goes_on_with_its_old_defaults(load, tmp_path):
    old_run(tmp_path / "run", "dtype: float32", "eager: true", "reduce_each_microbatch: false")
    file = tmp_path / "c.yaml"
    config = load_resumed(str(file), [ENGINES, RANKS, "train.ranks=4"], tmp_path / "run")
    assert (config.model.dtype, config.rollout.eager, config.train.reduce_each_microbatch) == ("float32", True, False)
    assert note_changes(config, tmp_path / "run") == []
    other = load_resumed(str(file), [ENGINES, RANKS, "train.ranks=4", "model.dtype=bfloat16"], tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model\.dtype was 'float32' when run began and cannot become 'bfloat16'"):
        note_changes(other, tmp_path / "run")


def test_a_run_goes_on_with_the_type_of_its_first_devices(load, tmp_path):
    old_run(tmp_path / "run")
    config = load_resumed(str(tmp_path / "c.yaml"), ["train.ranks=4"], tmp_path / "run")
    assert (config.model.dtype, config.rollout.eager) == ("bfloat16", False)


def test_a_run_that_begins_to_offload_chooses_again(load, tmp_path):
    old_run(tmp_path / "run", "reduce_each_microbatch: false")
    settings = [ENGINES, RANKS, "train.ranks=4", "train.offload=all"]
    config = load_resumed(str(tmp_path / "c.yaml"), settings, tmp_path / "run")
    assert config.train.reduce_each_microbatch is None


def test_one_rank_has_nothing_to_choose(load):
    assert load().train.reduce_each_microbatch is False
    assert load("train.ranks=2").train.reduce_each_microbatch is None


def test_float32_on_gpus_is_warned_of(load):
    told = [line for line in warnings(load(ENGINES, RANKS, "model.dtype=float32")) if "model.dtype" in line]
    assert len(told) == 1
    assert "rollout.probe_tolerance" in told[0]
    assert not any("model.dtype" in line for config in (load(), load(ENGINES, RANKS)) for line in warnings(config))
    assert not any("model.dtype" in line for line in warnings(replace(load("model.dtype=float32"))))
