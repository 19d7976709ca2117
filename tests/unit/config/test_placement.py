"""What fits where: laws over any cluster, and the numbers that a person is told."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kray.config import KrayConfig, load_config
from kray.config.cluster_file import Cluster, Group, load_cluster
from kray.config.placement import Shape, cluster_rows, place, requested
from kray.config.threads import ALL_CORES, cores_here, threads_of
from kray.driver.components import engine_spec
from kray.errors import ConfigError

RAY_UP = """
max_workers: 5
head_node_type: head
available_node_types:
  learner:
    {resources: {CPU: 8, GPU: 4}, min_workers: 1, max_workers: 1, node_config: {}, idle_timeout_s: 900}
  head: {resources: {CPU: 0}, node_config: {}}
  rollout:
    {resources: {CPU: 4, GPU: 1}, min_workers: 0, max_workers: 4, node_config: {InstanceMarketOptions: {MarketType: spot}}}
"""
POD = "{spec: {containers: [{resources: {limits: {cpu: %s, nvidia.com/gpu: '%d'}, requests: {cpu: 1}}}]}}"
RAY_JOB = f"""
kind: RayJob
spec:
  rayClusterSpec:
    headGroupSpec: {{rayStartParams: {{num-cpus: '0'}}, template: {POD % ("4", 0)}}}
    workerGroupSpecs:
      - {{groupName: learner, minReplicas: 1, maxReplicas: 1, template: {POD % ("7500m", 4)}}}
      - {{groupName: rollout, minReplicas: 0, maxReplicas: 2, numOfHosts: 2, template: {POD % ("'4'", 1)}}}
