"""The watch: looks that come again and again keep the stated rate, and its state is safe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bonmini_guard.calibration import watch as watches
from bonmini_guard.calibration.findings import refuted_by_bets
from bonmini_guard.calibration.martingale import promise_payoffs
from bonmini_guard.calibration.slices import CELLS, MOST_SLICES, OTHERS, Slices
from bonmini_guard.calibration.traces import Memory, Seen, Trace, traces_of_rows
from bonmini_guard.calibration.watch import Watch, watching
from bonmini_guard.commands import drift as command
from bonmini_guard.errors import InputError
from tests.calibration.helpers import called, written
from tests.calibration.populations import Population
from tests.calibration.watching import TRAFFIC, calibrated, first_alarm, guarded, placed, weeks_of
from tests.sizes import most, worlds

HARDER = replace(TRAFFIC, middle=-0.5)


def looked(profile, weeks, **options):
    watch = Watch(profile, **options)
    for rows in weeks:
        drift = watch.look(traces_of_rows(placed(rows), profile, memory=watch.memory, key=watch.key))
    return watch, drift


call = partial(called, command)


@pytest.fixture
def profile(tmp_path):
    made = calibrated()
    made.save(tmp_path / "profile.json")
    return made


# What it finds


@pytest.mark.parametrize("before", [0, 1000])
def test_harder_prompts_are_found_within_600_traces(before):
    late = 0
    for seed in range(5):
        profile = calibrated(seed)
        weeks = weeks_of(profile, [TRAFFIC] * (before // 100) + [HARDER] * 6, 100, seed)
        late += first_alarm(profile, weeks, "state") is None
    assert late <= 1


def test_twice_as_many_abstentions_are_found_within_600_traces_though_scores_are_as_they_were():
    profile = calibrated()
    rows = list(guarded(profile, TRAFFIC.log(1000, 7)))
    generator = np.random.default_rng(0)
    share = np.mean([row["decision"] == "abstained" for row in rows])
    for row in rows:
        if row["decision"] == "accepted" and generator.random() < share / (1 - share):
            row |= {"decision": "abstained", "reason": "deadline"}
    _, drift = looked(profile, [rows[:600]])
    assert {finding.test for finding in drift.findings if finding.found} == {"abstentions"}


def test_labels_refute_a_promise_that_is_broken_within_200_labels():
    profile = calibrated()
    log = TRAFFIC.log(350, 3)
    log.labels[:] = np.where(np.random.default_rng(0).random(log.labels.shape) < 0.5, 0.0, log.labels)
    _, drift = looked(profile, [guarded(profile, log)])
    assert {finding.test for finding in drift.findings if finding.found} == {"labels"}
    assert "labelled answers are not acceptable" in next(f.what for f in drift.findings if f.test == "labels")


def test_an_alarm_stays():
    profile = calibrated()
    weeks = [*weeks_of(profile, [Population(size=4, middle=-1)] * 3, 100, 0)]
    watch, drift = looked(profile, weeks)
    assert drift.drift
    again = watch.look(traces_of_rows(placed(guarded(profile, TRAFFIC.log(500, 5), prefix="later")), profile, memory=watch.memory))
    assert again.drift
    assert again.traces == 800
    assert "stays until the state is removed" in again.holds_for


def test_a_slice_that_changed_is_named():
    profile = calibrated()
    _, drift = looked(profile, _sliced(profile, TRAFFIC), key="lang")
    assert "slices" not in {finding.test for finding in drift.findings if finding.found}
    _, drift = looked(profile, _sliced(profile, Population(size=4, middle=-1.2)), key="lang")
    finding = next(finding for finding in drift.findings if finding.test == "slices")
    assert finding.found
    assert "scores of lang = de" in finding.what
    assert "lang = en" not in finding.what


def _sliced(profile, later):
    for week in range(10):
        english = guarded(profile, TRAFFIC.log(60, 50 + week), prefix=f"en{week}-", lang="en")
        german = guarded(profile, (later if week > 4 else TRAFFIC).log(60, 90 + week), prefix=f"de{week}-", lang="de")
        yield [*english, *german]


def test_slices_beyond_the_most_are_watched_together():
    profile = calibrated()
    rows = [row | {"user": number} for number, row in enumerate(guarded(profile, TRAFFIC.log(2 * MOST_SLICES, 1)))]
    watch, _ = looked(profile, [rows], key="user")
    assert len(watch.state().slices) == MOST_SLICES + 1
    assert watch.state().slices[OTHERS][0].steps == MOST_SLICES


@pytest.mark.parametrize("cell", [0, 9, 18])
def test_scores_of_a_slice_that_move_by_a_twentieth_of_the_reference_are_found(cell):
    slices = Slices(0.05, "lang", np.arange(1000.0), "seed")
    for number in range(800):
        score = 1000 * (cell + 0.5 + (number >= 400)) / CELLS
        slices.add(Trace(str(number), score, None, None, None, slice="de"), None)
    assert slices.finding().found


# The reference


def test_the_order_of_a_rows_answers_after_the_first_loop_and_of_the_reference_do_not_matter():
    profile = calibrated()
    turned = profile.model_copy(update={"reference": tuple(reversed(profile.reference))})
    rows = list(guarded(profile, TRAFFIC.log(300, 4)))
    mirrored = [
        row | {"candidates": row["candidates"][1::-1] + row["candidates"][2:]} for row in rows if len(row["candidates"]) > 2
    ]
    one, other = (looked(p, [rows])[1].findings[0].p_value for p in (profile, turned))
    assert other == pytest.approx(one, rel=1.0)  # ties and chance apart
    plain = [row for row in rows if len(row["candidates"]) > 2]
    assert looked(profile, [plain])[1].findings[0] == looked(profile, [mirrored])[1].findings[0]


# Its state


def test_going_on_from_a_state_is_one_pass(tmp_path, profile):
    weeks = list(_sliced(profile, HARDER))
    for rows in weeks:
        with watching(tmp_path / "state.json", profile, key="lang") as watch:
            drift = watch.look(traces_of_rows(placed(rows), profile, memory=watch.memory, key="lang"))
    at_once, said = looked(profile, [[row for rows in weeks for row in rows]], key="lang")
    assert drift.findings == said.findings
    with watching(tmp_path / "state.json", profile) as watch:
        assert watch.state() == at_once.state()
    assert (tmp_path / "state.json").stat().st_size < 200_000


def test_files_that_overlap_are_not_counted_twice(profile):
    rows = list(guarded(profile, TRAFFIC.log(200, 4)))
    once, _ = looked(profile, [rows])
    twice, drift = looked(profile, [rows[:150], rows[50:], rows])
    assert once.state() == twice.state() or sorted(once.state().requests) == sorted(twice.state().requests)
    assert once.state().model_copy(update={"requests": {}}) == twice.state().model_copy(update={"requests": {}})
    assert drift.traces == 200
    assert drift.left_out == {"duplicate": 200}


def test_a_label_that_comes_later_is_counted_once(profile):
    log = TRAFFIC.log(100, 4)
    bare, labelled = (list(guarded(profile, log, labelled=share)) for share in (0.0, 1.0))
    watch, drift = looked(profile, [bare])
    wanted = drift.labels_wanted
    assert set(wanted.rows) == {row["id"] for row in bare if row["decision"] == "accepted"}
    for _ in range(2):
        drift = watch.look(traces_of_rows(placed(labelled), profile, memory=watch.memory))
    assert drift.traces == 100
    assert watch.state().labels.counts[1] == len(wanted.rows)


def test_a_group_counts_once_over_all_looks(profile):
    rows = [row | {"group": str(number // 4)} for number, row in enumerate(guarded(profile, TRAFFIC.log(200, 4)))]
    watch, drift = looked(profile, [rows[::2], rows[1::2]])
    assert drift.traces == 50
    assert drift.left_out == {"same_group": 100}
    assert watch.state().labels.counts[1] <= 50


def test_what_was_forgotten_one_by_one_is_known_by_its_time(profile):
    rows = [
        row | {"at": f"2026-01-01T00:{number // 60:02}:{number % 60:02}.000+00:00"}
        for number, row in enumerate(guarded(profile, TRAFFIC.log(200, 4)))
    ]
    memory = Memory(Seen(50), Seen(50))
    assert len(traces_of_rows(placed(rows), profile, memory=memory).traces) == 200
    again = traces_of_rows(placed(rows), profile, memory=memory)
    assert not again.traces
    assert again.left_out == {"older": 150, "duplicate": 50}
    assert len(memory.requests.digests) == 50


def test_a_damaged_or_foreign_state_is_refused_in_one_line(tmp_path, profile):
    path, traces = tmp_path / "state.json", traces_of_rows(placed(guarded(profile, TRAFFIC.log(20, 4))), profile)
    with watching(path, profile) as watch:
        watch.look(traces)
    good = json.loads(path.read_text())
    longer = good["scores"] | {"counts": good["scores"]["counts"][1:]}
    for bad in ("", "{", "[]", good | {"version": 2}, good | {"traces": -1}, good | {"scores": longer}, good | {"labels": None}):
        path.write_text(bad if isinstance(bad, str) else json.dumps(bad))
        with (
            pytest.raises(InputError, match=r"state.json: is no state .* remove it to begin anew") as refused,
            watching(path, profile),
        ):
            pass
        assert "\n" not in str(refused.value)
    path.write_text(json.dumps(good))
    with pytest.raises(InputError, match="another profile"), watching(path, calibrated(1)):
        pass
    with pytest.raises(InputError, match=r"begun with --false-alarm-rate 0\.01"), watching(path, profile, false_alarm_rate=0.05):
        pass
    with pytest.raises(InputError, match=r"begun with --slice \(none\)"), watching(path, profile, key="lang"):
        pass
    assert json.loads(path.read_text()) == good


def test_two_at_once_are_refused(tmp_path, profile):
    with (
        watching(tmp_path / "state.json", profile),
        pytest.raises(InputError, match="another 'bonmini-guard drift' is at work"),
        watching(tmp_path / "state.json", profile),
    ):
        pass
    with pytest.raises(InputError, match="cannot write there"), watching(tmp_path / "nowhere" / "state.json", profile):
        pass


def test_an_error_leaves_the_old_state(tmp_path, profile, monkeypatch):
    path = tmp_path / "state.json"
    with watching(path, profile) as watch:
        watch.look(traces_of_rows(placed(guarded(profile, TRAFFIC.log(20, 4))), profile, memory=watch.memory))
    before = path.read_bytes()
    more = traces_of_rows(placed(guarded(profile, TRAFFIC.log(20, 5), prefix="b")), profile)
    with pytest.raises(ZeroDivisionError), watching(path, profile) as watch:
        watch.look(more).traces / 0
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"), watching(path, profile) as watch:
        watch.look(more)
    assert path.read_bytes() == before


def test_a_kill_while_writing_leaves_the_old_state(tmp_path, profile):
    first, second = (written(tmp_path / f"{n}.jsonl", guarded(profile, TRAFFIC.log(50, n), prefix=f"{n}-")) for n in (1, 2))
    arguments = [str(tmp_path / "profile.json"), str(second), "--state", str(tmp_path / "state.json")]
    assert call(arguments[0], first, *arguments[2:]) == 0
    before = (tmp_path / "state.json").read_bytes()
    killed = (
        "import os, signal; os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"from bonmini_guard.cli import main; main(['drift', *{arguments!r}])"
    )
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "state.json").read_bytes() == before
    assert call(*arguments) == 0  # the lock went with the process
    assert json.loads((tmp_path / "state.json").read_text())["traces"] == 100


# The command


def test_the_command_keeps_its_state_and_says_what_the_rate_is_for(tmp_path, profile, capsys):
    file = written(tmp_path / "a.jsonl", guarded(profile, TRAFFIC.log(100, 4), labelled=0.0))
    state = tmp_path / "state.json"
    for _ in range(2):
        assert call(tmp_path / "profile.json", file, "--state", state) == 0
        said = capsys.readouterr()
        assert "no drift found in 100 traces" in said.out
        assert "any number of looks" in said.out
    assert "rows left out: 100 duplicate" in said.err
    worse = written(tmp_path / "b.jsonl", guarded(profile, Population(size=4, middle=-1).log(400, 4), prefix="b"))
    assert call(tmp_path / "profile.json", worse, "--state", state, "--json") == 4
    assert json.loads(capsys.readouterr().out)["traces"] == 500
    assert call(tmp_path / "profile.json", file, "--state", state) == 4


def test_the_command_lists_the_rows_to_label_and_takes_either_a_state_or_looks(tmp_path, profile, capsys):
    file = written(tmp_path / "a.jsonl", guarded(profile, TRAFFIC.log(600, 4), labelled=0.0))
    assert call(tmp_path / "profile.json", file, "--looks", 12, "--json") == 0
    wanted = json.loads(capsys.readouterr().out)["labels_wanted"]
    assert len(wanted["rows"]) == wanted["number"] > 0
    with pytest.raises(SystemExit):
        call(tmp_path / "profile.json", file, "--looks", 12, "--state", tmp_path / "s.json")


def test_half_the_level_of_bad_and_served_is_for_the_share_that_is_served(profile):
    watch = Watch(profile)
    drift = watch.look(traces_of_rows(placed(guarded(profile, TRAFFIC.log(200, 4))), profile, memory=watch.memory))
    levels = {finding.test: finding.level for finding in drift.findings}
    assert profile.risk == "served_and_bad"
    assert levels["labels"] == pytest.approx(max(levels.values()) / 2)


# The stated rate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("population", "grouped"),
    [(TRAFFIC, 1), (Population(size=4, digits=0), 1), (Population(size=4, per_group=4), 4)],
    ids=["smooth", "ties", "groups"],
)
def test_52_looks_keep_the_stated_false_alarm_rate(population, grouped):
    """At a true rate of 0.01 the limit is passed with probability 0.001; at 0.05, for 300 worlds (``make validity``), with 0.93."""
    number = worlds(300 if grouped == 1 and population.digits is None else 100)
    heard = 0
    for seed in range(number):
        profile = calibrated(seed, population, 400 if grouped > 1 else 200, **({"alpha": 0.2} if grouped > 1 else {}))
        heard += (
            first_alarm(profile, weeks_of(profile, [population] * 52, 20 * grouped, seed, grouped=grouped), "state") is not None
        )
    assert heard <= most(number, watches.FALSE_ALARM_RATE)


@pytest.mark.parametrize("promised", [0.05, 0.2])
def test_a_promise_is_refuted_where_the_mean_of_the_bets_has_grown_to_one_over_the_level(promised):
    lost, won = promise_payoffs(True, promised), promise_payoffs(False, promised)
    bad = np.arange(101)
    grown = np.array([np.mean(lost**ones * won ** (100 - ones)) for ones in bad])
    assert (refuted_by_bets(promised, 0.05)(bad, np.full(101, 100)) == (grown >= 20.0)).all()
    assert grown.min() < 20.0 < grown.max()
