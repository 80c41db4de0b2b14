"""Record the demonstration: a live run whose seconds are the processor's on one thread, since a machine is seldom idle."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from datetime import UTC, datetime
from unittest.mock import patch

from benchmarks.tables import machine
from bonmini_guard.demo.run import RECORDED, live


def main() -> None:
    """Write what ``bonmini-guard demo --recorded`` shows."""
    with contextlib.ExitStack() as patched:
        for part in ("engine", "drawing", "scoring", "concluding"):
            patched.enter_context(patch(f"bonmini_guard.engine.{part}.perf_counter", time.process_time))
        requests = list(live(lambda what: print(what, file=sys.stderr, flush=True), threads=1))
    source = f"Recorded on {datetime.now(UTC).date().isoformat()}; seconds of one core ({machine()['processor']})."
    RECORDED.write_text(json.dumps({"source": source, "requests": requests}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
