"""Profiles: reading, writing, and what is refused."""

from __future__ import annotations

import json
import math
import os

import pytest

from bonmini_guard import BestOfMiniN, GuardProfile
from bonmini_guard.errors import ProfileError
from bonmini_guard.policy.policy import BelowFloor
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

MINIMAL = {"mode": "guardrail", "schedule": [4, 28], "thresholds": [1.5, None]}


def written(tmp_path, **changes):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**MINIMAL, **changes}))
    return path


def test_mode_schedule_and_thresholds_are_enough_and_null_never_exits(tmp_path):
    profile = GuardProfile.load(written(tmp_path))
    assert profile.thresholds == (1.5, math.inf)
    assert profile.policy().schedule == (4, 28)


def test_a_rolling_profile_lists_a_one_for_each_draw_and_ascending_numbers_in_flight(tmp_path):
    profile = GuardProfile.load(written(tmp_path, exit="rolling", schedule=[1, 1], max_draws=2, in_flight=[2, 4]))
    assert (profile.schedule, profile.in_flight) == ((1, 1), (2, 4))


def test_a_profile_does_not_change_under_its_certificate(tmp_path):
    profile = GuardProfile.load(written(tmp_path))
    for frozen, name in ((profile, "thresholds"), (profile.score_transform, "a")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(frozen, name, 2.0)


def test_what_is_saved_is_loaded_again(tmp_path):
    profile = GuardProfile.load(written(tmp_path, hopeless=[-3.0, None], score_transform={"a": 2.0, "b": 1.0}, team="mine"))
    profile.save(tmp_path / "copy.json")
    assert GuardProfile.load(tmp_path / "copy.json") == profile
    raw = json.loads((tmp_path / "copy.json").read_text())
    assert (raw["thresholds"], raw["hopeless"], raw["team"]) == ([1.5, None], [-3.0, None], "mine")
    assert profile.policy().stop == BelowFloor((-3.0, -math.inf))


def test_saving_is_atomic(tmp_path, monkeypatch):
    path = written(tmp_path)
    before = path.read_text()

    def fails(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        GuardProfile(mode="accelerator", schedule=(1,), thresholds=(0.0,)).save(path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["profile.json"]


def test_a_saved_profile_is_as_readable_as_any_other_file(tmp_path):
    GuardProfile(mode="accelerator", schedule=(1,), thresholds=(0.0,)).save(tmp_path / "profile.json")
    (tmp_path / "plain").touch()
    assert os.stat(tmp_path / "profile.json").st_mode == os.stat(tmp_path / "plain").st_mode


def test_what_is_written_is_of_the_schema_that_older_versions_know():
    assert json.loads(GuardProfile(mode="guardrail", schedule=[1], thresholds=[0.0]).model_dump_json())["schema_version"] == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"thresholds": [1.0]}, "one for each loop"),
        ({"thresholds": [1.0, math.nan]}, "NaN"),
        ({"thresholds": [1.0, -math.inf]}, "-infinity"),
        ({"hopeless": [1.0]}, "one for each loop"),
        ({"schedule": []}, "at least one loop"),
        ({"schedule": [4, 0]}, "1 or more"),
        ({"mode": "watchdog"}, "mode"),
        ({"exit": "sometimes"}, "exit"),
        ({"score_transform": {"a": -1.0}}, "score_transform.a"),
        ({"schema_version": 99}, "upgrade"),
        ({"reference": [0.0] * 1001}, "reference"),
        ({"reference": [math.nan]}, "reference"),
        ({"schema_version": -1}, "schema_version"),
        ({"schema_version": "1"}, "schema_version"),
        ({"thresholds": [True, False]}, "no number"),
        ({"thresholds": ["0.5", 1.0]}, "no number"),
        ({"schedule": ["2", 2]}, "no number"),
        ({"exit": "rolling"}, "must list max_draws ones"),
        ({"exit": "rolling", "schedule": [1, 1], "max_draws": 3}, "must list max_draws ones"),
        ({"exit": "rolling", "schedule": [1, 1], "in_flight": [4, 2]}, "ascending"),
        ({"exit": "rolling", "schedule": [1, 1], "in_flight": []}, "ascending"),
        ({"exit": "rolling", "schedule": [1, 1], "in_flight": [2, 4], "in_flight_thresholds": [1.0]}, "one for each"),
        ({"exit": "rolling", "schedule": [1, 1], "in_flight_thresholds": [1.0]}, "1 thresholds for 0"),
        ({"exit": "rolling", "schedule": [1, 1], "in_flight": [1], "in_flight_thresholds": [-math.inf]}, "-infinity"),
        ({"in_flight_thresholds": [1.0]}, "a rolling exit's"),
        ({"in_flight": [2]}, "a rolling exit's"),
        ({"max_draws": 2}, "a rolling exit's"),
        # levels that no certificate has: replay and drift printed "at most -100 %", "nan %", and called logs refuted
        ({"alpha": -1.0}, "alpha: .* greater than 0"),
        ({"alpha": 5}, "alpha: .* less than 1"),
        ({"alpha": math.nan}, "alpha"),
        ({"delta": "0.1"}, "delta: '0.1' is no number"),
        ({"epsilon": 0}, "epsilon"),
        ({"risk": "served_or_bad"}, "risk: .*'served_and_bad'"),
    ],
    ids=str,
)
def test_a_malformed_profile_names_the_file_and_the_problem(tmp_path, changes, problem):
    path = written(tmp_path, **changes)
    with pytest.raises(ProfileError, match=problem) as caught:
        GuardProfile.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_what_is_no_json_object_is_a_profile_error(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ProfileError, match="profile"):
        GuardProfile.load(path)
    with pytest.raises(ProfileError, match="cannot read"):
        GuardProfile.load(tmp_path)


@pytest.mark.parametrize("text", ['{"mode": "guardrail", "mode": "accelerator"}', "[" * 100_000, '{"alpha": ' + "9" * 5000 + "}"])
def test_keys_twice_endless_depth_and_numbers_are_profile_errors(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=r"profile\.json: not JSON"):
        GuardProfile.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProfileError, match="a pipe or a device"):
        GuardProfile.load(tmp_path / "pipe")


def test_a_guard_runs_its_profile_on_transformed_scores(tmp_path):
    path = written(tmp_path, schedule=[1, 1], thresholds=[None, 3.0], score_transform={"a": 2.0, "b": 1.0})
    guard = BestOfMiniN(generator=FakeGenerator(["a", "b"]), reward_model=FakeRewardModel({"a": 1.0, "b": 0.0}), profile=str(path))
    metadata = guard.run("q").metadata()
    assert metadata["profile"] == "profile.json"
    assert (metadata["decision"], metadata["score"], metadata["raw_score"], metadata["loops"]) == ("accepted", 3.0, 1.0, 2)
