"""Numbers in the data reach the verifier as text that means the same number."""

import contextlib
import decimal
import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.prompts import load_prompts
from kray.prompts.columns import parse_json
from kray.prompts.fields import scalar
from kray.prompts.rows import Row
from kray.rewards import score


def answers(path, kind="jsonl") -> list[str]:
    return [prompt.answer for prompt in load_prompts(SourceConfig(kind=kind, path=str(path)), "math")]


def answer_in_json(tmp_path, written: str) -> str:
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "q", "answer": {written}}}\n')
    (answer,) = answers(tmp_path / "p.jsonl")
    return answer


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("0.00001", "0.00001"),
        ("1e-05", "0.00001"),
        ("1e16", "10000000000000000"),
        ("1E+2", "100"),
        ("1.5e1", "15"),
        ("72.0", "72.0"),
        ("1.50", "1.50"),
        ("-0.0", "-0.0"),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1e300", "1" + "0" * 300),
        ("0.00", "0.00"),
        ("0e5", "0"),
        ("0e-3", "0.000"),
        ("0e-999999999", "0"),
        ("-0.0e-999999999", "-0"),
        ("0e-99999999999", "0"),
        ("0e99999999999", "0"),
    ],
)
def test_numbers_in_json_stay_as_written_without_exponent(tmp_path, written, answer):
    assert answer_in_json(tmp_path, written) == answer


@pytest.mark.parametrize(
    ("written", "right", "wrong"), [("0.00001", "0.00001", "1"), ("1e-05", "0.00001", "1"), ("1e16", "10^{16}", "1")]
)
def test_a_number_with_an_exponent_is_judged_as_what_it_is(tmp_path, written, right, wrong):
    answer = answer_in_json(tmp_path, written)
    assert score("math", rf"\boxed{{{right}}}", answer).value == 1
    assert score("math", rf"\boxed{{{wrong}}}", answer).value == 0


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("1e999", "is 1e999, not a finite number"),
        ("-1e999", "is -1e999, not a finite number"),
        ("1.5E+400", "is 1.5E+400, not a finite number"),
        ("1e-999", "is 1e-999, nearer to 0 than any number that can be compared"),
        ("1e9999999999999999999999", "the line cannot be read: the exponent of 1e9999999999999999999999 is too large"),
        ("[72]", "is list, not text, a number or true/false"),
        ('{"value": 72}', "is dict, not text, a number or true/false"),
        ("null", "is null, not text, a number or true/false"),
    ],
)
def test_what_is_no_number_is_refused_with_its_place(tmp_path, written, message):
    with pytest.raises(DataError, match=r"p\.jsonl:1: .*") as caught:
        answer_in_json(tmp_path, written)
    assert message in str(caught.value)


@settings(max_examples=300)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_the_same_number_as_text(value):
    text = scalar(Row("p:1", "p", 1, {"json": parse_json(json.dumps(value))}), "json")
    assert "e" not in text.lower()
    assert float(text) == value
    assert Decimal(text) == Decimal(repr(value))


def in_column(value) -> str | None:
    """A float of a column as text; None where it is refused."""
    with contextlib.suppress(DataError):
        return scalar(Row("p:1", "p", 1, {"answer": value}), "answer")
    return None


@pytest.mark.parametrize("bits", [16, 32, 64])
@settings(max_examples=300)
@given(data=st.data())
def test_a_column_gives_each_float_exactly_or_not_at_all(bits, data):
    kind = {16: np.float16, 32: np.float32, 64: np.float64}[bits]
    value = kind(data.draw(st.floats(allow_nan=False, allow_infinity=False, width=bits)))
    text = in_column(value)
    if float(value).is_integer():
        assert text in (str(int(value)), None)
        assert text is not None or Decimal(repr(float(str(value)))) != int(value)
    else:
        assert text == np.format_float_positional(value, trim="-")
        assert kind(text) == value


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_integers_that_a_float_type_holds_are_kept(kind):
    most = 2 ** (np.finfo(kind).nmant + 1)
    for integer in (0, 1, 3, 72, 100, most - 1, most, 1 - most):
        assert in_column(kind(integer)) == str(integer)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(2**30), "1073741824"),
        (np.float32(123456792), "123456792"),
        (np.float64(2**60), "1152921504606846976"),
        (np.float64(2**64), "18446744073709551616"),
        (np.float64(1e22), "1" + "0" * 22),
        (np.float32(1e10), "1" + "0" * 10),
        (np.float16(65504), None),
        (np.float32(1e11), None),
        (np.float64(1e23), None),
        (np.float64(1e300), None),
        (1e23, None),
        (float(2**60), "1152921504606846976"),
    ],
)
def test_large_floats_are_exact_or_refused(value, text):
    assert in_column(value) == text


