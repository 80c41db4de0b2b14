"""The demonstration on the bundled models, as a user runs it."""

from __future__ import annotations

import json

import pytest

from bonmini_guard.cli import main
from bonmini_guard.demo.models import MODELS

ENTRY = {"mode", "decision", "draws", "seconds", "score", "acceptable", "best_of_n"}


def entries(capsys, *arguments):
    assert main(["demo", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_three_requests_show_what_they_promise(capsys):
    shown = entries(capsys)
    assert list(shown) == ["accepts", "abstains", "accelerates"]
    assert all(entry.keys() >= ENTRY for entry in shown.values())
    accepts, abstains, accelerates = shown.values()
    assert (accepts["decision"], accepts["acceptable"]) == ("accepted", True)
    assert accepts["draws"] < accepts["best_of_n"]["draws"]
    assert (abstains["decision"], abstains["answer"]) == ("abstained", None)
    assert abstains["best_of_n"]["acceptable"] is False
    assert accelerates["mode"] == "accelerator"
    assert accelerates["draws"] < accelerates["best_of_n"]["draws"]


def test_a_prompt_of_ones_own_runs_in_both_configurations_and_repeats(capsys):
    arguments = ("--prompt", "A wonderful film from the first minute to the last, and", "--seed", "3")
    first, second = entries(capsys, *arguments), entries(capsys, *arguments)
    assert [entry["mode"] for entry in first.values()] == ["guardrail", "accelerator"]
    for name in first:
        assert first[name]["answer"] == second[name]["answer"]
        assert first[name]["score"] == pytest.approx(second[name]["score"], abs=1e-4)


def test_the_show_is_printed_and_saved(capsys, tmp_path):
    picture = tmp_path / "demo.svg"
    assert main(["demo", "--prompt", "A dull film, and", "--svg", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "best-of-" in out
    assert "draws instead of" in out
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_an_empty_prompt_is_bad_input(capsys):
    assert main(["demo", "--prompt", "  "]) == 2
    assert "--prompt is empty" in capsys.readouterr().err


def test_what_ships_is_small_and_holds_no_pickle():
    files = [file for file in MODELS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16_500_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja"}
