"""The code verifier: programs pass their tests or do not, and nothing that they do reaches beyond their process."""

import asyncio
import inspect
import json
import os
import secrets
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kray.config.validation import CODE_TIMEOUT_S
from kray.rewards import Scorer, check_verifier, load_verifier, score
from kray.rewards.code import extract
from kray.rewards.sandbox import Limits, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def cases(*pairs) -> str:
    return json.dumps({"cases": [{"input": given, "output": right} for given, right in pairs]})


def calls(*tests, **more) -> str:
    return json.dumps({"calls": [{"call": call, "args": args, "value": value} for call, args, value in tests], **more})


def asserts(*lines, **more) -> str:
    return json.dumps({"asserts": lines, **more})


def confined() -> list[str]:
    """Processes of this checkout's sandboxes that are alive, zombies of ours included."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and str(ROOT / "kray/rewards/confined").encode() in (entry / "cmdline").read_bytes()
            ):
                found.append(entry.name)
        except OSError:  # it has ended
            continue
    return found


ADD = cases(("1 2\n", "3"), ("-5 5\n", "0\n"))


@pytest.mark.parametrize(
    ("program", "answer", "value"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", ADD, 1),
        ("a, b = map(int, input().split())\nprint(a + b, '\\n')", ADD, 1),
        ("print(3)", ADD, 0),
        ("print(3", ADD, 0),
        ("print(sum(map(int, input().split())))\nraise SystemExit(3)", ADD, 0),
        ("if __name__ == '__main__':\n    print(sum(map(int, input().split())))", ADD, 1),
        ("", ADD, 0),
        ("def add(a, b):\n    return a + b", calls(("add", [1, 2], 3), ("add", ["x", "y"], "xy")), 1),
        ("def add(a, b):\n    return a - b", calls(("add", [1, 2], 3)), 0),
        ("class A:\n    def f(self, a):\n        return a, {'k': [a]}", calls(("A().f", [1], [1, {"k": [1]}])), 1),
        ("def f(x):\n    return x / 3", calls(("f", [1], 0.33333), tolerance=1e-4), 1),
        ("def f(x):\n    return x / 3", calls(("f", [1], 0.33333)), 0),
        ("def f():\n    return None", calls(("f", [], None)), 1),
        ("def f():\n    return float('nan')", calls(("f", [], 0.0), tolerance={"absolute": 1.0}), 0),
        ("def f():\n    print('noise')\n    return 1", calls(("f", [], 1)), 1),
        ("if __name__ == '__main__':\n    1 / 0\ndef f():\n    return 1", calls(("f", [], 1)), 1),
        ("def f(a, b):\n    return set(a) & set(b)", asserts("assert f((1, 2), (2, 3)) == set([2])"), 1),
        ("def f(a, b):\n    return set(a) & set(b)", asserts("assert f('', 'a') == set()", "assert f('b', 'a')==1"), 0),
        ("def f(x):\n    return [x, x]", asserts("assert f(1) == (1, 1)"), 0),
        ("def f(x):\n    return (x, {x: b'1'})", asserts("assert f(1) == (1, {1: b'1'})"), 1),
        ("def f(x):\n    return math.pi * x", asserts("assert f(2) == 2 * math.pi", setup="import math"), 1),
        ("def f():\n    return object()", asserts("assert f() == 1"), 0),
    ],
)  # fmt: skip
def test_a_program_is_worth_1_exactly_when_it_passes_all_tests(program, answer, value):
    reward = score("code", f"Here it is:\n```python\n{program}\n```", answer)
    assert reward.value == value
    assert (reward.detail == "") == (value == 1)


def test_partial_marks_are_the_share_of_tests_passed():
    answer = cases(("1", "1"), ("2", "4"), ("3", "3"), ("4", "4"))
    assert score("code", "print(input())", answer, partial=True).value == 0.75
    assert score("code", "print(input())", answer).value == 0.0
    assert "test 2 of 4: printed '2\\n'" in score("code", "print(input())", answer).detail


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("print(1)", "print(1)"),
        ("a\n```python\nprint(1)\n```\nb\n```py\nprint(2)\n```\nc", "print(2)\n"),
        ("```python\nprint(1)\n```\nRun it:\n```bash\npython x.py\n```", "print(1)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("```python\nprint(1)\nprint(", "print(1)\nprint("),
    ],
)
def test_the_program_is_the_last_block_of_python(response, program):
    assert extract(response) == program


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("72", 'must hold one of "cases", "calls" and "asserts"'),
        ("{", "the answer must be JSON"),
        ("[" * 100_000, "the answer must be JSON"),
        ('{"cases": []}', "at least one test"),
        ('{"cases": [{"input": 1, "output": "2"}]}', '"cases", test 1'),
        ('{"cases": [{"input": "1"}]}', '"cases", test 1'),
        ('{"calls": [{"call": "f", "value": 1, "arguments": []}]}', '"calls", test 1'),
        ('{"cases": [{"input": "", "output": ""}], "tolerance": -1}', "tolerance"),
        ('{"cases": [{"input": "", "output": ""}], "calls": []}', "must hold one of"),
        (asserts("assert f(1)"), '"asserts", test 1: must be one `assert'),
        (asserts("assert abs(f(1) - 2) < 1e-6"), "must be one `assert"),
        (asserts("assert (f(1) == 2) == True"), "the program would see what is right"),
        (asserts("assert f(1) =="), "is not Python"),
        (asserts("assert f(1) == g(1)"), "its right side needs g, which the setup does not bind"),
        (asserts("assert f(1) == f(1)"), "its right side needs f, which the setup does not bind"),
    ],
)
def test_a_broken_answer_is_an_error_and_not_a_wrong_response(answer, message):
    with pytest.raises(ValueError, match="code: ") as caught:
        score("code", "def f(x):\n    return 2", answer)
    assert message in str(caught.value)


IMPOSSIBLE = [("timeout_s", 0), ("memory_mib", 0), ("output_kib", 1.5), ("isolation", "none")]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_impossible_options_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        score("code", "print(1)", ADD, **{name: value})


# -- hostile programs ----------------------------------------------------------------------------------------------------


def hostile() -> list:
    sections = (HERE / "hostile_programs.txt").read_text().split("\n=== ")[1:]
    heads = [section.partition("\n") for section in sections]
    return [pytest.param(program, *head.split(" | ")[1:], id=head.split(" | ")[0]) for head, _, program in heads]


@pytest.mark.parametrize(("program", "reason"), hostile())
def test_hostile_program_earns_and_leaves_nothing(program, reason, tmp_path):
    import socket

    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name, value in (("inside", inside), ("outside", outside), ("port", server.getsockname()[1])):
            program = program.replace(f"{{{name}}}", str(value))
        timeout_s = 1.5 if "timeout" in reason else 30.0  # busy machines start slowly
        reward = score("code", program, cases(("", "1")), timeout_s=timeout_s)
    assert reward.value == 0.0
    assert reason in reward.detail
    assert reward.detail.isprintable()
    assert confined() == []
    assert inside.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


SEARCH = """
import gc, os, sys
seen = []
def look(text):
    seen.append(str(text))
