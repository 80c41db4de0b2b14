"""Checks as reward models: what passes, what does not, and what code of an answer cannot do."""

from __future__ import annotations

import re
import socket
import time

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard import BestOfMiniN, checks
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.testing import FakeGenerator

ADDS = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
TESTS = ["assert add(2, 3) == 5", "def test_signs():\n    assert add(-1, 1) == 0"]


def scores(check, *answers, prompt="q"):
    return check([HumanMessage(prompt)], [AIMessage(answer) for answer in answers])


def passed(check, *answers, prompt="q"):
    found = scores(check, *answers, prompt=prompt)
    assert all(abs(score) <= 6 for score in found)
    return [score >= 0 for score in found]


def test_exact():
    assert passed(checks.exact("the  answer"), " the answer\n", "The answer", "the answer.") == [True, False, False]
    assert passed(checks.exact("Yes", ignore_case=True), "YES") == [True]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It is 1,234.5", True),
        ("1234.5", True),
        ("First 7, then 1234.5.", True),
        ("1234.5, so 7", False),
        ("none", False),
        ("", False),
    ],
)
def test_the_last_number_counts(answer, right):
    assert passed(checks.number(1234.5), answer) == [right]


def test_numbers_with_signs_exponents_and_tolerance():
    assert passed(checks.number(-0.5), "x = -.5", "x = 0.5") == [True, False]
    assert passed(checks.number(1e5), "1e5") == [True]
    assert passed(checks.number(-5), "It is \u22125.", "x=-5", "3-5") == [True, True, False]
    assert passed(checks.number(5), "It is \u22125.", "3-5 days", "(2)-5", "1e-5") == [False, True, True, False]
    assert passed(checks.number(100, tolerance=0.01), "100.9", "102") == [True, False]
    assert passed(checks.number(float("inf")), "5", "1e999") == [False, False]


def test_letters_before_digits_are_no_exponent():
    assert passed(checks.number(42), "See example2: 42", "type2", "0xe5 e5") == [True, False, False]
    assert passed(checks.number(1234.5), "1,234.5e0", "+1234.5E0") == [True, True]


def test_what_is_expected_may_depend_on_the_prompt():
    twice = checks.number(lambda messages: 2 * float(messages[-1].text))
    assert passed(twice, "42", prompt="21") == [True]
    assert passed(twice, "42", prompt="20") == [False]


def test_regex():
    assert passed(checks.regex(r"\bParis\b"), "It is Paris.", "Parisian") == [True, False]
    assert passed(checks.regex("(?i)sorry", absent=True), "Sorry!", "Here.") == [False, True]
    with pytest.raises(ConfigurationError, match="no regular expression"):
        checks.regex("(")


def test_json_schema():
    check = checks.json_schema({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    assert passed(check, '{"a": 1}', '```json\n{"a": 1}\n```', '{"a": "1"}', "{", "[" * 100_000) == [
        True,
        True,
        False,
        False,
        False,
    ]
    titled = '```json title="a.json"\n{"a": 1}\n```\nThat is ``` {"a": "1"}', '```json\r\n{"a": 1}\r\n```\r\nThere.'
    assert passed(check, *titled, '```x``` is\n1\n```\n{"a": 1}\n```') == [True, True, True]
    spoken = 'It comes in a ```json block:\n\n```json\n{"a": 1}\n```', 'In ```json marks:\n```json\n{"a": 1}\n```'
    assert passed(check, *spoken) == [True, True]
    begun = time.perf_counter()
    assert passed(check, "```" + "a" * 50_000) == [False]
    assert time.perf_counter() - begun < 5  # it took half a minute
    assert passed(checks.json_schema({"type": "number"}), "1e3", "NaN", "-Infinity") == [True, False, False]
    with pytest.raises(ConfigurationError, match="no JSON schema"):
        checks.json_schema({"type": "nonsense"})
    with pytest.raises(ConfigurationError, match="schema must be an object, not 5"):
        checks.json_schema(5)


@pytest.mark.parametrize("reference", ["#/$defs/b", "#b", "b.json"])
def test_a_schema_refers_to_what_it_has(reference):
    parts = {"a": {"type": "integer", "$anchor": "c"}, "d": {"$id": "d.json", "const": {"$ref": "#/nowhere"}}}
    for known in ("#/$defs/a", "#c", "d.json", "#"):
        checks.json_schema({"properties": {"x": {"$ref": known}}, "$defs": parts})
    with pytest.raises(ConfigurationError, match=re.escape(f"schema refers to '{reference}', which is not in it")):
        checks.json_schema({"properties": {"x": {"$ref": reference}}, "$defs": parts})


def test_code_is_graded_and_passes_only_whole():
    whole, half, none = scores(checks.python(TESTS, seconds=20), ADDS, "def add(a, b):\n    return 5", "def add(")
    assert (whole, none) == (checks.PASSED, checks.FAILED)
    assert checks.FAILED < half < checks.ALMOST < 0


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "import os\ndef add(a, b):\n    os._exit(0)",
        "import sys\ndef add(a, b):\n    sys.exit(0)",
        "import os\nos.write(1, b'x' * 32 + b' 2')\ndef add(a, b): pass",
        "add = (lambda *_: [0] * 10**12)",
        "def add(a, b):\n    import os; os.system('true'); return a + b",
        "def add(a, b):\n    import subprocess; subprocess.run(['true']); return a + b",
    ],
)
def test_code_that_leaves_prints_grabs_or_starts_others_does_not_pass(code):
    assert passed(checks.python(TESTS, seconds=20), code) == [False]


def test_code_that_does_not_end_is_ended():
    begun = time.monotonic()
    assert passed(checks.python(TESTS, seconds=1), "while True: pass") == [False]
    assert time.monotonic() - begun < 60


def test_code_reaches_no_network_and_no_folder_of_ours():
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = f"import socket\ndef add(a, b):\n    socket.create_connection({server.getsockname()!r}, 2); return a + b"
        assert passed(checks.python(TESTS, seconds=20), reach) == [False]
    seen = "import os\ndef add(a, b):\n    return a + b if sorted(os.listdir()) == ['answer.py', 'tests.json'] else 0"
    assert passed(checks.python(TESTS, seconds=20), seen) == [True]
    secret = "import os\nassert not [name for name in os.environ if 'KEY' in name or 'TOKEN' in name]\n"
    assert passed(checks.python(TESTS, seconds=20), secret + "def add(a, b): return a + b") == [True]


def test_coroutines_may_be_tested():
    code = "import asyncio\nasync def later(): return 1\ndef add(a, b): return a + b if asyncio.run(later()) else 0"
    assert passed(checks.python(TESTS, seconds=20), code) == [True]


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_a_guard_serves_code_that_passes():
    guard = BestOfMiniN(
        generator=FakeGenerator(["def add(a, b): return a - b", ADDS]),
        reward_model=checks.python(TESTS, seconds=20),
        schedule=[1, 1],
    )
    result = guard.run("Write add.")
    assert (result.decision, result.draws, result.selected.message.text) == ("accepted", 2, ADDS)
    assert result.acceptance_probability > 0.99
