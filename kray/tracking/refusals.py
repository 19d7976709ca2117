"""What MLflow refuses for good, told apart from what it may take later.

A store that does not answer, or answers that it cannot just now, is an outage: what was to be delivered waits. An answer that
the request itself is wrong (HTTP 4xx, INVALID_PARAMETER_VALUE) is final: the same request would be refused for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

LATER = (408, 409, 425, 429, 499)  # of the statuses 4xx those that a later attempt may not meet
WHOLE = (401, 403, 404)  # about the run or the caller, not about what was sent
Entry = TypeVar("Entry")
Row = Mapping[str, Any]  # {step, time, name: value, ...}
KEPT = ("step", "time")  # of a row, beside its metrics


def status_of(error: BaseException) -> int:
    """The HTTP status that an error of MLflow or requests stands for, 0 where it stands for none."""
    told = re.search(r"failed with error code (\d{3}) ", str(error))  # what MLflow has no code of its own for
    if told:
        return int(told[1])
    code = getattr(error, "get_http_status_code", None)
    if callable(code):
        return int(code())
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def refusal(error: BaseException) -> str:
    """Why the store will never take what was sent, on one line; "" where it may take it later."""
    status = status_of(error)
    if not 400 <= status < 500 or status in LATER:
        return ""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def deliver(entries: Sequence[Entry], send: Callable[[Sequence[Entry]], None]) -> list[tuple[Entry, str]]:
    """Sends the entries together, and in ever smaller parts where they are refused, so that one costs no other.

    Returns the entries that are refused for good, with the reason. Raises what `send` raises where that is an outage, or a
    refusal of the whole run.
    """
    try:
        send(entries)
    except Exception as error:
        reason = refusal(error)
        if not reason or status_of(error) in WHOLE or not entries:
            raise
        if len(entries) == 1:
            return [(entries[0], reason)]
        half = len(entries) // 2
        return deliver(entries[:half], send) + deliver(entries[half:], send)
    return []


def deliver_rows(
    rows: Sequence[Row], send: Callable[[list[dict[str, Any]]], None], without: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """`deliver` for rows of metrics, without some names: (name, reason) of each value that is refused."""
    points = [(name, number) for number, row in enumerate(rows) for name in row if name not in (*KEPT, *without)]

    def send_points(some: Sequence[tuple[str, int]]) -> None:
        parts: dict[int, dict[str, Any]] = {}
        for name, number in some:
            row = rows[number]
            parts.setdefault(number, {key: row[key] for key in KEPT})[name] = row[name]
        send([parts[number] for number in sorted(parts)])

    return [(name, reason) for (name, _), reason in deliver(sorted(points), send_points)] if points else []
