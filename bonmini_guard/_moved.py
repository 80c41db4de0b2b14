"""Former import paths: a module that lives in a room now is still found where it was, as the same module."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ROOMS = {
    "engine": "generators limiter protocols result scorers",
    "logs": "traces",
    "policy": "budget profile",
    "runnables": "callbacks chat_model guard options reload shadow structured",
}
_PACKAGE = __name__.rpartition(".")[0]
#: Former path to the present one, below the package; what is below either moved along.
MOVED = {name: f"{room}.{name}" for room, names in _ROOMS.items() for name in names.split()} | {
    "adapters.remote_reward": "adapters.rewards.remote",
    "data": "training.data",
    "distill": "training.distill",
    "reward.choices": "training.choices",
    "tracing": "runnables.callbacks",
    "usage": "engine.result",
}


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


def install() -> None:
    """Have the import system look for former paths; once."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, Moved())
