"""Main memory and object store of a cluster's nodes: what is needed, what the file gives, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paper_models import paper_sizes

from kray.config import KrayConfig, ModelConfig, RolloutConfig, TrainConfig
from kray.config.cluster_file import load_cluster
from kray.config.memory import GIB
from kray.config.node_memory import node_needs, node_rows, store_of
from kray.config.placement import place
from kray.errors import ConfigError

POD = """
        template:
          spec:
            containers:
              - resources: {limits: {cpu: "64", memory: %s, nvidia.com/gpu: "%d"}}
                volumeMounts: [{name: results, mountPath: /mnt}, {name: shm, mountPath: /dev/shm}]
            volumes: [{name: results}, {name: shm, emptyDir: {medium: Memory, sizeLimit: %s}}]
"""
HEAD = '{rayStartParams: {num-cpus: "0"}, template: {spec: {containers: [{resources: {limits: {memory: 64Gi}}}]}}}'


@pytest.fixture
def kuberay(tmp_path):
    """Return a function that writes a RayCluster with a group of learner nodes and one of rollout nodes and loads it."""

    def make(memory: str = "512Gi", shm: str = "64Gi", params: str = "{}", nodes: int = 1):
        groups = ""
        for name, gpus, most in (("learner", 8 // nodes, nodes), ("rollout", 1, 16)):
            least = most if name == "learner" else 0
            groups += f"    - groupName: {name}\n      minReplicas: {least}\n      maxReplicas: {most}\n"
            groups += f"      rayStartParams: {params if name == 'learner' else '{}'}"
            groups += POD.replace("\n  ", "\n") % (memory, gpus, shm)
        file = tmp_path / "cluster.yaml"
        file.write_text(f"kind: RayCluster\nspec:\n  headGroupSpec: {HEAD}\n  workerGroupSpecs:\n{groups}")
        return load_cluster(file)

    return make


def config() -> KrayConfig:
    made = KrayConfig(model=ModelConfig(path="x"))
    made.train = TrainConfig(ranks=8, gpus_per_rank=1)
    made.rollout = RolloutConfig(engines=8, gpus_per_engine=1)
    return made


# In files that ranks cannot read in parts.
SIZES = replace(paper_sizes("Qwen/Qwen2.5-Math-7B"), read_whole=True)
VERSION = 2 * SIZES.elements


@pytest.mark.parametrize(
    ("memory", "shm", "params", "store"),
    [
        ("512Gi", "64Gi", "{}", int(0.95 * 64 * GIB)),
        ("100G", "64Gi", "{}", 30 * 10**9),
        ("2Ti", "1Ti", "{}", 200 * 10**9),
        ("2Ti", "1Ti", '{object-store-memory: "300000000000"}', 300 * 10**9),
    ],
)
def test_the_object_store_is_the_one_that_ray_makes(kuberay, memory, shm, params, store):
    assert store_of(kuberay(memory, shm, params).workers[0]) == store


def test_rays_rule_is_the_one_written_down(monkeypatch):
    from ray._private import utils

    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: 64 * GIB)
    assert utils.resolve_object_store_memory(512 * GIB) == int(0.95 * 64 * GIB)
    assert utils.resolve_object_store_memory(100 * 10**9) == 30 * 10**9
    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: 2**40)
    assert utils.resolve_object_store_memory(2**41) == 200 * 10**9


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_nodes_need(kuberay, nodes):
    cluster = kuberay(nodes=nodes)
    needs = node_needs(config(), SIZES, cluster, place(config(), cluster))
    learner, rollout = needs["learner"], needs["rollout"]
    assert (learner.start, learner.gathered, learner.store) == (4 * SIZES.elements, VERSION, 2 * VERSION)
    # Each node copies the shards of its own ranks.
    assert learner.saving == 12 * SIZES.elements // nodes
    assert learner.most == 3 * VERSION + learner.saving
    assert (rollout.start, rollout.gathered, rollout.store, rollout.saving) == (0, 0, VERSION, 0)


def test_rows_and_the_note_of_a_store_that_is_too_small(kuberay):
    rows = node_rows(config(), SIZES, kuberay())
    assert [label for label, _ in rows] == [
        "host memory on learner",
        "  object store on learner",
        "host memory on rollout",
        "  object store on rollout",
    ]
    assert rows[1][1] == "28.4 GiB of 60.8 GiB for weights; /dev/shm has 64.0 GiB"
    notes = [value for label, value in node_rows(config(), SIZES, kuberay(shm="8Gi")) if label == "note"]
    assert len(notes) == 2
    assert "need 28.4 GiB of the object store on learner, which has 7.60 GiB" in notes[0]
    assert notes[0].endswith("give /dev/shm 29.9 GiB")
    notes = [value for label, value in node_rows(config(), SIZES, kuberay(memory="80Gi")) if label == "note"]
    assert notes[0].startswith("nodes of learner have 80.0 GiB of memory, and one needs up to 127.7 GiB")
    assert notes[0].endswith("give it 128Gi or more")
    assert notes[1].endswith(f"give ray start --object-store-memory={2 * VERSION} and /dev/shm 29.9 GiB")


def test_a_node_without_the_memory_for_the_weights_is_refused(kuberay):
    with pytest.raises(
        ConfigError, match=r"nodes of learner have 40.0 GiB of memory.* needs 42.6 GiB .*give it 43Gi or more"
    ):
        node_rows(config(), SIZES, kuberay(memory="40Gi"))


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_ranks_keep_in_main_memory_counts(kuberay, nodes):
    chosen = config()
    chosen.train.offload, chosen.train.activation_checkpointing, chosen.train.activation_offload = "all", True, True
    cluster = kuberay(memory="2000Gi", nodes=nodes)
    need = node_needs(chosen, SIZES, cluster, place(chosen, cluster))["learner"]
    # Parameters, gradients and moments in float32, of the ranks of this node.
    assert need.state == pytest.approx(16 * SIZES.elements / nodes, rel=0.01)
    assert need.activations > 0
    assert need.least == need.state + max(need.start, need.store + max(need.gathered, need.activations))
    row = dict(node_rows(chosen, SIZES, cluster))["host memory on learner"]
    assert "of the state of ranks" in row
    assert "of inputs of layers" in row
    assert need.least > 90 * GIB
    with pytest.raises(ConfigError, match=r"of the state of ranks"):
        node_rows(chosen, SIZES, kuberay(memory="90Gi", nodes=nodes))


def test_buckets_and_adapters_need_no_weights_in_the_object_store(kuberay):
    chosen = config()
    chosen.rollout.sync_bucket_mib = 512
    need = node_needs(chosen, SIZES, kuberay(), place(chosen, kuberay()))["learner"]
    assert need.store == 0
    assert need.gathered < VERSION


def test_a_ray_up_file_tells_shm_alone():
    cluster = load_cluster("cluster/aws.yaml")
    assert {(group.memory, group.shm) for group in cluster.groups} == {(None, 16 * GIB)}
    assert store_of(cluster.workers[0]) == int(0.95 * 16 * GIB)


def test_an_amount_that_is_none_is_named(kuberay):
    with pytest.raises(ConfigError, match=r"workerGroupSpecs\[0\]: memory must be an amount of memory.*'many'"):
        kuberay(memory="many")
