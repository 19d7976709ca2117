"""Prometheus metrics of the services, which Ray exports on every node's metrics port as `ray_<name>`."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

# Boundaries of the latency histogram, in seconds.
LATENCY_BOUNDARIES_S = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300]


class Meters:
    """Metrics of one replica; no tag holds anything that a client chose."""

    def __init__(self, service: str):
        """Create the metrics of a service: "policy", "planner" or "rewards"."""
        self._service = {"service": service}
        self._requests = Counter("kray_serve_requests", "Requests answered, by status.", ("service", "route", "status"))
        self._refused = Counter("kray_serve_refused", "Requests refused before any work.", ("service", "reason"))
        self._tokens = Counter("kray_serve_tokens", "Tokens read and generated.", ("service", "kind"))
        self._items = Counter("kray_serve_items", "Prompts planned for, or responses scored.", ("service",))
        self._latency = Histogram(
            "kray_serve_latency_s",
            "Seconds from a request to its end.",
            boundaries=LATENCY_BOUNDARIES_S,
            tag_keys=("service", "route"),
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a response with its status and latency."""
        self._requests.inc(1, self._service | {"route": route, "status": str(status)})
        self._latency.observe(seconds, self._service | {"route": route})

    def refused(self, reason: str) -> None:
        """Count a refused request."""
        self._refused.inc(1, self._service | {"reason": reason})

    def count_tokens(self, prompt: int, generated: int) -> None:
        """Count tokens of prompts and of responses."""
        for kind, tokens in (("prompt", prompt), ("response", generated)):
            if tokens > 0:
                self._tokens.inc(tokens, self._service | {"kind": kind})

    def count_items(self, items: int) -> None:
        """Count prompts that were planned for, or responses that were scored."""
        if items > 0:
            self._items.inc(items, self._service)
