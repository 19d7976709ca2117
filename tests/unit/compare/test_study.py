"""Which children a comparison has, which are done, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kray.compare.study import DONE, load_study, parse_seeds
from kray.errors import ConfigError

BASE = Path(__file__).parents[3] / "configs" / "tiny.yaml"
GYM = "{{train: {{kind: reasoning_gym, tasks: {{gcd: {{}}}}, verifier: exact}}}}"  # "5 " would be right, too
DRAFTS = "{{options: {{after: '='}}}}"  # "1=2" and "=2" would both be right
LOOSE = "{{more_tests: {{loose: {{verifier: math}}}}}}"
TEXT = """
base: {base}
exact: true
seeds: 0-1
config: {{run: {{name: small, steps: 5}}, plan: {{budget: 512}}}}
methods:
  uniform: {{plan.mode: uniform}}
  twice: {{plan.mode: uniform, times: 2}}
  oracle: {{plan: {{mode: static, candidates: 1}}, oracle: true, train.lr: 3.0e-4}}
"""


@pytest.fixture
def write(tmp_path):
    def made(text: str = TEXT, **changes: str) -> str:
        for old, new in changes.items():
            text = text.replace(old, new)
        file = tmp_path / "study.yaml"
        file.write_text(text.format(base=BASE))
        return str(file)

    return made


def test_children_are_methods_times_seeds_on_one_base(write, tmp_path):
    study = load_study(write(), folder=str(tmp_path / "out"), overrides=["train.lr=5e-5", "plan.budget=256"])
    assert [(child.method, child.seed) for child in study.children] == [
        (method, seed) for seed in (0, 1) for method in ("uniform", "twice", "oracle")
    ]
    assert len({child.folder for child in study.children}) == 6
    by_name = {child.method: child for child in study.children}
    assert [by_name[name].config.plan.budget for name in ("uniform", "twice", "oracle")] == [256, 512, 256]
    assert [by_name[name].config.train.lr for name in ("uniform", "twice", "oracle")] == [5e-5, 5e-5, 3e-4]
    assert [child.config.run.seed for child in study.children] == [0, 0, 0, 1, 1, 1]
    assert [child.controls.oracle for child in study.children[:3]] == ["", "", "plan"]
    assert {child.config.track.uri for child in study.children} == {f"sqlite:///{tmp_path}/out/mlflow.db"}


def test_times_scales_budgets_of_tokens_too(write, tmp_path):
    tokens = ["plan.unit=tokens", "plan.token_budget=900"]
    study = load_study(write(), "uniform,twice", "0", str(tmp_path / "out"), tokens)
    assert [child.config.plan.token_budget for child in study.children] == [900, 1800]


def test_exact_and_sampled_runs_have_different_settings(write, tmp_path):
    file, out = write(), str(tmp_path / "out")
    (child,) = load_study(file, "uniform", "0", out).children
    child.folder.mkdir(parents=True)
    child.finish({})
    write(TEXT.replace("exact: true", "exact: false"))
    with pytest.raises(ConfigError, match="other settings"):
        load_study(file, "uniform", "0", out).todo()


def test_children_of_another_policy_are_not_joined(write, tmp_path):
    study = load_study(write(), folder=str(tmp_path / "out"))
    mine = {"policy": "a1", "prompts": "b2", "commit": "c3"}
    study.check_origin(mine)
    for child, origin in zip(study.children, (mine, mine | {"commit": "c4"}, None), strict=False):
        child.folder.mkdir(parents=True)
        child.finish({"origin": origin} if origin else {})
    assert study.origins() == {"policy": ["a1"], "prompts": ["b2"], "commit": ["c3", "c4"]}
    study.check_origin(mine)
    with pytest.raises(ConfigError, match=r"another policy \(a1 and not a9\).*another --dir"):
        study.check_origin(mine | {"policy": "a9"})
    with pytest.raises(ConfigError, match="another prompts"):
        study.check_origin(mine | {"prompts": "b9"})


def test_what_would_run_names_every_number_of_prompts(write, tmp_path):
    wide = TEXT.replace("times: 2", "times: 2, prompts.per_step: 128")
    study = load_study(write(wide), folder=str(tmp_path / "out"), overrides=["prompts.per_step=64"])
    assert study.describe() == "3 methods x 2 seeds, 5 steps of 64 or 128 prompts and 512 rollouts"


def test_done_runs_of_equal_settings_are_not_repeated(write, tmp_path):
    file, out = write(), str(tmp_path / "out")
    study = load_study(file, folder=out)
    first, half = study.children[0], study.children[1]
    for child in (first, half):
        child.folder.mkdir(parents=True)
        (child.folder / "metrics.jsonl").write_text("{}\n")  # what a run leaves before it is done
    assert study.todo() == list(study.children)
    first.finish({"took_s": 1.0})
    assert study.todo() == list(study.children[1:])
    assert first.result()["took_s"] == 1.0
    again = load_study(file, "uniform", "0,7", out)
    assert [(child.method, child.seed) for child in again.todo()] == [("uniform", 7)]
    with pytest.raises(ConfigError, match=r"uniform/seed-0 was done with other settings"):
        load_study(file, folder=out, overrides=["train.lr=0.1"]).todo()
    (first.folder / DONE).write_text('{"settings": ')
    with pytest.raises(ConfigError, match="not JSON"):
        study.todo()


def test_a_moved_folder_is_still_done(write, tmp_path):
    file = write()
    study = load_study(file, folder=str(tmp_path / "out"))
    study.children[0].folder.mkdir(parents=True)
    study.children[0].finish({})
    (tmp_path / "out").rename(tmp_path / "moved")
    assert len(load_study(file, folder=str(tmp_path / "moved")).todo()) == len(study.children) - 1


def test_controls_are_part_of_the_settings(write, tmp_path):
    out, found = str(tmp_path / "out"), {}
    for number, flags in enumerate(["times: 1", "oracle: true", "oracle: plan", "oracle: both", "oracle: baseline",
                                    "shuffle_budgets: true", "label_noise: 0.05", "label_noise: 0.1"]):  # fmt: skip
        changed = TEXT.replace("plan.mode: uniform, times: 2", f"plan.mode: static, {flags}")
        found[number] = load_study(write(changed), "twice", "0", out).children[0].settings
    assert found.pop(1) == found[2]
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan.mode: uniform, times: 2": "train.ranks: 2"}, "method twice: train.ranks is 1 for all"),
        ({"plan.mode: uniform, times: 2": "rollout.engines: 2"}, "method twice: rollout.engines"),
        ({"plan.mode: uniform, times: 2": "plan.mod: uniform"}, "method twice: plan.mod is not a key"),
        ({"times: 2": "times: 0.001"}, "times must give a whole number"),
        ({"exact: true": "exact: false"}, "method oracle: oracle needs exact"),
        ({"mode: static, candidates: 1": "mode: online, candidates: 1"}, "method oracle: .*plan.mode must be static"),
        (
            {"candidates: 1": "candidates: 1, value: grpo"},
            "method oracle: .*plan.value must be paper or baseline, not grpo",
        ),
        ({"oracle: true": "oracle: beliefs"}, "method oracle: oracle must be true or one of plan, baseline, both"),
        ({"times: 2": "shuffle_budgets: true"}, "method twice: .*plan.mode must be static, not uniform"),
        ({"times: 2": "shuffle_budgets: 1"}, "method twice: shuffle_budgets must be true or false"),
        ({"times: 2": "label_noise: 5"}, "method twice: label_noise must be a probability, not 5"),
        ({"run: {{name": f"prompts: {LOOSE}, run: {{{{name"}, "answers that can be given in one way"),
        ({"exact: true": "exactly: true"}, "exactly is not a key of a comparison"),
        ({"run: {{name": "reward: {{verifier: math}}, run: {{name"}, "answers that can be given in one way"),
        ({"run: {{name": f"reward: {DRAFTS}, run: {{{{name"}, "answers that can be given in one way"),
        ({"run: {{name": f"prompts: {GYM}, run: {{{{name"}, "answers that can be given in one way"),
        ({"seeds: 0-1": "seeds: 3-1"}, "seeds: '3-1' is neither"),
        ({"  twice:": "  a/b:"}, "it names a folder"),
        ({"base: {base}": "base: nowhere.yaml"}, "nowhere.yaml does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(write, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_study(write(**changes))


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0-3,7, 2", "") == (0, 1, 2, 3, 7)
    with pytest.raises(ConfigError, match="no method 'no-such-method'"):
        load_study(str(BASE.with_name("compare-quick.yaml")), "no-such-method")


@pytest.mark.parametrize(
    "name", ["compare-quick", "compare-arithmetic", "compare-reasoning", "compare-draft", "compare-adapt"]
)
def test_the_files_that_come_with_kray_can_be_run(name):
    assert load_study(str(BASE.with_name(f"{name}.yaml")), seeds="0").children


def test_accuracies_are_sampled_on_request(write, tmp_path):
    overlap = ["async.max_staleness=1", "train.tis=2"]
    with pytest.raises(ConfigError, match=r"max_staleness 0 \(or --sampled\)"):
        load_study(write(), "uniform", folder=str(tmp_path), overrides=overlap)
    study = load_study(write(), "uniform", folder=str(tmp_path), overrides=overlap, sampled=True)
    assert not study.exact
    assert not any(child.exact for child in study.children)
    with pytest.raises(ConfigError, match="oracle needs exact"):
        load_study(write(), folder=str(tmp_path), sampled=True)
