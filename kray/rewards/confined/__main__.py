"""One confined run: reads its order, puts up the walls, runs the program, says what its functions returned.

    python -S -s <this folder> <order descriptor> <results descriptor> <parent>

The order is JSON: program (source), expressions (None: run it as a script that reads standard input; else the text of
expressions to evaluate after it), setup (source run after the program), strict, limits, folder, packages. Results are
JSON lines: first {"missing": [...]}, the walls that could not be had, and in strict mode the end if there are any; then
per expression {"value": ...} or {"error": ...}. What should come out is not known here, so that nothing in this process
is worth finding. Whatever the program does to this process, it can only change its own answer.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any

import plain
import walls


def main() -> None:
    order_descriptor, results, parent = map(int, sys.argv[1:4])
    with os.fdopen(order_descriptor, "rb") as file:
        order = json.loads(file.read())
    missing = walls.put_up(order["limits"], order["folder"], order["packages"], parent)
    _say(results, {"missing": missing})
    if missing and order["strict"]:
        return
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))] + order["packages"]
    sys.argv[:] = ["program"]
    sys.setrecursionlimit(10_000)
    script = order["expressions"] is None
    module = types.ModuleType("__main__" if script else "program")
    sys.modules[module.__name__] = module
    if script:
        os.close(results)
    exec(compile(order["program"], "<program>", "exec"), module.__dict__)
    if order["setup"]:
        exec(compile(order["setup"], "<setup>", "exec"), module.__dict__)
    for expression in order["expressions"] or ():
        try:
            value = eval(compile(expression, "<test>", "eval"), module.__dict__)
            _say(results, {"value": plain.encode(value, module.__name__)})
        except Exception as error:
            _say(results, {"error": f"{type(error).__name__}: {str(error)[:200]}"})


def _say(descriptor: int, message: Any) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]


if __name__ == "__main__":
    main()
