"""What all tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, not wrong: no test is judged by a wall clock. Examples are the same in every run, but where `make fuzz`
# looks for new ones: what one run in a hundred finds would fail whichever change it meets.
settings.register_profile(
    "patient",
    deadline=None,
    derandomize="BONMINI_GUARD_FUZZ_CASES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LANGSMITH_TRACING", "false")
# No server here has a certificate, and reading those of the system takes each HTTP client longer than all that it then does.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A class that lists the tests it may skip, with its reasons, may skip no other."""
    report = yield
    allowed = getattr(item.cls, "may_skip", None)
    if report.skipped and allowed is not None and item.originalname not in allowed:
        report.outcome, report.longrepr = "failed", f"{item.originalname} was skipped, and may_skip gives no reason for that"
    return report


@pytest.fixture(scope="module")
def browser():
    """A real Chromium for the tests of pages; where there is none they fail, and say what brings it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        names = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        found = next(filter(None, names), playwright.chromium.executable_path)
        assert Path(found).exists(), "no Chromium is installed: run .ci/chromium"
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()
