"""Where names are found: public ones import their module when first used (PEP 562), former paths lead to the module of today."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
_ROOMS = {
    "engine": "generators limiter protocols result scorers",
    "logs": "traces",
    "policy": "budget profile",
    "runnables": "callbacks chat_model guard options reload shadow structured",
}
#: Former path to the present one, below the package; what is below either moved along.
MOVED = {name: f"{room}.{name}" for room, names in _ROOMS.items() for name in names.split()} | {
    "adapters.remote_reward": "adapters.rewards.remote",
    "data": "training.data",
    "distill": "training.distill",
    "reward.choices": "training.choices",
    "tracing": "runnables.callbacks",
    "usage": "engine.result",
}


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


class Moved(MetaPathFinder, Loader):
    """Finds former paths, and nothing else."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A spec that loads the module of today; None for every path that is no former one."""
        if not fullname.startswith(f"{_PACKAGE}."):
            return None
        name = fullname.removeprefix(f"{_PACKAGE}.")
        former = next((former for former in MOVED if f"{name}.".startswith(f"{former}.")), None)
        return None if former is None else ModuleSpec(fullname, self, origin=MOVED[former] + name.removeprefix(former))

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the new and empty one, as the import system allows."""
        spec = module.__spec__
        assert spec is not None
        sys.modules[spec.name] = import_module(f"{_PACKAGE}.{spec.origin}")


sys.meta_path.insert(0, Moved())
