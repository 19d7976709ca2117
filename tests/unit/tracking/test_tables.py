"""Tables hold any text and any numbers."""

from __future__ import annotations

import json
import math

import numpy as np
from hostile_text import ANY_TEXT
from hypothesis import given
from hypothesis import strategies as st

from kray.text import legible
from kray.tracking.tables import plain, table_json

CELLS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.lists(ANY_TEXT, max_size=2)


@given(st.lists(st.dictionaries(ANY_TEXT | st.just("a"), CELLS, max_size=3), max_size=3))
def test_rows_of_any_kind_are_written_and_read_again(rows):
    written = table_json(rows).encode()
    table = json.loads(written, parse_constant=lambda name: 1 / 0)
    assert len(table["data"]) == len(rows)
    assert all(len(row) == len(table["columns"]) for row in table["data"])
    for row, read in zip(rows, table["data"], strict=True):
        for key, cell in zip(dict.fromkeys(key for row in rows for key in row), read, strict=True):
            assert cell == plain(row.get(key))


def test_cells_are_what_json_can_hold():
    row = {
        "text": "a\0",
        "nan": math.nan,
        "scalar": np.float32(0.5),
        "parts": {"a\ud800": [math.inf, "b"]},
        "other": object,
    }
    table = json.loads(table_json([row, {"text": 1, "more": True}]))
    assert table["columns"] == [*row, "more"]
    first, second = table["data"]
    assert first[:4] == [legible("a\0"), None, 0.5, {"a\\ud800": [None, "b"]}]
    assert first[4].startswith("<class")
    assert second == [1, None, None, None, None, True]
