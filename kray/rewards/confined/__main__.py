"""Run one untrusted program: read the request, restrict this process, run the program, write its results.

    python -S -s <this folder> <request descriptor> <results descriptor> <parent pid>

The request is JSON: program (source), expressions (null: run it as a script that reads standard input; else the source of
expressions to evaluate after it), setup (source run after the program), strict, limits, folder, packages. Results are
JSON lines: first {"missing": [...]}, the restrictions that are not available, which end a strict run; then one
{"value": ...} or {"error": ...} per expression. The expected results are not known in this process, so that the program
cannot find them; whatever it does to this process, it can only change its own results.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any

import plain
import restrictions


def main() -> None:
    """Run the program named by the command line; see the module."""
    request_descriptor, results, parent = map(int, sys.argv[1:4])
    with os.fdopen(request_descriptor, "rb") as file:
        request = json.loads(file.read())
    missing = restrictions.apply(request["limits"], request["folder"], request["packages"], parent)
    _write(results, {"missing": missing})
    if missing and request["strict"]:
        return
    own_folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != own_folder] + request["packages"]
    sys.argv[:] = ["program"]
    sys.setrecursionlimit(10_000)
    script = request["expressions"] is None
    module = types.ModuleType("__main__" if script else "program")
    sys.modules[module.__name__] = module
    if script:
        os.close(results)
    exec(compile(request["program"], "<program>", "exec"), module.__dict__)
    if request["setup"]:
        exec(compile(request["setup"], "<setup>", "exec"), module.__dict__)
    for expression in request["expressions"] or ():
        try:
            value = eval(compile(expression, "<test>", "eval"), module.__dict__)
            _write(results, {"value": plain.encode(value, module.__name__)})
        except Exception as error:
            _write(results, {"error": f"{type(error).__name__}: {str(error)[:200]}"})


def _write(descriptor: int, message: Any) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]


if __name__ == "__main__":
    main()
