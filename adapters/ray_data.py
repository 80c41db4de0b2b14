"""``score`` on a Ray cluster: every worker holds the reward model and fills shards of the log (Ray Data, ``map_batches``).

A shard is an ordinary resumable run of :func:`bonmini_guard.calibration.scoring_logs.score_log`, so that a worker, or the whole
cluster, may be killed at any time: the same call goes on with the rows that are not finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from glob import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bonmini_guard.calibration.scoring_logs import LogScorer, Tally, finish, score_log
from bonmini_guard.errors import BonMiniGuardError, InputError, needing
from bonmini_guard.logs.appending import encoded
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.validation import Amount, Count, checked
from bonmini_guard.writing import check_output

#: Shards for each worker: enough that a slow one does not hold up the rest.
SHARDS_PER_WORKER = 4

_COUNTS = tuple(field.name for field in fields(Tally))


@checked
def score_log_on_ray(
    paths: Sequence[str | os.PathLike[str]],
    load: Callable[[], LogScorer],
    output: str | os.PathLike[str],
    *,
    workers: Count = 1,
    shards: Count | None = None,
    gpus_per_worker: Amount = 0.0,
) -> Tally:
    """Score a log as ``score_log`` does, over the workers of a Ray cluster; rows keep the log's order.

    The log and the output must lie on storage that all workers reach by the same path. Connect first (``ray.init(address=...)``);
    otherwise Ray starts on this machine.

    Args:
        paths: the log, in order.
        load: gives a worker its reward model, once; for example ``lambda: RewardModel.load("/models/reward")``.
        output: ``.jsonl`` or ``.jsonl.gz``.
        workers: how many workers, each with a model of its own.
        shards: into how many parts the log is split (default: 4 for each worker). A resumed run must use the same number.
        gpus_per_worker: GPUs that each worker reserves.

    Raises:
        InputError: a row is malformed, or the shards of an earlier run belong to another log, model or number of shards;
            finished rows stay in the shards beside the output.
        ConfigurationError: workers or shards is not a positive number, or the output is part of the log or cannot be written.
        MissingExtraError: Ray is not installed.
    """
    shards = SHARDS_PER_WORKER * workers if shards is None else shards
    target = Path(output).absolute()
    check_output(target, paths, lines=True)
    _check_earlier(target, shards)
    sources = [str(Path(path).absolute()) for path in paths]
    tallies = _run(sources, load, target, (workers, shards, gpus_per_worker))
    total = Tally(**{name: sum(int(tally[name]) for tally in tallies) for name in _COUNTS})
    total.torn = max(int(tally["torn"]) for tally in tallies)  # every worker meets the same torn lines
    _merge([_part(target, number, shards) for number in range(1, shards + 1)], target)
    return total


def _run(sources: list[str], load: Callable[[], LogScorer], target: Path, plan: tuple[int, int, float]) -> list[dict[str, Any]]:
    with needing("ray"):
        import ray.data
    workers, shards, gpus = plan
    # Not ray.data.range: its read tasks wait for a CPU, and workers that hold all of a small cluster's would wait for them.
    numbers = ray.data.from_items([{"id": number} for number in range(shards)], override_num_blocks=shards)
    done = numbers.map_batches(
        _Worker,
        fn_constructor_args=(sources, load, str(target), shards),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus or None,
    ).take_all()
    problems = sorted((int(row["id"]), row["error"]) for row in done if row["error"])
    if problems:
        raise InputError(problems[0][1])
    return list(done)


class _Worker:
    """A Ray actor: one reward model, any number of shards."""

    def __init__(self, sources: list[str], load: Callable[[], LogScorer], target: str, shards: int) -> None:
        self._sources = sources
        self._scorer = load()
        self._target = Path(target)
        self._shards = shards

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        done = [self._score(int(number)) for number in batch["id"]]
        return {key: [row[key] for row in done] for key in ("id", "error", *_COUNTS)}

    def _score(self, index: int) -> dict[str, Any]:
        """A shard's counts. Bad input is an answer too: raised, Ray would wrap it in a page of its own frames."""
        part, tally, problem = _part(self._target, index + 1, self._shards), Tally(), ""
        partial = part.with_name(part.name + ".partial")
        if part.exists() and not partial.exists():
            part.rename(partial)  # finished by an earlier run: its rows are checked, not scored again
        try:
            tally = score_log(self._sources, self._scorer, part, shard=(index + 1, self._shards))
        except BonMiniGuardError as error:
            problem = str(error)
        return {"id": index, "error": problem, **asdict(tally)}


def _part(target: Path, number: int, shards: int) -> Path:
    return target.with_name(f"{target.name}.shard-{number:05}-of-{shards:05}.jsonl")


def _check_earlier(target: Path, shards: int) -> None:
    for path in target.parent.glob(f"{escape(target.name)}.shard-*"):
        if f"-of-{shards:05}." not in path.name:
            raise InputError(f"{path}: is of an earlier run with another number of shards; give its number, or remove its shards")


def _dealt(file: RowFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a shard, which is open while some are read alone: there may be more shards than a process may open."""
    place, first, lines = 0, 1, [b""]
    while lines:
        with file.open() as shard:
            shard.stream.seek(place)
            lines, place = shard.stream.readlines(2**18), shard.stream.tell()
        yield from file.rows_of(first, lines)
        first += len(lines)


def _merge(parts: Sequence[Path], target: Path) -> None:
    """Rows dealt out like cards are taken up in turn, so that the log's order comes back; then the shards go."""
    merged, files = target.with_name(target.name + ".partial"), [RowFile(part, whole=True) for part in parts]
    with merged.open("wb") as sink:
        for dealt in zip_longest(*map(_dealt, files)):
            sink.writelines(encoded(row) for _, row in filter(None, dealt))
    # A shard that was damaged on its way must not become part of the log.
    if any(file.torn for file in files):
        raise InputError(f"{target}: a shard of it was cut off on its way; run again with the same shards")
    finish(merged, target)
    for part in parts:
        part.unlink()