for frame in list(sys._current_frames().values()):
    while frame:
        look({**frame.f_globals, **frame.f_locals})
        frame = frame.f_back
for thing in gc.get_objects():
    try:
        look(repr(thing)[:2000])
    except Exception:
        pass
for descriptor in range(64):
    try:
        look(os.pread(descriptor, 1 << 20, 0))
    except OSError:
        pass
for path in ("/proc/self/environ", "/proc/self/mem", f"/proc/{os.getppid()}/environ", f"/proc/{os.getppid()}/cmdline",
             f"/proc/{os.getppid()}/fd/0", "{data}", "/tmp", "."):
    try:
        look(os.listdir(path) if os.path.isdir(path) else open(path, "rb").read())
    except OSError:
        pass
look(dict(os.environ)), look(sys.argv)
import re
def f(*_):
    found = re.search("".join({prefix}) + "[0-9a-f]{16}", "".join(seen))
    return found.group() if found else "nothing"
"""


@pytest.mark.parametrize("form", ["cases", "calls", "asserts"])
def test_the_right_answer_is_nowhere_to_be_found(form, tmp_path, monkeypatch):
    """A program that reads its whole process, and what it can reach of others, does not find what it should give."""
    prefix = secrets.token_hex(8)
    right = prefix + secrets.token_hex(8)
    monkeypatch.setenv("EXPECTED", right)
    data = tmp_path / "train.jsonl"
    program = SEARCH.replace("{prefix}", repr(list(prefix))).replace("{data}", str(data))
    program += "\nprint(f())" if form == "cases" else ""

    def answer(given: str) -> str:
        tests = {
            "cases": cases((given, right)),
            "calls": calls(("f", [given], right)),
            "asserts": asserts(f"assert f({given!r}) == {right!r}"),
        }
        return tests[form]

    data.write_text(answer("x"))
    assert score("code", program, answer("x")).value == 0.0
    assert score("code", program, answer(right)).value == 1.0  # what is in the question it does find


WAYS_AROUND = [
    """
