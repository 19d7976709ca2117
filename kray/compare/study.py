"""Which runs a comparison is made of, and which of them are done. Loads neither Ray nor torch.

A comparison is a YAML file:

    base: tiny.yaml                  # a configuration, beside this file
    config: {run: {steps: 60}}       # keys put on top of it, for all methods
    exact: true                      # also compute exact success rates, where an answer can be given in one way only:
                                     # arithmetic or reasoning_gym prompts, verifier exact, options that forgive nothing
    seeds: 0-5                       # each method runs with each; the same seed draws the same prompts and responses
    methods:                         # name -> keys put on top; what kray/compare/verdicts.py judges goes by these names
      uniform: {plan.mode: uniform}
      uniform_half: {plan.mode: uniform, times: 0.5}   # times: of the budget that all have
      exact_p: {plan.mode: static, oracle: true}       # oracle and others: kray/compare/controls.py
    curves: [...]                    # methods of the report's first figure, those beside kray that a reader knows
    tried: [...]                     # settings that were tried and did not separate, a sentence each, for the report

Every child (method, seed) has a folder of its own, <folder>/<method>/seed-<seed>. It is done when the folder holds done.json,
which is written last and whole; done children are not run again, and only children of equal settings are taken for done.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kray.compare.controls import NAMES, Controls, check_controls, read_controls
from kray.compare.costs import FlopsModel, parse_flops
from kray.compare.settings import OWN, same_settings, settings_digest
from kray.config import KrayConfig, changed_keys, load_config, reading, to_yaml
from kray.config.train_schema import BUILT_WITH
from kray.errors import ConfigError
from kray.prompts.sources import test_sources

KEYS = ("base", "config", "exact", "seeds", "methods", "curves", "tried")
# Methods of the first figure where the file names none.
CURVES = ("uniform", "uniform_twice", "uniform_4x", "grpo_best", "kray")
_SEED = re.compile(r"[0-9]{1,18}")
# Seeds of a comparison, each of which is a training for each method.
_MOST_SEEDS = 1_000
# Files of a child; method_run.py describes the last two.
DONE, VISITS, RATES = "done.json", "visits.jsonl", "rates.jsonl"
# Keys in which the runs on the same workers may differ; all others belong to engines, ranks, scorers or the prompts.
FREE = ("prompts.per_step", "plan.", "run.name", "run.seed", "train.")


@dataclass(frozen=True)
class Child:
    """One run of the comparison.

    Attributes:
        method: Its name in the file.
        seed: Of the run.
        config: Its configuration.
        folder: Of its results.
        controls: What is done to it beside its configuration.
        exact: Its accuracies are exact success rates, too.
    """

    method: str
    seed: int
    config: KrayConfig
    folder: Path
    controls: Controls = field(default_factory=Controls)
    exact: bool = False

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self.method} seed {self.seed}"

    @property
    def settings(self) -> str:
        """A digest that is equal for children that compute the same."""
        return settings_digest(self.config, self._others)

    @property
    def _others(self) -> list[Any]:
        """What the digest holds beside the configuration."""
        return [*self.controls.told, *([] if self.exact else ["sampled"])]

    def result(self) -> dict[str, Any] | None:
        """Return what done.json holds, None while the child is not done.

        Raises:
            ConfigError: It was done with other settings, or the file is damaged.
        """
        try:
            found = json.loads((self.folder / DONE).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"{self.folder / DONE} is not JSON: {error}; remove {self.folder}") from None
        if not same_settings(found["settings"], self.config, self._others, self.folder):
            raise ConfigError(f"{self.folder} was done with other settings{self._difference()}; take another --dir")
        return found

    def finish(self, result: Mapping[str, Any]) -> None:
        """Mark the child as done, with a result of JSON values."""
        unfinished = self.folder / f".{DONE}"
        unfinished.write_text(json.dumps({"settings": self.settings, **result}, indent=1) + "\n")
        os.replace(unfinished, self.folder / DONE)

    def _difference(self) -> str:
        kept = self.folder / "config.yaml"
        if not kept.is_file():
            return ""
        changed = [c for c in changed_keys(load_config(kept, [], False), self.config) if not c[0].startswith(OWN)]
        return "".join(f"; {key} was {old!r} and is {new!r}" for key, old, new in changed[:3])


@dataclass(frozen=True)
class Study:
    """A comparison file with the changes of the command line.

    Attributes:
        path: The file.
        folder: Of the results.
        base: The configuration that all methods share.
        exact: Exact success rates are computed.
        methods: Names, in the order of the file.
        seeds: Of every method.
        children: All runs, seed by seed, so that an early end leaves whole seeds.
        tried: Settings that were tried and did not separate, for the report.
        overrides: Overrides of the command line.
        flops: The model of FLOPs in the report.
        curves: Methods of the report's first figure, of which those are drawn that are done.
    """

    path: str
    folder: Path
    base: KrayConfig
    exact: bool
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    children: tuple[Child, ...]
    tried: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    flops: FlopsModel = field(default_factory=FlopsModel)
    curves: tuple[str, ...] = CURVES

    @property
    def widest(self) -> KrayConfig:
        """The configuration of a child with the most prompts a step: prompts that suffice for it suffice for all."""
        return max((child.config for child in self.children), key=lambda config: config.prompts.per_step)

    def todo(self) -> list[Child]:
        """Return the children that are not done.

        Raises:
            ConfigError: One was done with other settings.
        """
        return [child for child in self.children if child.result() is None]

    def origins(self) -> dict[str, list[str]]:
        """Return the origins of all done children in the folder, also of methods and seeds that are not asked for now.

        Returns:
            "policy" and "prompts" (digests) and "commit" -> their different values, sorted.
        """
        found: dict[str, set[str]] = {}
        for file in sorted(self.folder.glob(f"*/seed-*/{DONE}")):
            with contextlib.suppress(OSError, ValueError):
                # `todo` names a file that is damaged.
                for key, value in (json.loads(file.read_text()).get("origin") or {}).items():
                    found.setdefault(key, set()).add(str(value))
        return {key: sorted(values) for key, values in found.items()}

    def check_origin(self, origin: Mapping[str, str]) -> None:
        """Refuse to add children to others that began from another policy or other prompts.

        Args:
            origin: Of the children to come.

        Raises:
            ConfigError: Names the difference.
        """
        known = self.origins()
        for key in ("policy", "prompts"):
            if others := set(known.get(key, ())) - {origin[key]}:
                text = f"children that are done had another {key} ({', '.join(sorted(others))} and not {origin[key]})"
                why = "a tiny policy that is warmed up anew, or on another machine, is another one"
                raise ConfigError(f"{self.folder}: {text}, so these cannot be compared; take another --dir ({why})")

    def describe(self) -> str:
        """Return methods, seeds, steps, prompts and rollouts for people."""
        base = self.base
        prompts = sorted({child.config.prompts.per_step for child in self.children})
        return (
            f"{_counted(len(self.methods), 'method')} x {_counted(len(self.seeds), 'seed')}, {base.run.steps} steps of "
            f"{' or '.join(map(str, prompts))} prompts and {base.plan.budget} rollouts"
        )


def load_study(
    path: str,
    methods: str = "",
    seeds: str = "",
    folder: str = "",
    overrides: Sequence[str] = (),
    flops: str = "",
    sampled: bool = False,
) -> Study:
    """Load a comparison file.

    Args:
        path: The file.
        methods: Names separated by commas, "" for all.
        seeds: As in the file, "" for those of the file.
        folder: Of the results, "" for <run.dir>/<run.name>.
        overrides: a.b=c, for all methods.
        flops: Proportions of the modelled FLOPs as in `parse_flops`, "" for the usual ones.
        sampled: Compute no exact success rates, whatever the file says.

    Raises:
        ConfigError: Names the file, the method and the key.
    """
    document = _read(path)
    given = _dotted(_section(document, "config", path))
    base_path = Path(path).parent / _text(document, "base", path)
    if not isinstance(exact := document.get("exact", False), bool):
        raise ConfigError(f"{path}: exact must be true or false, not {exact!r}")
    exact = exact and not sampled
    base = _configure(path, "config", base_path, given, overrides)
    root = Path(folder).expanduser().absolute() if folder else Path(base.run.dir).expanduser() / base.run.name
    known = _section(document, "methods", path)
    chosen = [name.strip() for name in methods.split(",") if name.strip()] if methods else list(known)
    numbers = parse_seeds(seeds or str(document.get("seeds", "0")), "--seeds" if seeds else f"{path}: seeds")
    table = {name: _method(path, known, name, exact, base) for name in chosen}
    if exact:
        _check_exact(base, path)
    children = []
    for seed in numbers:
        for name, (keys, controls) in table.items():
            place = root / name / f"seed-{seed}"
            own = {"run.seed": seed, "run.name": f"{root.name}-{name}-{seed}", "run.checkpoint_every": 0}
            config = _configure(path, f"method {name}", base_path, given, [*overrides, *_overrides(keys | own)])
            _share(config, base, path, name)
            check_controls(controls, config, f"{path}: method {name}")
            children.append(Child(name, seed, _placed(config, root), place, controls, exact))
    return Study(
        path,
        root,
        _placed(base, root),
        exact,
        tuple(table),
        numbers,
        tuple(children),
        _texts(document, "tried", path),
        tuple(overrides),
        parse_flops(flops),
        _texts(document, "curves", path) or CURVES,
    )


def parse_seeds(text: str, where: str) -> tuple[int, ...]:
    """ "0-3,7" as (0, 1, 2, 3, 7). Raises ConfigError that says where."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        fits = _SEED.fullmatch(first) and (not dash or _SEED.fullmatch(last))
        if not fits or (dash and int(last) < int(first)):
            raise ConfigError(f"{where}: {part.strip()!r:.80} is neither a seed nor a range such as 0-5")
        if len(found) + int(last or first) - int(first) >= _MOST_SEEDS:
            raise ConfigError(f"{where}: more than {_MOST_SEEDS:,} seeds")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


