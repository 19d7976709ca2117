"""`--check`: what a run would do and what it would refuse, without starting anything.

The policy's tokenizer and configuration are read and all prompts encoded by the functions that a run uses
(kray/driver/prepare.py); weights are not read, and Ray is not loaded.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from kray.cluster.memory import devices_here
from kray.cluster.resources import shortages_here
from kray.config import KrayConfig, preview
from kray.config.cluster_file import load_cluster
from kray.config.memory import GIB
from kray.config.memory_check import memory_rows, require_fits
from kray.config.model_sizes import ModelSizes, tiny_sizes
from kray.config.node_memory import node_rows
from kray.config.resume import note_changes
from kray.config.schema import ModelConfig
from kray.driver.prepare import (
    EncodedSource,
    PolicyTokenizer,
    counted,
    encode,
    load_prompts,
    read_policy,
    read_tiny,
    turn_stops,
)
from kray.driver.restore import check_learned, reading
from kray.driver.state import RunState, check_same_prompts
from kray.errors import ConfigError
from kray.launch.first_turns import first_turns
from kray.launch.preflight import check_prompts
from kray.prompts.arithmetic_meaning import problem_meaning
from kray.prompts.model_files import check_weights
from kray.prompts.tokenize import as_read
from kray.records import Prompt
from kray.rollout.vllm_options import check_options
from kray.text import one_line
from kray.tracking import prompts_digest
from kray.train.checkpoints import read_state
from kray.train.start_model import model_path

logger = logging.getLogger(__name__)

# Prompts of each source that are shown, and the characters of a long one at its beginning and its end.
SHOWN = 2
HEAD_CHARACTERS, TAIL_CHARACTERS = 1500, 500


def check(config: KrayConfig, checkpoint: Path | None, cluster: str, gpu_gib: float = 0.0) -> str:
    """Check a configuration as far as it can be without weights and actors.

    Args:
        config: A validated configuration.
        checkpoint: The checkpoint that the run would resume from, None for a new run.
        cluster: A cluster file that the actors must fit on, or "".
        gpu_gib: Memory of a GPU in GiB; 0: that of this machine's, where a run would use them.

    Returns:
        What would run, as text for people.

    Raises:
        ConfigError, DataError: What the run would refuse, or what does not fit into memory; or gpu_gib is given and the model
            cannot be read.
    """
    for line in note_changes(config, checkpoint.parent.parent) if checkpoint else []:
        logger.info(line)
    seen = inspect(config)
    if checkpoint is not None and seen.samples is not None:
        digest = prompts_digest(seen.train, config.prompts.train.chat_template_kwargs)
        with reading(checkpoint):
            state = RunState.from_dict(read_state(checkpoint))
            check_same_prompts(state, digest)
            check_learned(config, state, seen.train)
    memory: list[tuple[str, str]] = []
    if seen.sizes is not None:
        devices = devices_here(config, bool(cluster))
        devices = replace(devices, gpu=int(gpu_gib * GIB)) if gpu_gib else devices
        devices = replace(devices, cluster=load_cluster(cluster) if cluster else None)
        memory = memory_rows(config, seen.sizes, devices)
        memory += node_rows(config, seen.sizes, devices.cluster) if devices.cluster else []
        require_fits(config, seen.sizes, devices)
    elif gpu_gib:
        raise ConfigError(
            f"--gpu-gib {gpu_gib:g}: memory cannot be compared, for model.path {config.model.path} cannot be read here; check "
            "where its hub can be reached, give a folder that holds its config.json and tokenizer, or leave --gpu-gib out"
        )
    shortages = [] if cluster else [f"warning: on this machine alone: {line}" for line in shortages_here(config)]
    return "\n".join([preview(config, seen.train, seen.test, cluster, seen.samples, memory), *shortages])


@dataclass(frozen=True, slots=True)
class Inspected:
    """The prompts of a run.

    Attributes:
        train: The training prompts; where the tokenizer could be read, those that fit.
        test: The test prompts, likewise.
        samples: Lines that show some as the policy reads them; None where the tokenizer could not be read.
        sizes: Of the model; None where its configuration could not be read.
    """

    train: list[Prompt]
    test: list[Prompt]
    samples: list[str] | None
    sizes: ModelSizes | None = None


def inspect(config: KrayConfig) -> Inspected:
    """Load the prompts and encode them as a run does.

    Raises:
        ConfigError, DataError: What a run would refuse.
    """
    check_options(config.rollout.vllm)
    loaded = load_prompts(config)
    train, test = loaded.of("train"), loaded.of("test")
    check_prompts(config, train, test)
    turn_stops(config)
    reader = _reader(config)
    if reader is None:
        return Inspected(train, test, None)
    encoded = [[encode(config, source, reader) for source in sources] for sources in (loaded.train, loaded.test)]
    train, test = ([prompt for source in part for prompt, _ in source.encoded] for part in encoded)
    if config.model.tiny is None:
        sizes = _check_model_builds(model_path(config), config.model)
    else:
        sizes = tiny_sizes(config.model.tiny, reader.vocabulary)
    shown = []
    for source in [source for part in encoded for source in part]:
        shown += [*_shown(source, reader), *first_turns(config, source, reader, _printable)]
    return Inspected(train, test, shown, sizes)


def _reader(config: KrayConfig) -> PolicyTokenizer | None:
    """Read the tokenizer; return None where it is on a hub that cannot be reached from here."""
    if config.model.tiny is not None:
        return read_tiny(config, config.model.tiny)
    path = model_path(config)
    try:
        return read_policy(config, path)
    except ConfigError as error:
        if Path(path).is_dir() or not _unreachable(error):
            raise
        unchecked = (
            "its tokenizer, chat template, positions and memory (of ranks, engines and nodes) are not checked, and prompts are "
            "shown as the data has them"
        )
        logger.warning(f"model.path {path} cannot be read here, offline or without an answer from its hub: {unchecked}")
        return None


def _check_model_builds(path: str, model: ModelConfig) -> ModelSizes:
    """Build the model without memory for its weights, LoRA's adapters too, and look for files of weights.

    Returns:
        The model's sizes.

    Raises:
        ConfigError: What a learner would refuse of the model's folder or hub id, or of model.lora.
    """
    # Loads torch.
    from kray.train.model import load_policy
    from kray.train.sizes import sizes_of
    from kray.train.weight_files import find_weights

    check_weights(path)
    built = load_policy(path, model.dtype, lora=model.lora, empty=True)
    # The files of a hub are not fetched for this.
    read_whole = Path(path).is_dir() and find_weights(built, path)[0] is None
    return replace(sizes_of(built), read_whole=read_whole)


def _unreachable(error: BaseException | None) -> bool:
    """Return whether a failure comes from a hub that could not be reached, not from its answer."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _shown(prepared: EncodedSource, reader: PolicyTokenizer) -> list[str]:
    """Format the first prompts of a source exactly as the policy reads them."""
    lengths = [len(tokens) for _, tokens in prepared.encoded]
    loaded = prepared.loaded
    where = f"{loaded.source.kind} {loaded.source.path}".strip()
    span = f"{min(lengths):,} to {max(lengths):,} tokens, {sum(lengths) / len(lengths):,.0f} on average"
    if min(lengths) == max(lengths):
        span = counted(lengths[0], "token")
    lines = ["", f"{loaded.key} ({where}): {counted(len(lengths), 'prompt')} of {span}"]
    for prompt, tokens in prepared.encoded[:SHOWN]:
        meaning = f" ({problem_meaning(prompt)})" if problem_meaning(prompt) else ""
        lines.append(f"  {one_line(prompt.id)}, {counted(len(tokens), 'token')}, answer {prompt.answer!r:.60}{meaning}")
        lines += [f"  | {line}" for line in _printable(as_read(tokens, reader.tokenizer)).split("\n")]
    return lines


def _printable(text: str) -> str:
    """Return text for a terminal: control characters are escaped, the middle of a long text is left out."""
    if len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS:
        left_out = len(text) - HEAD_CHARACTERS - TAIL_CHARACTERS
        text = f"{text[:HEAD_CHARACTERS]}\n[... {left_out:,} characters ...]\n{text[-TAIL_CHARACTERS:]}"
    return "\n".join(one_line(line, 10 * len(line)) for line in text.split("\n"))