def test_the_precision_of_the_process_does_not_matter():
    with decimal.localcontext(decimal.Context(prec=3)):
        assert in_column(np.float64(2**60)) == "1152921504606846976"
        assert in_column(1e23) is None


def test_refused_floats_are_named_with_their_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    # What is not asked for may hold anything.
    kind = pyarrow.struct([("value", pyarrow.float32()), ("other", pyarrow.float32())])
    gold = pyarrow.array([{"value": 1, "other": 1e11}, {"value": 1e11, "other": 1}], kind)
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "gold": gold}), tmp_path / "p.parquet")
    source = SourceConfig(kind="parquet", path=str(tmp_path / "p.parquet"), answer_field="gold.value", limit=1)
    assert load_prompts(source, "exact")[0].answer == "1"
    source.limit = 0
    with pytest.raises(
        DataError,
        match=r'p\.parquet: row 2: field "gold\.value" is either 1e\+11 rounded to 99999997952, .*integers or text',
    ):
        load_prompts(source, "exact")


def test_a_null_does_not_make_other_integers_wrong(tmp_path):
    """pandas writes integers beside a null as floats."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"prompt": ["a", "b", "c"], "answer": pyarrow.array([3, -40, None], pyarrow.float64())})
    parquet.write_table(table, tmp_path / "p.parquet")
    source = SourceConfig(kind="parquet", path=str(tmp_path / "p.parquet"), limit=2)
    assert [prompt.answer for prompt in load_prompts(source, "exact")] == ["3", "-40"]
    source.limit = 0
    with pytest.raises(DataError, match='row 3: field "answer" is null'):
        load_prompts(source, "exact")


def test_numbers_in_parquet_have_the_shortest_form_of_their_type(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    columns = {
        "float64": (pyarrow.array([0.00001, 1e16, 72.0, 0.1], pyarrow.float64()), ["0.00001", "1" + "0" * 16, "72", "0.1"]),
        "float32": (pyarrow.array([0.00001, 0.1, 72.0, 1e10], pyarrow.float32()), ["0.00001", "0.1", "72", "10000000000"]),
        "float16": (pyarrow.array([0.1, 2.5], pyarrow.float16()), ["0.1", "2.5"]),
        "decimal": (pyarrow.array([Decimal("1.50"), Decimal("0.00")], pyarrow.decimal128(9, 2)), ["1.50", "0.00"]),
        "int64": (pyarrow.array([2**62, -1], pyarrow.int64()), [str(2**62), "-1"]),
        "bool": (pyarrow.array([True, False]), ["true", "false"]),
    }  # fmt: skip
    for name, (column, expected) in columns.items():
        table = pyarrow.table({"prompt": [f"q{i}" for i in range(len(column))], "answer": column})
        parquet.write_table(table, tmp_path / "p.parquet")
        assert answers(tmp_path / "p.parquet", "parquet") == expected, name


def test_numbers_inside_lists_and_structs_are_reached(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    kind = pyarrow.struct([("values", pyarrow.list_(pyarrow.float32()))])
    table = pyarrow.table({"prompt": ["q"], "gold": pyarrow.array([{"values": [0.1, None, 1e-7]}], kind)})
    parquet.write_table(table, tmp_path / "p.parquet")
    for position, expected in ((0, "0.1"), (2, "0.0000001")):
        source = SourceConfig(kind="parquet", path=str(tmp_path / "p.parquet"), answer_field=f"gold.values.{position}")
        assert load_prompts(source, "math")[0].answer == expected


def test_a_dataset_saved_as_numpy_gives_plain_numbers(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = datasets.Dataset.from_list([{"prompt": "q", "answer": 0.1}]).cast_column(
        "answer", datasets.Value("float32")
    )
    table.with_format("numpy").save_to_disk(tmp_path / "saved")
    assert answers(tmp_path / "saved", "huggingface") == ["0.1"]
