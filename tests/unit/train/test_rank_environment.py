"""What a rank's process gets from Ray; Ray is recorded, not started."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kray.config.train_schema import TrainConfig
from kray.train import learner_group
from kray.train.colocated_learner import ColocatedLearner
from kray.train.learner_group import CPU_MEMORY, KEEP_MEMORY, LearnerGroup
from kray.train.rank_places import node_order
from kray.train.sending_learner import SendingLearner


@pytest.fixture
def made(monkeypatch):
    """The options and arguments of the actors that are made."""
    found = []

    def options(**given):
        return SimpleNamespace(remote=lambda *arguments: found.append((given, arguments)))

    def remote(kind):
        found.append(kind)
        return SimpleNamespace(options=options)

    monkeypatch.setattr(learner_group.ray, "remote", remote)
    monkeypatch.setattr(LearnerGroup, "_strategy", lambda self, rank: None)
    return found


def environment(made, gpus: int, **env: str) -> dict[str, str]:
    group = LearnerGroup(TrainConfig(gpus_per_rank=gpus, cpus_per_rank=3), "float32", "x", 1, 0, env=env)
    group._make_actor(0, "", 0, "a")
    options, arguments = made.pop()
    assert ("cuda" if gpus else "cpu") in arguments
    return options["runtime_env"]["env_vars"]


def test_ranks_keep_their_memory_with_and_without_gpus(made):
    assert CPU_MEMORY.items() <= environment(made, 0).items()
    assert KEEP_MEMORY.items() <= environment(made, 1).items()


def test_a_rank_sees_gpus_only_if_it_asks_for_one(made):
    assert environment(made, 0)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in environment(made, 1)


def test_variables_of_the_configuration_replace_those_of_kray(made):
    found = environment(made, 1, NCCL_DEBUG="INFO", MALLOC_TRIM_THRESHOLD_="1")
    assert (found["NCCL_DEBUG"], found["MALLOC_TRIM_THRESHOLD_"], found["OMP_NUM_THREADS"]) == ("INFO", "1", "3")


@pytest.mark.parametrize(("gpus", "share"), [(0, 0), (1, 0.5)])
def test_a_rank_beside_an_engine_asks_for_half_of_the_bundles_gpu(made, gpus, share):
    async def turn():
        pass

    group = LearnerGroup(TrainConfig(gpus_per_rank=gpus, cpus_per_rank=3), "float32", "x", 1, 0)
    group._make_actor(0, "", 0, "a")
    (kind, (options, _)) = made
    assert (kind, options["num_gpus"]) == (SendingLearner, gpus)
    made.clear()
    group.share(2, turn)
    assert group.bundle == {"CPU": 5.0} | ({"GPU": 1.0} if gpus else {})
    group._make_actor(0, "", 0, "a")
    (kind, (options, _)) = made
    assert (kind, options["num_gpus"], options["num_cpus"]) == (ColocatedLearner, share, 3)


def test_ranks_of_a_copy_are_neighbours():
    assert node_order({0: "a", 1: "b", 2: "a", 3: "b"}) == [0, 2, 1, 3]
    assert node_order({3: "a", 2: "b", 1: "a", 0: "b"}) == [0, 2, 1, 3]
    assert node_order({0: "a", 1: "a"}) == [0, 1]
