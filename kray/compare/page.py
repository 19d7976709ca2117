"""HTML of the report: plain, readable at the width of a phone, in print and in MLflow's artifact viewer. Pure text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kray.compare.verdicts import UNMEASURED, Verdict, chance

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d1d1f; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 74rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid #e3e3e6; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; } tbody tr:nth-child(even) { background: #f7f7f9; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: inherit; }
thead tr, tbody tr { background: #fff; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .88rem; color: #55555a; padding: .2rem .3rem 1rem; }
.figures figure:first-child { grid-column: 1 / -1; max-width: 46rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
.verdicts { width: 100%; } .verdicts th, .verdicts td { text-align: left; white-space: normal; vertical-align: top; }
.verdicts td { border-bottom: 1px solid #e3e3e6; }
.tag { font-weight: 600; white-space: nowrap; padding: .05rem .45rem; border-radius: .6rem; font-size: .82rem; }
.held { background: #d9f2e3; color: #0b5a30; } .failed { background: #fbdcd6; color: #8c1d08; }
.undecided { background: #fdf0cc; color: #6b4b00; }
details { margin-top: .6rem; font-size: .88rem; } .whose { color: #55555a; font-size: .82rem; }
@media (max-width: 640px) {
  body { padding: .8rem; }
  .verdicts thead { display: none; } .verdicts tr { display: block; padding: .6rem 0; border-bottom: 1px solid #cfcfd4; }
  .verdicts td { display: block; border: 0; padding: .1rem 0; position: static; }
  .verdicts td[data-name]:not(:empty)::before { content: attr(data-name) ": "; color: #55555a; }
}
"""


def page(title: str, head: str, sections: Sequence[tuple[str, str]]) -> str:
    """head and the sections' bodies are HTML; title and the sections' names are text."""
    body = "".join(
        f'<section><h2>{escape(name)}</h2><div class="{name.lower() if name == "Figures" else "body"}">{inner}</div></section>'
        for name, inner in sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{head}{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls sideways where it does not fit; its first column stays."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def cards(verdicts: Sequence[Verdict]) -> str:
    """Return the table of verdicts; on a narrow screen each row becomes a block."""
    rows = "".join(
        f'<tr><td><span class="whose">{escape(v.whose)}</span><br>{escape(v.claim)}</td>'
        f'<td data-name="measured">{escape(v.measured)}</td><td data-name="95 % interval">{escape(v.interval)}</td>'
        f'<td data-name="p">{escape(chance(v))}</td>'
        f'<td><span class="tag {v.outcome.replace(" ", "-")}">{escape(v.outcome)}</span>{_alone(v)}</td></tr>'
        for v in verdicts
        if v.outcome != UNMEASURED
    )
    left = [f"<li>{escape(v.claim)} ({escape(v.measured)})</li>" for v in verdicts if v.outcome == UNMEASURED]
    unmeasured = (
        f"<details><summary>{len(left)} claims were not measured here</summary><ul>{''.join(left)}</ul></details>"
    )
    head = "".join(f"<th>{name}</th>" for name in ("claim", "measured here", "95 % interval", "p", "verdict"))
    note = (
        "<p>The rules were fixed beforehand (kray/compare/verdicts.py): a claim is held when its mean over paired seeds lies "
        "on its side of the threshold and p, adjusted by Holm's method for the number of claims judged here, is at most .05, "
        "failed when it lies on the other side, else undecided. Intervals are those of each claim alone.</p>"
    )
    rows_table = f'<table class="verdicts"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return note + rows_table + (unmeasured if left else "")


def _alone(verdict: Verdict) -> str:
    """Return the outcome by the interval alone, where it is another one."""
    if verdict.alone == verdict.outcome:
        return ""
    return f'<br><span class="whose">{escape(verdict.alone)} by its own interval</span>'
