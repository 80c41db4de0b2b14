"""Inspect: logs of evaluations, as JSON or as its ``.eval`` archives; epochs of one sample are one row."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.logs.sources.draws import Draw, first, generator_of, whole_number
from bonmini_guard.logs.sources.messages import prompt_in

#: Of members of an archive.
_ZSTANDARD = 93
#: What its scorers say of right and wrong.
_WORDS = {"C": True, "I": False}


def archive(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples of an ``.eval`` file, each as a log of its own; InputError if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as file:
            header = json.loads(_member(file, "header.json"))
            for name in sorted(name for name in file.namelist() if name.startswith("samples/")):
                yield f"{path}:{name.removeprefix('samples/')}", {**header, "samples": [json.loads(_member(file, name))]}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except ImportError:
        raise
    except Exception as error:  # each library that unpacks has an error of its own
        cure = "write it anew with 'inspect log convert --to json'"
        raise InputError(f"{path}: no whole archive of Inspect ({type(error).__name__}); {cure}") from error


def _member(file: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member, which newer versions pack with Zstandard: Python's library cannot unpack that before 3.14."""
    about = file.getinfo(name)
    if about.compress_type != _ZSTANDARD or file.fp is None:
        return file.read(name)
    from zstandard import ZstdDecompressor

    file.fp.seek(about.header_offset)
    header = file.fp.read(30)
    file.fp.seek(sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28)), 1)
    return bytes(ZstdDecompressor().decompressobj().decompress(file.fp.read(about.compress_size)))


def units(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The samples of one log, each with what was run; InputError if it is no log."""
    samples = record.get("samples")
    if not isinstance(record.get("eval"), Mapping) or not isinstance(samples, list):
        raise InputError('no "eval" with "samples"; give whole logs of Inspect (inspect log dump), not headers')
    for sample in samples:
        yield {"eval": record["eval"], "plan": record.get("plan"), "sample": sample}


def draws(unit: Mapping[str, Any], left_out: Counter[str]) -> Iterator[Draw]:
    """The answers of one sample."""
    sample = unit["sample"]
    settings = (first(unit, key) for key in ("eval.model_generate_config", "plan.config"))
    generator = generator_of(first(unit, "model", "eval.model"), *settings)
    turns = [turn for turn in sample.get("messages") or () if isinstance(turn, Mapping)]
    ends = [place for place, turn in enumerate(turns) if turn.get("role") == "assistant"]
    failed = bool(sample.get("error")) and not first(sample, "output.choices")
    # As chat APIs write them: calls have a function's name and arguments of their own.
    asked = [_message(turn).openai() for turn in (turns[: ends[-1]] if ends else turns)]
    prompt = prompt_in(asked or sample.get("input"))
    choices = () if failed else first(sample, "output.choices") or ()
    answers: list[Turn | None] = [None] if failed else [_message(one["message"]) for one in choices]
    if not answers:
        left_out["samples without an answer"] += 1
    scores = first(sample, "scores") or {}
    given = {name: score.get("value") for name, score in scores.items() if isinstance(score, Mapping)}
    verdicts = {name: _WORDS.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    tokens = whole_number(first(sample, "output.usage.output_tokens")) if len(answers) == 1 else None
    for answer in answers:
        yield Draw(prompt, answer, id=str(sample.get("id")), generator=generator, verdicts=verdicts, fields={"tokens": tokens})


def _message(turn: Mapping[str, Any]) -> Turn:
    made = turn.get("tool_calls") or ()
    calls = [{"id": one.get("id"), "name": one.get("function"), "args": one.get("arguments")} for one in made]
    kept = {key: turn[key] for key in ("role", "content", "tool_call_id") if turn.get(key) is not None}
    return Turn.of({"content": "", **kept, "tool_calls": calls})
