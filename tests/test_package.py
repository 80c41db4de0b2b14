"""The package's face: the contract's names, a light import, the error tree."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bonmini_guard
from bonmini_guard import _lazy, errors
from bonmini_guard.engine.protocols import DrawRequest, EndRequest, Generator, GroupGenerator, Scorer, ScoringSession
from bonmini_guard.policy.budget import Budget
from bonmini_guard.policy.policy import StopRule
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

HEAVY = {"torch", "transformers", "scipy", "matplotlib", "numpy.linalg", "sklearn"}


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import bonmini_guard", HEAVY),
        ("from bonmini_guard import BestOfMiniN, GuardProfile, GuardResult", HEAVY),
        ("from bonmini_guard import BelowFloor, Generator, GenerationError, Limiter, Scorer, TooBusy", HEAVY),
        # What scores comes with its model: until then nothing but the class that loads it.
        ("from bonmini_guard import RewardModel", {"torch._dynamo", "scipy", "sympy", "transformers.modeling_utils"}),
    ],
)
def test_importing_loads_nothing_heavy(statement, heavy):
    code = f"{statement}; import sys; print(sorted({heavy} & set(sys.modules) - {{'numpy.linalg'}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("", "BestOfMiniN ChatBestOfMiniN GuardProfile GuardResult NoAcceptableResponse RewardModel ScorerError"),
        (".adapters", "LangChainGenerator TransformersGenerator RemoteRewardModel"),
        (".testing", "FakeGenerator FakeRewardModel"),
    ],
)
def test_the_contracts_names_resolve(module, names):
    home = importlib.import_module(f"bonmini_guard{module}")
    for name in names.split():
        assert getattr(home, name).__name__ == name
        assert module == ".testing" or name in home.__all__


def test_what_users_catch_implement_and_compose_is_importable_from_the_package():
    raised = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]
    for kind in (*raised, Generator, GroupGenerator, Scorer, ScoringSession, DrawRequest, EndRequest, StopRule, Budget):
        assert getattr(bonmini_guard, kind.__name__) is kind
        assert kind.__name__ in bonmini_guard.__all__


@pytest.mark.parametrize(
    ("room", "names"), [("engine", "Engine Observer draw_seed"), ("policy", "accelerator guardrail Policy run")]
)
def test_names_of_former_modules_are_found_in_the_rooms_of_their_names(room, names):
    package, home = (importlib.import_module(f"bonmini_guard.{name}") for name in (room, f"{room}.{room}"))
    for name in names.split():
        assert getattr(package, name) is getattr(home, name)
        assert name in package.__all__
    assert "__version__" in bonmini_guard.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        bonmini_guard.Nonsense  # noqa: B018


def test_the_error_tree():
    assert issubclass(errors.ScorerError, errors.NoAcceptableResponse)
    assert issubclass(errors.ProfileError, errors.ConfigurationError)
    assert issubclass(errors.CheckpointError, errors.ConfigurationError)
    for name in ("ConfigurationError", "InputError", "GenerationError", "NoAcceptableResponse", "CandidateTooLong"):
        assert issubclass(getattr(errors, name), errors.BonMiniGuardError)
    assert issubclass(errors.MissingExtraError, ImportError)
    missing = pickle.loads(pickle.dumps(errors.MissingExtraError("torch", "local")))
    assert (missing.package, missing.extra, str(missing)) == ("torch", "local", str(errors.MissingExtraError("torch", "local")))


def test_the_fakes_fulfil_the_protocols():
    model = FakeRewardModel({})
    assert isinstance(FakeGenerator(["a"]), Generator)
    assert not isinstance(FakeGenerator(["a"]), GroupGenerator)
    assert isinstance(model, Scorer)
    assert isinstance(model.session([]), ScoringSession)


SETUP = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
PACKAGE = Path(bonmini_guard.__file__).parent


def test_everything_the_package_reads_is_package_data():
    shipped = {file for pattern in SETUP["package-data"]["bonmini_guard"] for file in PACKAGE.glob(pattern)}
    needed = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert needed <= shipped
    assert {PACKAGE / "py.typed", PACKAGE / "labelling" / "page.html"} <= needed


def test_every_package_is_built():
    files = [file for folder in (PACKAGE, PACKAGE / "adapters", PACKAGE / "calibration") for file in folder.rglob("*.py")]
    assert {".".join(("bonmini_guard", *file.parent.relative_to(PACKAGE).parts)) for file in files} == set(SETUP["packages"])


#: Runs each program as the first to import the package; what that imports from elsewhere (torch takes seconds) stays.
ANEW = """
import json, sys, traceback
finders = sys.meta_path[:]
for line in sys.stdin:
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.partition(".")[0] == "bonmini_guard"]:
        del sys.modules[name]
    try:
        exec(json.loads(line), {})
        said = ""
    except BaseException:
        said = traceback.format_exc()
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def anew():
    with subprocess.Popen([sys.executable, "-c", ANEW], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def said(code):
            print(json.dumps(code), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield said


#: Resolves every public name: before any submodule is imported, after all of them are, or names only in a given order.
IMPORTS = """
import importlib, importlib.util, sys
packages = [importlib.import_module(f"bonmini_guard{{room}}") for room in ("", {rooms})]
resolve = importlib.util.resolve_name
lazy = [(package, *pair) for package in packages for pair in getattr(package, "_HOMES", {{}}).items()]
homes = [(package, name, resolve(f".{{home}}", package.__name__)) for package, name, home in lazy]
for step in {steps}:
    for package, name, home in homes[::{order}]:
        module = importlib.import_module(home) if step == "modules" else None
        assert step == "modules" or getattr(package, name) is getattr(importlib.import_module(home), name), (package, name)
for package in packages:  # the others import their names themselves
    assert set(package.__all__) - {{"__version__"}} == set(getattr(package, "_HOMES", package.__all__)), package
"""


@pytest.mark.parametrize(("steps", "order"), [(["names", "modules", "names"], -1), (["modules", "names"], 1)])
def test_public_names_are_what_is_documented_in_any_order_of_import(anew, steps, order):
    names = ["adapters", "calibration", "distill", "labelling", "reward", "training", "training.distill"]
    rooms = ", ".join(f'".{name}"' for name in names)
    assert not anew(IMPORTS.format(rooms=rooms, steps=steps, order=order))


@pytest.mark.parametrize(
    "code",
    [
        "from bonmini_guard.calibration import replay; assert callable(replay)",
        "import bonmini_guard.calibration.figures; from bonmini_guard.calibration import replay; assert callable(replay)",
        "import bonmini_guard.labelling.agreement; from bonmini_guard.labelling import agreement; assert callable(agreement)",
        "from bonmini_guard.labelling.agreement import agreement, describe; assert callable(agreement)",
    ],
)
def test_a_function_is_not_replaced_by_the_module_of_its_name(anew, code):
    assert not anew(code)


@pytest.mark.parametrize("first", ["former", "present"])
def test_former_paths_are_the_same_modules(anew, first):
    pytest.importorskip("torch")
    pairs = [*_lazy.MOVED.items(), ("data.converters", "training.data.converters")]
    code = f"""
from importlib import import_module
for pair in {pairs}:
    paths = [f"bonmini_guard.{{path}}" for path in pair]
    found = {{path: import_module(path) for path in {"paths" if first == "former" else "paths[::-1]"}}}
    assert found[paths[0]] is found[paths[1]] and found[paths[0]].__spec__.name == found[paths[1]].__name__, paths
"""
    assert not anew(code)
