"""The API reference, from the docstrings: ``python -m tools.reference [FILE]`` (``make reference``) writes one Markdown page."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

#: What users import from; each says in ``__all__``, or by what it defines, what is public.
PACKAGES = (
    "bonmini_guard",
    "bonmini_guard.errors",
    "bonmini_guard.policy",
    "bonmini_guard.engine.limiter",
    "bonmini_guard.engine.protocols",
    "bonmini_guard.testing",
    "bonmini_guard.adapters",
    "bonmini_guard.adapters.agents",
    "bonmini_guard.adapters.telemetry",
    "bonmini_guard.reward",
    "bonmini_guard.training",
    "bonmini_guard.training.data",
    "bonmini_guard.training.distill",
    "bonmini_guard.labelling",
    "bonmini_guard.calibration",
)


def public(package: str) -> dict[str, Any]:
    """The classes, functions and values that a package offers, by name."""
    module = import_module(package)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == package and name[0] != "_"]
    return {name: getattr(module, name) for name in getattr(module, "__all__", own) if name != "__version__"}


def entry(name: str, value: Any) -> Iterator[str]:
    """One name: how it is called, what it says of itself, and its public methods."""
    yield f"### {name}\n"
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        # The address of a function would be another one each time.
        yield f"`{_steady(repr(value))}`\n"
        return
    yield f"```python\n{name}{_signature(value)}\n```\n"
    yield f"```text\n{inspect.getdoc(value) or ''}\n```\n"
    for method, function in vars(value).items() if inspect.isclass(value) else ():
        if method[0] != "_" and inspect.getdoc(function) and (inspect.isroutine(function) or isinstance(function, property)):
            called = _signature(getattr(value, method)) if not isinstance(function, property) else ""
            yield f"`{name}.{method}{called}`\n\n```text\n{inspect.getdoc(function)}\n```\n"


def _signature(value: Any) -> str:
    try:
        return _steady(str(inspect.signature(value)))
    except (TypeError, ValueError):
        return "(...)"


def _steady(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def anchor(heading: str) -> str:
    """What a page's reader jumps to, as GitHub and its kin make it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page() -> str:
    """The whole reference."""
    parts = ["# Reference\n", "Made from the docstrings by `make reference`.\n"]
    parts += [f"- [{package}](#{anchor(package)})" for package in PACKAGES]
    for package in PACKAGES:
        parts += [f"\n## {package}\n", f"{inspect.getdoc(import_module(package)) or ''}\n"]
        for name, value in public(package).items():
            parts += entry(name, value)
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/reference.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(), encoding="utf-8")
    print(f"{target}: {len(PACKAGES)} modules")


if __name__ == "__main__":
    main()
