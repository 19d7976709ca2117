"""The local record of a run: metrics.jsonl, one line a step, and how much of it has been delivered to MLflow.

Every step is in the file exactly once, and steps increase. A line is on disk when `append` returns. metrics.delivered beside
it holds the last delivered step, so that a later process continues there. Safe to use from two threads: one that appends,
one that reads and delivers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kray.errors import KrayError

# A position of the reader: lines read so far, and changes of earlier lines that it has seen.
Mark = tuple[int, int]


class Journal:
    """Appends steps to metrics.jsonl, and hands out those that a reader has not received."""

    def __init__(self, folder: Path, resume_step: int | None = None, reader: str = ""):
        """Open metrics.jsonl.

        Args:
            folder: The run folder.
            resume_step: Later lines are dropped, because those steps are done again (-1: all lines); None: a new run.
            reader: Who receives the lines; another reader than the last one starts at the beginning.

        Raises:
            KrayError: A new run finds lines of another one, or a line is damaged.
        """
        self.path = folder / "metrics.jsonl"
        self._cursor = folder / "metrics.delivered"
        self._lock = threading.Lock()
        self._steps: list[int] = []
        # Byte offset of each line.
        self._starts: list[int] = []
        self._end = 0
        # How often a line was changed, and the first line that has changed since the reader read.
        self._merges = 0
        self._merged_line = sys.maxsize
        self._open(resume_step)
        self._file = self.path.open("r+b")
        self._reader = ""
        self._sent = 0
        self.read_for(reader)

    def read_for(self, reader: str) -> None:
        """Set who receives the lines, and continue after the last one that this reader has received."""
        step = None
        try:
            saved = json.loads(self._cursor.read_text())
            step = int(saved["step"]) if saved["reader"] == reader else None
        except (OSError, ValueError, KeyError, TypeError):
            # Nothing was delivered, or the file is damaged: all lines are delivered again, which changes nothing.
            pass
        with self._lock:
            self._reader = reader
            self._sent = 0 if step is None else sum(known <= step for known in self._steps)

    def rewind(self, step: int) -> None:
        """Drop the lines after `step` (-1: all lines), because those steps are done again."""
        with self._lock:
            kept = sum(known <= step for known in self._steps)
            if kept == len(self._steps):
                return
            self._end = self._starts[kept]
            del self._steps[kept:], self._starts[kept:]
            with self._writing(f"that the run goes back to step {step}"):
                self._file.truncate(self._end)
                os.fsync(self._file.fileno())
            self._sent = min(self._sent, kept)
            self._changed_from(kept)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Name the file, and what is to be written, where it cannot be: its folder is read-only or full."""
        try:
            yield
        except OSError as error:
            why = f"cannot be written ({error.strerror or error})"
            text = f"{self.path} {why}, so {what} cannot be recorded; what was saved before stays whole"
            raise KrayError(text) from error

    def _changed_from(self, line: int) -> None:
        """Note that lines from here on may differ from what the reader has read."""
        self._merges, self._merged_line = self._merges + 1, min(self._merged_line, line)

    @property
    def last_step(self) -> int | None:
        """The newest step in the file, None when it is empty."""
        return self._steps[-1] if self._steps else None

    @property
    def undelivered(self) -> list[int]:
        """Steps that the reader has not received yet."""
        with self._lock:
            return self._steps[self._sent :]

    def append(self, step: int, metrics: dict[str, float], time_s: float) -> None:
        """Write the metrics of a step; a second call for the newest step adds to its line.

        Args:
            step: At least the newest step.
            metrics: Metric -> finite value.
            time_s: Seconds since 1970.

        Raises:
            ValueError: The step is before the newest one.
            KrayError: The file cannot be written any more.
        """
        with self._lock, self._writing(f"the metrics of step {step}"):
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
            # A line that was added to may have become shorter.
            self._file.truncate()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._steps.append(step)
            self._starts.append(start)
            self._end = start + len(line)

    def pending(self, limit: int) -> tuple[list[dict[str, Any]], Mark]:
        """Return the next undelivered rows and the mark that confirms them.

        Args:
            limit: Values in all rows together; the first row is returned in any case.
        """
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
        """Record that the rows up to the mark have arrived; a line that has changed since it was read stays pending."""
        line, merges = mark
        with self._lock:
            self._sent = line if merges == self._merges else min(line, self._merged_line)
            if self._sent:
                state = json.dumps({"reader": self._reader, "step": self._steps[self._sent - 1]})
                draft = self._cursor.with_suffix(".draft")
                draft.write_text(state)
                os.replace(draft, self._cursor)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self, resume_step: int | None) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        kept: list[bytes] = []
        # A last line without an end was being written when its process died.
        lines = content.split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                raise KrayError(f"{self.path}:{number}: the line is damaged; repair or remove it") from None
            if resume_step is not None and step > resume_step:
                break
            self._steps.append(step)
            self._starts.append(self._end)
            self._end += len(line) + 1
            kept.append(line + b"\n")
        if kept and resume_step is None:
            raise KrayError(f"{self.path} already holds steps of another run; resume that run or use a new folder")
        if not self.path.exists() or len(content) != self._end:
            draft = self.path.with_suffix(".draft")
            draft.write_bytes(b"".join(kept))
            os.replace(draft, self.path)
