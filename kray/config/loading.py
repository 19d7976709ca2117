"""Loading of a KrayConfig from a YAML file and `a.b=c` overrides.

`load_config` returns a plain dataclass in which every value has its declared type, every interpolation (`${run.seed}`,
`${oc.env:HOME}`) is resolved and every check holds. Otherwise it raises ConfigError, whose message names each key that is wrong
and where it was written. Later overrides take precedence over earlier ones, overrides over the file, the file over defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kray import plan_modes as plan_rules
from kray.config.bounds import interpolation_problem
from kray.config.devices import settle_by_device
from kray.config.reading import (
    MISSING,
    MOST_PROBLEMS,
    Reading,
    all_keys,
    attribute,
    declared,
    fields_of,
    fit,
    is_section,
    located,
    parse,
    read_bounded,
    suggestion,
)
from kray.config.rounding import settle_rounding
from kray.config.schema import KrayConfig
from kray.config.validation import problems, require
from kray.errors import ConfigError


def kept_config(folder: Path) -> Path:
    """Return the file of the configuration with which a run was started last: its newest resume's, else its first."""
    resumed = folder.glob("config-resumed-*.yaml")
    return max(resumed, key=lambda file: (file.stat().st_mtime_ns, file.name), default=folder / "config.yaml")


def load_config(
    path: str | Path, overrides: Sequence[str] = (), checked: bool = True, begun: KrayConfig | None = None
) -> KrayConfig:
    """Load the configuration of a file.

    Args:
        path: of the YAML file.
        overrides: such as `plan.budget=256`, `model.tiny.hidden_size=64`, applied on top of the file.
        checked: also reject values out of range and keys that contradict each other.
        begun: of the run that is resumed; see `_settle_choices`.

    Raises:
        ConfigError: the configuration is wrong; one line for each problem, with the key and where it was written.
    """
    trees: list[dict] = []
    places: dict[str, str] = {}
    found: list[str] = []
    for reading, tree in _readings(path, overrides):
        trees.append(tree)
        places.update(reading.places)
        found.extend(reading.problems)
    _refuse(found, str(path))
    config = _merge(trees, places, str(path))
    _settle_choices(config, begun)
    settle_by_device(config, begun)
    settle_rounding(config, begun)
    if checked:
        found = [located(problem.message, _origin(problem.keys, places) or str(path)) for problem in problems(config)]
        _refuse(found, str(path))
    return config


def _refuse(found: Sequence[str], path: str) -> None:
    """Raise ConfigError with the problems if there are any."""
    more = [located(f"and {len(found) - MOST_PROBLEMS:,} more problems", path)] if len(found) > MOST_PROBLEMS else []
    if found:
        raise ConfigError("\n".join([*found[:MOST_PROBLEMS], *more]))


def _readings(path: str | Path, overrides: Sequence[str]) -> Iterable[tuple[Reading, dict]]:
    """Yield each source with its values, in ascending precedence."""
    name = str(path)
    node = parse(_text(path), name)
    reading = Reading(KrayConfig, lambda at: f"{name}:{at.start_mark.line + 1}")
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
        yield reading, {}
    elif not isinstance(node, yaml.MappingNode):
        raise ConfigError(located("a configuration is a mapping of sections, not a list or a value", f"{name}:1"))
    else:
        yield reading, reading.section(KrayConfig, node)
    for override in overrides:
        yield _override(override)


