"""Small texts that stand for huge things, and numbers that no run can mean, are refused within a second, by key and place."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.compare.study import load_study, parse_seeds
from kray.config import check, load_config
from kray.config.bounds import MOST_BYTES, interpolation_problem, references
from kray.config.cluster_file import load_cluster
from kray.config.ranges import LIMITS, RANGES, number_problem
from kray.config.reading import attribute
from kray.config.schema import KrayConfig, LoraConfig, TinyPolicyConfig
from kray.config.templates import check_template, fill
from kray.config.validation import value_at
from kray.errors import ConfigError
from kray.prompts.sources import test_sources as sets_of

MODEL = "model:\n  path: x\n"
# Seconds of computation for a file that is refused: on one core of a laptop each takes less than one.
SOON_S = 3.0


def aliases(levels: int, opened: str = "[", item: str = "", closed: str = "]", own: str = "x", start: str = "") -> str:
    """Return a mapping's entries a0: own, a1: ten times a0, and so on: 10^levels values."""
    lines = [f"    a0: &a0 {own}"]
    for level in range(1, levels):
        lines.append(f"    a{level}: &a{level} {start}{opened}{', '.join([f'{item}*a{level - 1}'] * 10)}{closed}")
    return "\n".join(lines) + "\n"


def doubled(levels: int, own: str = "x" * 20) -> str:
    lines = [f"    b0: {own}", *(f"    b{n}: '${{.b{n - 1}}}${{.b{n - 1}}}'" for n in range(1, levels))]
    return "\n".join(lines) + "\n"


