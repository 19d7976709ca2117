"""The layers of kray's packages, the size of its files, and what its light modules load.

Imports are read from the source, so that lazy ones and those under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the lowest to the highest: a package imports only packages of lower layers. jobs/ stands above all of them.
LAYERS = (
    {"errors", "metrics", "plan_modes", "ports", "records", "reward_settings", "text"},
    {"config", "planner", "rewards", "weight_sync"},
    {"cluster", "environments", "prompts", "tracking"},
    {"monitor", "rollout", "simulate", "train"},
    {"driver"},
    {"bench", "compare", "faults", "launch", "serve"},
)
# What measures the product; nothing that is not in this list imports it.
MEASUREMENT = {"bench", "compare", "faults", "simulate"}
LOOSE_MODULES = 6
FILE_LINES = 400
FUNCTION_LINES = 60


def module_files() -> dict[str, Path]:
    """Return the file of each module of kray by its dotted name."""
    files = {}
    for file in sorted((ROOT / "kray").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


MODULES = module_files()
SOURCES = [*MODULES.values(), *sorted((ROOT / "jobs").glob("*.py"))]


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports(file: Path) -> set[str]:
    """Return the modules of kray that a file imports anywhere."""
    found = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            base = node.module or ""
            if base.split(".")[0] == "kray":
                names = {f"{base}.{alias.name}" for alias in node.names}
                found |= {name if name in MODULES else base for name in names}
    return found


GRAPH = {name: imports(file) - {name} for name, file in MODULES.items()}


def package(module: str) -> str:
    """Return the first part of a module's name below kray; "" for kray itself."""
    return f"{module}.".split(".")[1]


def place(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


def test_every_package_has_one_layer():
    layered = [name for layer in LAYERS for name in layer]
    assert sorted(layered) == sorted({package(name) for name in MODULES} - {""})


def test_imports_point_down():
    layer_of = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module} -> {imported}"
        for module, found in GRAPH.items()
        for imported in sorted(found)
        if package(imported) not in ("", package(module))
        and layer_of[package(imported)] >= layer_of.get(package(module), -1)
    ]
    assert wrong == []


def reachable(module: str) -> set[str]:
    """Return every module that importing this one may import."""
    found: set[str] = set()
    to_visit = [module]
    while to_visit:
        new = GRAPH[to_visit.pop()] - found
        found |= new
        to_visit += new
    return found


def test_modules_have_no_import_cycle():
    assert [module for module in GRAPH if module in reachable(module)] == []


def test_no_product_module_imports_measurement():
    wrong = [
        f"{module} -> {imported}"
        for module, found in GRAPH.items()
        for imported in sorted(found)
        if package(module) not in MEASUREMENT and package(imported) in MEASUREMENT
    ]
    assert wrong == []


def test_few_modules_lie_outside_packages():
    loose = [name for name in MODULES if (ROOT / "kray" / f"{package(name)}.py").exists()]
    assert len(loose) <= LOOSE_MODULES, loose


# Modules that read pickles -> whose. What a less trusted process, a file or a network peer writes is data.
UNPICKLERS = {
    "kray.rewards.worker": "a scoring process, of its driver",
    "kray.environments.frames": "a session host, of its driver",
    "kray.environments.turns": "an environment process, of those of the same environment",
    "kray.environments.role_turns": "an environment process, of those of the same environment",
    "kray.environments.registry": "the check of an environment, of itself",
    "kray.environments.textarena_game": "a game, of itself",
    "kray.bench.driver_scale": "a benchmark, of itself",
    "kray.faults.compared": "a benchmark, of its own runs",
    # A subclass that builds descriptions of tensors and nothing else.
    "kray.train.sharded_checkpoint": "a checkpoint",
}


def unpickles(call: ast.Call) -> bool:
    """Return whether a call may run what a file or a message names."""
    name = ast.unparse(call.func)
    keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name.endswith("torch.load"):
        return keywords.get("weights_only") != "True"
    if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"):
        return name.rpartition(".")[2] in ("load", "loads", "open", "Unpickler")
    return name in ("yaml.unsafe_load", "yaml.full_load", "yaml.load") or keywords.get("allow_pickle") == "True"


def test_nothing_from_outside_is_unpickled():
    found = {
        name
        for name, file in MODULES.items()
        for node in ast.walk(parsed(file))
        if (isinstance(node, ast.Call) and unpickles(node))
        or (isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases))
    }
    assert found == set(UNPICKLERS)


def test_files_are_short():
    lengths = {file: len(file.read_text().splitlines()) for file in SOURCES}
    assert [f"{place(file, lines)}" for file, lines in lengths.items() if lines > FILE_LINES] == []


def test_functions_are_short():
    long = [
        f"{place(file, node.lineno)}: {node.name} has {length} lines"
        for file in SOURCES
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert long == []


def named_places() -> list[tuple[str, str, str]]:
    """Return (where, module, attribute) for every string of the code and the configurations that names a place in kray."""
    packages = "|".join(sorted({package(name) for name in MODULES} - {""}))
    found = []
    for file in SOURCES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for module, attribute in re.findall(r"\b(kray(?:\.\w+)+):([A-Za-z_]\w*)", node.value):
                    found.append((place(file, node.lineno), module, attribute))
                if named := re.fullmatch(rf"(kray\.(?:{packages})(?:\.[a-z]\w*)*)(?:\.([A-Z]\w*))?", node.value):
                    found.append((place(file, node.lineno), named[1], named[2] or ""))
    for file in sorted([*(ROOT / "configs").glob("*.yaml"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            for module, attribute in re.findall(r"\b(kray(?:\.\w+)+):([A-Za-z_]\w*)", line):
                found.append((place(file, number), module, attribute))
    return found


def test_strings_that_name_places_resolve():
    places = named_places()
    assert len(places) > 8
    missing = []
    for where, module, attribute in places:
        file = MODULES.get(module)
        if file is None or (attribute and not hasattr(importlib.import_module(module), attribute)):
            missing.append(f"{where}: {module}:{attribute}")
    assert missing == []


CHECK = (
    "import runpy, sys\n"
    "sys.argv = ['jobs/train.py', '--config', 'configs/tiny.yaml', '--check']\n"
    "try: runpy.run_path('jobs/train.py', run_name='__main__')\n"
    "except SystemExit as end: assert not end.code, end.code\n"
)


@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        ("import kray.records, kray.errors, kray.metrics, kray.plan_modes", "ray torch omegaconf mlflow vllm"),
        ("import kray.reward_settings", "ray torch omegaconf mlflow vllm numpy"),
        ("import kray.planner", "ray torch omegaconf mlflow vllm"),
        ("import kray.config", "ray torch mlflow vllm"),
        ("import kray.rewards, kray.prompts", "ray torch transformers sympy reasoning_gym datasets pyarrow"),
        ("import kray.tracking", "ray torch mlflow"),
        ("import kray.train.supported_models", "ray torch"),
        (CHECK, "ray torch mlflow vllm"),
    ],
    ids=["records", "reward_settings", "planner", "config", "rewards", "tracking", "supported_models", "check"],
)
def test_light_modules_load_nothing_heavy(program, heavy):
    program = f"{program}\nimport sys\nprint([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_agents_md_lists_the_layers():
    rows = re.findall(r"^\| (\d) \| (.*) \|$", (ROOT / "AGENTS.md").read_text(), re.M)
    listed = {
        int(number): {name.removesuffix(".py") for name in re.findall(r"`(\w+(?:\.py)?)`", row)} for number, row in rows
    }
    assert listed == {**{number: layer for number, layer in enumerate(LAYERS, 1)}, len(LAYERS) + 1: set()}
