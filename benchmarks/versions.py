"""Another version of the package beside this one: code is run in a process of its own that imports the other's source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]


@contextmanager
def source_of(version: str) -> Iterator[Path]:
    """The source of a version: a folder as it is, or a revision of this repository, checked out for as long as it is used."""
    if Path(version).is_dir():
        yield Path(version).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "source"
        subprocess.run(["git", "-C", HERE, "worktree", "add", "--detach", "--quiet", place, version], check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", place], check=True)


def run(source: Path, code: str, *arguments: str) -> Any:
    """What a program prints as JSON, with the package of ``source``."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", code, *arguments]
    return json.loads(subprocess.run(command, cwd=source, env=environment, stdout=subprocess.PIPE, check=True).stdout)
