"""Names of metrics stand in kray/metrics/ alone; other modules use its constants."""

from __future__ import annotations

import ast
from pathlib import Path

from kray.metrics import METRICS

ROOT = Path(__file__).parents[2]
GROUPS = tuple(sorted({f"{name.partition('/')[0]}/" for name in METRICS if "/" in name}))
TAILS = {f"/{name.partition('/')[2]}" for name in METRICS if "/" in name}
SINGLE = {name for name in METRICS if "/" not in name}


def docstrings(tree: ast.Module) -> set[int]:
    """Return the ids of the nodes that are docstrings or other bare strings."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def test_only_the_metrics_module_spells_metrics():
    found = []
    for file in sorted((ROOT / "kray").rglob("*.py")):
        if file.parent == ROOT / "kray" / "metrics":
            continue
        tree = ast.parse(file.read_text())
        bare = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.FormattedValue):
                rest = [part.value for part in node.values[1:] if isinstance(part, ast.Constant)]
                if len(node.values) == 2 and rest and rest[0] in TAILS:
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}: group of {rest[0]!r} is put together")
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)) or id(node) in bare:
                continue
            if node.value in SINGLE or node.value.startswith(GROUPS):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {node.value!r:.60}")
    assert found == []
