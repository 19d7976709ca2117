"""Tells what MLflow refuses for good from what it may accept later.

A store that does not answer, or answers that it is unavailable, has an outage: deliveries wait. An answer that the request
itself is wrong (HTTP 4xx, INVALID_PARAMETER_VALUE) is final: the same request would be refused again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

# HTTP statuses 4xx after which a later attempt may succeed.
TRANSIENT = (408, 409, 425, 429, 499)
# HTTP statuses about the run or the caller, not about what was sent.
ABOUT_RUN = (401, 403, 404)
Entry = TypeVar("Entry")
# {step, time, metric: value, ...}
Row = Mapping[str, Any]
# Keys of a row that are no metrics.
KEPT = ("step", "time")


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error of MLflow or requests, 0 where it has none."""
    # Statuses for which MLflow has no error code of its own.
    found = re.search(r"failed with error code (\d{3}) ", str(error))
    if found:
        return int(found[1])
    code = getattr(error, "get_http_status_code", None)
    if callable(code):
        return int(code())
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def refusal(error: BaseException) -> str:
    """Return in one line why the store will never accept what was sent; "" where it may accept it later."""
    status = status_of(error)
    if not 400 <= status < 500 or status in TRANSIENT:
        return ""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unanswered(error: BaseException) -> bool:
    """Return whether an error says that no answer came, so that nothing is known of what was sent."""
    from requests import exceptions

    kinds = (exceptions.Timeout, exceptions.ConnectionError, TimeoutError, ConnectionError)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kinds):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def deliver(entries: Sequence[Entry], send: Callable[[Sequence[Entry]], None]) -> list[tuple[Entry, str]]:
    """Send entries together; where they are refused, send halves of them, so that a bad entry does not hold back others.

    Args:
        entries: What to send.
        send: Sends some of them, and raises where the store does not accept them.

    Returns:
        Each entry that is refused for good, with the reason.

    Raises:
        Exception: What `send` raises for an outage, or for a refusal of the whole run.
    """
    try:
        send(entries)
    except Exception as error:
        reason = refusal(error)
        if not reason or status_of(error) in ABOUT_RUN or not entries:
            raise
        if len(entries) == 1:
            return [(entries[0], reason)]
        half = len(entries) // 2
        return deliver(entries[:half], send) + deliver(entries[half:], send)
    return []


def deliver_rows(
    rows: Sequence[Row], send: Callable[[list[dict[str, Any]]], None], without: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Send the metrics of rows as `deliver` does.

    Args:
        rows: The rows.
        send: Sends some rows with some of their metrics.
        without: Metrics that are left out.

    Returns:
        (metric, reason) of each value that is refused for good.
    """
    points = [(name, number) for number, row in enumerate(rows) for name in row if name not in (*KEPT, *without)]

    def send_points(some: Sequence[tuple[str, int]]) -> None:
        parts: dict[int, dict[str, Any]] = {}
        for name, number in some:
            row = rows[number]
            parts.setdefault(number, {key: row[key] for key in KEPT})[name] = row[name]
        send([parts[number] for number in sorted(parts)])

    return [(name, reason) for (name, _), reason in deliver(sorted(points), send_points)] if points else []
