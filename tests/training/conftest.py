"""The tiny base model of the reward tests, and a command that many tests run."""

import json

import pytest

from bonmini_guard.cli import main
from tests.reward.conftest import base, chat_tokenizer, plain_tokenizer

__all__ = ["base", "chat_tokenizer", "plain_tokenizer"]


@pytest.fixture
def converted_file(tmp_path):
    """``bonmini-guard convert in.jsonl --from source ... -o out.jsonl`` of some records: its exit code."""

    def run(source, records, *options):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return main(["convert", str(path), "--from", source, *options, "-o", str(tmp_path / "out.jsonl")])

    return run
