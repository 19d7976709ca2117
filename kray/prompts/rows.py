"""Read rows of data files one at a time, each with its file and line or row number. Rows count from 1."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts.columns import parse_json, read_fields, reader

# Rows of a columnar file that are converted at once.
_BATCH_ROWS = 1024
# In a source's columns: all of them.
ALL_COLUMNS = "*"
# Longest line, in bytes; a longer one is probably a file without line ends.
_LINE_BYTES = 64 << 20
# Blank lines in a row, and their bytes, after which a file is refused: a small gzip file holds any number of them.
_BLANK_LINES, _BLANK_BYTES = 1_000_000, 64 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        place: "file:line" or "file: row number", for messages.
        source: Short name of the file.
        number: Line or row; "<source>:<number>" is the default id of a prompt.
        fields: Values by name.
    """

    place: str
    source: str
    number: int
    fields: Mapping[str, Any]


def jsonl_rows(source: SourceConfig) -> Iterator[Row]:
    """Yield the objects of JSON-lines files, which may be gzipped. Blank lines are skipped.

    Args:
        source: path: a file, a folder or a glob.

    Raises:
        DataError: A file cannot be read or is empty, or a line is not a JSON object.
    """
    for path, name in _files(source, ".jsonl", ".jsonl.gz"):
        found = False
        for number, raw in enumerate(_lines(path), start=1):
            if raw.strip():
                yield Row(f"{path}:{number}", name, number, _object(raw, f"{path}:{number}", number))
                found = True
        if not found:
            raise DataError(f"{path}: the file is empty")


