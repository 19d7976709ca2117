"""The code verifier: what programs give is compared as plain data, and the right answer is kept from them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from kray.rewards import check_answer, score

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
HERE = Path(__file__).resolve().parent


def calls(value, *args, call="f", **more) -> str:
    return json.dumps({"calls": [{"call": call, "args": args, "value": value}], **more})


def asserts(*lines, **more) -> str:
    return json.dumps({"asserts": lines, **more})


def gives(expression: str) -> str:
    return f"def f(*a):\n    return {expression}"


def hostile() -> list:
    sections = (HERE / "hostile_values.txt").read_text().split("\n=== ")[1:]
    return [pytest.param(program, id=head) for head, _, program in (section.partition("\n") for section in sections)]


@pytest.mark.parametrize("program", hostile())
def test_what_is_not_the_value_earns_nothing(program):
    for answer in (calls(7), asserts("assert f() == 7"), calls(7, tolerance=0.1)):
        started = time.monotonic()
        reward = score("code", program, answer, timeout_s=20.0)
        assert reward.value == 0
        assert reward.detail
        assert reward.detail.isprintable()
        assert time.monotonic() - started < 10, "the judge took its time"


@pytest.mark.parametrize(
    ("given", "right", "value"),
    [
        ("1", "True", 0), ("True", "1", 0), ("[True]", "[1]", 0), ("{1: 2}", "{True: 2}", 0), ("{1}", "{True}", 0),
        ("1.0", "1", 1), ("-0.0", "0", 1), ("2.0 ** 53", "2 ** 53 + 1", 0), ("1 + 0j", "1", 1), ("1 + 2j", "1 + 2j", 1),
        ("float('nan')", "float('nan')", 1), ("[float('nan')]", "[float('nan')]", 1), ("0.0", "float('nan')", 0),
        ("{float('nan'): 1}", "{float('nan'): 1}", 1), ("float('inf')", "float('inf')", 1),
        ("-float('inf')", "float('inf')", 0), ("10 ** 400", "float('inf')", 0), ("10 ** 5000", "10 ** 5000", 1),
        ("10 ** 5000 + 1", "10 ** 5000", 0), ("(1, 2)", "[1, 2]", 0), ("'1'", "1", 0), ("b'a'", "'a'", 0),
        ("bytearray(b'a')", "b'a'", 1), ("frozenset({1})", "{1}", 1), ("{2, 1}", "{1, 2}", 1), ("{}", "set()", 0),
        ("{'b': 1, 'a': 2}", "{'a': 2, 'b': 1}", 1), ("{1: 2}", "{'1': 2}", 0), ("{1.0: 2}", "{1: 2}", 1),
        ("{(1, 2): [3]}", "{(1, 2): [3]}", 1), ("'\\ud800'", "'\\ud800'", 1), ("'a\\0'", "'a\\0'", 1), ("'a'", "'a\\0'", 0),
        ("'\\u00e9'", "'e\\u0301'", 0), ("None", "False", 0), ("[]", "None", 0), ("''", "None", 0),
        ("__import__('collections').OrderedDict(a=1)", "{'a': 1}", 1),
        ("__import__('collections').Counter('aa')", "{'a': 2}", 1),
        ("__import__('enum').IntEnum('E', 'A').A", "1", 1), ("__import__('enum').StrEnum('E', 'A').A", "'a'", 1),
    ],
)  # fmt: skip
def test_equality_of_values(given, right, value):
    reward = score("code", gives(given), asserts(f"assert f() == {right}"))
    assert reward.value == value
    assert reward.detail.isprintable()


@pytest.mark.parametrize(
    ("given", "right", "tolerance", "value"),
    [
        ("0", 100, 0.99, 0), ("1.7e308", 100, 0.99, 0), ("200", 100, 0.5, 0), ("199.0", 100, 0.5, 0), ("149.0", 100, 0.5, 1),
        ("51", 100, 0.5, 1), ("49", 100, 0.5, 0), ("-100", 100, 0.99, 0), ("101", 100, 0.01, 1), ("1.1", 1.0, 0.1, 1),
        ("2e-7", 1e-7, 1e-6, 0), ("0.0", 1e-7, 1e-6, 0), ("1e-9", 0.0, 1e-6, 1), ("1e-3", 0, 1e-6, 0),
        ("float('inf')", 1e308, 0.99, 0), ("float('nan')", 1.0, 0.99, 0), ("float('nan')", float("nan"), 1e-6, 1),
        ("1e308", float("inf"), 0.99, 0), ("10 ** 400 + 1", 1e308, 0.99, 0), ("True", 1, 0.5, 0), ("'1.0'", 1, 0.5, 0),
        ("[1.0000001, {'a': 3.0}]", [1, {"a": 3}], 1e-6, 1), ("[1.0000001, {'a': 3.1}]", [1, {"a": 3}], 1e-6, 0),
        ("0.0", 1e-17, {"relative": 1e-6, "absolute": 1e-9}, 1), ("1e-9", 0, {"relative": 1e-6}, 0),
        ("1e-9", 0, {"absolute": 1e-6}, 1), ("[1.0, [float('nan'), 2]]", [1, [float("nan"), 2]], 1e-6, 1),
        ("[0.0]", [float("nan")], 0.99, 0), ("{'a': [float('nan')]}", {"a": [float("nan")]}, 0, 1),
        ("10 ** 5000", 1, {"absolute": 1e300}, 0), ("5e-324", 0, {"absolute": 5e-324}, 1), ("101", 100, {"absolute": 1}, 1),
        ("102", 100, {"absolute": 1}, 0), ("1e308", -1e308, {"absolute": 1e300}, 0),
    ],
)  # fmt: skip
def test_a_tolerance_is_relative_to_the_right_number(given, right, tolerance, value):
    assert score("code", gives(given), calls(right, tolerance=tolerance)).value == value


@pytest.mark.parametrize(
    "tolerance", [-1, True, "1", None, [], {}, {"abs": 1}, {"relative": -1}, float("nan"), 10**400]
)
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(ValueError, match='code: "tolerance": must be a number'):
        check_answer("code", calls(1, tolerance=tolerance))


@pytest.mark.parametrize("tolerance", [1, 1.0, 9.0, 1e300, {"relative": 1}, {"relative": 2.0, "absolute": 1e-6}])
def test_a_relative_tolerance_of_1_or_more_is_refused(tolerance):
    with pytest.raises(ValueError, match='code: "tolerance": is relative to the right number and must be below 1'):
        check_answer("code", calls(1, tolerance=tolerance))


@pytest.mark.parametrize(
    ("printed", "right", "tolerance", "value"),
    [
        ("1 2\\n3", "1\n2 3", 1e-6, 0), ("1_0", "10", 1e-6, 0), ("\\u0661\\u0660", "10", 1e-6, 0), ("1e999", "inf", 1e-6, 0),
        ("Infinity", "inf", 1e-6, 1), ("0", "100", 0.99, 0), ("0x10", "16", 1e-6, 0), ("1.0000001  x", "1 x", 1e-6, 1),
        ("1.0000001 y", "1 x", 1e-6, 0), ("1.0", "1", 0, 0), ("1\\r\\n2 ", "1\n2\n\n", 0, 1), ("\\n1", "1", 0, 0),
        ("NaN", "nan", 1e-6, 1), ("1", "nan", 1e-6, 0), ("1\\x0c2", "1 2", 1e-6, 0), ("1.5.", "1.5", 1e-6, 0),
    ],
)  # fmt: skip
def test_output_is_compared_line_by_line(printed, right, tolerance, value):
    answer = json.dumps({"cases": [{"input": "", "output": right}], "tolerance": tolerance})
    assert score("code", f"print('{printed}')", answer).value == value


# An object that makes any comparison come out right, and a program that reads the test's text in the frames around it.
YES = """
class Yes:
    __eq__ = __lt__ = __le__ = __bool__ = __contains__ = lambda *a: True
    __sub__ = __rsub__ = __mod__ = __hash__ = lambda *a: 0
    __round__ = __add__ = __radd__ = __float__ = __abs__ = lambda *a: 731.25
