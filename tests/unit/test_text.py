"""Text of foreign origin is made into text that every sink takes, and no other text is changed."""

from __future__ import annotations

import io
import json
import pickle
import re

from hostile_text import ANY_TEXT, is_legible, is_one_line
from hypothesis import example, given
from hypothesis import strategies as st

from kray.text import (
    brief,
    describe,
    is_well_formed_json,
    legible,
    make_legible,
    one_line,
    take_any_text,
    well_formed,
    well_formed_json,
)

VALID = st.text()
PLAIN = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), max_size=200)


class Odd(str):
    """Text of a class of its own, which a verifier may return."""

    def __getitem__(self, place):
        raise RuntimeError

    isprintable = isascii = encode = __len__ = __iter__ = __getitem__


@given(ANY_TEXT)
def test_any_text_becomes_what_sinks_take(text):
    assert is_one_line(one_line(text, 300), 300)
    assert is_legible(legible(text))
    assert well_formed(text).encode().decode() == well_formed(text)
    assert len(well_formed(text)) == len(text)
    for shown in (one_line, legible, well_formed):
        assert type(shown(Odd(text))) is str
        assert shown(Odd(text)) == shown(text) == shown(shown(text))


@given(VALID, PLAIN)
def test_other_text_stays_as_it_is(text, plain):
    assert well_formed(text) == text
    assert legible(plain) == one_line(plain, 200) == plain
    assert legible("two\nlines\tand\r\nmore") == "two\nlines\tand\r\nmore"


def test_escapes_say_what_was_there():
    assert one_line("a\nb\0\ud800\x1b[1m") == r"a\nb\x00\ud800\x1b[1m"
    assert legible("a\nb\0\ud800\x1b[1m\r") == "a\nb\\x00\\ud800\\x1b[1m\\r"
    assert well_formed("a\ud800b\udc00") == "a\ufffdb\ufffd"
    assert one_line("x" * 30, 10) == "xxxxxxx..."
    assert len(one_line("\ud800" * 30, 10)) == 10


@given(ANY_TEXT)
def test_errors_of_any_text_can_be_described_and_sent(text):
    error, cause = ValueError(text), KeyError(text, 3)
    error.__cause__, cause.__context__ = cause, error
    assert is_one_line(describe(error), 2000)
    make_legible(error)
    assert is_legible(str(error))
    assert is_legible(cause.args[0])
    assert cause.args[1] == 3
    pickle.loads(pickle.dumps(str(error)))


def test_objects_without_text_are_described():
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

        __repr__ = __str__

    assert describe(Silent()) == "Silent: its message cannot be read"
    assert "Silent" in brief(Silent())
    assert brief("yes") == "'yes'"
    assert len(brief(["x" * 1000] * 1000)) <= 80


@given(ANY_TEXT, st.sampled_from(["utf-8", "utf-16", "utf-32"]))
@example("\\", "utf-8")
def test_json_of_any_text_is_read_as_text_without_halves(text, encoding):
    """As escapes, and as bytes where they can be written."""
    for written in (json.dumps({text: [text, "\\ud800"]}), json.dumps(text, ensure_ascii=False)):
        body = written.encode(encoding, "surrogatepass")
        read = json.loads(well_formed_json(body))
        assert json.dumps(read, ensure_ascii=False).encode()
        if not re.search("[\ud800-\udbff][\udc00-\udfff]", text):
            assert read in (well_formed(text), {well_formed(text): [well_formed(text), "\\ud800"]})
        if is_well_formed_json(body):
            assert json.loads(body) == read


@given(st.binary())
def test_any_bytes_are_answered_as_before_where_they_are_no_json(body):
    well_formed_json(body)


@given(ANY_TEXT)
def test_streams_of_any_encoding_take_any_text(text):
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        take_any_text(stream, None, io.StringIO())
        print(text, "±", file=stream, flush=True)
