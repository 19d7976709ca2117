"""Convert a row's fields to what reward functions get by name: plain Python values, as other trainers pass them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts.fields import check_text, field, scalar
from kray.prompts.rows import ALL_COLUMNS, Row


def columns_of(row: Row, source: SourceConfig) -> dict[str, Any]:
    """Return the columns of a row that a source names, by the last part of their names.

    Args:
        row: The row.
        source: Its source; its columns may be ["*"].

    Raises:
        DataError: A field is missing, or two have the same last part.
    """
    names = list(dict.fromkeys(source.columns))
    if ALL_COLUMNS in names:
        asked = source.prompt_field if source.prompt_field in row.fields else source.prompt_field.split(".")[0]
        names = [name for name in row.fields if name != asked]
        if source.answer_field and source.answer_field not in names:
            names.append(source.answer_field)
    found: dict[str, Any] = {}
    for name in names:
        short = name if name in row.fields else name.rpartition(".")[2]
        if short in found:
            raise DataError(f'{row.place}: two of the columns are "{short}", which a reward function gets by that name')
        found[short] = _plain(field(row, name))
    return found


def answer_text(row: Row, source: SourceConfig) -> str:
    """Return the right answer as text; that of a list or an object, which must be among the columns, is its JSON.

    Raises:
        DataError: The field is missing, blank or null, or a list or an object that is not among the columns.
    """
    name = source.answer_field
    value = field(row, name)
    if not isinstance(value, list | Mapping):
        return scalar(row, name)
    if name in source.columns or ALL_COLUMNS in source.columns:
        text = json.dumps(_plain(value), ensure_ascii=False, default=str)
        check_text(text, row, f'field "{name}"')
        return text
    try:
        return scalar(row, name)
    except DataError as error:
        raise DataError(f"{error}; name it in the source's columns to pass it to a reward function as it is") from None


def _plain(value: Any) -> Any:
    """Return a value with Python's own numbers: those of JSON are decimals here, those of columns numpy's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Decimal):
        return float(value)
    return value.item() if isinstance(value, np.generic) else value
