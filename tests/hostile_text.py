"""Text that a policy may produce, and how tests tell that every sink takes it."""

from __future__ import annotations

from hypothesis import strategies as st

# Halves of characters, NULs, escapes of terminals, line ends, reversed text, marks of templates, of rich and of JSON.
HOSTILE = (
    "",
    "\ud800",
    "\udfff",
    "\udc00\ud800",
    "\ud83d\ude00",
    "a\ud800b" * 700,
    "NUL \0 NUL",
    "\x1b[2J\x1b]0;title\x07",
    "line\nend\r\nand\rback\x0b\x0c\x1c\x85\u2028\u2029",
    "\u202egnp.exe\u2066",
    "\ufeff\ufffe\uffff\U0010ffff\ue000\ue0010\ue001",
    "[/bold] [red]{prompt} {0} %s %(a)s \\ud800 \\\\ud800 \"'",
    "e\u0301\u200d\u200f\u0600\N{FAMILY}",
    "x" * 10_000,
)
# Any str of Python, halves of characters included.
ANY_TEXT = st.one_of(
    st.sampled_from(HOSTILE), st.text(st.characters()), st.text("\ud800\udfff\0\n\r\x1b\u202e\\u[]{}%a")
)


def is_one_line(text: str, longest: int) -> bool:
    """Whether text is short and printable, so that every file, terminal, tag and message of HTTP takes it."""
    return text.isprintable() and len(text) <= longest and text == text.encode().decode()


def is_legible(text: str) -> bool:
    """Whether text of several lines moves no cursor and can be written as UTF-8."""
    left = text.replace("\r\n", "\n")
    return text == text.encode().decode() and not any(
        (ord(c) < 32 and c not in "\n\t") or c in "\x7f\x85" for c in left
    )