import os
os.write(1, b'{"value": 3}')
for d in range(3, 64):
    try:
        os.write(d, b'{"passed": true}\\n')
    except OSError:
        pass
os._exit(0)
""",
    """
class Yes(int):
    def __eq__(self, other):
        return True
def f(*a):
    return Yes(7)
""",
    """
class Yes:
    def __eq__(self, other):
        return True
def f(*a):
    return Yes()
""",
    """
import builtins
builtins.eval = lambda *a: 3
builtins.compile = lambda *a: None
def f(*a):
    return 0
""",
    "import sys\nsys.exit(0)",
    "raise AssertionError",
]
DEEP = "def f():\n    x = []\n    for _ in range(900):\n        x = [x]\n    return x"
HUGE = "def f():\n    return 10**5000"
FORGED = """
import os
for d in range(3, 64):
    try:
        os.write(d, b'{"value": {"__set__": [[1]]}}\\n{"value": {"__float__": 3}}\\n[[[\\n' + b'[' * 9999 + b'\\n')
    except OSError:
        pass
"""


@pytest.mark.parametrize("program", WAYS_AROUND)
def test_ways_around_the_tests_lead_nowhere(program):
    secret = secrets.randbelow(10**9) + 10
    for answer in (calls(("f", [1], secret)), asserts(f"assert f(1) == {secret}"), cases(("1", str(secret)))):
        assert score("code", program, answer).value == 0.0


@pytest.mark.parametrize("program", [DEEP, HUGE, FORGED])
def test_deep_and_strange_values_are_wrong_and_no_failure(program):
    assert score("code", program, calls(("f", [], 1), ("f", [], 1)), partial=True).value == 0.0


def test_program_may_write_to_its_bounded_folder():
    ended = run("open('a', 'w').write('x' * 1000)\nprint(len(open('a').read()))", time.monotonic() + 30)
    assert (ended.failure, ended.output) in (
        ("", b"1000\n"),
        ("PermissionError: [Errno 13] Permission denied: 'a'", b""),
    )


def test_installed_packages_are_there_only_when_asked_for():
    program = "import numpy\ndef f():\n    return numpy.arange(3), numpy.float64(0.5)"
    answer = calls(("f", [], [[0, 1, 2], 0.5]))
    assert "No module named 'numpy'" in score("code", program, answer).detail
    assert score("code", program, answer, packages=True, memory_mib=2048).value == 1.0


def test_the_checks_know_the_verifiers_own_deadline():
    assert inspect.signature(load_verifier("code")).parameters["timeout_s"].default == CODE_TIMEOUT_S


def test_limits_are_named_when_they_are_impossible():
    with pytest.raises(ValueError, match="memory_mib"):
        Limits(memory_mib=0)


def test_the_scorers_deadline_ends_the_program_too():
    """Where the scorer's deadline comes before the verifier's: the scoring process is killed, and the program with it."""
    with Scorer("code", {"timeout_s": 60.0}, timeout_s=1.5) as scorer:
        outcome = asyncio.run(scorer.score_one("", "while True:\n    pass", cases(("", "1"))))
    assert (outcome.reward, outcome.timed_out) == (0.0, True)
    until = time.monotonic() + 5
    while confined() and time.monotonic() < until:
        time.sleep(0.05)
    assert confined() == []


def test_the_scorer_judges_programs_in_its_processes():
    with Scorer("code", {"timeout_s": 30.0}, workers=2, timeout_s=40.0) as scorer:
        responses = ["print(int(input()) * 2)", "print(2)", "import os\nos.kill(os.getppid(), 9)"] * 3
        outcomes = asyncio.run(scorer.score([("", r, cases(("2", "4"))) for r in responses]))
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.0, 0.0] * 3


# -- where walls are missing ---------------------------------------------------------------------------------------------

WITHOUT = """
import errno, logging, sys
sys.path.insert(0, {confined!r})
import seccomp
missing = [dict(landlock=444, unshare=272, seccomp=157)[name] for name in {names!r}]
rules = [(0x20, 0, 0, 0)]
allow, refuse = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | errno.EPERM)
for number in missing:  # of prctl only PR_SET_SECCOMP
    rules += [(0x15, 0, 4, 157), (0x20, 0, 0, 16), (0x15, 0, 1, 22), refuse, allow] if number == 157 else [
        (0x15, 0, 1, number), refuse]