def nested_merges() -> str:
    lines = ["    m0: &m0 {k0: 1, k1: 2}"]
    lines += [f"    m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    return "\n".join(lines) + "\n"


OPTIONS = "environment:\n  options:\n"
BOMBS = {
    "lists of aliases": (OPTIONS + aliases(12), "environment.options.a"),
    "mappings of aliases": (
        OPTIONS + "    a0: &a0 {x: 1}\n"
        + "".join(f"    a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(10))}}}\n" for n in range(1, 12)),
        "environment.options.a",
    ),
    "merge keys": (OPTIONS + nested_merges(), "environment.options.m"),
    "aliases of a long text": (OPTIONS + aliases(4, own="y" * 20_000), "environment.options.a"),
    "aliases in an unknown key": ("unknown:\n  sub:\n" + aliases(12), "unknown.sub.a"),
    "an interpolation that doubles": (OPTIONS + doubled(60), "environment.options.b"),
    "interpolations of sections": (
        OPTIONS + "    c0: {x: 1, y: 2}\n"
        + "".join(f"    c{n}: {{p: '${{..c{n - 1}}}', q: '${{..c{n - 1}}}'}}\n" for n in range(1, 40)),
        "environment.options.c",
    ),
    "a long chain": (
        OPTIONS + "    d0: x\n" + "".join(f"    d{n}: '${{.d{n - 1}}}'\n" for n in range(1, 300)), "environment.options.d",
    ),
    "a chain by full names": (
        OPTIONS + "    d0: x\n"
        + "".join(f"    d{n}: '${{environment.options.d{n - 1}}} ${{environment.options.d{n - 1}}}'\n" for n in range(1, 60)),
        "environment.options.d",
    ),
    "a chain through a resolver": (
        OPTIONS + "    d0: x\n"
        + "".join(f"    d{n}: '${{oc.select:environment.options.d{n - 1}}} ${{.d{n - 1}}}'\n" for n in range(1, 60)),
        "environment.options.d",
    ),
    "a chain within names": (
        OPTIONS + "    d0: x\n"
        + "".join(f"    d{n}: '${{.d{n - 1}}} ${{oc.env:KRAY_NONE,${{.d{n - 1}}}}}'\n" for n in range(1, 60)),
        "environment.options.d",
    ),
    "names completed by others": (
        OPTIONS + "    one: {a: x}\n    two: a\n"
        + "".join(f"    d{n}: '${{environment.options.one.${{.two}}}}'\n" for n in range(3000)), "",
    ),
    "braces within braces": (OPTIONS + f"    e: '{'${' * 2000}'\n", "environment.options.e"),
    "a long text with an interpolation": (OPTIONS + f"    e: '{'x ' * 40_000}${{run.name}}'\n", "environment.options.e"),
    "a long number": (OPTIONS + f"    e: {'9' * 200_000}\n", "environment.options.e"),
    "a number in base 60": (OPTIONS + f"    e: !!int {'1:' * 100_000}1\n", "environment.options.e"),
    "many unknown keys": ("".join(f"unknown{n}: 1\n" for n in range(2_000)), "unknown0 is not a key"),
    "deep lists": (OPTIONS + f"    e: {'[' * 10_000}{']' * 10_000}\n", ""),
    "long comments": (f"#{'x' * 50_000_000}\n", "longer than 256 KiB"),
    "many comments": ("# x\n" * 10_000_000, "longer than 256 KiB"),
    "blank lines": ("\n" * 50_000_000, "longer than 256 KiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon_with_its_key_and_place(name, tmp_path):
    text, part = BOMBS[name]
    file = tmp_path / "c.yaml"
    file.write_text(MODEL + text)
    started = time.process_time()
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert time.process_time() - started < SOON_S
    message = str(error.value)
    assert part in message
    assert str(file) in message
    assert len(message) < 10_000


@pytest.mark.parametrize(
    "overrides",
    [
        ["environment.options={a: &a [1, 1, 1], b: &b [*a, *a], c: &c [*b, *b], d: [" + ", ".join(["*c"] * 5000) + "]}"],
        ["environment.options.b0=x", *(f"environment.options.b{n}='${{.b{n - 1}}}${{.b{n - 1}}}'" for n in range(1, 40))],
        # What the last one replaces would have been resolved before it is.
        ["environment.options.b0=x", *(f"environment.options.b{n}='${{.b{n - 1}}}${{.b{n - 1}}}'" for n in range(1, 40)),
         "reward.options=${environment.options.b39}", "reward.options.x=1", "environment.options.b1=1"],
    ],
)  # fmt: skip
def test_bombs_in_overrides_are_refused(overrides, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(MODEL)
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"environment\.options"):
        load_config(file, overrides)
    assert time.process_time() - started < SOON_S


def test_what_people_write_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KRAY_TEST_NAME", "here")
    file = tmp_path / "c.yaml"
    file.write_text(
        MODEL
        + "run: {seed: 7, name: 'run-${oc.env:KRAY_TEST_NAME,run}-${run.seed}'}\n"
        + "prompts:\n  train: &p {kind: jsonl, path: a, template: 'Q: {prompt} {{x}}', system: 'say \\${run.name}'}\n"
        + "  test: {<<: *p, path: '${oc.env:KRAY_TEST_NAME}/${run.seed}'}\n"
        + OPTIONS
        + "    sizes: {small: 1, large: 2}\n    which: large\n    size: '${.sizes.${.which}}'\n"
        + "    table: &t [1, 2, 3]\n    other: *t\n    copy: '${.sizes}'\n    deep: '${oc.decode:\"[1, 2]\"}'\n"
        + "    words: ["
        + ", ".join(f"word{n}" for n in range(1000))
        + "]\n"
        + "    long: '"
        + "x" * 50_000
        + "'\n"
    )
    config = load_config(file)
    assert config.run.name == "run-here-7"
    assert config.prompts.test.path == "here/7"
    options = config.environment.options
    assert (options["size"], options["other"], options["copy"]) == (2, [1, 2, 3], {"small": 1, "large": 2})
    assert options["deep"] == [1, 2]
    assert config.prompts.train.system == "say ${run.name}"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("${a.b}", ["a.b"]), ("x ${ a } y ${..b}", [" a ", "..b"]), ("\\${a}", []), ("\\\\${a}", ["a"]), ("${", []),
        ("${a.${b}}", ["b", "a."]), ("${oc.env:HOME,run}", []), ("${oc.env:A,${run.name}}", ["run.name"]),
        ("${oc.select:run.name,x}", ["run.name"]), ("${oc.dict.keys:'run'}", ["run"]), ("{a} ${b}{c}", ["b"]),
        ("${oc.create:{a: ${b}}}", ["b"]), ("}}${a[0].b}", ["a[0].b"]),
    ],
)  # fmt: skip
def test_references(text, names):
    assert list(references(text)) == names


@given(st.recursive(
    st.text(st.sampled_from("${}.:ab \\,[]0"), max_size=30) | st.integers(0, 9) | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("ab0"), inner, max_size=3) | st.lists(inner, max_size=3), max_leaves=10,
))  # fmt: skip
def test_any_tree_of_interpolations_is_judged(tree):
    found = interpolation_problem({"a": tree})
    assert found is None or all(isinstance(part, str) for part in found)


