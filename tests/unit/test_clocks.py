"""No deadline and no duration of kray follows a wall clock, which may jump."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# File -> why it computes with the wall clock.
ALLOWED = {
    "kray/faults/cluster.py": "Ray takes the deadline of a node in milliseconds since 1970",
    "kray/monitor/status.py": "the age of a line that another process wrote",
    "kray/tracking/system_metrics.py": "the start of an MLflow run, which another process may have begun",
    "kray/tracking/tracker.py": "MLflow takes the times of a trace in seconds since 1970",
}
WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}


def wall_clock(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in WALL


def computes_with_the_wall_clock(source: str) -> list[int]:
    """Return the lines on which a wall clock, or a name that holds its time, is an operand or is compared."""
    tree = ast.parse(source)
    names = {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and wall_clock(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }

    def told(node: ast.AST) -> bool:
        return wall_clock(node) or (isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in names)

    found = []
    for node in ast.walk(tree):
        operands = []
        if isinstance(node, ast.BinOp):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.AugAssign):
            operands = [node.target, node.value]
        found += [node.lineno for operand in operands if told(operand)]
    return sorted(set(found))


def test_no_deadline_follows_a_wall_clock():
    found = {}
    for folder in ("kray", "jobs", "examples"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if lines := computes_with_the_wall_clock(file.read_text()):
                found[str(file.relative_to(ROOT))] = lines
    odd = {file: lines for file, lines in found.items() if file not in ALLOWED}
    assert not odd, f"use time.monotonic: {odd}"
    assert found.keys() == ALLOWED.keys(), "an exception is not needed any more"


def test_computing_with_a_wall_clock_is_found():
    assert computes_with_the_wall_clock("import time\ndeadline = time.time() + 5") == [2]
    assert computes_with_the_wall_clock("import time\nself.began = time.time()\nif now > self.began: pass") == [3]
    assert computes_with_the_wall_clock("import time\nwait = 5\nwait -= time.time()") == [3]
    assert computes_with_the_wall_clock("import time\nrow = {'time': time.time()}\nleft = time.monotonic() - 3") == []
