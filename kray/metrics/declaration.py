"""What a metric's declaration consists of, and the table of all declared metrics."""

from __future__ import annotations

from typing import Any, Literal

PrometheusKind = Literal["gauge", "counter", "sum"]


class Metric(str):
    """Name of a metric, with its description as attributes. Pickled and written, it is its name alone.

    Attributes:
        unit: "s", "tokens", "ratio", ...; "1" for numbers without one.
        meaning: one phrase for the reference page.
        prometheus: the name under which Ray's Prometheus endpoint shows its newest value, "" where it does not.
        prometheus_kind: gauge; counter: the metric itself counts up; sum: the values of the steps are added up.
    """

    unit: str
    meaning: str
    prometheus: str
    prometheus_kind: PrometheusKind

    def __new__(
        cls,
        name: str,
        unit: str,
        meaning: str,
        prometheus: str = "",
        prometheus_kind: PrometheusKind = "gauge",
    ) -> Metric:
        """Make a metric; the arguments are its name and its attributes."""
        made = super().__new__(cls, name)
        made.unit, made.meaning, made.prometheus, made.prometheus_kind = unit, meaning, prometheus, prometheus_kind
        return made

    @property
    def described(self) -> str:
        """Name, meaning and unit in one line."""
        return f"{self}: {self.meaning} ({self.unit})"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class MetricFamily:
    """Metrics that differ in one part of their name, such as eval/pass_at_<k>."""

    def __init__(self, pattern: str, unit: str, meaning: str):
        self.pattern, self.unit, self.meaning = pattern, unit, meaning
        self._prefix, _, rest = pattern.partition("<")
        self._suffix = rest.partition(">")[2]

    def of(self, key: object) -> Metric:
        """Return the family's metric for `key`."""
        return Metric(f"{self._prefix}{key}{self._suffix}", self.unit, self.meaning)

    def has(self, name: str) -> bool:
        """Return whether the metric of this name belongs to the family."""
        return name.startswith(self._prefix) and name.endswith(self._suffix)


METRICS: dict[str, Metric | MetricFamily] = {}


def metric(name: str, unit: str, meaning: str, **exported: Any) -> Metric:
    """Declare a metric; see Metric for the arguments."""
    made = METRICS[name] = Metric(name, unit, meaning, **exported)
    return made


def family(pattern: str, unit: str, meaning: str) -> MetricFamily:
    """Declare a family of metrics; `pattern` has its variable part in angle brackets."""
    made = METRICS[pattern] = MetricFamily(pattern, unit, meaning)
    return made


def declared(group: str, name: str) -> Metric:
    """Return the metric <group>/<name>; KeyError where none is declared."""
    found = METRICS[f"{group}/{name}"]
    assert isinstance(found, Metric)
    return found


def timing(part: str) -> Metric:
    """Return the metric of a part's seconds, such as timing_s/generate."""
    return declared("timing_s", part)


def single_metrics() -> list[Metric]:
    """Return the metrics that are declared by their whole name, in the order of their declaration."""
    return [known for known in METRICS.values() if isinstance(known, Metric)]


def documented(name: str) -> bool:
    """Return whether a metric of this name is declared, by itself or as one of a family."""
    return name in METRICS or any(known.has(name) for known in METRICS.values() if isinstance(known, MetricFamily))