def f(*a):
    return Yes()
"""
READS = r"""
import re, sys
def f(*a):
    frame, text = sys._getframe(), ''
    while frame:
        text, frame = text + repr(frame.f_locals) + repr(frame.f_globals), frame.f_back
    found = re.search(r'[0-9]{3}[.][0-9]{2}(?=[^\n]{0,40}f[(]3)|(?<=f[(]3[)].{3})[0-9]{3}[.][0-9]{2}', text)
    return float(found.group()) if found else 0
"""


@pytest.mark.parametrize(
    ("left", "right", "setup"),
    [
        ("f(3) - 731.25", "0", ""),
        ("731.25 - f(3)", "0", ""),
        ("round(f(3), 2)", "731.25", ""),
        ("(f(3), 731.25)", "(731.25, 731.25)", ""),
        ("math.isclose(f(3), 731.25)", "True", "import math"),
        ("close(f(3), 731.25)", "True", "def close(a, b):\n    return abs(a - b) < 1e-6"),
        ("operator.eq(f(3), 731.25)", "True", "import operator"),
        ("{731.25: True}.get(f(3))", "True", ""),
    ],
)
def test_what_surrounds_a_call_is_evaluated_apart(left, right, setup):
    answer = asserts(f"assert {left} == {right}", setup=setup)
    assert score("code", gives("731.25"), answer).value == 1
    assert score("code", gives("731.26"), answer).value == 0
    assert "is not plain data" in score("code", YES, answer).detail
    assert score("code", READS, answer).value == 0


@pytest.mark.parametrize(
    ("program", "left", "right", "setup"),
    [
        ("def f(x): return x * x", "list(map(f, [1, 2]))", "[1, 4]", ""),
        ("def f(x): return x * x", "[f(x) for x in range(3)]", "[0, 1, 4]", ""),
        ("def f(x): return -x", "sorted([1, 2], key=f)", "[2, 1]", ""),
        ("def sum(a, b): return a * b", "sum(10, 15)", "150", ""),
        ("class A:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return A(self.x + o.x)", "(A(1) + A(2)).x",
         "3", ""),
        ("class A:\n    def __str__(self): return 'A'", "str(A())", "'A'", ""),
        ("class A:\n    def __getitem__(self, i): return i", "A()[4]", "4", ""),
        ("def g(x): return [x]", "check(3)", "3", "def check(x):\n    return g(x)[0]"),
        ("class Solution:\n    def f(self, x): return x + 1", "sol.f(3)", "4", "sol = Solution()"),
        ("def depth(t): return 0 if t is None else 1 + depth(t.next)", "depth(N(N(None)))", "2",
         "class N:\n    def __init__(self, next): self.next = next"),
        ("def f(x): return x", "listed(f(N(3)))", "[3]",
         "class N:\n    def __init__(self, x): self.x = x\ndef listed(n): return [n.x]"),
        ("def f(x): return math.pi * x", "f(2)", "2 * math.pi", "import math"),
        ("def f(x): return x * x", "f(3)", "ref(3)", "def ref(x): return x * x"),
    ],
)  # fmt: skip
def test_right_programs_pass_whatever_the_left_side(program, left, right, setup):
    assert score("code", program, asserts(f"assert {left} == {right}", setup=setup)).detail == ""


REF = "def ref(x):\n    return x * x + 918273645546\n"
REFERENCES = [
    ("ref(3)", "def ref(x):\n    return x * x + 918273645546"),
    ("ref(3)", "def ref(x):\n    return x * x + 918273645546\nTABLE = [ref(x) for x in range(9)]"),
    ("ref(3)", "import math\nif math.pi:\n    ref = lambda x: x * x + 918273645546"),
    ("ref(3)", "def helper(x):\n    return x + 918273645546\ndef ref(x):\n    return helper(x * x)"),
    ("R().solve(3)", "class R:\n    def solve(self, x):\n        return x * x + 918273645546"),
    ("WANTED", "WANTED = 9 + 918273645546"),
    ("WANTED[3]", "WANTED = {}\nfor x in range(9):\n    WANTED[x] = x * x + 918273645546"),
    ("WANTED[3]", f"{REF}WANTED = {{}}\nfor x in range(9):\n    WANTED[x] = ref(x)"),
    ("WANTED[0]", f"{REF}WANTED = []\nWANTED.append(ref(3))"),
    ("WANTED[3]", f"WANTED = {{}}\n{REF}WANTED[3] = ref(3)"),
    ("WANTED[3]", f"WANTED = {{}}\n{REF}def fill():\n    for x in range(9):\n        WANTED[x] = ref(x)\nfill()"),
    ("WANTED[3]", f"{REF}WANTED, x = {{}}, 0\nwhile x < 9:\n    WANTED[x] = ref(x)\n    x += 1"),
    ("ALL['ref'](3)", f"ALL = {{}}\ndef known(f):\n    ALL[f.__name__] = f\n    return f\n@known\n{REF}"),
]
FINDS = [
    "def f(x):\n    return {right}",
    "import sys\ndef f(x):\n    return eval('{right}', vars(sys.modules['program']))",
    "import gc\ndef f(x):\n    found = [repr(o) for o in gc.get_objects() if type(o) is dict]\n"
    "    return 918273645555 * any('918273' + '645546' in text for text in found)",
    "def f(x):\n    return next(v for k, v in globals().items() if k not in START)(x)\nSTART = {{*globals(), 'START'}}",
    "def f(x):\n    return TABLE[x]",
    "def f(x):\n    return ref(x)",
]


@pytest.mark.parametrize("program", FINDS)
@pytest.mark.parametrize(("right", "setup"), REFERENCES)
def test_a_program_finds_no_reference_in_the_setup(right, setup, program):
    answer = asserts(f"assert f(3) == {right}", setup=setup)
    assert score("code", program.format(right=right), answer).value == 0
    assert score("code", "def f(x):\n    return 918273645546 + x ** 2", answer).value == 1


@pytest.mark.parametrize(
    ("line", "setup"),
    [
        ("assert f(CASES[0][0]) == CASES[0][1]", "CASES = [(1, 99)]"),
        ("assert f(a) == b", "a, b = 1, 99"),
        ("assert f(a) == b", "CASES = [(1, 99)]\na = CASES[0][0]\nb = CASES[0][1]"),
        ("assert f(key(1)) == key(2)", "def key(x):\n    return x"),
        ("assert f(seen[0]) == WANTED[0]", "seen, WANTED = [1], []\nfor x in seen:\n    WANTED.append(x + 1)"),
    ],
)
def test_what_both_sides_take_from_the_setup_is_refused(line, setup):
    with pytest.raises(
        ValueError, match=r"test 1: .* of the setup is used both on the right side.*write the value out"
    ):
        check_answer("code", asserts(line, setup=setup))


@pytest.mark.parametrize(
    ("line", "setup", "why"),
    [
        (
            "assert f(3) == ref(3)",
            "exec('def ref(x): return x * x')",
            "needs ref, which the setup does not bind in plain sight",
        ),
        ("assert f(3) == ref(3)", "ref = None\nexec('def ref(x): return x * x')", "a setup that makes names by exec"),
        ("assert f(3) == ref(3)", "globals()['ref'] = lambda x: x * x", "needs ref, which the setup does not bind"),
        ("assert f(3) == globals()['ref'](3)", "def ref(x):\n    return x * x", "reads names by globals"),
        ("assert f(3) == eval('ref(3)')", "def ref(x):\n    return x * x", "reads names by eval"),
        ("assert f(3) == f(2) + 5", "", "needs f, which the setup does not bind"),
    ],
)
def test_right_sides_whose_names_cannot_be_told_are_refused(line, setup, why):
    with pytest.raises(ValueError, match=f"test 1: its right side .*{why}"):
        check_answer("code", asserts(line, setup=setup))


NODE = "class Node:\n    def __init__(self, v):\n        self.v = v\n"


@pytest.mark.parametrize(
    ("program", "line", "setup"),
    [
        ("def f(x): return x.v * 2", "f(Node(CASES[1])) == 2",
         f"{NODE}CASES, OTHER = [], []\nfor x in range(3):\n    CASES.append(x)\nfor x in range(3):\n    OTHER.append(x)"),
        ("def f(x): return x * 2", "f(CASES[1]) == WANTED[1]",
         "CASES, x = [0, 1, 2], 0\nWANTED = []\nfor y in range(3):\n    WANTED.append(2 * y)\nMORE = []\nfor y in range(3):\n"
         "    MORE.append(y)"),
        ("def f(n): return next(k for k in range(n) if is_bad(k))", "f(9) == 4", "def is_bad(k):\n    return k >= 4"),
        ("def f(x): return Node(x).v", "f(3) == 3", NODE),
        ("def f(x): return math.sqrt(x)", "f(4) == sqrt(4)", "import math\nfrom math import *"),
        ("def f(x): return eval(x)", "f('3*4') == eval('3*4')", ""),
        ("def f(x): return sorted(x)", "f([2, 1]) == [y for y in range(1, 3)]", ""),
        ("def f(x): return calc(x)", "f('3*4') == 12", "def calc(text):\n    return eval(text)"),
    ],
)  # fmt: skip
def test_what_the_task_gives_may_be_used(program, line, setup):
    assert score("code", program, asserts(f"assert {line}", setup=setup)).detail == ""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (asserts("assert f(3).__eq__(9) == True"), "its left side compares"),
        (calls(1, setup="def ("), '"setup": is not Python'),
        (calls(1, call="f("), '"calls", test 1: is not Python'),
        (calls(1, call="x = 1"), '"calls", test 1: "call" must be an expression|is not Python'),
        ('{"cases": [{"input": "", "output": "1"}], "setup": "x = 1"}', "only calls and asserts"),
        ('{"cases": [{"input": "", "output": "\\ud800"}]}', '"cases", test 1'),
    ],
)
def test_answers_that_cannot_be_judged_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        check_answer("code", answer)


def test_arguments_may_be_any_json():
    given = [float("nan"), -float("inf"), 1e22, -5, None, {"a": [True]}, "\0\ud800", 2**70]
    assert score("code", "def f(x):\n    return x", calls(given, given)).value == 1


def test_a_program_that_is_only_thought_does_not_count():
    thought = "<think>\n```python\ndef f(): return 7\n```\n</think>\n"
    assert score("code", thought + "No.", calls(7)).value == 0
    assert score("code", thought + "```python\ndef f(): return 8\n```", calls(8)).value == 1
