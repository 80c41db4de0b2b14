"""Public names that import their module when first used (PEP 562): importing a package stays fast and light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``.

    Args:
        package: its ``__name__``.
        homes: public name to the submodule that defines it.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 - becomes the package's own
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def __dir__() -> list[str]:  # noqa: N807 - becomes the package's own
        return sorted(homes)

    return __getattr__, __dir__