seccomp.install([*rules, allow])
sys.path.pop(0)
del sys.modules["seccomp"]
from kray.rewards import score
logging.basicConfig()
{code}
"""


def without(names: list[str], code: str) -> str:
    """What a script prints on a machine whose kernel lacks some walls, played by a filter around the whole script."""
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("written for x86_64's numbers of system calls")
    script = WITHOUT.format(confined=str(ROOT / "kray/rewards/confined"), names=names, code=textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    return done.stdout + done.stderr


JUDGE = """
try:
    print(score("code", "print(1)", '{"cases": [{"input": "", "output": "1"}]}', **OPTIONS))
except RuntimeError as error:
    print("refused:", error)
"""


def test_strict_isolation_names_what_the_machine_lacks():
    said = without(["landlock"], JUDGE.replace("OPTIONS", "{}"))
    assert "refused: the code verifier's sandbox is not available here (Landlock: Operation not permitted)" in said
    assert "reward.options.isolation=best_effort" in said
    assert "refused" in without(["seccomp"], JUDGE.replace("OPTIONS", "{}"))
    assert "seccomp: " in without(["seccomp"], JUDGE.replace("OPTIONS", "{}"))


def test_run_is_refused_where_isolation_is_missing():
    code = """
    from kray.rewards import check_verifier
    try:
        check_verifier("code", timeout_s=1.0)
    except ValueError as error:
        print("refused:", error)
    """
    assert 'refused: verifier "code": the code verifier' in without(["landlock"], code)
    check_verifier("code", timeout_s=1.0)
    with pytest.raises(ValueError, match="memory_mib"):
        check_verifier("code", memory_mib=-1)


def test_best_effort_runs_and_says_loudly_what_is_missing():
    said = without(["landlock"], JUDGE.replace("OPTIONS", "{'isolation': 'best_effort'}") * 2)
    assert said.count("Reward(value=1.0") == 2
    assert said.count("MODEL OUTPUT RUNS WITHOUT A RESTRICTION: Landlock") == 1


def test_sandbox_without_namespaces_allows_no_writes(tmp_path):
    code = f"""
    import json, socket, time
    from kray.rewards.sandbox import run
    for program in ("print(1)", "open('a', 'w')", "open({str(tmp_path / "x")!r}, 'w')", "import os; os.fork()",
                    "import socket; socket.socket()", "open('/etc/passwd')"):
        print(run(program, time.monotonic() + 30))
    """
    said = without(["unshare"], code).splitlines()
    assert "output=b'1\\n'" in said[0]
    assert all("Permission denied" in line or "Operation not permitted" in line for line in said[1:]), said
    assert len(said) == 6
    assert list(tmp_path.iterdir()) == []
