"""The command's face: its version, and what it says where only the core is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bonmini_guard import __version__, cli

#: A process in which nothing but the core's dependencies can be imported.
CORE_ONLY = """
import json, sys
from importlib.abc import MetaPathFinder
OUTSIDE = set(
    "torch transformers numpy scipy matplotlib rich safetensors starlette uvicorn peft accelerate trl krippendorff huggingface_hub "
    "gguf tokenizers pyarrow langchain jinja2 prometheus_client".split()
)
class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OUTSIDE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in OUTSIDE else found(name, package)
sys.meta_path.insert(0, Blocked())
from bonmini_guard.cli import main
for arguments in json.loads(sys.argv[1]):
    print(arguments[0], main(arguments), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["-m", "bonmini_guard", "--version"], ["-m", "bonmini_guard.cli", "--version"]])
def test_the_version_is_told(arguments):
    told = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
    assert told == f"bonmini-guard {__version__}\n"


def test_each_command_names_the_extra_that_it_needs(tmp_path):
    log, choices, profile = (str(tmp_path / name) for name in ("log.jsonl", "choices.jsonl", "profile.json"))
    row = {"id": "1", "prompt": "p", "candidates": [{"text": "a", "score": 1.0, "acceptable": True}]}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "choices.jsonl").write_text(json.dumps({"prompt": "p", "responses": ["a", "b"], "choice": 0}) + "\n")
    (tmp_path / "profile.json").write_text(json.dumps({"mode": "guardrail", "schedule": [1], "thresholds": [0.0]}))
    out = str(tmp_path / "out")
    commands = [
        ["train", choices, "--base", out, "-o", out],
        ["distill", log, "--generator", out, "--reward-model", out, "-o", out],
        ["score", log, "--reward-model", out, "-o", f"{out}.jsonl"],
        ["zero", out, "--labels", log, "-o", f"{out}.json"],
        ["judge", log, "--judge", out, "-o", f"{out}.jsonl"],
        ["label", log, "-o", f"{out}.jsonl"],
        ["start", log],
        ["replay", log, "--profile", profile],
        ["calibrate", log, "--mode", "guardrail", "-o", out],
        ["report", log, "--profile", profile, "-o", out],
        ["drift", profile, log],
        ["serve", "--reward-model", out],
    ]
    ran = subprocess.run([sys.executable, "-c", CORE_ONLY, json.dumps(commands)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for command, *_ in commands:
        said = next(line for line in ran.stderr.splitlines() if line.startswith(f"bonmini-guard {command}: "))
        assert said.endswith(f"pip install 'bonmini-guard[{cli.COMMANDS[command]}]'"), said
        assert f"{command} 2" in ran.stderr.splitlines()


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("bonmini_guard.commands.replay.run", stopped)
    assert cli.main(["replay", str(tmp_path / "log.jsonl"), "--profile", str(tmp_path / "profile.json")]) == 130
    assert capsys.readouterr().err == "bonmini-guard replay: stopped\n"
