"""Which slice of the traffic changed: the later requests of each value of a row key against its own earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bonmini_guard.calibration.findings import Finding
from bonmini_guard.calibration.martingale import ProcessState, Ranks, Shares
from bonmini_guard.calibration.traces import Trace

#: So many slices are watched; requests of further ones are watched together, as :data:`OTHERS`.
MOST_SLICES = 32
OTHERS = "(others)"
#: Cells of the reference that scores of a slice are sorted into.
CELLS = 20


class Slices:
    """Two processes for each slice, of scores and of decisions, each at an equal share of the level (Bonferroni).

    A slice that was different from the start is not found, one that changes is. The level is shared among as many slices as are
    ever watched, so that which ones come is free. The reference is for the cells of scores; ``states`` are of an earlier run.
    """

    def __init__(
        self,
        level: float,
        key: str,
        reference: Sequence[float],
        seed: str,
        states: Mapping[str, tuple[ProcessState, ProcessState]] | None = None,
    ) -> None:
        self.level, self._key, self._seed = level, key, seed
        self._each = level / (2 * (MOST_SLICES + 1))
        self._edges = np.unique(np.quantile(reference, np.arange(1, CELLS) / CELLS)).tolist()
        self._slices = {name: self._fresh(name, *pair) for name, pair in (states or {}).items()}

    def add(self, trace: Trace, decision: str | None) -> None:
        """Count a request, and whether its decision is this one; one without the key is of no slice."""
        value = trace.slice
        if value is None:
            return
        if value not in self._slices:
            value = value if len(self._slices) < MOST_SLICES else OTHERS
            self._slices.setdefault(value, self._fresh(value))
        scores, decisions = self._slices[value]
        if np.isfinite(trace.best):
            scores.add(trace.best, trace.id)
        if None not in (trace.decision, decision):
            decisions.add(trace.decision == decision)

    def finding(self) -> Finding:
        """Those that changed, or the one that comes nearest."""
        of = ("scores", "decisions")
        named = [
            (p.p_value, p.crossed, name, what) for name, pair in self._slices.items() for what, p in zip(of, pair, strict=True)
        ]
        found = [f"{what} of {self._key} = {name}" for _, crossed, name, what in named if crossed is not None]
        least, _, name, what = min(named, default=(1.0, None, "", ""), key=lambda each: each[0])
        said = f"no slice of {self._key} differs from its own earlier requests"
        if found:
            said = f"slices that differ from their own earlier requests: {', '.join(found)}"
        elif named:
            said += f"; nearest to it: {what} of {self._key} = {name}"
        return Finding("slices", bool(found), least, self._each, said)

    def states(self) -> dict[str, tuple[ProcessState, ProcessState]]:
        """What to go on from."""
        return {name: (scores.state(), decisions.state()) for name, (scores, decisions) in self._slices.items()}

    def _fresh(self, name: str, *states: ProcessState) -> tuple[Ranks, Shares]:
        scores, decisions = states or (None, None)
        seed = f"{self._seed} {name}"
        return Ranks(self._each, self._edges, seed, reference=False, state=scores), Shares(self._each, state=decisions)
