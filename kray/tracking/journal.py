"""The local truth about a run: metrics.jsonl, one line a step, and how much of it a reader has carried elsewhere.

Every step stands in the file exactly once and steps increase. A line is on disk when `append` returns. The reader's
place is kept in metrics.delivered beside it, so that a later process carries on where this one stopped.
Safe to use from two threads: one that appends, one that reads and delivers.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from kray.errors import KrayError

Mark = tuple[int, int]  # lines read so far, merges seen so far


class Journal:
    """Open metrics.jsonl in `folder`.

    resume_step: keep the lines up to this step and drop the rest, which belong to a future that was given up (-1: drop
    all); None: a fresh run, and KrayError when there are lines already.
    reader: who receives the lines; another reader than the last one starts at the beginning.
    """

    def __init__(self, folder: Path, resume_step: int | None = None, reader: str = ""):
        self.path = folder / "metrics.jsonl"
        self._cursor = folder / "metrics.delivered"
        self._lock = threading.Lock()
        self._steps: list[int] = []
        self._starts: list[int] = []  # byte offset of each line
        self._end = 0
        self._merges = 0
        self._merged_line = sys.maxsize  # the first line that has changed since the reader read
        self._open(resume_step)
        self._file = self.path.open("r+b")
        self._reader = ""
        self._sent = 0
        self.read_for(reader)

    def read_for(self, reader: str) -> None:
        """Set who receives the lines, and find how far they had come."""
        step = None
        try:
            saved = json.loads(self._cursor.read_text())
            step = int(saved["step"]) if saved["reader"] == reader else None
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing delivered yet, or unreadable: deliver all again, which changes nothing at the receiver
        with self._lock:
            self._reader = reader
            self._sent = 0 if step is None else sum(known <= step for known in self._steps)

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`, which belong to a future that was given up (-1: all lines)."""
        with self._lock:
            kept = sum(known <= step for known in self._steps)
            if kept == len(self._steps):
                return
            self._end = self._starts[kept]
            del self._steps[kept:], self._starts[kept:]
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())
            self._sent = min(self._sent, kept)
            self._changed_from(kept)

    def _changed_from(self, line: int) -> None:
        """Lines from here on are not what the reader may have read."""
        self._merges, self._merged_line = self._merges + 1, min(self._merged_line, line)

    @property
    def last_step(self) -> int | None:
        """The newest step in the file."""
        return self._steps[-1] if self._steps else None

    @property
    def undelivered(self) -> list[int]:
        """Steps that the reader has not got yet."""
        with self._lock:
            return self._steps[self._sent :]

    def append(self, step: int, metrics: dict[str, float], time_s: float) -> None:
        """Write a step's metrics (finite floats); a second call for the newest step adds to its line.

        time_s: seconds since 1970. Raises ValueError for a step before the newest one.
        """
        with self._lock:
            last = self.last_step
            if last is not None and step < last:
                raise ValueError(f"step {step} comes after step {last}: {self.path} holds each step once, in order")
            row: dict[str, Any] = {"step": step, "time": time_s}
            start = self._end
            if step == last:
                start = self._starts.pop()
                self._steps.pop()
                self._file.seek(start)
                row = json.loads(self._file.readline())
                self._changed_from(len(self._steps))
                self._sent = min(self._sent, len(self._steps))
            row.update({name: value for name, value in metrics.items() if name not in ("step", "time")})
            line = json.dumps(row, allow_nan=False).encode() + b"\n"
            self._file.seek(start)
            self._file.write(line)
            self._file.truncate()  # a line that was added to may have become shorter
            self._file.flush()
            os.fsync(self._file.fileno())
            self._steps.append(step)
            self._starts.append(start)
            self._end = start + len(line)

    def pending(self, limit: int) -> tuple[list[dict[str, Any]], Mark]:
        """The next undelivered rows, one at least and at most about `limit` values, and the mark to confirm them."""
        with self._lock:
            self._merged_line = sys.maxsize
            rows: list[dict[str, Any]] = []
            values = 0
            self._file.seek(self._starts[self._sent] if self._sent < len(self._steps) else self._end)
            for _ in range(len(self._steps) - self._sent):
                row = json.loads(self._file.readline())
                values += len(row) - 2
                if rows and values > limit:
                    break
                rows.append(row)
            return rows, (self._sent + len(rows), self._merges)

    def delivered(self, mark: Mark) -> None:
        """The rows up to the mark have arrived. A line that was added to since it was read stays pending."""
        line, merges = mark
        with self._lock:
            self._sent = line if merges == self._merges else min(line, self._merged_line)
            if self._sent:
                state = json.dumps({"reader": self._reader, "step": self._steps[self._sent - 1]})
                draft = self._cursor.with_suffix(".draft")
                draft.write_text(state)
                os.replace(draft, self._cursor)

    def close(self) -> None:
        self._file.close()

    def _open(self, resume_step: int | None) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        kept: list[bytes] = []
        lines = content.split(b"\n")[:-1]  # a last line without its end was being written when its process died
        for number, line in enumerate(lines, 1):
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                raise KrayError(f"{self.path}:{number}: not a step's metrics; repair or remove the line") from None
            if resume_step is not None and step > resume_step:
                break
            self._steps.append(step)
            self._starts.append(self._end)
            self._end += len(line) + 1
            kept.append(line + b"\n")
        if kept and resume_step is None:
            raise KrayError(f"{self.path} already holds steps of another run; resume that run or take a new folder")
        if not self.path.exists() or len(content) != self._end:
            draft = self.path.with_suffix(".draft")
            draft.write_bytes(b"".join(kept))
            os.replace(draft, self.path)
