"""What a log calibrated to yesterday it calibrates to today, figure by figure.

After a change that is meant write them anew (``python -m tests.calibration.figures_of_seeds``), and read the difference.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.calibration.figures_of_seeds import CASES, FIGURES, plain

KNOWN = json.loads(FIGURES.read_text())
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")


def agree(found, known, where):
    if isinstance(known, dict):
        assert found.keys() == known.keys(), where
        for key in known:
            agree(found[key], known[key], f"{where}, {key}")
    elif isinstance(known, list):
        assert len(found) == len(known), where
        for at, (one, other) in enumerate(zip(found, known, strict=True)):
            agree(one, other, f"{where}, {at}")
    elif isinstance(known, str):
        assert _NUMBER.sub("#", found) == _NUMBER.sub("#", known), where
        agree(
            [float(each.replace(",", "")) for each in _NUMBER.findall(found)],
            [float(each.replace(",", "")) for each in _NUMBER.findall(known)],
            where,
        )
    elif isinstance(known, bool) or known is None:
        assert found is known, where
    else:
        assert found == pytest.approx(known, rel=1e-5, abs=1e-9), where


def test_every_case_is_known():
    assert CASES.keys() == KNOWN.keys()


@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_yesterday(case):
    agree(plain(CASES[case]()), KNOWN[case], case)
