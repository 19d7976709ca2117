"""Templates with one place for a text, as configurations give them: `{prompt}` or `{}`.

Python's own format would do more: `{prompt:>1000000000}` makes a gigabyte, and `{prompt.__class__}` reads attributes.
"""

from __future__ import annotations

import string

# Most places of one template, so that a long prompt is not multiplied.
_MOST_PLACES = 16


def check_template(template: str, name: str = "") -> None:
    """Check that a template holds its place and nothing else in single braces.

    Args:
        template: The template.
        name: What stands in the braces.

    Raises:
        ValueError: It does not; the message continues the template's name.
    """
    _parts(template, name)


def fill(template: str, text: str, name: str = "") -> str:
    """Return a template with a text in its place.

    Args:
        template: The template.
        text: The text.
        name: What stands in the braces.

    Raises:
        ValueError: As in `check_template`.
    """
    return "".join(literal + text * is_place for literal, is_place in _parts(template, name))


def _parts(template: str, name: str) -> list[tuple[str, bool]]:
    """Return each literal text and whether the place follows it."""
    place = f"{{{name}}}"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError(f"must contain {place}, with every other brace doubled, not {template!r:.200}") from None
    for _, field, spec, conversion in parts:
        if field is not None and (field != name or spec or conversion):
            raise ValueError(
                f"must contain {place} as it is, with every other brace doubled, not {{{field:.60}"
                f"{'!' + conversion if conversion else ''}{':' + spec[:60] if spec else ''}}}"
            )
    count = sum(field is not None for _, field, _, _ in parts)
    if not 1 <= count <= _MOST_PLACES:
        raise ValueError(
            f"must contain {place}, at most {_MOST_PLACES} times, with every other brace doubled, not {template!r:.200}"
        )
    return [(literal, field is not None) for literal, field, _, _ in parts]
