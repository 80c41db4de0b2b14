"""The demonstration on the bundled models, as a user runs it."""

from __future__ import annotations

import json

import pytest

from bonmini_guard.cli import main
from bonmini_guard.demo.models import MODELS
from tests.adapters.loopback import InThread
from tests.adapters.openai_server import OpenAIServer

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
    assert sum(file.stat().st_size for file in files) <= 20_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja", ".md"}


class Reviewer(OpenAIServer):
    """Writes reviews, good ones for every third seed."""

    def __init__(self):
        super().__init__()
        good, bad = " wonderful, moving and great fun.", " awful, boring and a waste of time."
        self.text = lambda body, index: good if body["seed"] % 3 == 0 else bad


def test_against_a_server_that_speaks_openais_protocol(capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with InThread(Reviewer()) as server:
        shown = entries(capsys, "--prompt", "The film was", "--base-url", server.url)
        assert [entry["decision"] for entry in shown.values()] == ["accepted", "accepted"]
        assert all("wonderful" in entry["answer"] for entry in shown.values())
        assert {body["max_tokens"] for _, _, body in server.requests} == {32}
        assert main(["demo", "--prompt", "The film was", "--base-url", server.url, "--model", "tiny"]) == 0
    assert "promise nothing" in " ".join(capsys.readouterr().out.split())


def test_a_server_that_is_not_there_or_refuses_is_one_clear_line(capsys):
    arguments = ["demo", "--prompt", "The film was", "--base-url"]
    with InThread(Reviewer()) as server:
        server.faults = lambda path, body: (404, {"error": {"message": "The model `x` does not exist."}})
        assert main([*arguments, server.url, "--model", "x"]) == 2
    err = capsys.readouterr().err
    assert "404: The model `x` does not exist." in err
    assert err.count("\n") == 1
    assert main([*arguments, "nonsense"]) == 2
    assert "base_url" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "x"],
        ["--reward-kind", "vllm"],
        ["--reward-tokenizer", "x"],
        ["--reward-url", "http://localhost:1"],
        ["--reward-url", "http://127.0.0.1:9", "--reward-kind", "vllm"],
    ],
)
def test_reward_servers_are_described_whole_and_must_be_there(capsys, arguments):
    assert main(["demo", "--json", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bonmini-guard demo: ")
    assert err.count("\n") == 1
