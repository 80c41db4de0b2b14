"""From a log without labels to a certificate: ``bonmini-guard label --for``, answered by the check through the page's own API.

Says after how many labels each batch's word came, how long the commands took, and that calibrating on the export gives what was
announced. A person's time at each label is not in it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.desk.label import log_rows
from benchmarks.tables import print_table, write_json, write_rows

RESULTS = Path(__file__).parents[1] / "results" / "desk_walk.json"
ASKED = ["--alpha", "0.05", "--schedule", "4,4,4,4"]
GUARD = [sys.executable, "-m", "bonmini_guard"]


def main() -> None:
    """Walk, print the batches, write the results."""
    with tempfile.TemporaryDirectory() as folder:
        walked = walk(Path(folder))
    print_table(["labels", "certified"], [[batch["labels"], batch["said"]] for batch in walked["batches"]])
    print(walked["sentence"])
    write_json(RESULTS, walked)


def walk(folder: Path) -> dict[str, Any]:
    """The batches, the sentence of ``calibrate`` and the seconds of each step."""
    rows = log_rows("calibrate")
    verdicts = {(row["prompt"][-1]["content"], each["text"]): each.pop("acceptable") for row in rows for each in row["candidates"]}
    write_rows(folder / "scored.jsonl.gz", rows)
    begun = time.perf_counter()
    batches, opened = _label(folder, verdicts)
    labelled = time.perf_counter()
    _run(folder, "label", "scored.jsonl.gz", "-o", "labels.jsonl", "--export", "log=labelled.jsonl")
    sentence = _run(folder, "calibrate", "labelled.jsonl", "--mode", "guardrail", *ASKED, "-o", "profile.json")
    seconds = {"until_the_page_is_there": opened - begun, "answers": labelled - opened}
    seconds |= {"export_and_calibrate": time.perf_counter() - labelled}
    return {
        "rows": len(rows),
        "batches": batches,
        "sentence": sentence,
        "seconds": {key: round(s, 1) for key, s in seconds.items()},
    }


def _label(folder: Path, verdicts: dict[tuple[str, str], bool]) -> tuple[list[dict[str, Any]], float]:
    """Answer every question; what was said whenever it changed, and when the page was there."""
    command = [*GUARD, "label", "scored.jsonl.gz", "-o", "labels.jsonl", "--for", "served_and_bad", *ASKED, "--annotator", "check"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        api = next(found[1] + "api" for line in process.stdout if (found := re.search(r"label at (http\S+)", line)))
        opened, batches, number = time.perf_counter(), list[dict[str, Any]](), 0
        with httpx.Client(timeout=60) as client:
            state = client.post(api, json={"do": "next"}).json()
            while state["item"] is not None:
                good = verdicts[state["item"]["turns"][-1][1], state["item"]["answers"][0]]
                answer = {"do": "label", "item": state["item"]["key"], "answer": "accept" if good else "none"}
                state = client.post(api, json={**answer, "event": f"{number:032x}"}).json()
                number += 1
                if not batches or state["said"] != batches[-1]["said"]:
                    batches.append({"labels": number, "said": state["said"]})
        process.terminate()
    return batches, opened


def _run(folder: Path, *arguments: str) -> str:
    ran = subprocess.run([*GUARD, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


if __name__ == "__main__":
    main()
