"""Fill a log's missing scores with a reward model; a run that is killed goes on where it stopped.

Finished rows are appended to ``OUT.partial``, one line each, flushed at once; at the end it becomes ``OUT`` by one rename.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages

from bonmini_guard.calibration.files import Row, RowFile
from bonmini_guard.calibration.rows import row_id
from bonmini_guard.conversation import as_messages
from bonmini_guard.errors import ConfigurationError, InputError


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
        rows: rows written, those of earlier runs included.
        resumed: of those, rows found finished.
        scored: candidates scored in this run.
        kept: candidates whose score was this model's already.
        replaced: of those scored, candidates that had a score of another or an unknown model.
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

    Raises:
        InputError: a row is malformed, or ``OUT.partial`` is from another log, shard or model; finished rows stay in it.
        ConfigurationError: the output is one of the inputs.
    """
    target = Path(output)
    if any(Path(path).exists() and target.exists() and Path(path).samefile(target) for path in paths):
        raise ConfigurationError(f"{target}: is the log itself; give another -o")
    partial = target.with_name(target.name + ".partial")
    tally, mark = Tally(), scorer.fingerprint()
    finished = _finished(partial)
    try:
        _append(partial, paths, scorer, (shard, mark, finished), tally=tally, progress=progress)
    except BaseException:
        if partial.exists() and not partial.stat().st_size:
            partial.unlink()
        raise
    if tally.rows < len(finished):
        raise InputError(f"{partial}: holds more rows than the log; it is from another one: remove it, or give another -o")
    finish(partial, target)
    return tally


def _append(
    partial: Path,
    paths: Sequence[str | os.PathLike[str]],
    scorer: LogScorer,
    where: tuple[tuple[int, int], str, list[tuple[str, str]]],
    *,
    tally: Tally,
    progress: Callable[[int], None],
) -> None:
    """Append the rows of a shard that are not finished yet."""
    shard, mark, finished = where
    with partial.open("ab") as file:
        for place, row in _of_shard(paths, shard, tally):
            if tally.rows < len(finished):
                _check_resumed(finished[tally.rows], (row_id(row, place), mark), partial, place)
                tally.resumed += 1
                tally.trained_on += _trained_on(row, place, scorer)
            else:
                line = json.dumps(_scored(row, place, scorer, mark, tally), ensure_ascii=False) + "\n"
                file.write(line.encode(errors="backslashreplace"))  # a lone surrogate, in the spelling of JSON
                file.flush()
            tally.rows += 1
            progress(tally.rows)
        os.fsync(file.fileno())


def _of_shard(paths: Sequence[str | os.PathLike[str]], shard: tuple[int, int], tally: Tally) -> Iterator[tuple[str, Row]]:
    number, shards = shard
    files = [RowFile(path) for path in paths]
    for index, pair in enumerate(pair for file in files for pair in file):
        if index % shards == number - 1:
            yield pair
    tally.torn = sum(file.torn for file in files)


def _finished(partial: Path) -> list[tuple[str, str]]:
    """(id, scored_by) of the rows that an earlier run finished; a torn last line is cut off the file."""
    if not partial.exists():
        return []
    marks, whole = [], 0
    with partial.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                marks.append((row["id"], row["scored_by"]))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{partial}: is no log that 'score' began; move it away, or give another -o") from error
            whole += len(line)
    os.truncate(partial, whole)
    return marks


def _check_resumed(found: tuple[str, str], expected: tuple[str, str], partial: Path, place: str) -> None:
    if found != expected:
        what = "other rows" if found[0] != expected[0] else "another reward model"
        raise InputError(f"{partial}: was begun with {what} than {place}; remove it to begin anew, or give another -o")


def _scored(row: Row, place: str, scorer: LogScorer, mark: str, tally: Tally) -> Row:
    candidates = row.get("candidates")
    if not isinstance(candidates, list) or not all(isinstance(candidate, dict) for candidate in candidates):
        raise InputError(f'{place}: the row has no "candidates"; list at least one {{"text"}}')
    row_id(row, place)
    same = row.get("scored_by") == mark
    missing = [c for c in candidates if not c.get("failed") and not (same and c.get("score") is not None)]
    tally.kept += sum(same and c.get("score") is not None for c in candidates)
    tally.replaced += sum(c.get("score") is not None for c in missing)
    if missing:
        answers = [_answer(candidate, place) for candidate in missing]
        for candidate, score in zip(missing, scorer.score(_messages(row, place), answers), strict=True):
            _put(candidate, score, tally)
    marked = {key: value for key, value in row.items() if key != "trained_on"} | {"scored_by": mark}
    if _trained_on(row, place, scorer):
        marked["trained_on"] = True
        tally.trained_on += 1
    return marked


def _trained_on(row: Row, place: str, scorer: LogScorer) -> bool:
    asked: Callable[[list[BaseMessage]], bool] | None = getattr(scorer, "trained_on", None)
    return asked is not None and asked(_messages(row, place))


def _messages(row: Row, place: str) -> list[BaseMessage]:
    try:
        return as_messages(row.get("prompt"))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _answer(candidate: dict[str, Any], place: str) -> AIMessage:
    if isinstance(candidate.get("message"), dict):
        try:
            message = convert_to_messages([{"role": "assistant", **candidate["message"]}])[0]
        except Exception as error:  # whatever LangChain makes of a malformed one
            raise InputError(f'{place}: the "message" of a candidate cannot be read; give a "text" instead') from error
        if isinstance(message, AIMessage):
            return message
    if isinstance(candidate.get("text"), str):
        return AIMessage(candidate["text"])
    raise InputError(f'{place}: a candidate has no "text" to score; write it, or mark a failed draw with "failed": true')


def _put(candidate: dict[str, Any], score: float | None, tally: Tally) -> None:
    candidate.pop("raw_score", None)
    usable = score is not None and math.isfinite(score)
    candidate["score"] = score if usable else None
    if usable:
        tally.scored += 1
    else:
        candidate["failed"] = True
        tally.unscorable += 1


def finish(partial: Path, target: Path) -> None:
    """Make a whole plain file the output, packed if its name ends in .gz, at once."""
    if target.suffix == ".gz":
        packed = partial.with_name(partial.name + ".gz")
        with partial.open("rb") as source, gzip.open(packed, "wb") as sink:
            shutil.copyfileobj(source, sink)
        os.replace(packed, target)
        partial.unlink()
    else:
        os.replace(partial, target)
