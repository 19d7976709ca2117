"""A configuration is loaded as written, or refused with the key and the place; nothing else can come out."""

import dataclasses
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.config import (
    KrayConfig,
    SourceConfig,
    changed_keys,
    check,
    derived,
    digest,
    flat,
    kept_config,
    load_config,
    to_yaml,
    warnings,
)
from kray.config.ranges import FIXED, LIMITS
from kray.config.reading import all_keys, declared, fields_of
from kray.config.redaction import is_secret_key
from kray.config.validation import CHOICES, value_at
from kray.errors import ConfigError

MODEL = "model:\n  path: x\n"


@pytest.fixture
def load(tmp_path):
    def from_text(text, *overrides):
        file = tmp_path / "c.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(file, list(overrides))

    return from_text


@pytest.fixture
def refused(load, tmp_path):
    def message(text, *overrides):
        with pytest.raises(ConfigError) as error:
            load(text, *overrides)
        return str(error.value).replace(f"{tmp_path}/", "")

    return message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plan:\n  budgett: 3\n", ["plan.budgett is not a key (did you mean plan.budget?)", "c.yaml:4"]),
        ("lr: 3\n", ["lr is not a key (did you mean train.lr", "c.yaml:3"]),
        ("plann:\n  budget: 3\n", ["plann is not a key (did you mean plan?)", "c.yaml:3"]),
        ("plan:\n  budget: 3\n  budget: 4\n", ["plan.budget is given twice (first in line 4)", "c.yaml:5"]),
        ("plan:\n  budget: many\n", ["plan.budget must be an integer, not many", "c.yaml:4"]),
        ("plan:\n  budget: 2.5\n", ["plan.budget must be an integer, not 2.5"]),
        ("plan:\n  fit_prior: 1\n", ["plan.fit_prior must be true or false, not 1"]),
        ("plan:\n  mode: [static]\n", ["plan.mode must be text, not a list"]),
        ("train:\n  lr: .nan\n", ["train.lr must be a finite number, not .nan"]),
        ("train:\n  lr: .inf\n", ["train.lr must be a finite number"]),
        ("plan: 3\n", ["plan is a section with keys such as plan.mode, not 3", "c.yaml:3"]),
        ("plan:\n", ["plan may not be null", "c.yaml:3"]),
        ("plan:\n  budget: null\n", ["plan.budget may not be null: an integer is needed"]),
        ("prompts:\n  train:\n    tasks: 3\n", ["prompts.train.tasks must be a mapping, not 3"]),
        ("run: {seed: '${run.nope}'}\n", ["run.seed", "run.nope", "c.yaml:3"]),
        ("run: {seed: '${model.path}'}\n", ["run.seed", "c.yaml:3"]),
        ("run: {seed: '${run.seed}'}\n", ["run.seed", "c.yaml:3"]),
        ("run: {seed: '${run'}\n", ["run.seed", "c.yaml:3"]),
        ("prompts: &p\n  train: *p\n", ["prompts.train contains itself"]),
        ("run:\n  seed: ???\n", ["run.seed is ???"]),
        ("plan: [\n", ["not valid YAML", "c.yaml:"]),
    ],
)
def test_a_bad_file_is_refused_with_key_and_line(refused, text, parts):
    message = refused(MODEL + text)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("plan.budgett=3", "plan.budgett is not a key (did you mean plan.budget?)"),
        ("eval.every=3", "did you mean evaluate.every?"),
        ("plan.budget", "is not an override"),
        ("=3", "is not an override"),
        ("plan=3", "plan is a section"),
        ("plan.budget.x=3", "plan.budget is a value"),
        ("plan.budget=", "plan.budget may not be null"),
        ("plan.budget=[", "not valid YAML"),
        ("plan.mode=null", "plan.mode may not be null"),
        ("train.lr=inf", "train.lr must be a finite number"),
    ],
)
def test_a_bad_override_is_refused_with_itself(refused, override, part):
    message = refused(MODEL, override)
    assert part in message
    assert f"command line: {override}" in message


def test_the_message_has_its_place_in_a_column(refused):
    expected = "plan.budgett is not a key (did you mean plan.budget?)            c.yaml:4"
    assert refused(MODEL + "plan:\n  budgett: 3\n") == expected


