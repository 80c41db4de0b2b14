"""Would the tests notice? Small faults are put into the code one at a time, and each meets the fast tests that reach its line.

``python -m tools.mutants`` (``make mutants``) draws 120 by a seed, adds those listed in ``tools/mutations.py``, prints the ones
that no test notices, and fails when more than 5 % of those that change behaviour survive. ``--count``, ``--seed`` and
``--only WORD`` (in the name of a file) draw others; ``--jobs`` runs several at a time.

Each room's tests run once without a fault, to see which reach a line. What these do not notice meets their whole files, since a
fixture or a cache runs a line for one test and serves others; what runs at import, or that none reaches, meets the whole room.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import heapq
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from coverage import CoverageData

from tools.mutations import EQUIVALENT, LISTED, ROOMS, Room

ROOT = Path(__file__).parent.parent
SEED, COUNT, MOST_SURVIVORS = 28, 120, 0.05
#: Seconds for a room's fast tests on a busy machine, after which they count as failed; how many tests are met by name, and theirs.
PATIENCE, MANY, THEIRS = 900, 200, 300
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not live")
#: A node of a file, and what puts a fault into it.
Place = tuple[Any, Callable[[], None]]
#: Of each file the tests that run each line: "path::name|phase", or nothing while files are imported.
Reached = dict[str, dict[int, list[str]]]
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Attributes:
        path: of the file, below the root.
        line: where.
        change: the line or expression before and after, as Python writes it.
        source: the whole file with the fault.
        lines: that run with it; none where they run at import.
    """

    path: str
    line: int
    change: str
    source: str
    lines: frozenset[int]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.change}"