def _read(path: str) -> dict[str, Any]:
    try:
        found = reading.document(reading.read_bounded(path).decode("utf-8-sig"), path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or set(found) - set(KEYS):
        odd = sorted(map(str, set(found) - set(KEYS)))[0] if isinstance(found, dict) else "what it holds"
        raise ConfigError(f"{path}: {odd} is not a key of a comparison: {', '.join(KEYS)}")
    return found


def _text(document: Mapping[str, Any], key: str, path: str) -> str:
    if not isinstance(document.get(key), str):
        raise ConfigError(f"{path}: {key} must name a configuration file beside it")
    return document[key]


def _texts(document: Mapping[str, Any], key: str, path: str) -> tuple[str, ...]:
    found = document.get(key) or []
    if not (isinstance(found, list) and all(isinstance(line, str) for line in found)):
        raise ConfigError(f"{path}: {key} must be a list of {'sentences' if key == 'tried' else 'names'}")
    return tuple(found)


def _section(document: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, dict) or (key == "methods" and not value):
        raise ConfigError(f"{path}: {key} must be a mapping{' of at least one method' if key == 'methods' else ''}")
    return value


def _method(
    path: str, known: Mapping[str, Any], name: str, exact: bool, base: KrayConfig
) -> tuple[dict[str, Any], Controls]:
    """(dotted keys, controls) of a method."""
    if name not in known:
        raise ConfigError(f"{path}: no method {name!r}: {', '.join(known)}")
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"{path}: method {name!r}: a name of letters, digits, - and _ is needed; it names a folder")
    keys = known[name] or {}
    if not isinstance(keys, dict):
        raise ConfigError(f"{path}: method {name} must be a mapping of keys")
    controls = read_controls(keys, exact, f"{path}: method {name}")
    times = keys.get("times", 1)
    if not (isinstance(times, int | float) and times > 0 and float(times * base.plan.budget).is_integer()):
        raise ConfigError(f"{path}: method {name}: times must give a whole number of rollouts, not {times!r} of them")
    given = _dotted({key: value for key, value in keys.items() if key not in (*NAMES, "times")})
    scaled = {"plan.budget": int(times * base.plan.budget), "plan.token_budget": round(times * base.plan.token_budget)}
    return (scaled if times != 1 else {}) | given, controls


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _overrides(keys: Mapping[str, Any]) -> list[str]:
    """`a.b=c` for each key, as the command line would have it."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]


def _configure(path: str, part: str, base: Path, keys: Mapping[str, Any], overrides: Sequence[str]) -> KrayConfig:
    try:
        return load_config(base, [*_overrides(keys), *overrides])
    except ConfigError as error:
        raise ConfigError(f"{path}: {part}: {error}") from None


def _placed(config: KrayConfig, root: Path) -> KrayConfig:
    """All children in one MLflow store: the one that is asked for, else one in the comparison's folder."""
    config.run.dir = str(root)
    if not config.track.uri and not os.environ.get("MLFLOW_TRACKING_URI"):
        config.track.uri = f"sqlite:///{root}/mlflow.db"
    return config


