"""The code blocks of the documentation, run as they stand."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from benchmarks.imdb.models import model_path

DOCS = Path(__file__).parent.parent / "docs"
#: Serves whatever has the best score, so that a page's last line has something to print.
LAX = {"mode": "guardrail", "schedule": [4, 4], "thresholds": [-1000.0, -1000.0]}


def server_pages() -> list[str]:
    """The pages of servers, but their overview."""
    return [*sorted(str(page.relative_to(DOCS)) for page in (DOCS / "servers").glob("*.md") if page.name != "README.md"), "tgi.md"]


def run_page(page: str, base_url: str, folder: Path, model: str | None = None) -> None:
    """Run a page's first Python block against a server, with the bundled reward model and a lax profile in its folder.

    Args:
        page: path below ``docs``.
        base_url: replaces the page's URL.
        folder: an empty folder.
        model: replaces the page's model, if it names one.
    """
    code = re.search(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL).group(1)
    code, found = re.subn(r'"https?://[^"]*?(/v1)?"', lambda url: f'"{base_url}{url.group(1) or ""}"', code)
    assert found == 1
    if model is not None:
        code = re.sub(r'model="[^"]*"', f"model={model!r}", code)
    (folder / "reward-model").symlink_to(model_path("reward"))
    (folder / "guardrail.json").write_text(json.dumps(LAX))
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(code, page, "exec"), {})
    finally:
        os.chdir(before)
