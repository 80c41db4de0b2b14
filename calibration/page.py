"""The HTML of a report: one page, its style and its plots inside, nothing loaded from anywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2024; background: #f5f6f8; margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
section { background: #fff; border: 1px solid #e2e5e9; border-radius: 10px; padding: 1.2rem 1.5rem; margin: 1rem 0; }
h1 { font-size: 1.1rem; color: #5b6470; margin: 0; font-weight: 600; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
.lead { border-left: 6px solid #d9730d; }
.lead p:first-of-type { font-size: 1.45rem; line-height: 1.35; margin: .4rem 0 .8rem; }
.note, figcaption { color: #4a525c; font-size: .93rem; margin: .4rem 0; }
figure { margin: 0; }
figure svg { display: block; width: 100%; max-width: 46rem; height: auto; margin: 0 auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { text-align: right; padding: .32rem .6rem; border-bottom: 1px solid #eceef1; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td:last-child.text { text-align: left; }
thead th { color: #5b6470; font-weight: 600; }
pre { white-space: pre-wrap; font-size: .82rem; background: #f5f6f8; padding: .7rem; border-radius: 6px; }
summary { cursor: pointer; }
"""


def html(title: str, sections: Sequence[str]) -> str:
    """The whole page."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>bonmini-guard · {escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """A titled section around finished HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def lead(sentence: str, notes: Sequence[str]) -> str:
    """The sentence that the report begins with."""
    small = "".join(f'\n<p class="note">{escape(note)}</p>' for note in notes)
    return f'<section class="lead">\n<p>{escape(sentence)}</p>{small}\n</section>'


def figure(title: str, plot: str, caption: str) -> str:
    """A plot with its caption first: what to see in it."""
    return section(title, f"<figure>\n<figcaption>{escape(caption)}</figcaption>\n{plot}\n</figure>")


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table; every cell is escaped."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows)
    grid = f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    return section(title, f'<p class="note">{escape(caption)}</p>\n{grid}')


def cell(value: float | None, kind: str) -> str:
    """A number as text: a count, a rate in percent, or a mean; a dash where it is unknown."""
    if value is None:
        return "\N{EN DASH}"
    return {"count": f"{value:,.1f}", "rate": f"{100 * value:.2f} %", "mean": f"{value:.2f}"}[kind]


def sources(functions: Sequence[tuple[str, Callable[..., Any]]]) -> str:
    """The functions behind the numbers, each with its docstring: formula and source."""
    listed = "\n".join(
        f"<details><summary>{escape(name)} <code>{function.__module__}.{function.__qualname__}</code></summary>"
        f"<pre>{escape(inspect.getdoc(function) or '')}</pre></details>"
        for name, function in functions
    )
    return section("Where the numbers come from", listed)
