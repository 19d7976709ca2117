"""`--check` refuses what a run refuses, and shows prompts as the policy reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from chat_models import chat_model
from checked_runs import QUICK, arguments, checkpoint, load_parts_of
from inline_jobs import run_job

from kray.config import KrayConfig, load_config, to_yaml
from kray.config.resume import as_begun
from kray.driver.components import load_components
from kray.errors import KrayError
from kray.tracking import prompts_digest

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def changed(chat, tmp_path):
    """Makes a copy of the model; template: text put before its chat template; others: keys of its configuration."""

    def make(template: str = "", **keys) -> Path:
        folder = Path(shutil.copytree(chat, tmp_path / "model"))
        file = folder / "chat_template.jinja"
        file.write_text(template + file.read_text())
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | keys))
        return folder

    return make


def check(*overrides: str):
    return run_job("train", "--config", QUICK, "--check", *overrides)


def refused_alike(overrides: list[str]) -> str:
    """The message with which both `--check` and the beginning of a run refuse a configuration."""
    config = load_config(QUICK, overrides)
    with pytest.raises(KrayError) as caught:
        load_components(config, config.model.path)
    done = check(*overrides)
    assert done.returncode == 2, done.stdout
    assert done.stderr.strip().endswith(str(caught.value))
    return done.stderr


def test_a_good_model_is_checked_and_prompts_are_shown(chat):
    done = check(*arguments(chat, "prompts.train.system=Be brief.", "prompts.train.template={prompt} Answer:"))
    assert done.returncode == 0, done.stderr
    expected = [
        "  arithmetic/train/0, 90 tokens, answer '61' (8 + 8 = 16)",
        "  | «<|im_start|>»system",
        "  | Be brief.«<|im_end|>»",
        "  | «<|im_start|>»user",
        "  | 8+8= Answer:«<|im_end|>»",
        "  | «<|im_start|>»assistant",
        "  | ",
    ]
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  arithmetic/train/0"))
    tokens = len("system\nBe brief.\nuser\n8+8= Answer:\nassistant\n") + 5
    assert lines[start : start + 7] == [expected[0].replace("90", str(tokens)), *expected[1:]]
    assert sum(line.startswith("  arithmetic/train/") for line in lines) == 2
    assert sum(line.startswith("  arithmetic/test/") for line in lines) == 2


def test_positions_of_the_model_bound_prompt_and_response(chat):
    told = refused_alike(arguments(chat, "rollout.max_response_tokens=4000"))
    assert "= 4200 is above the 2048 positions" in told


def test_a_template_that_refuses_the_system_role_is_refused(changed):
    told = refused_alike(arguments(changed(NO_SYSTEM), "prompts.train.system=Be brief."))
    assert "prompt arithmetic/train/0: the chat template refuses its messages: no system role" in told


def test_a_template_that_leaves_the_system_message_out_is_told(changed):
    model = changed()
    file = model / "chat_template.jinja"
    file.write_text(
        file.read_text().replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    )
    done = check(*arguments(model, "prompts.train.system=Be brief."))
    assert done.returncode == 0, done.stderr
    assert "warning: prompts.train.system is not found whole in what the chat template makes of a prompt" in done.stdout


def test_prompts_that_spell_special_tokens_are_told(chat, tmp_path):
    rows = [{"prompt": f"<|im_start|>user\n{i}+1=<|im_end|>\n" if i else "0+1=", "answer": i + 1} for i in range(70)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = ["prompts.train.kind=jsonl", f"prompts.train.path={tmp_path}/p.jsonl"]
    done = check(*arguments(chat, *paths))
    assert done.returncode == 0, done.stderr
    told = (
        "note: prompts.train: special tokens in the text of 69 of 70 prompts are read as text (first p.jsonl:2: '<|im_"
    )
    assert told in done.stdout
    done = check(*arguments(chat, *paths, "prompts.train.special_tokens=true", "prompts.train.chat=false"))
    assert done.returncode == 0, done.stderr
    assert "special tokens in the text" not in done.stdout


@pytest.mark.parametrize("size", [100, 258])
def test_a_tokenizer_larger_than_the_model_is_refused(changed, size):
    told = refused_alike(arguments(changed(vocab_size=size)))
    assert f"259 tokens, the model {size} (token {size} is " in told


def test_a_mixture_of_experts_is_refused(changed):
    model = changed(model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    assert "a model of type qwen3_moe cannot be trained" in refused_alike(arguments(model))


def test_a_variable_that_the_template_lacks_is_refused(chat):
    told = refused_alike(arguments(chat, "prompts.train.chat_template_kwargs={enable_thinking: false}"))
    assert (
        "prompts.train.chat_template_kwargs.enable_thinking: the tokenizer's chat template has no such variable" in told
    )


def test_too_few_short_prompts_are_refused(chat):
    told = refused_alike(arguments(chat, "prompts.max_tokens=20"))
    assert "prompts.train: 0 of 1,024 prompts are left, 64 are needed" in told


def test_template_variables_are_shown_and_settled(changed, chat):
    thinks = "{% if enable_thinking is defined and not enable_thinking %}[no thinking]{% endif %}"
    done = check(*arguments(changed(thinks), "prompts.train.chat_template_kwargs={enable_thinking: false}"))
    assert done.returncode == 0, done.stderr
    train, _, test = done.stdout.partition("\nprompts.test (")
    assert train.count("[no thinking]«<|im_start|>»user") == 2
    assert "[no thinking]" not in test
    assert "warning: prompts.train.chat_template_kwargs and prompts.test.chat_template_kwargs differ" in done.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompts.train.chat_template_kwargs={tokenize: true}", "prompts.train.chat_template_kwargs.tokenize"),
        ("prompts.test.chat_template_kwargs={messages: []}", "prompts.test.chat_template_kwargs.messages"),
        ("prompts.train.prompt_format=yaml", "prompts.train.prompt_format must be one of auto, text, json"),
    ],
)
def test_source_keys_that_cannot_be_are_refused(chat, override, message):
    done = check(*arguments(chat, override))
    assert done.returncode == 2
    assert message in done.stderr


def test_template_variables_need_a_template(chat):
    done = check(
        *arguments(chat, "prompts.train.chat=false", "prompts.train.chat_template_kwargs={enable_thinking: false}")
    )
    assert done.returncode == 2
    assert "variables of the chat template, which prompts.train.chat false does not apply" in done.stderr


def test_a_tiny_policy_is_checked_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("KRAY_CACHE", str(tmp_path))
    done = check("prompts.train.system=Be brief.")
    assert done.returncode == 0, done.stderr
    assert "  arithmetic/train/0, 4 tokens, answer '61' (8 + 8 = 16)\n  | 8+8=\n" in done.stdout
    assert "warning: prompts.train.system is not used: the tokenizer has no chat template" in done.stdout
    assert not list(tmp_path.iterdir())
    for override, message in (
        ("rollout.max_response_tokens=5000", "above the 4096 positions of a tiny policy"),
        ("model.tiny.kinds=[nothing]", "model.tiny.kinds: nothing is not one of"),
    ):
        done = check(override)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_a_hub_that_cannot_be_asked_leaves_a_warning(monkeypatch):
    done = check("model.tiny=null", "model.path=nobody/has-this-model")
    assert done.returncode == 0, done.stderr
    assert "warning: model.path nobody/has-this-model cannot be read here" in done.stdout
    assert "first prompts, as the data has them" in done.stdout
    placed = check("model.tiny=null", "model.path=nobody/has-this-model", "--cluster", "cluster/kuberay-cpu.yaml")
    assert placed.returncode == 0, placed.stderr
    told = [line for line in placed.stdout.splitlines() if line.startswith("warning: model.path nobody/has-this-model")]
    assert "memory (of ranks, engines and nodes) are not checked" in told[0]
    assert "learner ranks on" in placed.stdout


def test_memory_that_was_asked_for_and_cannot_be_compared_is_refused():
    done = check("model.tiny=null", "model.path=nobody/has-this-model", "--gpu-gib", "48")
    assert done.returncode == 2, done.stdout
    assert (
        "--gpu-gib 48: memory cannot be compared, for model.path nobody/has-this-model cannot be read here"
        in done.stderr
    )


def test_check_reads_no_weights(changed):
    model = changed()
    for file in model.glob("*.safetensors"):
        file.write_bytes(b"no weights")
    assert check(*arguments(model)).returncode == 0


def test_long_prompts_are_shown_with_beginning_and_end(chat, tmp_path):
    rows = [{"prompt": f"begin {'x' * 3000} \x1b[2Jend {i}", "answer": str(i)} for i in range(70)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [
        f"prompts.{part}.{key}" for part in ("train", "test") for key in (f"path={tmp_path}/p.jsonl", "kind=jsonl")
    ]
    longer = ["prompts.max_tokens=4000", "rollout.max_response_tokens=10"]
    done = check(*arguments(chat, *paths, "prompts.max_tokens=2040"), "rollout.max_response_tokens=8")
    assert done.returncode == 2  # all are longer
    assert "70 of 70 train prompts dropped: longer than prompts.max_tokens, which is 2040" in done.stdout
    model = Path(shutil.copytree(chat, tmp_path / "long"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8000}))
    done = check(*arguments(model, *paths, *longer))
    assert done.returncode == 0, done.stderr
    assert "  | [... 1," in done.stdout
    assert "\\x1b[2Jend 0«<|im_end|>»" in done.stdout


# -- resumes -----------------------------------------------------------------------------------------------------------


def repeated(folder: Path) -> tuple[KrayConfig, list[str]]:
    """A configuration, and the overrides that make it, whose rows are each there twice."""
    (folder / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}+1=", "answer": i + 1}) + "\n" for i in range(70)) * 2
    )
    paths = [f"prompts.{part}.{key}" for part in ("train", "test") for key in (f"path={folder}/p.jsonl", "kind=jsonl")]
    return load_config(QUICK, paths), paths


def test_check_refuses_resumes_that_the_run_refuses(tmp_path):
    config, paths = repeated(tmp_path)
    run = checkpoint(tmp_path / "run", config, "another digest")
    done = check(*paths, f"resume={run}")
    assert done.returncode == 2
    assert "the prompts are not those that this run began with" in done.stderr
    done = check(*paths, f"resume={run}", "run.seed=5")
    assert done.returncode == 2
    assert "run.seed was 0 when run began and cannot become 5" in done.stderr


def test_old_run_keeps_its_repeated_rows(tmp_path):
    config, paths = repeated(tmp_path)
    config.prompts.train.keep_repeats = True
    parts = [prompt for prompt, _ in load_parts_of(config)]
    run = checkpoint(tmp_path / "run", config, prompts_digest(parts))
    kept = run / "config.yaml"
    lines = [
        line for line in kept.read_text().splitlines() if "keep_repeats" not in line and "prompt_format" not in line
    ]
    kept.write_text("\n".join(lines) + "\n")
    (run / "config-resumed-000003.yaml").write_text(to_yaml(config))  # it was resumed before
    begun = as_begun(load_config(QUICK, paths), run)
    assert (begun.prompts.train.keep_repeats, begun.prompts.train.prompt_format) == (True, "text")
    done = check(*paths, f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert "train prompts              140" in done.stdout
    (run / "config-resumed-000003.yaml").unlink()
    kept.write_text(to_yaml(load_config(QUICK, paths)))  # a run that began with the key, and without repeats
    assert as_begun(load_config(QUICK, paths), run).prompts.train.keep_repeats is False
    assert check(*paths, f"resume={run}").returncode == 2


def test_template_variables_change_the_prompts_digest():
    prompts = [prompt for prompt, _ in load_parts_of(load_config(QUICK, ["prompts.train.size=70"]))]
    plain = prompts_digest(prompts)
    assert prompts_digest(prompts, {}) == plain
    assert len({plain, prompts_digest(prompts, {"a": 1}), prompts_digest(prompts, {"a": 2})}) == 3


def test_a_comparison_shows_prompts_as_they_are_read(tmp_path):
    done = run_job("compare", "configs/compare-quick.yaml", "--check", "--dir", tmp_path / "study")
    assert done.returncode == 0, done.stderr
    assert "first prompts, as the policy reads them" in done.stdout
    assert "  | 8+8=" in done.stdout


# -- memory ------------------------------------------------------------------------------------------------------------


def test_bytes_are_printed_and_what_cannot_fit_is_refused(chat):
    done = check(*arguments(chat))
    assert done.returncode == 0, done.stderr
    for label in (
        "parameters",
        "memory of a rank",
        "  exactly",
        "  keys and values",
        "a checkpoint",
        "new weights in engines",
    ):
        assert f"\n{label:<26} " in done.stdout, label
    on_gpus = arguments(chat, "train.gpus_per_rank=1", "rollout.gpus_per_engine=1")
    done = check("--gpu-gib", "80", *on_gpus)
    assert done.returncode == 0, done.stderr
    assert " of 80.0 GiB\n" in done.stdout
    assert "computed in bfloat16\n" in done.stdout
    done = check("--gpu-gib", "1.001", *on_gpus)
    assert done.returncode == 2
    assert "config error: train.ranks: a rank needs" in done.stderr
    assert "its GPU has 1.02 MiB beside the 1.00 GiB of CUDA and nccl" in done.stderr


def test_options_of_vllm_are_checked_by_name_and_type(chat):
    done = check(*arguments(chat, "rollout.vllm.max_batched_tokens=9"))
    assert done.returncode == 2
    assert "rollout.vllm.max_batched_tokens is not an option" in done.stderr
    done = check(*arguments(chat, "rollout.vllm.cpu_offload_gb=much"))
    assert done.returncode == 2, done.stdout
    assert "rollout.vllm.cpu_offload_gb must be float for the vLLM that is installed, not 'much'" in done.stderr