def test_all_problems_are_reported_at_once(refused):
    message = refused(MODEL + "plann: 3\n", "train.lr=x")
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"- a\n", "mapping of sections"),
        (b"a\x00b", "not valid YAML"),
        (b"[" * 5000, "not"),
    ],
)
def test_a_file_that_is_no_configuration(refused, content, part):
    assert part in refused(content)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "quick.yaml").write_text(MODEL)
    with pytest.raises(ConfigError, match=r"does not exist .did you mean .*quick.yaml"):
        load_config(tmp_path / "quikc.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    with pytest.raises(ConfigError):
        load_config("a\0b")


def test_values_are_read_as_their_fields_declare(load):
    config = load(
        MODEL
        + "train: {lr: 1e-4, grad_clip: 2, eps: '1e-9'}\nrun: {name: 2024-01-01}\nprompts: {train: {subset: no}}\n"
    )
    assert (config.train.lr, config.train.grad_clip, config.train.eps) == (1e-4, 2.0, 1e-9)
    assert type(config.train.grad_clip) is float
    assert (config.run.name, config.prompts.train.subset) == ("2024-01-01", "no")
    assert isinstance(config, KrayConfig)
    assert isinstance(config.prompts.train, SourceConfig)


def test_overrides_win_in_order_and_open_optional_sections(load):
    text = "model: {path: '', tiny: null}\nplan: {budget: 256}\n"
    config = load(text, "model.tiny.hidden_size=64", "plan.budget=300", "plan.budget=512", "run.name=a b: {c}")
    assert (config.model.tiny.hidden_size, config.model.tiny.layers) == (64, 4)
    assert (config.plan.budget, config.run.name) == (512, "a b: {c}")
    assert load("model: {tiny: {layers: 2}}\n", "model.tiny=null", "model.path=x").model.tiny is None
    assert load(MODEL, "resume=").resume == ""


def test_free_mappings_take_any_key(load):
    text = MODEL + "prompts:\n  train: {kind: reasoning_gym, tasks: {chain: {digits: 2}}}\n"
    config = load(text, "prompts.train.tasks.gcd.high=9", "reward.options={tolerance: 1e-3}")
    assert config.prompts.train.tasks == {"chain": {"digits": 2}, "gcd": {"high": 9}}
    assert config.reward.options == {"tolerance": 1e-3}


def test_interpolations_and_merge_keys(load, monkeypatch):
    monkeypatch.setenv("KRAY_TEST_NAME", "here")
    text = MODEL + (
        "run: {seed: 7, name: 'x-${oc.env:KRAY_TEST_NAME}-${run.seed}'}\n"
        "prompts:\n  train: &p {kind: jsonl, path: a, seed: '${run.seed}'}\n  test: {<<: *p, path: b}\n"
    )
    config = load(text)
    assert config.run.name == "x-here-7"
    assert config.prompts.test.seed == 7
    assert (config.prompts.train.path, config.prompts.test.path) == ("a", "b")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["plan.mode=statik"], ["plan.mode", "did you mean static"]),
        (["plan.mode=onlin"], ["plan.mode", "did you mean online?"]),
        (["plan.value=grpo", "plan.marginal=hybrid"], ["plan.marginal hybrid", "plan.value paper"]),
        (["plan.unit=tokens"], ["plan.token_budget"]),
        (
            ["plan.candidates=5", "train.baseline=group"],
            ["plan.budget 512 is below", "all candidates of a step may fall due at once"],
        ),
        (["plan.target_groups=8"], ["plan.target_groups 8 needs plan.mode online"]),
        (
            ["plan.adapt=true", "plan.mode=online"],
            ["plan.adapt sets the limits of plan.mode static, not those of online"],
        ),
        (["plan.adapt=true", "train.baseline=batch"], ["plan.adapt", "train.baseline must be belief or group"]),
        (["plan.target_size=1"], ["plan.target_size must be at least 2"]),
        (["plan.budget=60"], ["plan.budget 60 is below plan.lower 1 x prompts.per_step 64 = 64"]),
        (
            ["plan.budget=100", "plan.mode=uniform"],
            ["plan.budget 100 is below plan.lower 2 x prompts.per_step 64 = 128"],
        ),
        (["plan.budget=9999"], ["plan.budget 9999 is above plan.upper 128 x prompts.per_step 64 = 8192"]),
        (
            ["plan.lower=9", "plan.upper=3"],
            ["plan.lower 9 is above plan.upper 3", "command line: plan.lower=9, command"],
        ),
        (["rollout.top_p=0.9"], ["rollout.top_p must stay 1", "logprobs"]),
        (["rollout.top_k=5"], ["rollout.top_k must stay 0"]),
        (["rollout.temperature=0"], ["rollout.temperature must be at least 0.01, not 0.0"]),
        (["model.path="], ["no model"]),
        (["model.tiny.layers=2"], ["two models"]),
        (["train.updates=65"], ["train.updates 65 is above prompts.per_step 64"]),
        (["plan.value=baseline", "train.baseline=group"], ["no gradient with train.baseline group: use belief"]),
        (["plan.discount=1.5"], ["plan.discount must be at most 1, not 1.5"]),
        (["plan.prior_alpha=0"], ["plan.prior_alpha must be at least 1e-09, not 0.0"]),
        (["rollout.gpus_per_engine=65"], ["rollout.gpus_per_engine must be at most 64"]),
        (["prompts.train.kind=jsonl"], ["prompts.train.path is empty"]),
        (["prompts.test.kind=reasoning_gym"], ["prompts.test.tasks is empty"]),
        (["prompts.train.template=no braces"], ["prompts.train.template must contain {prompt}"]),
        (["reward.verifier=exakt"], ["reward.verifier", "did you mean exact"]),
        (["reward.verifier=code", "reward.timeout_s=5"], ["reward.options.timeout_s 6", "below reward.timeout_s 5"]),
        (
            ["train.ranks=6", "train.context_parallel=4"],
            ["train.ranks 6 is not a multiple of train.context_parallel 4"],
        ),
        (["train.context_parallel=2"], ["train.ranks 1 is not a multiple of train.context_parallel 2"]),
        (
            ["train.ranks=2", "train.context_parallel=2", "train.packing=false"],
            ["train.context_parallel 2 divides packed micro-batches alone: set train.packing to true"],
        ),
        (
            ["train.ranks=2", "train.context_parallel=2", "train.compile=true"],
            ["train.context_parallel 2 has not been tested with train.compile"],
        ),
        (["run.name=a/b"], ["run.name"]),
        (["run.dir=runs"], ["run.dir must be absolute"]),
        (["rollout.max_context_tokens=10"], ["rollout.max_context_tokens 10 is below"]),
        (["model.path=", "model.tiny.heads=3"], ["model.tiny.hidden_size 128", "model.tiny.heads"]),
    ],
)
def test_contradictions_name_their_keys(refused, overrides, parts):
    message = refused(MODEL, *overrides)
    assert all(part in message for part in parts), message