def _share(config: KrayConfig, base: KrayConfig, path: str, name: str) -> None:
    """Refuse a method that the same workers cannot run beside the others."""
    for key, old, new in changed_keys(base, config):
        held = key.startswith("train.") and key.removeprefix("train.") in BUILT_WITH
        if key != "run.checkpoint_every" and (held or not key.startswith(FREE)):
            raise ConfigError(
                f"{path}: method {name}: {key} is {old!r} for all and cannot be {new!r} for one: methods share prompts, "
                "engines and learner ranks; put it under config, or compare in two studies"
            )


def _check_exact(base: KrayConfig, path: str) -> None:
    if base.environment.name:
        raise ConfigError(f"{path}: exact: true needs answers that are one response: no environment")
    for source in (base.prompts.train, *test_sources(base.prompts).values()):
        gym = source.kind == "reasoning_gym"
        verifier = source.verifier or ("reasoning_gym" if gym else base.reward.verifier)
        options = base.reward.options if verifier == base.reward.verifier else {}
        strict = options.get("case_sensitive", True) and not options.get("after")
        strict = strict and not (gym and options.get("strip", True))
        if source.kind not in ("arithmetic", "reasoning_gym") or verifier != "exact" or not strict:
            raise ConfigError(
                f"{path}: exact: true needs answers that can be given in one way: arithmetic, verifier exact; or "
                "reasoning_gym with verifier exact on each source and reward: {verifier: exact, options: {strip: false}}"
            )
    if base.async_.max_staleness:
        raise ConfigError(
            f"{path}: exact: true needs async.max_staleness 0 (or --sampled): success rates are those of one policy"
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def keep(study: Study) -> None:
    """Write study.yaml and base.yaml, from which the comparison is made, into its folder."""
    study.folder.mkdir(parents=True, exist_ok=True)
    (study.folder / "study.yaml").write_text(Path(study.path).read_text(encoding="utf-8"))
    (study.folder / "base.yaml").write_text(to_yaml(study.base))
