"""What ``--search`` tries."""

from __future__ import annotations

from bonmini_guard.calibration.search import shapes, tilts
from tests.calibration.helpers import log_of
from tests.calibration.populations import Population


def test_shapes_have_the_budget():
    assert {(1,) * 8, (2,) * 4, (4, 4), (1, 7), (2, 6), (1, 1, 2, 4), (2, 2, 4)} == set(shapes(8))
    for budget in (2, 3, 7, 12, 32):
        assert all(sum(shape) == budget and min(shape) > 0 for shape in shapes(budget))


def test_offsets_fit_the_schedule():
    log = Population(size=8).log(50, 0)
    assert all(len(tilt) == 3 and tilt[-1] == 0.0 for tilt in tilts(log, 3))
    assert tilts(log, 1) == tilts(log_of([[1.0, 1.0]], [[1.0, 1.0]]), 2) == []