"""


def config(ranks=(2, 1, 1), engines=(2, 1, 1)) -> KrayConfig:
    """ranks, engines: (how many, CPUs each, GPUs each)."""
    made = KrayConfig()
    made.train.ranks, made.train.cpus_per_rank, made.train.gpus_per_rank = ranks
    made.rollout.engines, made.rollout.cpus_per_engine, made.rollout.gpus_per_engine = engines
    return made


@pytest.fixture
def cluster_file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "cluster.yaml").write_text(text)
        return str(tmp_path / "cluster.yaml")

    return write


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_ray_up_file_and_a_kuberay_file_are_read_alike(cluster_file):
    cluster = load_cluster(cluster_file(RAY_UP))
    assert cluster.kind == "ray up"
    assert cluster.most_workers == 5
    assert [group.name for group in cluster.groups] == ["head", "learner", "rollout"]
    assert cluster.workers == (
        Group("learner", 8, 4, 1, 1, idle_timeout_s=900),
        Group("rollout", 4, 1, 0, 4, spot=True),
    )
    job = load_cluster(cluster_file("kind: PersistentVolumeClaim\n---" + RAY_JOB))
    assert job.kind == "RayJob"
    assert job.most_workers is None
    assert job.groups == (Group("head", 0, 0, 1, 1), Group("learner", 8, 4, 1, 1), Group("rollout", 4, 1, 0, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            RAY_UP.replace("min_workers: 1", "min_workers: 2"),
            "group learner: its minimum of 2 nodes is over its maximum",
        ),
        (RAY_UP.replace("max_workers: 5", "max_workers: 0"), "minimums add up to 1 nodes, but max_workers is 0"),
        (RAY_UP.replace("head_node_type: head", "head_node_type: haed"), "head_node_type is 'haed'"),
        (RAY_UP.replace("{CPU: 8, GPU: 4}", "{GPU: 4}"), "available_node_types.learner.resources has no CPU"),
        (
            RAY_UP.replace("{CPU: 8, GPU: 4}", "{CPU: many}"),
            "available_node_types.learner.resources.CPU must be a number",
        ),
        (
            RAY_UP.replace("min_workers: 0", "min_workers: -1"),
            "available_node_types.rollout.min_workers must be a whole",
        ),
        (RAY_JOB.replace("maxReplicas: 2", "maxReplicas: two"), "workerGroupSpecs[1].maxReplicas must be a whole"),
        (RAY_JOB.replace("headGroupSpec", "headGroup"), "headGroupSpec is missing"),
        (RAY_JOB.replace("kind: RayJob", "kind: Job"), "describes no clusters"),
        (RAY_UP + "---\n" + RAY_JOB, "describes 2 clusters"),
        ("kind: [", "is not YAML"),
        ("", "describes no clusters"),
    ],
)
def test_bad_cluster_files_are_rejected_with_their_keys(cluster_file, text, message):
    path = cluster_file(text)
    with pytest.raises(ConfigError) as error:
        load_cluster(path)
    assert message in str(error.value)
    assert path in str(error.value)


def test_a_file_that_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_cluster("nowhere.yaml")


# -- what a person is told --------------------------------------------------------------------------------------------


def test_rows_list_the_placement_of_all_actors(cluster_file):
    rows = dict(cluster_rows(config(ranks=(2, 1, 1), engines=(5, 2, 1)), cluster_file(RAY_UP)))
    assert rows["driver and scorer on"].startswith("head,")
    assert rows["learner ranks on"] == "learner: 2"
    assert rows["engines on"] == "learner: 2, rollout: 3"
    assert rows["engines that fit"] == "2 without another node, at most 6"
    assert rows["nodes in use"] == "head: 1, learner: 1, rollout: 3"
    assert "note" not in rows


def test_opponents_that_are_models_have_engines_of_their_own(cluster_file):
    asked = config(ranks=(2, 1, 1), engines=(4, 2, 1))
    asked.environment.roles = {"second": {"opponent": "past", "every": 5}}
    asked.environment.evaluate_against = {"start": {"opponent": "start"}, "random": {"opponent": "random"}}
    rows = dict(cluster_rows(asked, cluster_file(RAY_UP)))
    assert rows["opponents' engines on"] == "learner: 2"
    assert rows["engines on"] == "rollout: 4"
    asked.train.ranks = 8
    with pytest.raises(ConfigError, match=r"the opponent past-5 needs an engine of \{CPU: 2, GPU: 1\} of its own"):
        place(asked, load_cluster(cluster_file(RAY_UP)))


def test_the_gpus_of_an_engine_are_on_one_node(cluster_file):
    cluster = load_cluster(cluster_file(RAY_UP))
    fit = place(config(ranks=(2, 1, 1), engines=(1, 1, 2)), cluster)
    assert (fit.engines, fit.engines_at_most) == (Counter(learner=1), 1)
    # Two GPUs are free there, one more on each of four nodes.
    with pytest.raises(
        ConfigError, match=r"rollout\.engines: 2 engines of \{CPU: 1, GPU: 2\} do not fit.*at most 1 do"
    ):
        place(config(ranks=(2, 1, 1), engines=(2, 1, 2)), cluster)
    with pytest.raises(
        ConfigError, match=r"rollout\.gpus_per_engine: the 8 GPUs .* on one node, and none of .* more than 4;"
    ):
        place(config(ranks=(2, 1, 1), engines=(1, 1, 8)), cluster)
    assert requested(config(ranks=(2, 1, 1), engines=(3, 1, 4))) == (5, 14)


def test_ranks_on_spot_nodes_and_unused_gpus_are_noted(cluster_file):
    cluster = load_cluster(cluster_file(RAY_UP))
    assert any("rollout, which is spot" in note for note in place(config(ranks=(5, 1, 1)), cluster).notes)
    notes = place(config(ranks=(1, 1, 0), engines=(1, 1, 0)), cluster).notes
    assert [note.split(" so ")[0] for note in notes] == [
        "learner ranks request no GPU,",
        "engines request no GPU,",
    ]


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        (config(ranks=(9, 1, 1)), ["train.ranks: 9 learner ranks of {CPU: 1, GPU: 1}", "8 do", "{CPU: 1, GPU: 1} are"]),
        (
            config(ranks=(2, 16, 1)),
            [
                "0 do, {CPU: 32} are missing, but no GPUs (",
                "learner takes 0 a node on 1 node of {CPU: 8",
                "; train.cpus_per_rank=4 fits, else lower train.ranks or",
            ],
        ),
        (
            config(ranks=(4, 1, 1), engines=(7, 1, 1)),
            ["rollout.engines: 7 engines", "at most 4 do", "rollout: 4", "{CPU: 3, GPU: 3} are missing"],
        ),
    ],
)
def test_actors_that_do_not_fit_are_named_with_numbers(cluster_file, asked, parts):
    with pytest.raises(ConfigError) as error:
        place(asked, load_cluster(cluster_file(RAY_UP)))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["rollout.colocate=true", "rollout.engines=8", "train.ranks=8"],
            [
                "6 do, {CPU: 32} are missing, but no GPUs (",
                "; train.cpus_per_rank=6 rollout.cpus_per_engine=6 fits, else lower train.ranks",
            ],
        ),
        (
            ["train.cpus_per_rank=40"],
            ["2 do, {CPU: 80} are missing, but no GPUs", "; train.cpus_per_rank=16 fits, else"],
        ),
        (
            ["rollout.cpus_per_engine=20"],
            ["3 do", "{CPU: 20} are missing, but no", "; rollout.cpus_per_engine=16 fits, else"],
        ),
        (["rollout.engines=5"], ["{CPU: 8, GPU: 1} are missing; lower rollout.engines or raise"]),
        (["rollout.engines=5", "rollout.cpus_per_engine=30"], ["{CPU: 90, GPU: 3} are missing; lower rollout.engines"]),
    ],
)
def test_where_only_cpus_are_short_numbers_that_fit_are_named(overrides, parts):
    root = Path(__file__).parents[3]
    asked = load_config(root / "configs" / "fleet-7b.yaml", overrides)
    with pytest.raises(ConfigError) as error:
        place(asked, load_cluster(root / "cluster" / "fleet-7b.yaml"))
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_opponents_that_lack_cpus_alone_are_told_so(cluster_file):
    asked = config(ranks=(2, 3, 1), engines=(1, 6, 1))
    asked.environment.roles = {"second": {"opponent": "past", "every": 5}}
    told = r"no place beside .*\{CPU: 6\} are missing, but no GPUs; rollout.cpus_per_engine=4 fits, else raise"
    with pytest.raises(ConfigError, match=told):
        place(asked, load_cluster(cluster_file(RAY_UP)))


def test_an_elastic_pool_needs_capacity_for_min_engines_only(cluster_file):
    cluster = load_cluster(cluster_file(RAY_UP))
    asked = config(ranks=(1, 1, 1), engines=(100, 1, 1))
    most = place(config(ranks=(1, 1, 1), engines=(1, 1, 1)), cluster).engines_at_most
    with pytest.raises(ConfigError, match=r"rollout\.engines: 100 engines"):
        place(asked, cluster)
    asked.rollout.min_engines = 0
    fit = place(asked, cluster)
    assert fit.engines.total() == most
    assert f"{most} of rollout.engines 100 fit; a run goes on with those" in fit.notes
    asked.rollout.min_engines = most + 1
    with pytest.raises(ConfigError, match=r"rollout\.min_engines"):
        place(asked, cluster)


def test_the_limit_on_all_nodes_counts(cluster_file):
    limited = load_cluster(cluster_file(RAY_UP.replace("max_workers: 5", "max_workers: 3")))
    assert place(config(ranks=(4, 1, 1)), limited).engines_at_most == 2
    with pytest.raises(ConfigError, match="max_workers allows 3 of 5 nodes"):
        place(config(ranks=(4, 1, 1), engines=(3, 1, 1)), limited)


# -- laws -------------------------------------------------------------------------------------------------------------

amounts = st.integers(0, 6)
groups = st.builds(
    lambda cpus, gpus, least, more, spot: (cpus, gpus, least, least + more, spot),
    amounts,
    amounts,
    st.integers(0, 2),
    st.integers(0, 3),
    st.booleans(),
)


@st.composite
def clusters(draw):
    workers = [Group(f"g{i}", *draw(groups)) for i in range(draw(st.integers(1, 3)))]
    least, most = (sum(getattr(group, name) for group in workers) for name in ("least", "most"))
    limit = draw(st.one_of(st.none(), st.integers(least, most)))
    return Cluster("c.yaml", "ray up", (Group("head", draw(st.integers(0, 2)), 0, 1, 1), *workers), limit)


actors = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1))


@settings(max_examples=300)
@given(clusters(), actors, actors)
def test_all_requested_actors_are_placed_within_capacity(cluster, ranks, engines):
    try:
        fit = place(config(ranks, engines), cluster)
    except ConfigError:
        assume(False)
    assert fit.ranks.total() == ranks[0]
    assert fit.engines.total() == engines[0]
    workers = 0
    for group in cluster.groups:
        used = fit.nodes[group.name]
        assert group.least <= used <= group.most
        cpus = fit.ranks[group.name] * ranks[1] + fit.engines[group.name] * engines[1]
        gpus = fit.ranks[group.name] * ranks[2] + fit.engines[group.name] * engines[2]
        assert cpus <= used * group.cpus
        assert gpus <= used * group.gpus
        workers += used if group is not cluster.head else 0
    assert cluster.most_workers is None or workers <= cluster.most_workers


@settings(max_examples=300)
@given(clusters(), actors, actors)
def test_numbers_of_cpus_that_are_named_fit(cluster, ranks, engines):
    try:
        place(config(ranks, engines), cluster)
    except ConfigError as error:
        named = dict(re.findall(r"(cpus_per_\w+)=(\d+)", str(error)))
        least = ((ranks[0], 1, ranks[2]), (engines[0], 1, engines[2]))
        if named:
            rank, engine = (
                int(named.get(f"cpus_per_{who}", n)) for who, n in (("rank", ranks[1]), ("engine", engines[1]))
            )
            assert rank <= ranks[1]
            assert engine <= engines[1]
            place(config((ranks[0], rank, ranks[2]), (engines[0], engine, engines[2])), cluster)
        else:
            with pytest.raises(ConfigError):
                place(config(*least), cluster)


@settings(max_examples=300)
@given(clusters(), actors, actors)
def test_engines_at_most_is_tight(cluster, ranks, engines):
    try:
        most = place(config(ranks, (1, *engines[1:])), cluster).engines_at_most
    except ConfigError:
        assume(False)
    fit = place(config(ranks, (most, *engines[1:])), cluster)
    assert fit.engines.total() == most
    always = fit.engines_always
    assert always <= most
    if always:
        few = place(config(ranks, (always, *engines[1:])), cluster)
        assert few.nodes == place(config(ranks, (1, *engines[1:])), cluster).nodes, "these need no further node"
    with pytest.raises(ConfigError, match=r"rollout\.engines"):
        place(config(ranks, (most + 1, *engines[1:])), cluster)


@settings(max_examples=200)
@given(st.lists(groups, min_size=1, max_size=3), actors)
def test_ranks_fit_exactly_when_the_nodes_can_hold_them(made, ranks):
    workers = [Group(f"g{i}", *group) for i, group in enumerate(made)]
    cluster = Cluster("c.yaml", "RayCluster", (Group("head", 0, 0, 1, 1), *workers), None)
    shape = Shape(*ranks[1:])
    room = Counter({g.name: g.most * shape.times_in(g.cpus, g.gpus) for g in workers})
    one = (1, 0, 0)  # an engine that asks for nothing
    if room.total() >= ranks[0]:
        assert place(config(ranks, one), cluster).ranks.total() == ranks[0]
    else:
        with pytest.raises(ConfigError, match=r"train\.ranks"):
            place(config(ranks, one), cluster)


@pytest.mark.parametrize(
    ("threads", "cpus", "expected"), [(0, 1, 1), (0, 4, 4), (0, 0, 1), (3, 1, 3), (ALL_CORES, 1, cores_here())]
)
def test_threads_of_a_process(threads, cpus, expected):
    """A process on GPUs, which asks for no CPU, still has one thread."""
    assert threads_of(threads, cpus) == expected


def test_engines_are_started_with_their_threads():
    config = KrayConfig()
    config.rollout.threads_per_engine = 3
    environment = engine_spec(config, "model").environment()
    assert environment["OMP_NUM_THREADS"] == "3"
    assert engine_spec(config, "model").cpus == config.rollout.cpus_per_engine