def _text(path: str | Path) -> str:
    """Return the file's text; raise ConfigError with the file's name and, where it is missing, one of a similar name."""
    try:
        return read_bounded(path).decode("utf-8-sig")
    except FileNotFoundError:
        folder = Path(path).parent
        names = [str(near) for near in folder.glob("*.y*ml")] if folder.is_dir() else []
        near = difflib.get_close_matches(str(path), names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"{path} does not exist{hint}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _override(override: str) -> tuple[Reading, dict]:
    """Return the nested mapping that one `a.b=c` stands for."""
    place = f"command line: {override}"
    reading = Reading(KrayConfig, lambda _: place)
    dotted, equals, text = override.partition("=")
    dotted = dotted.strip()
    if not equals or not dotted:
        reading.problems.append(located(f"{override!r} is not an override: write key=value", place))
        return reading, {}
    annotation: Any = KrayConfig
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        kind, _ = declared(annotation)
        if is_section(kind) and part in fields_of(kind):
            annotation = fields_of(kind)[part]
        elif not is_section(kind) and part and (kind is Any or getattr(kind, "__origin__", None) is dict):
            annotation = Any
        elif is_section(kind):
            reading.problems.append(located(f"{dotted} is not a key{suggestion(dotted, all_keys(KrayConfig))}", place))
            return reading, {}
        else:
            reading.problems.append(located(f"{'.'.join(parts[:depth])} is a value and has no key {part!r}", place))
            return reading, {}
    value = _override_value(reading, annotation, text, dotted, place)
    if value is MISSING:
        return reading, {}
    reading.places[dotted] = place
    for part in reversed(parts):
        value = {part: value}
    return reading, value


def _override_value(reading: Reading, annotation: Any, text: str, key: str, place: str) -> Any:
    """Return what follows `=`: as it is for text fields, without quotes around all of it; as YAML for others."""
    kind, _ = declared(annotation)
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    if kind is str and not quoted and text.strip() not in ("null", "~", "???"):
        return text
    try:
        node = parse(text, place)
    except ConfigError as error:
        reading.problems.append(str(error))
        return MISSING
    # "key=" with nothing after it
    if node is None:
        node = yaml.ScalarNode("tag:yaml.org,2002:null", "")
    return reading.value(annotation, node, key)


def _merge(trees: Sequence[dict], places: Mapping[str, str], path: str) -> KrayConfig:
    """Return the typed union of the trees with all interpolations resolved; raise ConfigError that names the key."""
    key = ""
    try:
        named = [{attribute(section): value for section, value in tree.items()} for tree in trees]
        for length in range(1, len(named) + 1):
            # OmegaConf may resolve what is merged so far.
            if (found := interpolation_problem(_union(named[:length]))) is not None:
                section, dot, rest = found[0].partition(".")
                key = f"{section.rstrip('_')}{dot}{rest}"
                raise ValueError(found[1])
        merged = OmegaConf.merge(OmegaConf.structured(KrayConfig), *named)
        # one by one, so that a failure names its key; a key may be gone under a later null
        for key in places:
            section, dot, rest = key.partition(".")
            OmegaConf.select(merged, f"{attribute(section)}{dot}{rest}", throw_on_resolution_failure=True)
        key = ""
        config: Any = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        key = getattr(error, "full_key", None) or key
        reason = "an interpolation refers to itself" if isinstance(error, RecursionError) else str(error)
        first = reason.splitlines()[0] if reason else type(error).__name__
        raise ConfigError(located(f"{key or 'the configuration'}: {first}", _origin([key], places) or path)) from None
    wrong = _settle(config, "")
    if wrong:
        raise ConfigError("\n".join(located(text, _origin([key], places)) for key, text in wrong))
    return config


def _union(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the trees, each on top of those before it, with interpolations as they are."""
    found: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            below = found.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                value = _union([below, value])
            found[key] = value
    return found


def _settle_choices(config: KrayConfig, begun: KrayConfig | None) -> None:
    """Choose, in place, how rollouts are planned and compared where the configuration leaves it open.

    Args:
        config: the configuration, all values of the right type.
        begun: of the run that is resumed: it goes on with what was chosen for it, also by an earlier version of kray.
    """
    plan, train = config.plan, config.train
    if begun is not None:
        train.baseline = begun.train.baseline if train.baseline == "auto" else train.baseline
        plan.value = begun.plan.value if plan.value == "auto" else plan.value
        plan.lower = plan.lower or begun.plan.lower
        plan.candidates = begun.plan.candidates if plan.candidates == -1 else plan.candidates
    if train.baseline == "auto":
        train.baseline = "belief" if plan_rules.for_belief(plan) else "group"
    plan_rules.settle(plan, train.baseline, config.prompts.per_step)


def _settle(section: Any, prefix: str) -> list[tuple[str, str]]:
    """Convert interpolated values to the declared types, in place; return (key, message) for those that do not fit."""
    wrong = []
    kind: Any = type(section)
    for name, annotation in fields_of(kind).items():
        key, value = f"{prefix}{name}", getattr(section, attribute(name))
        kind, optional = declared(annotation)
        if value is None and optional:
            continue
        if is_section(kind):
            wrong.extend(_settle(value, f"{key}.") if isinstance(value, kind) else [(key, f"{key} must be a section")])
        elif kind in (int, float, bool, str):
            fitted = fit(kind, value)
            if fitted is MISSING:
                wrong.append((key, f"{key} must be {kind.__name__}, not {value!r}"))
            else:
                setattr(section, attribute(name), fitted)
        elif not isinstance(value, getattr(kind, "__origin__", object)):
            wrong.append((key, f"{key} must be {kind}, not {value!r}"))
    return wrong


def _origin(keys: Iterable[str], places: Mapping[str, str]) -> str:
    """Return where the keys were written; where only a key above was, that one's place."""
    found: list[str] = []
    for key in keys:
        while key and key not in places:
            key = key.rpartition(".")[0]
        if key and places[key] not in found:
            found.append(places[key])
    return ", ".join(found)


def load_checked(path: str, overrides: Sequence[str], begun: KrayConfig | None = None) -> KrayConfig:
    """Load a configuration that passes all checks, those on resolved values included; raise ConfigError otherwise."""
    config = load_config(path, overrides, begun=begun)
    require(config)
    return config
