"""``label --for``: an oracle labels what is asked, and the export certifies exactly what was announced."""

from __future__ import annotations

import json
import re
import shlex

import httpx
import numpy as np
import pytest

from bonmini_guard.calibration.choose import calibrated
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.logs import log_of_rows
from bonmini_guard.calibration.on_demand import BATCH, fixed_set, request
from bonmini_guard.cli import main
from bonmini_guard.errors import InputError
from bonmini_guard.labelling.exports import labelled_log
from bonmini_guard.labelling.items import Goal, Plan
from bonmini_guard.labelling.on_demand import OnDemand
from bonmini_guard.labelling.rows import read_rows
from bonmini_guard.labelling.session import Session
from tests.calibration.populations import Population
from tests.labelling.helpers import judge_all, log_file, run, say, serving

FOUR = (4, 4, 4, 4)
WORLD = Population(size=16)
LEVELS = {"served_and_bad": 0.05, "bad_among_served": 0.1, "false_acceptance": 0.2, "accelerator": 0.03}


def rows_of(rows, seed=0, repeated=0.2):
    """Rows whose texts say whether they are good; some answers are given twice, with the same score."""
    log, generator, made = WORLD.log(rows, seed), np.random.default_rng(seed), []
    for number in range(rows):
        candidates = []
        for place, (score, label) in enumerate(zip(log.scores[number], log.labels[number], strict=True)):
            again = bool(candidates) and generator.random() < repeated
            one = dict(candidates[-1]) if again else {"text": f"{'good' if label else 'bad'} {place}", "score": float(score)}
            candidates.append(one)
        made.append({"id": f"r{number}", "prompt": f"question {number}", "candidates": candidates})
    return made


def truth(item):
    index = item.candidates[0]
    return index if item.row.texts[index].startswith("good") else "none"


def labelled(rows):
    """The rows with all labels."""
    good = [{**row, "candidates": [{**c, "acceptable": c["text"].startswith("good")} for c in row["candidates"]]} for row in rows]
    return log_of_rows(good)


def test_blank_answers_of_a_row_are_one_question(tmp_path):
    rows = rows_of(20, repeated=0.0)
    for row in rows:
        row["candidates"][3] |= {"text": "", "score": 5.0}
        row["candidates"][7] |= {"text": "  ", "score": 5.0}
    asking = OnDemand(
        fixed_set(log_of_rows(rows), None), request("served_and_bad", 0.3, 0.1, FOUR), read_rows([log_file(tmp_path / "l", rows)])
    )
    wanted, _ = asking({})
    assert {index for _, index in wanted} == {3}


def begin(tmp_path, rows, what, number=None, name="out.jsonl"):
    """A session on demand, new or continued."""
    shown = read_rows([log_file(tmp_path / "log.jsonl", rows)])
    asked = request(what, LEVELS[what], 0.1, FOUR)
    asking = OnDemand(fixed_set(log_of_rows(rows), number), asked, shown)
    plan = Plan(mode="accept", goal=Goal(what, asked.level, asked.delta, asked.schedule, asking.ids))
    return Session(shown, tmp_path / name, plan, None, asking)


