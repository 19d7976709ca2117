"""Normalize the notation of an answer before it is parsed.

`normalize` maps Unicode to LaTeX, removes what only changes the appearance (fonts, sizes, spaces, outer dollar signs) and
marks words: the content of \\text{...} and similar commands is put between WORDS_OPEN and WORDS_CLOSE. Nothing that changes
the meaning of an answer is removed.

`split` and `bracketed` cut normalized text at its outermost level: never inside brackets, braces, environments or words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# Private-use characters: they have no meaning in a response, and `normalize` removes those that a text contains.
WORDS_OPEN, WORDS_CLOSE = "\ue000", "\ue001"

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SYMBOLS = {
    **dict.fromkeys("−‐‑‒–—﹣－", "-"),
    **dict.fromkeys("×⋅·∙•", "\\cdot "),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("≤⩽", "\\le "),
    **dict.fromkeys("≥⩾", "\\ge "),
    **dict.fromkeys("≈≃", "\\approx "),
    **dict.fromkeys("→⟶", "\\to "),
    **dict.fromkeys("∅⌀", "\\emptyset "),
    **dict.fromkeys("′’", "'"),
    **dict.fromkeys("“”", '"'),
    "＝": "=",
    "％": "%",
    "π": "\\pi ",
    "∞": "\\infty ",
    "≠": "\\ne ",
    "≡": "\\equiv ",
    "∈": "\\in ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "±": "\\pm ",
    "∓": "\\mp ",
    "°": "^{\\circ}",
    "º": "^{\\circ}",
    "∠": "\\angle ",
    "ℝ": "\\mathbb{R}",
    "⌊": "\\lfloor ",
    "⌋": "\\rfloor ",
    "⌈": "\\lceil ",
    "⌉": "\\rceil ",
    "⟨": "\\langle ",
    "⟩": "\\rangle ",
    "…": "\\ldots ",
    "€": f"{WORDS_OPEN}euros{WORDS_CLOSE}",
    "£": f"{WORDS_OPEN}pounds sterling{WORDS_CLOSE}",
    "¥": f"{WORDS_OPEN}yen{WORDS_CLOSE}",
    "₹": f"{WORDS_OPEN}rupees{WORDS_CLOSE}",
    "¢": f"{WORDS_OPEN}cents{WORDS_CLOSE}",
}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega"
)
for _name in _GREEK.split():
    _SYMBOLS[unicodedata.lookup(f"GREEK SMALL LETTER {'LAMDA' if _name == 'lambda' else _name.upper()}")] = (
        f"\\{_name} "
    )
for _name in ("gamma", "delta", "theta", "lambda", "xi", "sigma", "phi", "psi", "omega"):
    _symbol = unicodedata.lookup(f"GREEK CAPITAL LETTER {'LAMDA' if _name == 'lambda' else _name.upper()}")
    _SYMBOLS[_symbol] = f"\\{_name.capitalize()} "
_SYMBOL = re.compile("|".join(map(re.escape, _SYMBOLS)))
# Control characters, private use, unpaired surrogates, pictographs.
_REMOVED, _KEPT = ("Cc", "Cf", "Co", "Cs", "So"), {*_SYMBOLS, "\n", "\t"}

_SCRIPTED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+")
_ROOT = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?|[A-Za-z])?")
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}
_PREFIXED = re.compile(r"([€£¥₹])\s*(-?\d[\d,]*(?:\.\d+)?)")
_INFIX = re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}")
_REPEATED = re.compile(r"(\d*\.\d*?)(\d+?)\2+\s*(?:\.\.\.|\\[lc]?dots|…)")
_BRACED_SIGN = re.compile(r"\{([.,:;=<>])\}")
_WORDS = re.compile(
    r"\\(?:text|mbox|hbox|mathrm|textbf|textit|textrm|textsf|texttt|textnormal|operatorname)\*?\s*\{([^{}]*)\}"
)
_FONT = re.compile(r"\\(?:mathbf|mathit|mathsf|mathcal|mathtt|boldsymbol|bm|bold|pmb|emph|underline)\s*\{([^{}]*)\}")
_APPEARANCE = re.compile(
    r"\\(?:left|right|[bB]ig{1,2}[lrm]?|displaystyle|textstyle|scriptstyle|limits|rm|bf|it|boldmath|large|Large|LARGE|huge|Huge|small|normalsize|phantom\{[^{}]*\})(?![A-Za-z])"
)
_COLOR = re.compile(
    r"\\(?:textcolor|color|hspace|vspace)\*?\s*\{[^{}]*\}|\\(?:checkmark|blacksquare|square|qed)(?![A-Za-z])"
)
_NEGATED = re.compile(r"\\not\s*(=|\\in(?![A-Za-z]))")
_FUNCTION_NAMES = ("cis", "lcm", "gcd", "arcsin", "arccos", "arctan", "log", "ln", "sin", "cos", "tan")
_SPACE = re.compile(r"(?<!\\)\\[,;: ]|~|\\(?:quad|qquad|thinspace|medspace|enspace|space|hfill|newline)(?![A-Za-z])")
_GROUPED = re.compile(r"(?<![\d.,\w])(\d{1,3})((?:\s\d{3})+)(?![\d\w])(?!\s*\d)(?!\.\d*\s\d)")
_MONEY = re.compile(r"\\?\$\s*(-?\s*\d[\d,]*(?:\.\d+)?|\.\d+)(?!\s*\\?\$)(\s*(?:thousand|million|billion|trillion)\b)?")
_CONNECTIVE = re.compile(
    rf"(?<![A-Za-z\\{WORDS_OPEN}])(?:and|or)(?![A-Za-z{WORDS_CLOSE}])(?![^{WORDS_OPEN}]*{WORDS_CLOSE})"
)
_EDGES = re.compile(r"\s*,?\s*(and|or)\s+(.+)|(.+)\s(and|or)\s*,?", re.I | re.DOTALL)
_ENVIRONMENT = re.compile(
    r"\\begin\s*\{((?:align(?:ed)?|gather(?:ed)?|split|equation)\*?|array(?=\}\s*\{[lcr]\}))\}(?:\{[lcr]\})?"
    r"(.*?)\\end\s*\{\1\}",
    re.DOTALL,
)
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
# Commands, each followed by its replacement.
_REPLACEMENTS = r"""
    \dfrac \frac   \tfrac \frac   \cfrac \frac   \dbinom \binom   \tbinom \binom   \leq \le   \leqslant \le
    \geq \ge   \geqslant \ge   \lt <   \gt >   \neq \ne   \times \cdot   \ast \cdot   \div /   \rightarrow \to
    \longrightarrow \to   \Rightarrow \to   \implies \to   \varnothing \emptyset   \lbrace \{   \rbrace \}
    \lbrack [   \rbrack ]   \lparen (   \rparen )   \colon :   \simeq \approx   \doteq \approx
    \degree ^{\circ}   \lvert |   \rvert |   \vert |   \mid |   \dots \ldots   \cdots \ldots
    \varepsilon \epsilon   \vartheta \theta   \varphi \phi   \infin \infty   \% %   \& &   \# #   \R \mathbb{R}
    \arctg \arctan   \tg \tan
