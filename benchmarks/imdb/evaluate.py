"""Stage 7: best-of-N at score 0 and calibrated guards, on the committed pool; exact over draw orders.

``python -m benchmarks.imdb.evaluate --json benchmarks/results/imdb.json``. Thresholds come from pool-calibrate.jsonl.gz, figures
from pool-evaluate.jsonl.gz, as ``bonmini-guard calibrate`` and ``replay`` give them.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.imdb.keep import ROLES, pool_of
from benchmarks.imdb_real.evaluate import evaluate, show
from benchmarks.tables import arguments, read_rows, write_json


def main() -> None:
    """Print one table; write JSON with --json."""
    options = arguments(__doc__, json=Path).parse_args()
    found = evaluate(*(read_rows(pool_of(role)) for role in ROLES))
    show(found)
    write_json(options.json, found)


if __name__ == "__main__":
    main()
