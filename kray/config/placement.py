"""Placement of a configuration's actors on a cluster: whether they fit, and where.

The learner ranks are placed first, as the driver does: on nodes that always run, and on spot nodes only when no other has
capacity. Engines fill what is left, then nodes that the autoscaler has to start. Pure: no Ray, no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from kray.config.cluster_file import Cluster, Group, load_cluster
from kray.config.players import frozen_players
from kray.config.schema import KrayConfig, RolloutConfig
from kray.errors import ConfigError

# Number that stands for "any number of".
UNLIMITED = 10**9


@dataclass(frozen=True, slots=True)
class Shape:
    """CPUs and GPUs that one actor requests."""

    cpus: float
    gpus: float

    def times_in(self, cpus: float, gpus: float) -> int:
        """Return how many such actors fit into so many CPUs and GPUs."""
        ratios = [have / need for have, need in ((cpus, self.cpus), (gpus, self.gpus)) if need > 0]
        return int(min(ratios, default=UNLIMITED))

    def __str__(self) -> str:
        return amounts(self.cpus, self.gpus)


@dataclass(slots=True)
class Node:
    """A running node with its free CPUs and GPUs."""

    group: Group
    cpus: float
    gpus: float


@dataclass(slots=True)
class Fit:
    """Placement of a configuration's actors.

    Attributes:
        ranks: group name -> learner ranks.
        opponents: group name -> engines of opponents that are models (start, past).
        engines: group name -> engines.
        nodes: group name -> nodes in use or always running.
        engines_always: engines that need no further node.
        engines_at_most: engines with every group at its maximum.
        notes: sentences about the placement.
    """

    ranks: Counter[str] = field(default_factory=Counter)
    opponents: Counter[str] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    engines_always: int = 0
    engines_at_most: int = 0
    notes: list[str] = field(default_factory=list)


def place(config: KrayConfig, cluster: Cluster) -> Fit:
    """Place the actors of a configuration on a cluster.

    Raises:
        ConfigError: they do not fit; the message has one line with what is missing and what to change.
    """
    try:
        return _place(config, cluster)
    except _NoRoom as error:
        raise ConfigError(error.told(_fewer_cpus(config, cluster))) from None


def _place(config: KrayConfig, cluster: Cluster) -> Fit:
    rollout, train = config.rollout, config.train
    beside = rollout.cpus_per_engine if rollout.colocate else 0
    rank = Shape(train.cpus_per_rank + beside, train.gpus_per_rank)
    engine = Shape(rollout.cpus_per_engine, rollout.gpus_per_engine)
    capacity = _Capacity(cluster)
    fit = Fit()
    for placed in range(train.ranks):
        group = capacity.take_one(rank)
        if group is None:
            raise _ranks_missing(cluster, rank, train.ranks, placed, rollout.colocate)
        fit.ranks[group.name] += 1
    for player in frozen_players(config.environment):
        group = capacity.take_one(engine)
        if group is None:
            beside_ranks = f"beside {train.ranks} learner ranks ({_where(fit.ranks)})"
            start = (
                f"environment: the opponent {player} needs an engine of {engine} of its own, for which {cluster.path} "
            )
            raise _NoRoom(f"{start}has no place {beside_ranks}: ", engine, "", "raise a group's maximum")
        fit.opponents[group.name] += 1
    if rollout.colocate:
        fit.engines, fit.nodes = fit.ranks.copy(), Counter(node.group.name for node in capacity.nodes)
        fit.engines_always = fit.engines_at_most = train.ranks
        fit.notes = list(_notes(cluster, fit, rank, engine))
        return fit
    fit.engines_always = capacity.on_running(engine)
    fit.engines_at_most = fit.engines_always + sum(count for _, count in capacity.startable(engine))
    least = rollout.engines if rollout.min_engines is None else max(1, rollout.min_engines)
    if fit.engines_at_most < least:
        raise _engines_missing(cluster, capacity, engine, rollout, least, fit)
    placed = min(rollout.engines, fit.engines_at_most)
    fit.engines = capacity.take(engine, placed)
    fit.nodes = Counter(node.group.name for node in capacity.nodes)
    fit.notes = list(_notes(cluster, fit, rank, engine))
    if placed < rollout.engines:
        fit.notes.append(f"{placed} of rollout.engines {rollout.engines} fit; a run goes on with those")
    return fit


class _NoRoom(Exception):
    """Actors that do not fit; told says so with what would help.

    Attributes:
        start: What does not fit.
        lacking: CPUs and GPUs that are missing, of all these actors together.
        offers: What there is.
        advice: What to change where the GPUs do not suffice either.
    """

    def __init__(self, start: str, lacking: Shape, offers: str, advice: str):
        super().__init__(start)
        self.start, self.lacking, self.offers, self.advice = start, lacking, offers, advice

    def told(self, fewer: str) -> str:
        """Return a message.

        Args:
            fewer: Numbers of CPUs with which all would fit; "": none, GPUs are missing too.
        """
        if not fewer:
            return f"{self.start}{self.lacking} are missing{self.offers}; {self.advice}"
        only = f"{amounts(self.lacking.cpus, 0)} are missing{', but no GPUs' if self.lacking.gpus else ''}"
        return f"{self.start}{only}{self.offers}; {fewer} fits, else {self.advice}"


def _fewer_cpus(config: KrayConfig, cluster: Cluster) -> str:
    """Return as many CPUs of a rank and of an engine as fit, as overrides; "" where the actors do not fit with one CPU each."""

    def capped(most: int) -> KrayConfig:
        train = replace(config.train, cpus_per_rank=min(config.train.cpus_per_rank, most))
        rollout = replace(config.rollout, cpus_per_engine=min(config.rollout.cpus_per_engine, most))
        return replace(config, train=train, rollout=rollout)

    def fits(most: int) -> bool:
        try:
            _place(capped(most), cluster)
        except (_NoRoom, ConfigError):
            return False
        return True

    if not fits(1):
        return ""
    # The first fits, the second does not.
    found, above = 1, max(config.train.cpus_per_rank, config.rollout.cpus_per_engine)
    while above - found > 1:
        middle = (found + above) // 2
        found, above = (middle, above) if fits(middle) else (found, middle)
    changed, texts = capped(found), []
    if changed.train.cpus_per_rank != config.train.cpus_per_rank:
        texts.append(f"train.cpus_per_rank={changed.train.cpus_per_rank}")
    if changed.rollout.cpus_per_engine != config.rollout.cpus_per_engine:
        texts.append(f"rollout.cpus_per_engine={changed.rollout.cpus_per_engine}")
    return " ".join(texts)


class _Capacity:
    """Running nodes, and those that may still be started."""

    def __init__(self, cluster: Cluster):
        self.nodes = [Node(g, g.cpus, g.gpus) for g in cluster.groups for _ in range(g.least)]
        started = sum(group.least for group in cluster.workers)
        self.left = UNLIMITED if cluster.most_workers is None else cluster.most_workers - started
        self.unstarted = {group: group.most - group.least for group in cluster.workers}

    def take_one(self, shape: Shape) -> Group | None:
        """Place one actor, on demand before spot, running before new; return its group, None where it does not fit."""
        for node in sorted(self.nodes, key=lambda node: node.group.spot):
            if not node.group.spot and shape.times_in(node.cpus, node.gpus):
                return self._use(node, shape)
        for group in sorted(self.unstarted, key=lambda group: group.spot):
            running = [node for node in self.nodes if node.group is group and shape.times_in(node.cpus, node.gpus)]
            if running:
                return self._use(running[0], shape)
            if self.left > 0 and self.unstarted[group] > 0 and shape.times_in(group.cpus, group.gpus):
                return self._use(self._start(group), shape)
        return None

    def on_running(self, shape: Shape) -> int:
        """Return how many more such actors fit on the running nodes."""
        return sum(shape.times_in(node.cpus, node.gpus) for node in self.nodes)

    def startable(self, shape: Shape) -> list[tuple[Group, int]]:
        """Return (group, actors that fit on the nodes that it may still start); all groups share the limit on nodes."""
        found, left = [], self.left
        fitting = {group: shape.times_in(group.cpus, group.gpus) for group in self.unstarted}
        for group in sorted(fitting, key=lambda group: -fitting[group]):
            nodes = min(self.unstarted[group], left) if fitting[group] else 0
            found.append((group, nodes * fitting[group]))
            left -= nodes
        return found

    def take(self, shape: Shape, count: int) -> Counter[str]:
        """Place so many actors, which must fit; start nodes only when the running ones are full."""
        placed: Counter[str] = Counter()
        for node in self.nodes:
            fitting = min(shape.times_in(node.cpus, node.gpus), count - placed.total())
            node.cpus, node.gpus = node.cpus - fitting * shape.cpus, node.gpus - fitting * shape.gpus
            placed[node.group.name] += fitting
        for group, most in self.startable(shape):
            while most > 0 and placed.total() < count:
                fitting = min(shape.times_in(group.cpus, group.gpus), count - placed.total())
                node = self._start(group)
                node.cpus, node.gpus = node.cpus - fitting * shape.cpus, node.gpus - fitting * shape.gpus
                placed[group.name] += fitting
                most -= fitting
        return +placed

    def _start(self, group: Group) -> Node:
        self.unstarted[group] -= 1
        self.left -= 1
        self.nodes.append(Node(group, group.cpus, group.gpus))
        return self.nodes[-1]

    @staticmethod
    def _use(node: Node, shape: Shape) -> Group:
        node.cpus, node.gpus = node.cpus - shape.cpus, node.gpus - shape.gpus
        return node.group


def cluster_rows(config: KrayConfig, path: str) -> list[tuple[str, str]]:
    """Return (label, value) rows with the placement of the configuration's actors.

    Raises:
        ConfigError: they do not fit on the cluster of the file.
    """
    cluster = load_cluster(path)
    fit = place(config, cluster)
    always, most = fit.engines_always, fit.engines_at_most
    rows = [
        ("cluster", f"{path} ({cluster.kind}): {'; '.join(map(_described, cluster.groups))}"),
        ("driver and scorer on", f"{cluster.head.name}, where a job's entry point runs"),
        ("learner ranks on", _where(fit.ranks)),
        *([("opponents' engines on", _where(fit.opponents))] if fit.opponents else []),
        ("engines on", _where(fit.engines)),
        ("engines that fit", f"{_many(always)} without another node, at most {_many(most)}"),
        ("nodes in use", _where(fit.nodes)),
    ]
    return rows + [("note", note) for note in fit.notes]


def requested(config: KrayConfig) -> tuple[int, int]:
    """Return (CPUs, GPUs) that all engines, those of opponents too, and learner ranks request together."""
    rollout, train = config.rollout, config.train
    engines = rollout.engines + len(frozen_players(config.environment))
    cpus = engines * rollout.cpus_per_engine + train.ranks * train.cpus_per_rank
    # An engine that shares the GPU of a rank asks for none of its own.
    own = engines - rollout.engines if rollout.colocate else engines
    return cpus, own * rollout.gpus_per_engine + train.ranks * train.gpus_per_rank


def amounts(cpus: float, gpus: float) -> str:
    """Return {CPU: 4} or {CPU: 4, GPU: 1} as text."""
    return f"{{CPU: {cpus:g}, GPU: {gpus:g}}}" if gpus else f"{{CPU: {cpus:g}}}"


def _many(count: int) -> str:
    return "any number" if count >= UNLIMITED else str(count)


def _described(group: Group) -> str:
    nodes = str(group.most) if group.always else f"{group.least} to {group.most}"
    return f"{group.name} {nodes} x {amounts(group.cpus, group.gpus)}{' on spot' if group.spot else ''}"


def _where(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "nowhere"


def _notes(cluster: Cluster, fit: Fit, rank: Shape, engine: Shape) -> Iterable[str]:
    groups = {group.name: group for group in cluster.groups}
    for name, count in fit.ranks.items():
        if groups[name].spot:
            yield f"{count} learner ranks are placed on {name}, which is spot: preemption sets the run back to a checkpoint"
    for what, shape, places in (("learner ranks", rank, fit.ranks), ("engines", engine, fit.engines)):
        idle = [name for name in places if groups[name].gpus and not shape.gpus]
        if idle:
            reason = "; a CUDA build of vLLM does not run without one" if what == "engines" else ""
            yield f"{what} request no GPU, so those of {', '.join(idle)} stay idle{reason}"


def _ranks_missing(cluster: Cluster, rank: Shape, ranks: int, placed: int, colocated: bool) -> _NoRoom:
    offers = "; ".join(
        f"{g.name} takes {rank.times_in(g.cpus, g.gpus)} a node on {_nodes(g.most)} of {amounts(g.cpus, g.gpus)}"
        for g in cluster.groups
    )
    lacking, each = ranks - placed, "learner ranks, each with its engine," if colocated else "learner ranks"
    return _NoRoom(
        f"train.ranks: {ranks} {each} of {rank} do not fit on {cluster.path}: {placed} do, ",
        Shape(lacking * rank.cpus, lacking * rank.gpus),
        f" ({offers}{_limit(cluster)})",
        "lower train.ranks or raise a group's maximum",
    )


def _engines_missing(
    cluster: Cluster, capacity: _Capacity, engine: Shape, rollout: RolloutConfig, engines: int, fit: Fit
) -> _NoRoom | ConfigError:
    key = "rollout.engines" if rollout.min_engines is None else "rollout.min_engines"
    offers: Counter[str] = Counter()
    for node in capacity.nodes:
        offers[node.group.name] += engine.times_in(node.cpus, node.gpus)
    for group, count in capacity.startable(engine):
        offers[group.name] += count
    lacking = engines - fit.engines_at_most
    most_gpus = max(group.gpus for group in cluster.groups)
    if engine.gpus > max(1, most_gpus):
        return ConfigError(
            f"rollout.gpus_per_engine: the {engine.gpus:g} GPUs of an engine must be on one node, and none of {cluster.path} "
            f"has more than {most_gpus:g}; lower it or use nodes with more GPUs"
        )
    return _NoRoom(
        f"{key}: {engines} engines of {engine} do not fit on {cluster.path} beside {fit.ranks.total()} learner "
        f"ranks ({_where(fit.ranks)}): at most {fit.engines_at_most} do ({_where(offers)}{_limit(cluster)}), ",
        Shape(lacking * engine.cpus, lacking * engine.gpus),
        "",
        f"lower {key} or raise a group's maximum",
    )


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"


def _limit(cluster: Cluster) -> str:
    most = sum(group.most for group in cluster.workers)
    short = cluster.most_workers is not None and cluster.most_workers < most
    return f"; max_workers allows {cluster.most_workers} of {most} nodes" if short else ""
