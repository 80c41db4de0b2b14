"""The oldest versions that ``pyproject.toml`` allows, as pip's constraints: ``python -m tools.oldest``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

#: A requirement with a lower bound.
_BOUND = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=(?P<version>[0-9.]+)")


def oldest(pyproject: Path) -> dict[str, str]:
    """By package, the least version that the project asks for anywhere."""
    project = tomllib.loads(pyproject.read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for extra, ones in project["optional-dependencies"].items() if extra != "dev" for one in ones),
    ]
    found = [match for one in asked if (match := _BOUND.match(one))]
    found.sort(key=lambda match: [int(part) for part in match["version"].split(".")], reverse=True)
    return {match["name"]: match["version"] for match in found}


if __name__ == "__main__":
    for name, version in oldest(Path(__file__).parents[1] / "pyproject.toml").items():
        print(f"{name}=={version}")
