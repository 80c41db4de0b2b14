"""``score`` on a real, local Ray: the same rows as without it, after a killed run and with bad input too. ``make live-ray``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bonmini_guard.calibration.scoring_logs import score_log
from bonmini_guard.errors import ConfigurationError, InputError
from tests.calibration.helpers import written
from tests.calibration.test_scoring_logs import LengthScorer, read, rows

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


class MortalScorer(LengthScorer):
    """Takes its worker's process with it once, while it scores its fifth row."""

    def __init__(self, grave):
        super().__init__()
        self.grave = Path(grave)

    def score(self, messages, candidates):
        if self.calls == 4 and not self.grave.exists():
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(messages, candidates)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_the_rows_are_those_of_a_plain_run_in_the_same_order(cluster, tmp_path, name):
    from bonmini_guard.adapters.ray_data import score_log_on_ray

    log = written(tmp_path / "log.jsonl", rows(23))
    tally = score_log_on_ray([log], LengthScorer, tmp_path / name, workers=2, shards=5)
    score_log([log], LengthScorer(), tmp_path / "plain.jsonl")
    assert read(tmp_path / name) == read(tmp_path / "plain.jsonl")
    assert (tally.rows, tally.scored, tally.resumed) == (23, 46, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["log.jsonl", name, "plain.jsonl"])


def test_a_worker_that_is_killed_loses_no_finished_row(cluster, tmp_path):
    from bonmini_guard.adapters.ray_data import score_log_on_ray

    log, out, grave = written(tmp_path / "log.jsonl", rows(40)), tmp_path / "out.jsonl", tmp_path / "grave"
    try:
        tally = score_log_on_ray([log], lambda: MortalScorer(str(grave)), out, workers=1, shards=2)
    except cluster.exceptions.RayError:  # Ray gave the worker up instead of starting another: the caller runs it again
        tally = score_log_on_ray([log], lambda: MortalScorer(str(grave)), out, workers=1, shards=2)
    assert grave.exists()
    assert tally.resumed >= 4
    assert [row["id"] for row in read(out)] == [f"r{i}" for i in range(40)]


def test_bad_input_is_one_line_with_its_place(cluster, tmp_path):
    from bonmini_guard.adapters.ray_data import score_log_on_ray

    values = rows(6)
    values[3]["candidates"] = [{}]
    log = written(tmp_path / "log.jsonl", values)
    with pytest.raises(InputError, match=r'log.jsonl:4: candidate 1 has no "text"') as caught:
        score_log_on_ray([log], LengthScorer, tmp_path / "out.jsonl", shards=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(InputError, match="another number of shards"):
        score_log_on_ray([log], LengthScorer, tmp_path / "out.jsonl", shards=3)
    with pytest.raises(ConfigurationError, match="workers"):
        score_log_on_ray([log], LengthScorer, tmp_path / "out.jsonl", workers=0)
