"""What is looked at on each node, and which nodes are asked; Ray is not started."""

from __future__ import annotations

import shutil

import pytest

from kray.driver.model_on_nodes import fitting_nodes, look

GPU_RANK, CPU_ENGINE = {"CPU": 1.0, "GPU": 1.0}, {"CPU": 4.0}


def node(name: str, alive: bool = True, **resources: float) -> dict:
    return {"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": alive, "Resources": resources}


def test_nodes_that_fit_an_engine_or_a_rank_are_asked():
    nodes = [node("1"), node("2", CPU=2.0), node("3", CPU=8.0), node("4", CPU=1.0, GPU=8.0), node("5", False, CPU=8.0)]
    assert fitting_nodes(nodes, [GPU_RANK, CPU_ENGINE]) == {"3": "10.0.0.3", "4": "10.0.0.4"}
    assert fitting_nodes(nodes, [{"CPU": 0.0}]).keys() == {"1", "2", "3", "4"}


def test_a_model_that_is_there_is_right(tied_policy):
    assert look(str(tied_policy)) == ""


@pytest.mark.parametrize("harm", ["folder", "config", "weights", "damage", "hub"])
def test_what_is_wrong_is_said(tied_policy, harm, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    if harm != "folder":
        shutil.copytree(str(tied_policy), folder)
    weights = folder / "model.safetensors"
    if harm == "config":
        (folder / "config.json").unlink()
    elif harm == "weights":
        weights.unlink()
    elif harm == "damage":
        weights.write_bytes(weights.read_bytes()[:-8])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = "kray-tests/no-such-model" if harm == "hub" else str(folder)
    expected = {
        "folder": "is not there",
        "config": "cannot be loaded",
        "weights": "holds no weights",
        "damage": "SafetensorError",
        "hub": "cannot be loaded",
    }
    assert expected[harm] in look(path)