def leaves():
    def walk(section, prefix):
        for name, annotation in fields_of(section).items():
            kind, _ = declared(annotation)
            if dataclasses.is_dataclass(kind):
                yield from walk(kind, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", kind

    return dict(walk(KrayConfig, ""))


def test_every_numeric_key_has_exactly_one_limit():
    limited = [key for keys in LIMITS.values() for key in keys.split()] + list(FIXED)
    numeric = [key for key, kind in leaves().items() if kind in (int, float)]
    assert sorted(limited) == sorted(numeric)
    assert set(CHOICES) <= {key for key, kind in leaves().items() if kind is str}


def test_defaults_lack_only_a_model():
    assert len(check(KrayConfig())) == 1
    assert value_at(KrayConfig(), "model.tiny.lr") is None


def test_export(load):
    config = load(MODEL, "reward.options.x=[1, 2]", "model.path=", "model.tiny.layers=2")
    parameters = flat(config)
    assert parameters["model.tiny.layers"] == 2
    assert parameters["reward.options.x"] == "[1, 2]"
    assert all(value is None or isinstance(value, bool | int | float | str) for value in parameters.values())
    other = load(MODEL, "plan.budget=256", "reward.options.x=[1, 2]")
    assert ("plan.budget", 512, 256) in changed_keys(config, other)
    assert changed_keys(config, config) == []
    assert digest(config) == digest(load(to_yaml(config))) != digest(other)


def test_kept_config_is_that_of_the_newest_resume(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {steps: 100}\n")
    assert kept_config(tmp_path) == tmp_path / "config.yaml"
    for age_s, name in ((20, "config-resumed-000050.yaml"), (10, "config-resumed-000040.yaml")):  # back to a checkpoint
        (tmp_path / name).write_text("run: {steps: 200}\n")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    assert kept_config(tmp_path) == tmp_path / "config-resumed-000040.yaml"


def test_derived_table(load):
    table = dict(derived(load(MODEL, "rollout.engines=3", "rollout.gpus_per_engine=1"), 640, 100))
    assert table["epochs"] == "10.00 to 80.00"
    assert table["mean rollouts per prompt"].startswith("at least 1.0")
    assert table["engines"] == "3 x {CPU: 1, GPU: 1}"
    assert table["actors request"] == "{CPU: 4, GPU: 3}"
    assert table["response tokens a step"] == "at most 262,144"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], []),
        (
            ["train.advantage_clip=3", "train.baseline=group"],
            ["cuts the advantage of a single success in groups of 11", "up to 128"],
        ),
        (["train.advantage_clip=3", "train.baseline=group", "plan.upper=10"], []),
        (["train.advantage_clip=3", "plan.mode=uniform"], []),  # groups of 8
        (["train.advantage_clip=2", "plan.mode=uniform"], ["in groups of 6", "up to 8"]),
        (["train.advantage_clip=3", "train.baseline=group", "train.advantage=mean"], []),
        (["train.advantage_clip=0.9", "train.baseline=group", "train.advantage=mean"], ["in groups of 11"]),
        (["train.advantage_clip=3"], []),
        (
            ["plan.lower=1", "train.baseline=group"],
            ["plan.lower lets a prompt have a single rollout", "belief learns from it"],
        ),
        (["plan.lower=1"], []),
        (["plan.lower=1", "plan.mode=uniform"], []),  # groups of 8
        (["train.baseline=batch"], []),
        (["train.baseline=batch", "train.epochs=2"], ["train.epochs 2 uses rollouts several times"]),
        (["train.clip_high=0.3", "train.epochs=2"], []),
        (["train.clip_high=0.3"], ["train.clip_low 0.2 and train.clip_high 0.3 do nothing"]),
        (["train.clip_high=0.3", "train.updates=2"], []),
        (["train.loss=cispo", "train.updates=2"], ["train.clip_low 0.2 bounds the weight of a token from below"]),
        (["train.loss=cispo", "train.updates=2", "train.clip_low=1"], []),
        (["train.loss=gspo", "train.updates=2"], ["its paper has 0.0003 and 0.0004"]),
        (["train.microbatch_tokens=1000"], ["is below prompts.max_tokens + rollout.max_response_tokens = 1536"]),
        (["reward.verifier=reasoning_gym"], ["merely contains the right one", "partial=false", "extract=true"]),
        (["reward.verifier=reasoning_gym", "reward.options.partial=false"], []),
        (["reward.verifier=reasoning_gym", "prompts.train.verifier=exact", "prompts.test.verifier=exact"], []),
        (["prompts.train.kind=reasoning_gym", "prompts.train.tasks={gcd: {}}"], ["need reward.verifier=reasoning_gym"]),
        (["prompts.train.kind=reasoning_gym", "prompts.train.tasks={gcd: {}}", "prompts.train.verifier=math"], []),
    ],
)
def test_doubtful_configurations_have_warnings(load, overrides, parts):
    said = warnings(load(MODEL, *overrides))
    assert len(said) == bool(parts), said
    assert all(part in said[0] for part in parts)


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
texts = words | st.sampled_from(
    ["${x}", "\\${x}", "\\\\${run.seed}", "???", "1e-4", "null", "12:30", "~", "no", "${", "a\nb", "="]
)

