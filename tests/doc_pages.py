"""The repository's Markdown pages, and what tests look for in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def page_names() -> list[str]:
    """Return the paths of all pages, relative to the repository's root."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").glob("*.md")]
    return sorted(file.relative_to(ROOT).as_posix() for file in found)


def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the contents of the fenced code blocks of a language."""
    return [body for head, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if head == language]


def prose(text: str) -> str:
    """Return the page without its fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def code_spans(text: str) -> list[str]:
    """Return what stands between backticks outside code blocks, without line breaks."""
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose(text))]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the page's headings."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} (.+?) *$", prose(text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number, candidate = 0, slug
        while candidate in found:
            number += 1
            candidate = f"{slug}-{number}"
        found.add(candidate)
    return found
