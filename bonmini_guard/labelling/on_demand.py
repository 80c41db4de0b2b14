"""Labels on demand: a session asks only about answers that a certificate needs (:mod:`bonmini_guard.calibration.on_demand`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bonmini_guard.calibration.blocks import row_key
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.on_demand import batch_of, demand
from bonmini_guard.calibration.sequence import Request
from bonmini_guard.labelling.rows import LabelRow


class OnDemand:
    """Says what is asked next, given the votes so far: a session's ``asking``.

    Args:
        log: the set of rows, fixed before the first label, and without labels.
        rows: the log's rows as labellers see them; those of the set are among them.
    """

    def __init__(self, log: Log, request: Request, rows: Sequence[LabelRow]) -> None:
        by_key = {row_key(row.id): row for row in rows}
        self._log, self._request = log, request
        self._rows = [by_key[int(key)] for key in log.keys]
        self._numbers = {row.id: number for number, row in enumerate(self._rows)}
        self.ids = tuple(sorted(self._numbers))

    def __call__(self, votes: Mapping[tuple[str, int], int]) -> tuple[list[tuple[str, int]], str]:
        """The next batch, none if no label can help, and what the labels so far certify."""
        labels = np.full_like(self._log.labels, np.nan)
        for (name, index), vote in votes.items():
            number = self._numbers[name]
            labels[number, [other for other, first in enumerate(self._rows[number].judged_as) if first == index]] = vote > 0
        found = demand(replace(self._log, labels=labels), self._request)
        wanted = [(self._rows[number], index) for number, index in batch_of(self._log, found.wanted).tolist()]
        return list(dict.fromkeys((row.id, row.judged_as[index]) for row, index in wanted)), found.sentence