def _lines(path: str) -> Iterator[bytes]:
    """Yield lines of bounded length, so that a huge file without line ends is refused rather than held in memory."""
    number = blank = blank_bytes = 0
    try:
        with _opened(path) as file:
            while raw := file.readline(_LINE_BYTES + 1):
                number += 1
                blank, blank_bytes = (0, 0) if raw.strip() else (blank + 1, blank_bytes + len(raw))
                if blank > _BLANK_LINES or blank_bytes > _BLANK_BYTES:
                    raise DataError(f"{path}:{number}: the last {blank:,} lines are blank")
                if len(raw) > _LINE_BYTES:
                    raise DataError(f"{path}:{number}: the line is longer than {_LINE_BYTES >> 20} MiB")
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: it cannot be read as gzip, after line {number}: {_first_line(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: it cannot be read: {error.strerror}") from error


def _opened(path: str) -> io.BufferedIOBase:
    """Open a file for reading bytes, decompressed if it is gzip, whatever its name."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")


def _object(raw: bytes, place: str, number: int) -> Mapping[str, Any]:
    try:
        value = parse_json(raw.rstrip().decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: byte {error.start + 1} of the line is not UTF-8 ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: the line is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise DataError(f"{place}: the line is not JSON: it is nested too deeply") from None
    # An integer or an exponent of thousands of digits, or a key that occurs twice.
    except ValueError as error:
        raise DataError(f"{place}: the line cannot be read: {_first_line(error)}") from None
    if not isinstance(value, dict):
        raise DataError(f"{place}: the line is {type(value).__name__}, not an object with fields")
    return value


def parquet_rows(source: SourceConfig) -> Iterator[Row]:
    """Yield the rows of parquet files. Only the columns that the source's fields name are read.

    Args:
        source: path: a file, a folder or a glob.

    Raises:
        DataError: A file cannot be read or is empty, or a field is missing.
    """
    import pyarrow
    import pyarrow.parquet

    for path, name in _files(source, ".parquet"):
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                if not file.metadata.num_rows:
                    raise DataError(f"{path}: the file is empty")
                columns = _columns(source, file.schema_arrow.names, f"{path}: row 1")
                number = 0
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                    yield from _batch_rows(batch, path, name, number)
                    number += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: it cannot be read as parquet: {_first_line(error)}") from error


def _batch_rows(batch: Any, place: str, name: str, before: int) -> Iterator[Row]:
    """Yield the rows of an Arrow batch or table that is preceded by `before` rows."""
    readers = {field.name: read for field in batch.schema if (read := reader(field.type)) is not None}
    try:
        rows = batch.to_pylist()
    # Text that is not UTF-8, or dates that Python cannot represent.
    except (ValueError, OverflowError) as error:
        at = f"{place}: rows {before + 1} to {before + batch.num_rows}"
        raise DataError(f"{at} cannot be read: {_first_line(error)}") from None
    for number, fields in enumerate(rows, start=before + 1):
        at = f"{place}: row {number}"
        try:
            yield Row(at, name, number, read_fields(fields, readers) if readers else fields)
        except ValueError as error:
            raise DataError(f"{at}: {_first_line(error)}") from None


def huggingface_rows(source: SourceConfig) -> Iterator[Row]:
    """Yield the rows of one split of a dataset of the datasets library.

    Args:
        source: path: a folder written by save_to_disk, a folder of files, or a hub id; subset and split.

    Raises:
        DataError: The dataset cannot be loaded or is empty, or the split or a field is missing.
    """
    if not source.path:
        raise DataError("path is empty: a huggingface source needs a dataset id or a folder")
    import datasets

    path = os.path.expanduser(source.path)
    place = f"{source.path} ({source.split})"
    try:
        if any(os.path.exists(os.path.join(path, mark)) for mark in ("dataset_dict.json", "state.json")):
            dataset = datasets.load_from_disk(path)
        else:
            dataset = datasets.load_dataset(path, source.subset or None, split=source.split)
    # The library raises dozens of kinds.
    except Exception as error:
        raise DataError(
            f"{place}: the dataset cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if source.split not in dataset:
            raise DataError(f'{source.path}: split "{source.split}" is missing (splits: {", ".join(dataset)})')
        dataset = dataset[source.split]
    if not len(dataset):
        raise DataError(f"{place}: it is empty")
    dataset = dataset.select_columns(_columns(source, dataset.column_names, f"{place}: row 1"))
    name, number = f"{Path(path).name}/{source.split}", 0
    # As Arrow, whatever format it was saved with: those of numpy and torch would change the precision of numbers.
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from _batch_rows(table, place, name, number)
        number += table.num_rows


def _columns(source: SourceConfig, names: list[str], place: str) -> list[str]:
    """Return the columns that hold the configured fields."""
    if ALL_COLUMNS in source.columns:
        return names
    columns = []
    needed = (source.prompt_field, source.answer_field, source.id_field, source.kind_field, *source.columns)
    for field in filter(None, needed):
        column = field if field in names else field.split(".")[0]
        if column not in names:
            raise DataError(f'{place}: field "{field}" is missing (fields: {", ".join(names)})')
        if column not in columns:
            columns.append(column)
    return columns


def _files(source: SourceConfig, *suffixes: str) -> list[tuple[str, str]]:
    """Return (path, unique short name) of the files that a path, folder or glob selects, sorted."""
    if not source.path:
        raise DataError(f"path is empty: a {source.kind} source needs a file, a folder or a glob")
    path = os.path.expanduser(source.path)
    if os.path.isfile(path):
        return [(path, os.path.basename(path))]
    if os.path.isdir(path):
        found = sorted(str(f) for suffix in suffixes for f in Path(path).glob(f"*{suffix}") if f.is_file())
        missing = f"{source.path}: the folder holds no {suffixes[0]} file"
    elif glob.has_magic(path):
        found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        missing = f"{source.path}: no file matches (in {os.getcwd()})"
    else:
        found, missing = [], f"{source.path}: the file does not exist"
        if not os.path.isabs(path):
            missing += f" (in {os.getcwd()})"
    if not found:
        raise DataError(missing)
    folder = os.path.commonpath([os.path.dirname(file) for file in found])
    return [(file, os.path.relpath(file, folder or ".")) for file in found]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