STUDY = "base: c.yaml\nmethods:\n  one: {plan.mode: uniform}\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("config:\n  x:\n" + aliases(12), "config.x.a"),
        ("config: &a {environment: {options: *a}}\n", "contains itself"),
        ("# " + "x" * MOST_BYTES + "\n", "longer than 256 KiB"),
        ("seeds: 0-99999999999999\n", "more than 1,000 seeds"),
        (f"seeds: '{'9' * 5000}'\n", "neither a seed nor a range"),
        ("config: {train: {lr: 1e308}}\n", "train.lr must be at most 10"),
    ],
)
def test_bombs_in_a_comparison_are_refused(text, part, tmp_path):
    (tmp_path / "c.yaml").write_text(MODEL)
    file = tmp_path / "study.yaml"
    file.write_text(STUDY + text)
    started = time.process_time()
    with pytest.raises(ConfigError, match=part):
        load_study(str(file))
    assert time.process_time() - started < SOON_S


def test_seeds_of_a_comparison():
    assert parse_seeds("0-3,7,2", "--seeds") == (0, 1, 2, 3, 7)
    assert len(parse_seeds("0-999", "--seeds")) == 1000


@pytest.mark.parametrize(
    "text", ["x:\n" + aliases(12), "x: &a [*a]\n", "# " + "x" * MOST_BYTES, "x: " + "[" * 5000, "x: !!int _\n"]
)
def test_bombs_in_a_cluster_file_are_refused(text, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("kind: RayCluster\n" + text)
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"cluster\.yaml"):
        load_cluster(file)
    assert time.process_time() - started < SOON_S


# Numbers that no key means, whatever it is.
ABSURD = [1e308, 1e-320, -1e308, 5e-324, -5e-324, math.nan, math.inf, -math.inf, 2**63, -(2**63), 10**400, 1e18]


@pytest.mark.parametrize("number", ABSURD, ids=lambda number: f"{number!r:.12}")
def test_every_numeric_key_refuses_absurd_numbers(number):
    config = KrayConfig()
    config.model.path, config.model.tiny, config.model.lora = "x", TinyPolicyConfig(), LoraConfig()
    for key in RANGES:
        *sections, name = key.split(".")
        setattr(value_at(config, ".".join(sections)), attribute(name), number)
    found = check(config)
    # Seeds are any 64-bit integers, and integers are no such fractions.
    kept = [key for key in RANGES if not any(text.startswith(f"{key} must be ") for text in found)]
    integers = [key for key, found in RANGES.items() if isinstance(found.least, int)] if abs(number) < 1 else []
    assert [key for key in kept if key not in integers and not (number == 1e18 and key.endswith("seed"))] == []