@pytest.mark.parametrize("what", LEVELS)
def test_the_export_certifies_exactly_what_was_announced_and_what_all_labels_would(tmp_path, what):
    rows = rows_of(300)
    session, asked = begin(tmp_path, rows, what, 200), request(what, LEVELS[what], 0.1, FOUR)
    for step in range(3):  # stopped half-way, then at the end
        if step == 2:
            judge_all(session, "ann", truth)
        else:
            for _ in range(3 * BATCH):
                say(session, "ann", session.standing("ann").item, truth(session.standing("ann").item))
        exported = labelled_log(session)
        assert (exported.random, exported.unfinished) == (200, 0)
        outcome = calibrated(log_of_rows(exported.rows), asked, search=False)
        announced = re.match(r"certified down to (\S+), (serves|takes) ([\d.]+)", session.said)
        assert (announced is not None) == isinstance(outcome, Certificate)
        if announced:
            seen = outcome.profile.evidence
            assert float(announced[1]) == pytest.approx(outcome.profile.thresholds[0], rel=0.01)
            reached = seen["served"] / seen["counted"] if asked.risk else seen["mean_draws"]
            assert float(announced[3]) == pytest.approx(reached, abs=0.051)
    assert session.said.endswith("no further label of these rows can help")
    names = set(session.plan.goal.rows)
    everything = calibrated(labelled([row for row in rows if row["id"] in names]), asked, search=False)
    assert isinstance(outcome, Certificate) == isinstance(everything, Certificate)
    if isinstance(outcome, Certificate):
        assert outcome.profile.thresholds == everything.profile.thresholds
        assert outcome.sentence == everything.sentence


def events_of(session):
    lines = [json.loads(line) for line in session.path.read_text().splitlines()]
    return [{key: line.get(key) for key in ("kind", "item", "items", "said", "chosen", "plan")} for line in lines]


def test_a_session_that_was_interrupted_is_the_one_that_was_not(tmp_path):
    rows = rows_of(120)
    whole = begin(tmp_path, rows, "served_and_bad")
    judge_all(whole, "ann", truth)
    again = begin(tmp_path, rows, "served_and_bad", name="again.jsonl")
    for number in range(1000):
        if number % 7 == 0:
            again.close()
            again = begin(tmp_path, rows[::-1], "served_and_bad", name="again.jsonl")
        if (item := again.standing("ann").item) is None:
            break
        say(again, "ann", item, truth(item))
    assert events_of(again) == events_of(whole)
    assert again.said == whole.said


def test_a_batch_is_asked_when_every_item_before_it_is_judged_by_somebody(tmp_path):
    session = begin(tmp_path, rows_of(120), "served_and_bad")
    first = list(session.items)
    assert len(first) == BATCH
    later = session.standing("ann").item
    session.put_off("ann", later.key, "1" * 32)
    while (item := session.standing("ann").item).key != later.key:
        say(session, "ann", item, truth(item))
    assert len(session.items) == BATCH
    say(session, "bob", later, truth(later))
    assert len(session.items) == 2 * BATCH
    assert session.standing("bob").item.key == first[1].key  # bob sees them in the same order
    session.undo("bob", "2" * 32)
    assert len(session.items) == 2 * BATCH
    assert len({item.key for item in session.items}) == 2 * BATCH


def test_a_batch_that_the_disk_refused_is_asked_when_the_label_before_it_is_sent_again(tmp_path, monkeypatch):
    session = begin(tmp_path, rows_of(120), "served_and_bad")
    *_, last = session.items
    for item in session.items[:-1]:
        say(session, "ann", item, truth(item))
    write = session._file.append

    def full_for_batches(events):
        if events[0]["kind"] == "ask":
            raise OSError(28, "No space left on device")
        write(events)

    answer = "none" if truth(last) == "none" else "accept"
    with monkeypatch.context() as patch:
        patch.setattr(session._file, "append", full_for_batches)
        with pytest.raises(OSError, match="No space"):
            session.label("ann", last.key, answer, "1" * 32)
    assert session.standing("ann").item is None
    session.label("ann", last.key, answer, "1" * 32)
    assert session.standing("ann").item is not None
    assert len(session.items) == 2 * BATCH