"""
_ALIASES = {
    **dict(zip(_REPLACEMENTS.split()[::2], _REPLACEMENTS.split()[1::2], strict=True)),
    **dict.fromkeys(("\\(", "\\)", "\\[", "\\]", "\\!"), ""),
    "\\lor": f"{WORDS_OPEN}or{WORDS_CLOSE}",
    "\\land": f"{WORDS_OPEN}and{WORDS_CLOSE}",
}
_PAIRS = {
    "(": ")",
    "[": "]",
    "{": "}",
    "\\{": "\\}",
    "\\langle": "\\rangle",
    "\\lfloor": "\\rfloor",
    "\\lceil": "\\rceil",
}
_OPENING, _CLOSING = {*_PAIRS, "\\begin"}, {*_PAIRS.values(), "\\end"}
_PIECE = re.compile(rf"{WORDS_OPEN}[^{WORDS_CLOSE}]*{WORDS_CLOSE}|\\(?:[A-Za-z]+|.)|.", re.DOTALL)


def normalize(text: str) -> str:
    """Bring the many ways to write the same answer into one form; see the module. Linear in the length of the text."""
    text = "".join(c for c in text if c in _KEPT or unicodedata.category(c) not in _REMOVED).replace("。", ".")
    text = re.sub(r"°\s*([CF])(?![A-Za-z])", lambda m: " celsius" if m[1] == "C" else " fahrenheit", text)
    text = _ENVIRONMENT.sub(_last_row, text)
    text = _SCRIPTED.sub(lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda m: f"_{{{m.group().translate(_SUBSCRIPTS)}}}", text)
    text = "".join(_vulgar(c) for c in text)
    text = _ROOT.sub(lambda m: _ROOTS[m[1]] + (f"{{{m[2]}}}" if m[2] else " "), text)
    text = re.sub(r"\\text\s*\{\s*([€£¥₹¢])\s*\}", r"\1", text).replace("\\pounds", "£")
    text = re.sub(r"\\text\s*\{\s*\\?\$\s*([\d.,]*\d)\s*\}", r"\\$\1", text)
    text = _PREFIXED.sub(r"\2\1", text)
    text = _SYMBOL.sub(lambda m: _SYMBOLS[m.group()], text)
    text = unicodedata.normalize("NFKC", text.replace("\\\\$", "\\$").replace("`", ""))
    text = re.sub(r"\\text\s*\{\s*\\?\$\s*\}|\\textdollar(?![A-Za-z])", r"\\$", text)
    text = _BRACED_SIGN.sub(r"\1", text)
    if "..." in text or "dots" in text:
        text = _REPEATED.sub(r"\1\\overline{\2}", text)
    text = _INFIX.sub(lambda m: f"\\{'frac' if m[2] == 'over' else 'binom'}{{{m[1]}}}{{{m[3]}}}", text)
    text = re.sub(r"\\math(?:bf|rm|bb)\s*(?:\{\s*R\s*\}|R(?![A-Za-z]))", r"\\mathbb{R}", text)
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({])", "^", text)
    text = re.sub(r"(?<=\d)(?:,\\!|\{,\})(?=\d{3})", ",", text)
    text = _NEGATED.sub(lambda m: "\\ne " if m[1] == "=" else "\\notin ", _COLOR.sub("", text))
    text = _SPACE.sub(" ", _APPEARANCE.sub("", text))
    # Fonts may be nested.
    for _ in range(3):
        text = _FONT.sub(r"{\1}", text)
        text = _WORDS.sub(lambda m: _words(m.group(1)), text)
    text = _COMMAND.sub(lambda m: _ALIASES.get(m.group(), m.group()) + (" " if m.group() in _SPACED else ""), text)
    text = _GROUPED.sub(lambda m: m.group(1) + re.sub(r"\s", "", m.group(2)), text)
    text = _MONEY.sub(lambda m: f"{m.group(1)}{m.group(2) or ''}{_words('dollars')}", _without_dollars(text))
    text = mark_connectives(text)
    return re.sub(r"\s+", " ", text.replace("$", "").replace("**", " ")).strip().rstrip("\\").rstrip()


# Names that may be followed by a letter once they are replaced.
_SPACED = {name for name, other in _ALIASES.items() if other[-1:].isalpha()}


def _vulgar(character: str) -> str:
    """Turn ½ and its relatives into fractions; other characters stay as they are."""
    if "VULGAR" not in unicodedata.name(character, ""):
        return character
    top, _, bottom = unicodedata.normalize("NFKD", character).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _last_row(environment: re.Match[str]) -> str:
    """Return the last of aligned steps."""
    rows = [row for row in environment[2].split("\\\\") if row.strip()]
    return re.sub(r"^\s*\[[^\]]*\]|&", "", rows[-1]).strip().lstrip("= ") if rows else ""


def squeezed(text: str) -> str:
    """Remove marks of words from normalized text, and blanks except between digits or a comma and a digit."""
    text = text.replace(WORDS_OPEN, "").replace(WORDS_CLOSE, "").rstrip(" .")
    text = re.sub(r"\{(\w)\}", r"\1", text)
    return re.sub(r"\s+(?!\d)|(?<![\d,])\s+", "", text)


def mark_connectives(text: str) -> str:
    """Mark "and" and "or" outside of marked words as words."""
    return _CONNECTIVE.sub(lambda m: f"{WORDS_OPEN}{m.group()}{WORDS_CLOSE}", text)


def _words(content: str) -> str:
    """Mark the content of a text command as words; numbers and single letters in it stay mathematics."""
    if content.strip() in (",", ";", ":"):
        return content
    if content.strip() in ("mod", "modulo"):
        return "\\bmod "
    if content.strip() in _FUNCTION_NAMES:
        return f"\\{content.strip()} "
    if found := _EDGES.fullmatch(content):
        return "".join(_words(part) for part in found.groups() if part and part.strip(" ,"))
    stripped = content.strip()
    stripped = stripped.rstrip(".") if stripped[:1].isdigit() else stripped
    if re.fullmatch(r"[-+]?[\d.,]*\d|[A-Za-z]", stripped.strip("()")) and "(" not in stripped:
        return f" {stripped} " if content != content.strip() else stripped
    return f"{WORDS_OPEN}{content}{WORDS_CLOSE}"


def _without_dollars(text: str) -> str:
    """Remove the dollar signs around mathematics, which come in pairs; with an odd number of them one belongs to a price."""
    parts = re.split(r"(?<!\\)\$\$?", text)
    return " ".join(parts) if len(parts) % 2 else text


def pieces(text: str) -> Iterator[tuple[str, int]]:
    """Yield the pieces of normalized text, each with its depth.

    Yields:
        (a command, marked words or a character; the number of brackets that are open around it).
    """
    depth = 0
    for found in _PIECE.finditer(text):
        piece = found.group()
        if piece in _CLOSING:
            depth -= 1
        yield piece, depth
        if piece in _OPENING:
            depth += 1


def split(text: str, separators: frozenset[str] | set[str]) -> tuple[list[str], list[str]]:
    """Split normalized text at its outermost level.

    Args:
        text: Normalized text.
        separators: Pieces at which to split; words by their text in lower case.

    Returns:
        (the parts, the separators between them).
    """
    parts, found = [""], []
    for piece, depth in pieces(text):
        key = piece[1:-1].strip(" ,").lower() if piece[0] == WORDS_OPEN else piece
        if depth == 0 and key in separators:
            found.append(key)
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts], found


def bracketed(text: str) -> tuple[str, str, str] | None:
    """Return (opening, content, closing) where one pair of brackets encloses all of normalized text; else None."""
    parts = list(pieces(text))
    if len(parts) < 2 or parts[0][0] not in _OPENING - {"\\begin"} or parts[-1][0] not in _CLOSING - {"\\end"}:
        return None
    if parts[-1][1] != 0 or any(depth == 0 for _, depth in parts[1:-1]):
        return None
    return parts[0][0], "".join(piece for piece, _ in parts[1:-1]).strip(), parts[-1][0]
