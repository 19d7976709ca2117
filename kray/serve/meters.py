"""What the services count, for Prometheus: Ray exports it on every node's metrics port, under `ray_<name>`."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300]  # bounds of the latency's histogram


class Meters:
    """Of one replica. service: policy | planner | rewards. No tag holds anything that a client chose."""

    def __init__(self, service: str):
        self._service = {"service": service}
        self._requests = Counter("kray_serve_requests", "Requests answered, by status.", ("service", "route", "status"))
        self._refused = Counter("kray_serve_refused", "Requests refused before any work.", ("service", "reason"))
        self._tokens = Counter("kray_serve_tokens", "Tokens read and generated.", ("service", "kind"))
        self._items = Counter("kray_serve_items", "Prompts planned for, or answers judged.", ("service",))
        self._latency = Histogram(
            "kray_serve_latency_s",
            "Seconds from a request to its end.",
            boundaries=SECONDS,
            tag_keys=("service", "route"),
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.inc(1, self._service | {"route": route, "status": str(status)})
        self._latency.observe(seconds, self._service | {"route": route})

    def refused(self, reason: str) -> None:
        self._refused.inc(1, self._service | {"reason": reason})

    def count_tokens(self, read: int, generated: int) -> None:
        for kind, tokens in (("prompt", read), ("response", generated)):
            if tokens > 0:
                self._tokens.inc(tokens, self._service | {"kind": kind})

    def count_items(self, items: int) -> None:
        if items > 0:
            self._items.inc(items, self._service)