def test_no_row_is_added_after_the_first_look(tmp_path, capsys):
    path, out = log_file(tmp_path / "log.jsonl", rows_of(80)), tmp_path / "out.jsonl"
    session = begin(tmp_path, rows_of(80), "served_and_bad", 60)
    session.close()
    for rows in ("70", "50"):
        assert run(path, "-o", out, "--for", "served_and_bad", "--rows", rows) == 2
        assert "60 rows were fixed before the first label; rows added after a look" in capsys.readouterr().err
    export = ["--alpha", "0.1", "--export", f"log={tmp_path / 'labelled.jsonl'}"]
    for options in (["--alpha", "0.1"], ["--for", "accelerator"], ["--schedule", "4,4"], export):
        assert run(path, "-o", out, *options) == 2
        assert "was begun with other options" in capsys.readouterr().err
    log_file(path, rows_of(81))
    assert run(path, "-o", out) == 2
    assert "rows added after a look at labels void the promise" in capsys.readouterr().err
    with pytest.raises(InputError, match="was begun on another log"):
        begin(tmp_path, rows_of(80, seed=1), "served_and_bad", 60)


def test_what_no_label_could_certify_is_refused_before_anyone_labels(tmp_path, capsys):
    path = log_file(tmp_path / "log.jsonl", rows_of(44))
    assert run(path, "-o", tmp_path / "out.jsonl", "--for", "served_and_bad", "--schedule", "4,4,4,4") == 3
    assert "takes 45 rows at the very least, and there are 44" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_other_tools_are_asked_for_one_batch_after_the_other(tmp_path):
    path, out, tasks = log_file(tmp_path / "log.jsonl", rows_of(100)), tmp_path / "out.jsonl", tmp_path / "tasks.json"
    arguments = (path, "-o", out, "--for", "served_and_bad", "--alpha", "0.1", "--schedule", "4,4,4,4")
    assert run(*arguments, "--export", f"label-studio={tasks}") == 0
    asked = json.loads(tasks.read_text())
    assert len(asked) == BATCH
    for task in asked:
        word = "Accept" if task["data"]["answer"].startswith("good") else "Reject"
        result = {"from_name": "choice", "to_name": "prompt", "type": "choices", "value": {"choices": [word]}}
        task["annotations"] = [{"completed_by": "ann", "result": [result]}]
    tasks.write_text(json.dumps(asked))
    assert run(path, "-o", out, "--import", f"label-studio={tasks}") == 0
    assert run(path, "-o", out, "--export", f"label-studio={tasks}") == 0
    assert len(json.loads(tasks.read_text())) == 2 * BATCH


def test_from_a_log_to_a_certificate_by_the_commands(tmp_path, capsys):
    path, out = log_file(tmp_path / "log.jsonl", rows_of(100)), tmp_path / "out.jsonl"
    arguments = (path, "-o", out, "--for", "served_and_bad", "--alpha", "0.1", "--schedule", "4,4,4,4", "--rows", "90")
    texts = {c["text"]: c for row in rows_of(100) for c in row["candidates"]}
    lines = []
    with serving(*arguments, "--annotator", "ann") as (process, url):
        state = httpx.post(url + "api", json={"do": "next"}).json()
        for number in range(40):
            lines.append(state["said"])
            answer = "accept" if state["item"]["answers"][0].startswith("good") else "none"
            assert state["item"]["answers"][0] in texts
            label = {"do": "label", "item": state["item"]["key"], "answer": answer, "event": f"{number:032x}"}
            state = httpx.post(url + "api", json=label).json()
        assert len(set(lines)) == 2
        assert "more labels may reach" in lines[0]
        process.terminate()
        assert state["said"] in process.stdout.read()
    labels, profile = tmp_path / "labels of two.jsonl.gz", tmp_path / "profile.json"
    assert run(path, "-o", out, "--export", f"log={labels}") == 0
    told = capsys.readouterr().out
    assert "90 rows fixed before the first label" in told
    command = re.search(r"bonmini-guard (calibrate .*)", told)[1].replace("profile.json", str(profile))
    assert main(shlex.split(command)) == 0
    announced = re.match(r"certified down to (\S+), serves ([\d.]+)", state["said"])
    assert json.loads(profile.read_text())["thresholds"][0] == pytest.approx(float(announced[1]), rel=0.01)