plain = words.filter(lambda w: w != "<<" and not is_secret_key(f"reward.options.{w}"))  # secrets are not written down


@settings(max_examples=60)
@given(texts, st.dictionaries(plain, texts | st.integers(0, 9) | st.none(), max_size=3))
def test_a_dumped_configuration_loads_as_itself(tmp_path_factory, text, options):
    config = KrayConfig()
    config.train.baseline, config.plan.value, config.plan.lower = "group", "paper", 2
    config.plan.candidates = 2.0  # a loaded configuration leaves nothing open
    config.model.dtype, config.rollout.eager, config.train.reduce_each_microbatch = "float32", True, False
    config.model.path, config.train.tis = "x", 0.0
    config.prompts.train.system = text
    config.reward.options = options
    file = tmp_path_factory.mktemp("config") / "c.yaml"
    file.write_text(to_yaml(config), encoding="utf-8", newline="")
    if "???" in [text, *options.values()]:
        return  # OmegaConf's mark of a missing value: refused
    assert load_config(file, [], checked=False) == config


plain = [
    "null",
    "~",
    "3",
    "-1",
    "2.5",
    "1e-4",
    ".nan",
    "1e999",
    "yes",
    "''",
    "x",
    "",
    "\t",
    "[]",
    "{}",
    "[1,2]",
    "{a: 1}",
]
odd = [
    "???",
    "*a",
    "&a",
    "!!int",
    "!!set",
    "!!binary x",
    "<<",
    "9" * 5000,
    "${run.seed}",
    "${",
    "${oc.env:NO}",
    "${oc.decode:'['}",
]
values = st.sampled_from([*plain, *odd, "{kind: jsonl}"])
keys = st.sampled_from(
    [*all_keys(KrayConfig), "plan.budgett", "x", "", "plan.", ".", "reward.options.a.b", "1.2", "<<"]
)
edits = st.lists(st.tuples(keys, values).map("=".join) | words, max_size=4)
lines = st.lists(
    st.tuples(st.sampled_from([*(k.split(".")[-1] for k in all_keys(KrayConfig)), "<<", "x", "?"]), values)
)


@settings(max_examples=150)
@given(edits, lines, st.integers(0, 400), st.binary(max_size=3))
def test_a_mutated_configuration_loads_or_raises_config_error(tmp_path_factory, edits, lines, at, noise):
    text = "".join(f"{'  ' if i % 3 else ''}{key}: {value}\n" for i, (key, value) in enumerate(lines))
    content = (MODEL + text).encode()
    content = content[:at] + noise + content[at:]
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    file.write_bytes(content)
    try:
        config = load_config(file, edits)
    except ConfigError:
        return
    assert check(config) == []