def mutation(path: str, place: int) -> Mutation:
    """One of the faults that a file can have, by its number."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    node, edit = places(tree)[place]
    before, lines = _shown(node), _lines(tree, node.lineno, node.end_lineno)
    edit()
    return Mutation(path, node.lineno, f"{before}  ->  {_shown(node)}", ast.unparse(ast.fix_missing_locations(tree)), lines)


def _lines(tree: ast.Module, first: int, last: int) -> frozenset[int]:
    around = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= first <= (node.end_lineno or 0)]
    inside = any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in around[:-1])
    return frozenset([around[-1].lineno, *range(first, last + 1)] if inside else [])


def _shown(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:160]


def places(tree: ast.AST) -> list[Place]:
    """Each fault that a file can have: the node, and what puts the fault into it."""
    found: list[Place] = []
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or name in ("annotation", "returns", "decorator_list") or _untold(child):
                continue
            found += [*((child, edit) for edit in _edits(child)), *places(child)]
    return found


def _untold(node: ast.AST) -> bool:
    """What no test should hold on to: words for people, what type checkers see, and lists of names."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: a check, which another fault would have to meet
        return True
    if isinstance(node, ast.FunctionDef) and node.name in ("__repr__", "__str__"):
        return True
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _edits(node: Any) -> Iterator[Callable[[], None]]:
    """Functions that put one fault each into a node."""
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            if type(operator) in _SWAPS:
                yield lambda number=number: node.ops.__setitem__(number, _SWAPS[type(node.ops[number])]())
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPS:
        yield lambda: setattr(node, "op", _SWAPS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield lambda: setattr(node, "op", ast.UAdd())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield lambda: setattr(node, "value", not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Return | ast.Expr) and not isinstance(node.value, ast.Constant | type(None)):
        yield lambda: setattr(node, "value", ast.Constant(None))


def listed() -> list[Mutation]:
    """The faults that are tried each time, whatever is drawn."""
    found = []
    for path, before, after in LISTED:
        text = (ROOT / path).read_text(encoding="utf-8")
        if before not in text:
            raise SystemExit(f"tools/mutations.py: {path} no longer holds {before!r}; name its successor")
        line = text[: text.index(before)].count("\n") + 1
        change, source = f"{before}  ->  {after}", text.replace(before, after, 1)
        found.append(Mutation(path, line, change, source, _lines(ast.parse(text), line, line)))
    return found


def drawn(count: int, seed: int, word: str = "") -> list[Mutation]:
    """So many of all faults that the rooms' files can have: those with the least digests, so that most stay as code changes."""
    files = sorted(str(path.relative_to(ROOT)) for room in ROOMS for pattern in room.files for path in ROOT.glob(pattern))
    every = (each for path in dict.fromkeys(files) if word in path for each in _digests(path, seed))
    return [mutation(path, place) for _, path, place in heapq.nsmallest(count, every)]


def _digests(path: str, seed: int) -> Iterator[tuple[bytes, str, int]]:
    """Of each fault of a file: a digest of the seed, what is changed and which of several alike it is; and its number."""
    met: Counter[str] = Counter()
    for place, (node, _) in enumerate(places(ast.parse((ROOT / path).read_text(encoding="utf-8")))):
        shown = _shown(node)
        met[shown] += 1
        yield hashlib.sha256(f"{seed} {path}: {shown} {met[shown]}".encode()).digest(), path, place


def tests_of(path: str) -> tuple[str, ...]:
    """The fast tests of the room that a file is in; those of the file's own name come first."""
    own = [str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob(f"test_{Path(path).stem}.py")]
    return tuple(dict.fromkeys([*own, *room_of(path).tests]))


def tests_that_reach(mutation: Mutation, reached: Reached) -> tuple[str, ...]:
    """Those that run its lines; none where these are run without a test as well."""
    found = {test.rpartition("|")[0] for line in mutation.lines for test in reached[mutation.path].get(line, ())}
    return () if "" in found else tuple(sorted(found))


def room_of(path: str) -> Room:
    """The first room that has a file."""
    return next(room for room in ROOMS if any(Path(path).match(pattern) for pattern in room.files))


class Bench:
    """Copies of the tree, each of which takes one fault at a time."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._free: Queue[Path] = Queue()
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for number in range(jobs):
            tree = folder / str(number)
            for name in filter(None, files):
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).exists():
                    shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
            self._free.put(tree)

    def notices(self, mutation: Mutation, tests: tuple[str, ...]) -> bool:
        """Whether the tests that reach a fault fail with it in the tree."""
        tree = self._free.get()
        kept = (tree / mutation.path).read_text(encoding="utf-8")
        (tree / mutation.path).write_text(mutation.source, encoding="utf-8")
        try:
            # A fault can rename a test, and then pytest runs none: only one that fails has noticed.
            if 0 < len(tests) <= MANY and _ending(tree, tests, seconds=THEIRS) == 1:
                return True
            return _ending(tree, dict.fromkeys(test.partition("::")[0] for test in tests) or tests_of(mutation.path)) != 0
        finally:
            (tree / mutation.path).write_text(kept, encoding="utf-8")
            self._free.put(tree)

    def reached(self, files: list[str]) -> Reached:
        """Runs the tests of files without a fault, which they must pass, and says which of them run which line."""
        tree, tests = self._free.get(), list(dict.fromkeys(test for file in files for test in tests_of(file)))
        data, settings = CoverageData(str(tree.with_suffix(".data"))), tree.with_suffix(".settings")
        included = "\n    ".join(str(tree / file) for file in files)
        settings.write_text(f"[run]\ndata_file = {data.data_filename()}\ninclude =\n    {included}\n", encoding="utf-8")
        try:
            if _ending(tree, tests, "--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report="):
                raise SystemExit(f"the tests fail as they are: {' '.join(tests)}")
            data.read()
            return {file: data.contexts_by_lineno(str(tree / file)) for file in files}
        finally:
            self._free.put(tree)


def _ending(tree: Path, tests: Iterable[str], *more: str, seconds: float = PATIENCE) -> int:
    """Pytest's exit status: 1 when a test fails or hangs, another but 0 when it could not run them."""
    command, quiet = [*_PYTEST, *more, *tests], subprocess.DEVNULL
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(command, cwd=tree, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        return int(process.wait() != 0)


def main() -> int:
    """Draw, run, print what survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", default="", help="a word in the names of the files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    chosen = [mutation for mutation in listed() if options.only in mutation.path] + drawn(options.count, options.seed, options.only)
    with tempfile.TemporaryDirectory() as folder:
        return _run(chosen, Bench(Path(folder).resolve(), options.jobs), options.jobs)


def _run(chosen: list[Mutation], bench: Bench, jobs: int) -> int:
    begun, kinds, reached = time.monotonic(), defaultdict[str, list[Mutation]](list), Reached()
    rooms = [sorted({mutation.path for mutation in chosen if room_of(mutation.path) == room}) for room in reversed(ROOMS)]
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(bench.reached, filter(None, rooms)):
            reached |= found
        print(f"all tests pass without a fault; {time.monotonic() - begun:.0f} s", flush=True)
        tests = [tests_that_reach(mutation, reached) for mutation in chosen]
        running = {pool.submit(bench.notices, *each): each for each in zip(chosen, tests, strict=True)}
        for number, done in enumerate(as_completed(running), start=1):
            mutation, some = running[done]
            kind = (
                "noticed" if done.result() else "equivalent" if f"{mutation.path}: {mutation.change}" in EQUIVALENT else "SURVIVED"
            )
            kinds[kind].append(mutation)
            print(f"{number}/{len(chosen)} {kind}, {len(some) or 'not'} reached: {mutation}", flush=True)
    survivors, equivalent, seconds = kinds["SURVIVED"], len(kinds["equivalent"]), time.monotonic() - begun
    share = len(survivors) / max(len(chosen) - equivalent, 1)
    print(f"{len(survivors)} of {len(chosen)} survived ({share:.1%}), and {equivalent} that change nothing; {seconds:.0f} s")
    print(*(f"  {mutation}\n" for mutation in survivors), sep="", end="")
    return int(share > MOST_SURVIVORS)


if __name__ == "__main__":
    sys.exit(main())
