"""What the documents and tools point at is there: links, CONTRIBUTING's map, the reference, the faults that are tried each time."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bonmini_guard
from tools import mutants, reference

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "benchmarks/**/*.md") for path in ROOT.glob(pattern))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    return {reference.anchor(heading) for heading in re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_documents_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        place, _, part = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not part or part in anchors(target), link


def rows() -> list[tuple[str, str, str]]:
    """Behaviour, file and names of each line of the map."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return re.findall(r"^\| (.+?) \| `([\w/.]+)` \| (.+?) \|$", text, re.MULTILINE)


@pytest.mark.parametrize(("behaviour", "file", "names"), rows())
def test_the_map_of_behaviours_is_true(behaviour, file, names):
    source = (Path(bonmini_guard.__file__).parent / file.removeprefix("bonmini_guard/")).read_text("utf-8")
    for name in re.findall(r"`([\w.]+)`", names):
        assert re.search(rf"\b(def|class) {name}\b|^{name} =", source, re.MULTILINE), name


def test_the_map_has_what_the_readme_promises():
    assert len(rows()) >= 30


def test_the_reference_holds_every_public_name_and_its_links_lead_somewhere():
    text = reference.page()
    headings = {reference.anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\(#([^)]*)\)", text)) <= headings
    for package in reference.PACKAGES:
        assert reference.public(package), package
    assert " at 0x" not in text


def test_each_fault_that_is_always_tried_is_still_one():
    assert all(fault.source != (ROOT / fault.path).read_text("utf-8") for fault in mutants.listed())


def test_a_fault_meets_the_tests_that_run_its_statement_and_the_whole_room_where_no_test_can_be_told():
    tree = ast.parse("def first(a=1):\n    return f(\n        a + 1,\n    )\nB = 2\n")
    inside = mutants.Mutation("file.py", 3, "", "", mutants._lines(tree, 3, 3))
    runs = {2: ["t.py::two[a|b]|run", "t.py::one|setup"], 3: ["t.py::one|run"]}
    assert mutants.tests_that_reach(inside, {"file.py": runs}) == ("t.py::one", "t.py::two[a|b]")
    assert mutants.tests_that_reach(inside, {"file.py": {**runs, 3: [""]}}) == ()
    # What runs at import runs for whichever test comes first, where that imports the file.
    assert mutants._lines(tree, 1, 1) == mutants._lines(tree, 5, 5) == frozenset()
