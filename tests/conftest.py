"""What all tests share."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, not wrong: no test is judged by a wall clock.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LANGSMITH_TRACING", "false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A class that lists the tests it may skip, with its reasons, may skip no other."""
    report = yield
    allowed = getattr(item.cls, "may_skip", None)
    if report.skipped and allowed is not None and item.originalname not in allowed:
        report.outcome, report.longrepr = "failed", f"{item.originalname} was skipped, and may_skip gives no reason for that"
    return report
