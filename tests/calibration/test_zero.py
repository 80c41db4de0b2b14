"""A zero for models that have none: the simplest form that the labels support, and a spec that is taken everywhere."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from transformers import LlamaConfig, LlamaForSequenceClassification

from bonmini_guard import BestOfMiniN
from bonmini_guard.calibration import zero
from bonmini_guard.cli import main
from bonmini_guard.conversation import Turn, prompt_digest
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.reward.declared import load_scorer
from bonmini_guard.testing import FakeGenerator
from tests.reward.test_kinds import saved
from tests.reward.tiny import CHATML

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")


def world(prompts, draws, offsets, seed=0, noise=0.3):
    """Utilities u, acceptable above 0 by their sigmoid; scores u plus an offset of the prompt, which a fixed answer shares."""
    random = np.random.default_rng(seed)
    middle = random.normal(0, 1, (prompts, 1))
    utility = middle + random.normal(0, 1.5, (prompts, draws))
    offset = random.normal(1.0, offsets, (prompts, 1))
    raw = (utility + offset).ravel()
    anchor = (offset + random.normal(-2, noise, (prompts, 1))).repeat(draws, 1).ravel()[:, None]
    good = random.random(raw.size) < 1 / (1 + np.exp(-3 * utility.ravel()))
    return zero.Labels(raw, anchor, good, np.arange(prompts).repeat(draws)), utility.ravel()


def test_free_offsets_of_prompts_are_taken_off_by_a_fixed_answer():
    labels, utility = world(150, 8, offsets=2.0)
    choice = zero.choose(labels)
    assert choice.form == "fixed answers"
    assert choice.table["fixed answers"]["auc"] > choice.table["shift and factor"]["auc"] + 0.05
    assert choice.within > choice.between + 0.05
    scores = choice.fit.scores(labels)
    assert np.corrcoef(scores, utility)[0, 1] > np.corrcoef(labels.raw, utility)[0, 1] + 0.1
    assert choice.fit.weights[0] == pytest.approx(choice.fit.factor, rel=0.25)


@pytest.mark.parametrize("prompts", [12, 50, 400])
def test_without_offsets_the_simpler_form_stays_and_none_costs_more_than_a_hundredth(prompts):
    for seed in range(4):
        labels, _ = world(prompts, 6, offsets=0.0, seed=seed, noise=1.0)
        choice = zero.choose(labels, seed=seed)
        fresh, _ = world(2000, 4, offsets=0.0, seed=1000 + seed, noise=1.0)
        chosen, plain = (f.scores(fresh) for f in (choice.fit, zero.fit(labels, "shift")))
        assert zero.auc(chosen, fresh.good) > zero.auc(plain, fresh.good) - 0.01


def test_the_zero_is_where_half_are_acceptable():
    labels, _ = world(400, 6, offsets=0.0)
    scores = zero.choose(labels).fit.scores(labels)
    near = np.abs(scores) < 0.5
    assert labels.good[near].mean() == pytest.approx(0.5, abs=0.08)
    assert zero.fit(labels, "shift").factor == 1.0


@pytest.mark.parametrize("form", zero.FORMS)
def test_scores_that_lie_close_together_and_far_from_zero_say_as_much(form):
    labels, _ = world(100, 4, offsets=1.0)
    moved = zero.Labels(1000 + labels.raw / 100, 1000 + labels.anchors / 100, labels.good, labels.unit)
    near, far = (zero.fit(each, form) for each in (labels, moved))
    assert far.factor == pytest.approx(near.factor * (1 if form == "shift" else 100), rel=1e-2)
    if form != "shift":
        assert far.scores(moved) == pytest.approx(near.scores(labels), abs=0.05)


def test_too_little_says_nothing():
    labels, _ = world(9, 4, offsets=0.0)
    with pytest.raises(ConfigurationError, match="at least 10 prompts"):
        zero.choose(labels)
    labels, _ = world(20, 4, offsets=0.0)
    with pytest.raises(ConfigurationError, match="some answers acceptable and some not"):
        zero.choose(zero.Labels(labels.raw, labels.anchors, np.ones_like(labels.good), labels.unit))


def test_orders_within_and_between_prompts():
    good = np.array([True, False, True, False])
    labels = zero.Labels(np.array([1.0, 0.0, 5.0, 4.0]), np.zeros((4, 0)), good, np.array([0, 0, 1, 1]))
    assert zero.orders(labels) == (1.0, 0.5)


# The command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero") / "ranker"
    saved(folder, LlamaForSequenceClassification, LlamaConfig, CHATML, num_labels=1)
    return folder


WORDS = ["dull", "fine", "good", "awful", "plot", "cast", "the end", "film", "very"]


@pytest.fixture
def labelled(model, tmp_path):
    """Rows whose labels follow the model's own scores, shifted."""
    scorer = load_scorer(str(model))
    path = tmp_path / "labels.jsonl"
    with path.open("w") as file:
        for number in range(40):
            answers = [WORDS[number % 5], f"{WORDS[number % 7]} {WORDS[number % 9]}", f"very {WORDS[number % 8]} plot"]
            scores = scorer.score(f"film {number}", answers)
            good = [bool(score * 40 + 0.4 * np.sin(number) > 0.1) for score in scores]
            drawn = [{"text": text, "acceptable": label} for text, label in zip(answers, good, strict=True)]
            file.write(json.dumps({"id": str(number), "prompt": f"film {number}", "candidates": drawn}) + "\n")
    scorer.close()
    return path