@pytest.mark.parametrize("number", [".nan", ".inf", "1e400", "9" * 400, "9" * 5000, str(2**63), "1e308", "1e-320"])
@pytest.mark.parametrize("key", ["train.lr", "rollout.temperature", "plan.budget", "run.seed"])
def test_absurd_numbers_are_refused_however_they_are_written(key, number, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(MODEL)
    with pytest.raises(ConfigError) as error:
        load_config(file, [f"{key}={number}"])
    assert str(error.value).startswith(f"{key} ")


def test_a_range_says_what_it_holds():
    for found in LIMITS:
        for value in (found.least, *found.also):
            assert found.problem(value) == ""
        assert bool(found.problem(found.most)) == found.below
        assert found.problem(math.nan).startswith(("at least", "0 or at least", "-1 or 0 or at least"))
        assert found.problem(found.most * 2 + 1).startswith("at most" if not found.below else "below")
        assert found.problem(min(found.least, *found.also, 0) - 1)
        assert str(found)
    assert number_problem("train.lr", 1e308) == "train.lr must be at most 10, not 1e+308"
    assert number_problem("train.lr", 1e-320) == "train.lr must be 0 or at least 1e-12, not 1e-320"
    assert number_problem("train.beta1", 1.0) == "train.beta1 must be below 1, not 1.0"
    assert number_problem("plan.budget", 10**10).startswith("plan.budget must be at most 1,000,000,000, not")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"verifier": "judge", "options": {"temperature": 1e-320}}, "reward.options.temperature must be"),
        ({"verifier": "judge", "options": {"deadline_s": 1e308}}, "reward.options.deadline_s must be"),
        ({"verifier": "judge", "options": {"range": [0, 1e-320]}}, "reward.options.range"),
        ({"verifier": "functions", "functions": {"exact": 1e308}}, "reward.functions.exact.weight"),
        ({"verifier": "functions", "functions": {"exact": {"range": [-1e308, 1e308]}}}, "reward.functions.exact.range"),
        (
            {"verifier": "functions", "functions": {"a": {"verifier": "judge", "options": {"max_tokens": 10**18}}}},
            "reward.functions.a.options.max_tokens must be at most",
        ),
    ],
)
def test_numbers_in_mappings_of_the_reward_have_ranges_too(change, part):
    config = KrayConfig()
    config.model.path, config.reward.judge.url, config.reward.judge.model = "x", "http://127.0.0.1:1/v1", "m"
    for key, value in change.items():
        setattr(config.reward, key, value)
    found = check(config)
    assert len(found) >= 1
    assert part in found[0]


@pytest.mark.parametrize(
    "player",
    [
        {"opponent": "endpoint", "url": "http://x", "model": "m", "temperature": 1e308},
        {"opponent": "endpoint", "url": "http://x", "model": "m", "deadline_s": 1e-320},
        {"opponent": "endpoint", "url": "http://x", "model": "m", "max_tokens": 10**18},
        {"opponent": "past", "every": 10**18},
    ],
)
def test_numbers_of_players_have_ranges_too(player):
    config = KrayConfig()
    config.model.path, config.environment.name, config.environment.roles = "x", "nim", {"second": player}
    assert [text for text in check(config) if text.startswith("environment.roles.second.")]


def test_numbers_of_further_test_sets_have_ranges_too():
    config = KrayConfig()
    config.prompts.more_tests = {"hard": {"size": 10**18}}
    with pytest.raises(ConfigError, match=r"prompts\.more_tests\.hard\.size must be at most"):
        sets_of(config.prompts)


TEMPLATES = [
    "{prompt:>1000000000}", "{prompt!r:>1000000000}", "{prompt:{prompt}}", "{prompt.__class__}", "{prompt[0]}", "{prompt!r}",
    "{0:>1000000000}", "{:>1000000000}", "{prompt} {0}", "{prompt", "prompt}", "{}", "{answer}", "no place", "{prompt}" * 17,
    "{prompt:}} {prompt}", "{ prompt}",
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_hold_their_place_and_nothing_else(template):
    config = KrayConfig()
    config.model.path, config.prompts.train.template = "x", template
    started = time.process_time()
    (found,) = check(config)
    assert found.startswith("prompts.train.template must contain {prompt}")
    assert time.process_time() - started < 1


@settings(max_examples=300)
@given(st.text(st.sampled_from("{}:!>x19.[] "), max_size=12), st.text(max_size=5))
def test_a_template_that_passes_is_filled_as_python_would(template, text):
    template += "{}"
    try:
        check_template(template)
    except ValueError:
        return
    assert fill(template, text) == template.format(*[text] * 16)
    assert len(fill(template, text)) <= len(template) + 16 * len(text)


def test_a_template_with_doubled_braces():
    assert fill('{{"q": "{prompt}"}} {prompt}', "a{b}", "prompt") == '{"q": "a{b}"} a{b}'
    assert json.loads(fill('{{"q": "{prompt}"}}', "x", "prompt")) == {"q": "x"}
