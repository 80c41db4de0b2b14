"""The picture of README: the recorded demonstration at 100 columns, as SVG that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bonmini_guard.demo import show
from bonmini_guard.demo.run import recorded
from bonmini_guard.writing import write_atomically

TARGET = Path(__file__).parents[2] / "docs" / "images" / "demo.svg"
COLOURS = {"": "#d7dde8", "title": "#ffffff", "good": "#7bd88f", "bad": "#ff8080", "refused": "#ffd166", "aside": "#8d99ab"}
#: Of a character, in units of the picture.
WIDTH, HEIGHT, MARGIN = 8.4, 19, 20


def lines_of(width: int) -> list[show.Line]:
    """What ``bonmini-guard demo --recorded`` prints."""
    record = recorded()
    requests = record["requests"]
    lines: list[show.Line] = [[("$ bonmini-guard demo", "aside")], [], *show.opening(width, record["source"])]
    for number, request in enumerate(requests, start=1):
        lines += show.request(request, f"{number} of {len(requests)}", width)
    return lines + show.totals(requests, width)


def svg(lines: Sequence[show.Line], width: int) -> str:
    """Lines as a picture; each is stretched to its columns, whatever font is at hand."""
    across, down = round(width * WIDTH + 2 * MARGIN), len(lines) * HEIGHT + 2 * MARGIN
    size = f'width="{across}" height="{down}" viewBox="0 0 {across} {down}" role="img"'
    rows = "".join(_row(line, MARGIN + HEIGHT * number) for number, line in enumerate(lines, start=1) if line)
    style = 'font-family="ui-monospace,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="14"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<title>bonmini-guard demo</title>\n'
        f'<rect width="100%" height="100%" rx="8" fill="#1b2130"/>\n<g {style}>\n{rows}</g>\n</svg>\n'
    )


def _row(line: show.Line, y: int) -> str:
    x, parts = float(MARGIN), []
    for text, style in line:
        shown = text.strip()
        if shown:
            at = x + WIDTH * (len(text) - len(text.lstrip()))
            bold = ' font-weight="bold"' if style in ("title", "bad") else ""
            stretched = f'textLength="{len(shown) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"'
            parts.append(f'<text x="{at:.1f}" y="{y}" fill="{COLOURS[style]}"{bold} {stretched}>{escape(shown)}</text>\n')
        x += WIDTH * len(text)
    return "".join(parts)


def main() -> None:
    """Write the picture."""
    write_atomically(TARGET, svg(lines_of(100), 100))
