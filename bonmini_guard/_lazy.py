"""Public names that import their module when first used (PEP 562): importing a package stays fast and light."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package in which a public name outranks a submodule that is called the same."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a submodule sets it as an attribute of its package: "replay" would turn from a function into a module.
        shadows = isinstance(value, ModuleType) and self.__dict__["_HOMES"].get(name) == name
        super().__setattr__(name, getattr(value, name) if shadows else value)


def lazy(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], dict[str, str]]:
    """A package's ``__getattr__`` and ``__dir__``, and each name's submodule, which the package keeps as ``_HOMES``.

    Args:
        package: its ``__name__``.
        names: submodule to the public names that it defines; a dot before it begins at the package around this one.
    """
    sys.modules[package].__class__ = _Package
    homes = {name: home for home, defined in names.items() for name in defined.split()}

    def __getattr__(name: str) -> Any:  # noqa: N807 - becomes the package's own
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{homes[name]}", package), name)

    def __dir__() -> list[str]:  # noqa: N807 - becomes the package's own
        return sorted(homes)

    return __getattr__, __dir__, homes