def test_a_spec_that_every_face_and_command_takes(model, labelled, tmp_path, capsys):
    spec = tmp_path / "a spec.json"
    assert main(["zero", str(model), "--labels", str(labelled), "-o", str(spec), "--anchor", "the end"]) == 0
    said = capsys.readouterr().out
    assert f"--reward-model '{spec}' -o SCORED" in said
    assert "120 labelled answers to 40 prompts" in said
    assert "fixed answers" in said
    written = json.loads(spec.read_text())
    assert written["kind"] == "template"
    assert set(written["zero"]) <= {"shift", "factor", "anchors"}
    scored = tmp_path / "scored.jsonl"
    assert main(["score", str(labelled), "--reward-model", str(spec), "-o", str(scored)]) == 0
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    profile = tmp_path / "profile.json"
    asked = ["--alpha", "0.9", "--delta", "0.5", "--schedule", "1,1", "-o", str(profile)]
    assert main(["calibrate", str(scored), "--mode", "guardrail", *asked]) == 0
    first = rows[0]["candidates"][0]
    guard = BestOfMiniN(generator=FakeGenerator([first["text"]]), reward_model=spec, profile=profile)
    assert guard.run("film 0").candidates[0].score == pytest.approx(first["score"], abs=1e-4)


def test_rows_that_the_model_learnt_from_are_left_out_and_counted(model, labelled, tmp_path, capsys):
    taught = shutil.copytree(model, tmp_path / "taught")
    prompts = [prompt_digest([Turn("user", f"Film  {number}")]) for number in range(10)]
    (taught / "trained_on.json").write_text(json.dumps({"prompts": prompts}))
    assert main(["zero", str(taught), "--labels", str(labelled), "-o", str(tmp_path / "spec.json")]) == 0
    said = capsys.readouterr()
    assert "90 labelled answers to 30 prompts" in said.out
    assert "left out: rows that the reward model was trained on, which flatter it: 10\n" in said.err


def test_models_of_parts_are_found_from_the_spec_wherever_one_stands(model, labelled, tmp_path, monkeypatch, capsys):
    for place in ("in", "out", "elsewhere"):
        (tmp_path / place).mkdir()
    (tmp_path / "in" / "ranker").symlink_to(model)
    parts = [{"kind": "template", "model": "ranker"}, {"kind": "check", "check": {"type": "regex", "pattern": "good"}}]
    (tmp_path / "in" / "sum.json").write_text(json.dumps({"kind": "sum", "sum": parts}))
    monkeypatch.chdir(tmp_path)
    asked = ["--no-anchors", "--base", "a base"]
    assert main(["zero", "in/sum.json", "--labels", str(labelled), "-o", "out/spec.json", *asked]) == 0
    assert "--reward-model out/spec.json -o SCORED --base 'a base'" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_scorer("../out/spec.json").score("film", ["good"]) != [None]


def test_fixed_answers_are_scored_once_a_request_and_taken_off(model, tmp_path):
    spec = tmp_path / "spec.json"
    anchors = [{"text": "the end", "weight": 0.5}, {"text": "dull", "weight": 2.0}]
    declared = {"shift": 0.25, "factor": 2.0, "anchors": anchors}
    spec.write_text(json.dumps({"kind": "template", "model": str(model), "zero": declared}))
    scorer, plain = load_scorer(str(spec)), load_scorer(str(model))
    a, end, dull = plain.score("film", ["good cast", "the end", "dull"])
    assert scorer.score([HumanMessage("film")], [AIMessage("good cast")]) == pytest.approx(
        [2 * a + 0.25 - 0.5 * end - 2 * dull], abs=1e-4
    )
    asked = []
    session = scorer.inner.session

    def counting(messages):
        inner = session(messages)
        given = inner.score

        async def score(candidates):
            asked.append([one.text for one in candidates])
            return await given(candidates)

        inner.score = score
        return inner

    scorer.inner.session = counting
    guard = BestOfMiniN(generator=FakeGenerator(["good", "fine", "cast"]), reward_model=scorer, threshold=99.0, schedule=[1, 2])
    guard.run("film")
    assert asked[0] == ["good", "the end", "dull"]
    assert sorted(asked[1]) == ["cast", "fine"]
    assert "zero" not in repr(scorer.fingerprint())
    other = json.loads(spec.read_text())
    other["zero"]["anchors"][0]["weight"] = 0.6
    spec.write_text(json.dumps(other))
    assert load_scorer(str(spec)).fingerprint() != scorer.fingerprint()


def test_a_fixed_answer_without_a_score_leaves_no_score():
    from bonmini_guard.reward.declared import Declared
    from bonmini_guard.reward.spec import ScorerSpec

    spec = ScorerSpec(kind="check", check={"type": "regex", "pattern": "x"}, zero={"anchors": [{"text": "a", "weight": 1.0}]})
    scorer = Declared(spec, None)
    assert scorer.transformed(3.0, [1.0]) == 2.0
    assert scorer.transformed(3.0, [None]) is None


@pytest.mark.parametrize(("name", "says"), [("spec.toml", "ends in .json"), ("none/spec.json", "none")])
def test_an_output_that_cannot_be(model, labelled, tmp_path, capsys, name, says):
    assert main(["zero", str(model), "--labels", str(labelled), "-o", str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err
