"""Loading, replaying and calibrating a large log: ``python -m benchmarks.scale [--rows 1000000] [--format parquet] [--json FILE]``.

A synthetic log (ids, prompts of about 60 characters, texts of about 40, a score and a label for each of 16 candidates) is written
into a temporary folder. Then each command runs as a process of its own; CPU seconds and the largest resident set are the system's
own count of it. Goals for 1,000,000 rows: replay 15 CPU seconds and 1 GiB, calibrate for any risk 60 CPU seconds and 1.5 GiB;
10,000,000 rows of Parquet replayed within 4 GiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import arguments, print_table, write_json

CANDIDATES, CHUNK = 16, 2**15
WORDS = ("guarded", "answer", "draws", "scores", "that", "pass", "before", "its", "budget", "ends", "and", "nobody", "waits", "for")
LOAD = "import sys; from bonmini_guard.calibration.logs import load_log; print(len(load_log(sys.argv[1])))"
SCHEDULE = ["--schedule", "4,4,4,4"]
RISKS = ("served_and_bad", "bad_among_served", "false_acceptance")


def texts(number: int, length: int, seed: int) -> list[str]:
    """Texts of about that many characters."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, length // 5))[:length] for _ in range(number)]


def chunks(rows: int, seed: int = 0) -> Iterator[tuple[int, Any, Any]]:
    """(first row, scores, labels), of up to ``CHUNK`` rows: utilities of prompt and draw, seen through two errors."""
    for first in range(0, rows, CHUNK):
        generator = np.random.default_rng([seed, first])
        shape = (min(CHUNK, rows - first), CANDIDATES)
        utility = generator.normal(size=(shape[0], 1)) + 0.7 * generator.normal(size=shape)
        yield first, utility + 0.5 * generator.normal(size=(shape[0], 1)) + 0.5 * generator.normal(size=shape), utility > 0


def write_json_lines(path: Path, rows: int) -> None:
    """The log as JSON lines."""
    answers, prompts = texts(CANDIDATES, 40, 1), texts(1000, 54, 2)
    candidate = ", ".join('{"text": "' + answer + '", "score": %.6f, "acceptable": %s}' for answer in answers)
    line = '{"id": "row-%d", "prompt": "%s %d", "candidates": [' + candidate + "]}\n"
    with path.open("w", encoding="utf-8") as file:
        for first, scores, labels in chunks(rows):
            said = np.where(labels, "true", "false")
            for row, (score, label) in enumerate(zip(scores.tolist(), said.tolist(), strict=True), start=first):
                mixed = [value for pair in zip(score, label, strict=True) for value in pair]
                file.write(line % (row, prompts[row % 1000], row, *mixed))


def write_parquet(path: Path, rows: int) -> None:
    """The log as Parquet."""
    import pyarrow as arrow
    from pyarrow import parquet

    answers, prompts = arrow.array(texts(1000, 40, 1)), texts(1000, 54, 2)
    writer = None
    for first, scores, labels in chunks(rows):
        columns = [
            answers.take(arrow.array(np.arange(scores.size) % 1000)),
            arrow.array(scores.ravel()),
            arrow.array(labels.ravel()),
        ]
        candidates = arrow.StructArray.from_arrays(columns, ["text", "score", "acceptable"])
        ends = arrow.array(np.arange(0, scores.size + 1, CANDIDATES, dtype=np.int32))
        numbers = range(first, first + len(scores))
        said = [[f"row-{row}" for row in numbers], [f"{prompts[row % 1000]} {row}" for row in numbers]]
        names = ["id", "prompt", "candidates"]
        batch = arrow.record_batch([*map(arrow.array, said), arrow.ListArray.from_arrays(ends, candidates)], names)
        writer = writer or parquet.ParquetWriter(path, batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()


def steps(log: Path, folder: Path, only: list[str]) -> dict[str, list[str]]:
    """Command lines by name."""
    guard, profile = [sys.executable, "-m", "bonmini_guard.cli"], folder / "profile.json"
    profile.write_text('{"mode": "guardrail", "schedule": [4, 4, 4, 4], "thresholds": [1.0, 1.0, 1.0, 1.0]}')
    made = ["-o", str(folder / "made.json")]
    found = {
        "load": [sys.executable, "-c", LOAD, str(log)],
        "replay": [*guard, "replay", str(log), "--profile", str(profile), "--json"],
        **{
            f"calibrate {risk}": [*guard, "calibrate", str(log), "--mode", "guardrail", "--risk", risk, *SCHEDULE, *made]
            for risk in RISKS
        },
        "calibrate accelerator": [*guard, "calibrate", str(log), "--mode", "accelerator", *SCHEDULE, *made],
    }
    return {name: line for name, line in found.items() if not only or name.split()[0] in only}


def measured(line: list[str]) -> dict[str, Any]:
    """Exit code, seconds, CPU seconds and peak resident set in GiB of a command."""
    begun = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "exit": process.returncode,
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gib": round(usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20), 3),
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = arguments(__doc__, rows=1_000_000, json=Path)
    parser.add_argument("--format", choices=("jsonl", "parquet"), nargs="+", default=["jsonl", "parquet"])
    parser.add_argument("--only", choices=("load", "replay", "calibrate"), nargs="+", default=[])
    options = parser.parse_args()
    results = []
    for name in options.format:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / f"log.{name}"
            (write_parquet if name == "parquet" else write_json_lines)(log, options.rows)
            size = round(log.stat().st_size / 2**20)
            for step, line in steps(log, Path(folder), options.only).items():
                results.append({"format": name, "rows": options.rows, "file_mib": size, "step": step} | measured(line))
                print(" ".join(f"{key}={value}" for key, value in results[-1].items()), file=sys.stderr)
    print_table(list(results[0]), [list(result.values()) for result in results])
    write_json(options.json, {"candidates": CANDIDATES, "results": results})


if __name__ == "__main__":
    main()
