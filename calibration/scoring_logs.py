"""Fill a log's missing scores with a reward model; a run that is killed goes on where it stopped.

Finished rows are appended to ``OUT.partial``, one line each, flushed at once; at the end it becomes ``OUT`` by one rename.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from langchain_core.messages import AIMessage, BaseMessage

from bonmini_guard.errors import InputError
from bonmini_guard.logs.appending import Appender, encoded, lock
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.rows import Candidate, Row
from bonmini_guard.unseen import check_seen
from bonmini_guard.writing import appearing, check_output


class LogScorer(Protocol):
    """What scores a log: a :class:`bonmini_guard.RewardModel`, or anything with these two methods."""

    def score(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> Sequence[float | None]:
        """One score for each candidate; None for one that cannot be scored."""
        ...

    def fingerprint(self) -> str:
        """What equal models have in common and others have not."""
        ...


@dataclass
class Tally:
    """What a run did.

    Attributes:
        rows: rows written, of which an earlier run had finished those ``resumed``.
        scored: candidates scored in this run, of which those ``replaced`` had a score of another or an unknown model.
        kept: candidates whose score was this model's already.
        unscorable: candidates that the model could not score (too long); they are marked as failed draws.
        torn: torn last lines of the input.
        trained_on: rows whose prompt the model learnt from; they are marked, and calibration leaves them out.
    """

    rows: int = 0
    resumed: int = 0
    scored: int = 0
    kept: int = 0
    replaced: int = 0
    unscorable: int = 0
    torn: int = 0
    trained_on: int = 0


def score_log(
    paths: Sequence[str | os.PathLike[str]],
    scorer: LogScorer,
    output: str | os.PathLike[str],
    *,
    shard: tuple[int, int] = (1, 1),
    progress: Callable[[int], None] = lambda rows: None,
    beside: str | None = None,
) -> Tally:
    """Score every candidate that has no score of this model, and write the rows with ``scored_by``.

    A score is kept only if the row's ``scored_by`` is this model's fingerprint: one log never mixes models. All other keys of rows
    and candidates are kept; a ``raw_score`` of another model is dropped. Failed draws stay as they are. A row whose prompt the
    model says it was trained on gets ``"trained_on": true``.

    Args:
        paths: the log, shards in order.
        scorer: the reward model.
        output: ``.jsonl`` or ``.jsonl.gz``.
        shard: (i, n): only the rows i, i + n, i + 2n, ... of the log, counted from 1.
        progress: told how many rows are written, after each.
        beside: a judge's name: scores become its ``verdicts`` (true from 0 on) of answers that people have labelled, beside what is
            there. Rows say by ``judged_by`` which judge that was.

    Raises:
        InputError: a row is malformed, or ``OUT.partial`` is from another log, shard or model, or being written; its rows stay.
        ConfigurationError: the output is one of the inputs, has another kind of name, or cannot be written.
    """
    target = Path(output)
    check_output(target, paths, lines=True)
    partial = target.with_name(target.name + ".partial")
    tally, mark = Tally(), scorer.fingerprint()
    file = _alone(partial)
    try:
        finished = _finished(partial, beside)
        file.cut()
        for row in _of_shard(paths, shard, tally):
            if tally.rows < len(finished):
                if (found := finished[tally.rows]) != (row.id, mark):
                    what = "other rows" if found[0] != row.id else "another reward model"
                    cure = "remove it to begin anew, or give another -o"
                    raise InputError(f"{partial}: was begun with {what} than {row.place}; {cure}")
                tally.resumed += 1
                tally.trained_on += learnt_from(row, scorer)
            else:
                written = _scored(row, scorer, mark, tally) if beside is None else _judged(row, scorer, mark, tally, beside)
                file.append(encoded(written))
            tally.rows += 1
            progress(tally.rows)
        os.fsync(file.descriptor)
        _require_alone(file.refresh(), partial)
    finally:
        file.close()
        if not file.size:
            partial.unlink(missing_ok=True)
    if tally.rows < len(finished):
        raise InputError(f"{partial}: holds more rows than the log; it is from another one: remove it, or give another -o")
    partial.touch()  # a shard of a short log may have no row
    finish(partial, target)
    return tally


def _alone(partial: Path) -> Appender:
    """The rows of an earlier run, open for more, that no other run has open."""
    file = Appender(partial)
    try:
        _require_alone(lock(file.descriptor, wait=False) and file.refresh(), partial)
    except InputError:
        file.close()
        raise
    return file


def _require_alone(alone: bool, partial: Path) -> None:
    if not alone:
        raise InputError(f"{partial}: another run is writing it; wait until it ends, or give another -o")


def _of_shard(paths: Sequence[str | os.PathLike[str]], shard: tuple[int, int], tally: Tally) -> Iterator[Row]:
    number, shards = shard
    files = [RowFile(path) for path in paths]
    for index, (place, value) in enumerate(pair for file in files for pair in file):
        if index % shards == number - 1:
            yield Row(value, place)
    tally.torn = sum(file.torn for file in files)


def _finished(partial: Path, beside: str | None) -> list[tuple[str, str]]:
    """Id and scorer of the rows that an earlier run finished."""
    try:
        rows = [row for _, row in RowFile(partial, whole=True)] if partial.exists() else []
        return [(row["id"], row["scored_by"] if beside is None else row["judged_by"][beside]) for row in rows]
    except (InputError, KeyError) as error:
        raise InputError(f"{partial}: is no log that 'score' began; move it away, or give another -o") from error


def _scored(row: Row, scorer: LogScorer, mark: str, tally: Tally) -> dict[str, Any]:
    try:
        check_seen(scorer, row.prompt, refuse=True)
    except InputError as error:
        raise InputError(f"{row.place}: {error}") from error
    known = [row.value.get("scored_by") == mark and one.value.get("score") is not None for one in row.candidates]
    missing = [one for one, kept in zip(row.candidates, known, strict=True) if not kept and not one.value.get("failed")]
    tally.kept += sum(known)
    tally.replaced += sum(one.value.get("score") is not None for one in missing)
    if missing:
        answers = [_answer(one) for one in missing]
        for one, score in zip(missing, scorer.score(_messages(row), answers), strict=True):
            one.value.pop("raw_score", None)
            if score is not None and math.isfinite(score):
                one.value["score"] = float(score)  # of numpy's, too, which JSON does not know
                tally.scored += 1
            else:
                one.value |= {"score": None, "failed": True}
                tally.unscorable += 1
    marked = {key: value for key, value in row.value.items() if key != "trained_on"} | {"id": row.id, "scored_by": mark}
    if learnt_from(row, scorer):
        marked["trained_on"] = True
        tally.trained_on += 1
    return marked


def _judged(row: Row, scorer: LogScorer, mark: str, tally: Tally, beside: str) -> dict[str, Any]:
    """With verdicts on what people have labelled; those of this very judge are kept."""

    def by_judge(value: Mapping[str, Any], key: str) -> dict[str, Any]:
        if not isinstance(found := value.get(key) or {}, dict):
            raise InputError(f'{row.place}: "{key}" is {repr(found)[:20]}, and is to hold an entry for each judge; rename the key')
        return found

    wanted = [one for one in row.candidates if one.label is not None and not one.failed]
    judges = by_judge(row.value, "judged_by")
    missing = [one for one in wanted if judges.get(beside) != mark or beside not in by_judge(one.value, "verdicts")]
    tally.kept += len(wanted) - len(missing)
    for one, score in zip(missing, scorer.score(_messages(row), list(map(_answer, missing))) if missing else (), strict=True):
        said = None if score is None or not math.isfinite(score) else bool(score >= 0)
        one.value["verdicts"] = {**by_judge(one.value, "verdicts"), beside: said}
        tally.scored, tally.unscorable = tally.scored + (said is not None), tally.unscorable + (said is None)
    return {**row.value, "id": row.id, "judged_by": {**judges, beside: mark}}


def learnt_from(row: Row, scorer: LogScorer) -> bool:
    """Whether the scorer says that it was trained on the row's prompt."""
    asked: Callable[[list[BaseMessage]], bool] | None = getattr(scorer, "trained_on", None)
    return asked is not None and asked(_messages(row))


def _messages(row: Row) -> list[BaseMessage]:
    return [turn.message() for turn in row.prompt]


def _answer(candidate: Candidate) -> AIMessage:
    message = candidate.turn.message()
    assert isinstance(message, AIMessage)
    return message


def finish(partial: Path, target: Path) -> None:
    """Make a whole plain file the output, packed if its name ends in .gz, at once; a link stays a link."""
    if target.suffix != ".gz" and not target.is_symlink():
        os.replace(partial, target)
        return
    with partial.open(encoding="utf-8", newline="") as source, appearing(target) as sink:
        shutil.copyfileobj(source, sink)
    partial.unlink()
