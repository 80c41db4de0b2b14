"""Which room each file lives in, and that imports between rooms point down: drawn from the sources, through both links."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bonmini_guard

ROOT = Path(bonmini_guard.__file__).parent
#: From the ground up; a room may import its own and lower ones.
LEVELS = (
    {"ground"},
    {"policy"},
    {"engine"},
    {"logs", "reward"},
    {"runnables", "adapters", "calibration", "labelling", "server", "training"},
    {"commands", "gateway", "demo"},
)
#: The room of each file that is in no room's folder. The package itself imports what is asked of it, and stands apart.
ROOMS = {
    "ground": ("_lazy", "conversation", "errors", "forks", "unseen", "validation", "writing"),
    "reward": ("checks",),
    "runnables": ("testing",),
    "commands": ("cli", "__main__"),
}
ROOM_OF = {file: room for room, files in ROOMS.items() for file in files}
#: Rooms that know nothing of the outside, and of what is offline, until they are asked for it.
INSIDE = ("engine", "logs", "reward", "runnables", "training", "labelling", "server")
#: What a calibration asks to be labelled: loaded by the command that asks, and by nothing else.
LOADED_ON_DEMAND = {"labelling.on_demand"}


def modules() -> dict[str, Path]:
    """Every module, by its dotted name below the package."""
    found = {}
    for folder in (ROOT, *(path for path in ROOT.iterdir() if path.is_dir())):
        for path in folder.resolve().rglob("*.py") if folder != ROOT else folder.glob("*.py"):
            parts = (() if folder == ROOT else (folder.name,)) + path.relative_to(folder.resolve()).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(node: ast.AST, lazy: bool) -> Iterator[str]:
    """What a module imports when it is loaded, or, with ``lazy``, whenever; not what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{name.name}" for name in child.names)
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(child, lazy)


def graph(lazy: bool = False) -> dict[str, set[str]]:
    """Module to the modules of this package that it imports."""
    arrows: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        names = (name.removeprefix("bonmini_guard.") for name in imported(ast.parse(path.read_text("utf-8")), lazy))
        known = (name if name in MODULES else name.rpartition(".")[0] for name in names)
        arrows[module] = {name for name in known if name in MODULES and name not in ("", module)}
    return arrows


def room(module: str) -> str:
    """Where a module lives: in the room of its folder, or where the table puts it."""
    first = module.partition(".")[0]
    return ROOM_OF.get(first, first)


def level(module: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room(module) in rooms)


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_every_file_has_a_room(module):
    assert any(room(module) in rooms for rooms in LEVELS), f"{module}: say in {Path(__file__).name} which room it is in"


def test_the_graph_is_drawn_through_both_links():
    arrows = graph()
    assert {"adapters.openai", "calibration.choose", "training.distill.run"} <= set(arrows)
    assert "policy.policy" in arrows["calibration.choose"]
    assert "adapters.langchain" in graph(lazy=True)["engine.generators"] - arrows["engine.generators"]


def test_arrows_point_down():
    up = [f"{a} -> {b}" for a, others in graph().items() if a for b in others if level(b) > level(a)]
    assert not up


def test_nothing_inside_loads_what_is_outside():
    out = [f"{a} -> {b}" for a, others in graph().items() if room(a) in INSIDE and a not in LOADED_ON_DEMAND for b in others]
    assert not [arrow for arrow in out if arrow.partition(" -> ")[2].startswith(("adapters", "calibration"))]
    assert not [a for a, others in graph().items() if others & LOADED_ON_DEMAND]


def test_no_two_files_import_each_other():
    arrows = graph(lazy=True)
    assert not [(a, b) for a, others in arrows.items() for b in others if a < b and a in arrows[b]]


def test_no_files_import_each_other_in_a_ring_when_loaded():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_policy_imports_the_standard_library_alone():
    names = set(imported(ast.parse(MODULES["policy.policy"].read_text("utf-8")), lazy=True))
    assert {name.partition(".")[0] for name in names} <= {"__future__", "collections", "dataclasses", "enum", "math", "typing"}
