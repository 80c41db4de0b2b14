"""The desk's check, case by case, and what the desk's prompts promise."""

from __future__ import annotations

import asyncio
import json

import pytest
from langchain_core.messages import AIMessage
from langchain_core.messages.utils import convert_to_messages

from benchmarks.desk import seeds
from benchmarks.desk.draw import Drawing
from benchmarks.desk.evaluate import PROFILES, RESULTS, evaluate
from benchmarks.desk.label import log_rows
from benchmarks.desk.picture import TARGET, lines_of, svg
from benchmarks.tables import read_rows, write_rows
from bonmini_guard import RewardModel
from bonmini_guard.demo import room
from bonmini_guard.demo.check import verdict
from bonmini_guard.demo.desk import HELD_OUT, ROLES, Note, messages, prompts

MUGS = ((3, "ceramic mug"),)
NOTES = {
    "arrival": Note("arrival", "Omar", MUGS, {"courier": "Royal Mail", "date": "9 July"}),
    "delay": Note("delay", "Omar", MUGS, {"date": "9 July"}),
    "refund": Note("refund", "Omar", MUGS, {"amount": "$24"}),
    "stock": Note("stock", "Omar", MUGS, {"date": "9 July"}),
    "pickup": Note("pickup", "Omar", MUGS, {"shop": "Leeds", "date": "9 July"}),
    "two": Note("refund", "Omar", (*MUGS, (2, "cushion")), {"amount": "$24"}),
    "arrival?": Note("arrival", "Omar", MUGS, {"courier": "Royal Mail", "date": None}),
    "delay?": Note("delay", "Omar", MUGS, {"date": None}),
    "stock?": Note("stock", "Omar", MUGS, {"date": None}),
    "pickup?": Note("pickup", "Omar", MUGS, {"shop": "Leeds", "date": None}),
}

ACCEPTABLE = [
    ("arrival", "Hello Omar, your 3 ceramic mugs are on their way with Royal Mail and will arrive on 9 July."),
    ("arrival", "Hi Omar, your three ceramic mugs are on its way with Royal Mail and will arrive on July 9."),
    ("arrival", "Omar, your 3 ceramic mugs have been shipped with Royal Mail and should arrive by the 9th of July."),
    ("arrival", "Dear Omar, your 3 ceramic mugs will be delivered by Royal Mail on 9 July."),
    ("arrival", "Hi Omar, I hope you're doing well. Your 3 ceramic mugs are coming with Royal Mail. They will arrive on 9 July."),
    ("arrival", "Hello Omar, your 3 ceramic mugs will arrive on 9 July with Royal Mail. Thank you for your order!"),
    ("delay", "Hello Omar, your 3 ceramic mugs are delayed and will now arrive on 9 July."),
    ("delay", "Omar, we are sorry to inform you that your 3 ceramic mugs are late. They will now be delivered on 9 July."),
    ("delay", "Hello Omar, your 3 ceramic mugs are delayed until 9 July. We apologize for the inconvenience."),
    ("delay", "Hi Omar, the delivery of your 3 ceramic mugs has been postponed to 9 July."),
    ("delay", "Hello Omar, your 3 ceramic mugs are delayed; the new date is 9 July."),
    ("refund", "Hello Omar, we have refunded $24 for your 3 ceramic mugs."),
    ("refund", "Hello Omar, we\N{RIGHT SINGLE QUOTATION MARK}ve just refunded $24.00 for the purchase of 3 ceramic mugs."),
    ("refund", "Omar, you have been refunded $24 for your 3 ceramic mugs."),
    ("refund", "Hi Omar, we have sent you a refund of $24 for the 3 ceramic mugs you ordered."),
    ("refund", "Hello Omar, a refund of $24 for your 3 ceramic mugs has been issued."),
    ("two", "Hello Omar, we have refunded $24 for your 3 ceramic mugs and 2 cushions."),
    ("two", "Hello Omar, we have refunded $24 for your 2 cushions and your 3 ceramic mugs."),
    ("stock", "Hello Omar, the 3 ceramic mugs you ordered are sold out and will be back in stock on 9 July."),
    ("stock", "Hey Omar, your 3 ceramic mugs are currently not available and will be available again on 9 July."),
    ("stock", "Omar, the 3 ceramic mugs you bought are out of stock until 9 July."),
    ("pickup", "Hello Omar, your 3 ceramic mugs are ready for pick-up in our Leeds shop from 9 July."),
    ("pickup", "Hi Omar, from 9 July you can pick up your 3 ceramic mugs at our shop in Leeds."),
    ("pickup", "Omar, your 3 ceramic mugs can be collected at the Leeds store on 9 July."),
    ("arrival?", "Hello Omar, your 3 ceramic mugs are on their way with Royal Mail, but the arrival date is not known yet."),
    ("delay?", "Omar, your 3 ceramic mugs are now delayed, and the new date is unknown."),
    ("delay?", "Omar, your 3 ceramic mugs are delayed and will arrive on a not yet known date."),
    ("delay?", "Hello Omar, your 3 ceramic mugs are late. We do not know when they will arrive."),
    ("stock?", "Hi Omar, your 3 ceramic mugs are sold out and it is not known when they will be back in stock."),
    ("pickup?", "Omar, your 3 ceramic mugs will be ready for pick-up in our Leeds shop, but the date is not known yet."),
]

REFUSED = [
    ("arrival", "Hello Omar, your 3 ceramic mugs are on their way with Royal Mail and will arrive on 8 July.", "wrong date"),
    ("arrival", "Hello Omar, your 3 ceramic mugs left on 1 July and will arrive on 9 July with Royal Mail.", "wrong date"),
    ("arrival", "Hello Omar, your 3 ceramic mugs are on their way with Royal Mail and will arrive soon.", "no date"),
    ("arrival", "Hello Omar, your 3 ceramic mugs are on their way and will arrive on 9 July.", "no courier"),
    ("arrival", "Hello, your 3 ceramic mugs are on their way with Royal Mail and will arrive on 9 July.", "no name"),
    (
        "arrival",
        "Hello Omar, your 4 ceramic mugs are on their way with Royal Mail and will arrive on 9 July.",
        "wrong count of ceramic mugs",
    ),
    (
        "arrival",
        "Hello Omar, your ceramic mugs are on their way with Royal Mail and will arrive on 9 July.",
        "wrong count of ceramic mugs",
    ),
    ("arrival", "Hello Omar, your 3 mugs are on their way with Royal Mail and will arrive on 9 July.", "no ceramic mugs"),
    (
        "arrival",
        "Hello Omar, your 3 ceramic mugs are on your way with Royal Mail and will arrive on 9 July.",
        "says something else",
    ),
    (
        "arrival",
        "Hello Omar, your 3 ceramic mugs are on their way with Royal Mail and you will arrive on 9 July.",
        "says something else",
    ),
    ("arrival", "Hello Omar, your 3 ceramic mugs have arrived with Royal Mail on 9 July.", "says something else"),
    ("arrival", "Omar has 3 ceramic mugs coming with Royal Mail on 9 July.", "says something else"),
    ("arrival", "Hello Omar, your 3 ceramic mugs come with Royal Mail and DHL and arrive on 9 July.", 'a fact nobody gave: "DHL"'),
    ("arrival", "Hello Omar, your 3 ceramic mugs will arrive tomorrow, 9 July, with Royal Mail.", 'a fact nobody gave: "tomorrow"'),
    ("arrival", "Dear Omar,\nyour 3 ceramic mugs will arrive on 9 July with Royal Mail.", "not one short message"),
    ("arrival", "", "not one short message"),
    ("arrival", "Hello Omar.", "no ceramic mugs"),
    ("delay", "Hello Omar, your 3 ceramic mugs are now available on 9 July.", "says something else"),
    ("delay", "Hello Omar, your 3 ceramic mugs will now arrive on 9 July.", "says something else"),
    ("delay", "Hello Omar, your 3 ceramic mugs are delayed and will now arrive on 9 July 2020.", 'a fact nobody gave: "2"'),
    ("delay", "Hello Omar, your 3 ceramic mugs are not delayed and will arrive on 9 July.", "says something else"),
    ("delay", "Hello Omar, your 3 ceramic mugs have been delayed since 9 July.", "says something else"),
    ("delay", "Hello Omar, your 3 ceramic mugs and your 2 umbrellas are delayed until 9 July.", 'a fact nobody gave: "2"'),
    ("delay", "Your 3 ceramic mugs are delayed and will arrive on 9 July, Grace and Omar.", 'a fact nobody gave: "Grace"'),
    ("refund", "Hello Omar, we have refunded $23 for your 3 ceramic mugs.", "wrong amount"),
    ("refund", "Hello Omar, we have refunded $24.50 for your 3 ceramic mugs.", "no amount"),
    ("refund", "Hello Omar, we have refunded your 3 ceramic mugs.", "no amount"),
    ("refund", "Hello Omar, we have received a refund of $24 for your 3 ceramic mugs.", "says something else"),
    ("refund", "Hello Omar, we have only refunded $24 for your 3 ceramic mugs.", "says something else"),
    ("refund", "Hello Omar, you have refunded $24 for your 3 ceramic mugs.", "says something else"),
    ("refund", "Hello Omar, we have refunded $24 for your 3 ceramic mugs on 9 July.", "a date nobody gave"),
    ("refund", "Hello Omar, we have refunded $24 for each of your 3 ceramic mugs.", "says something else"),
    ("refund", "Hello Omar. We have refunded $24 for your 3 ceramic mugs. You can buy new ones for less.", "says something else"),
    ("two", "Hello Omar, we have refunded $24 for your 3 ceramic mugs.", "no cushions"),
    ("two", "Hello Omar, we have refunded $24 for your 2 ceramic mugs and 3 cushions.", "wrong count of ceramic mugs"),
    ("stock", "Hello Omar, the 3 ceramic mugs you ordered are back in stock on 9 July.", "says something else"),
    ("stock", "Hello Omar, the 3 ceramic mugs you ordered are sold out on 9 July.", "says something else"),
    ("stock", "Hello Omar, the 3 ceramic mugs are still in stock and will be sold out on 9 July.", "says something else"),
    ("pickup", "Hello Omar, your 3 ceramic mugs are ready for pick-up from 9 July.", "no shop"),
    (
        "pickup",
        "Hello Omar, your 3 ceramic mugs are ready for pick-up in our Leeds shop in York from 9 July.",
        'a fact nobody gave: "York"',
    ),
    ("pickup", "Hello Omar, your 3 ceramic mugs will be delivered to our Leeds shop on 9 July.", "says something else"),
    (
        "arrival?",
        "Hello Omar, your 3 ceramic mugs are on their way with Royal Mail and will arrive on 9 June.",
        "a date nobody gave",
    ),
    ("arrival?", "Hello Omar, your 3 ceramic mugs are on their way with Royal Mail.", "does not say that the date is not known"),
    ("delay?", "Omar, your 3 ceramic mugs are delayed and will arrive on a known date.", "does not say that the date is not known"),
    ("delay?", "Hello Omar, your 3 ceramic mugs are late and will arrive soon.", "does not say that the date is not known"),
    ("delay?", "Hello Omar, your 3 ceramic mugs are late; the new date is unknown, perhaps in July.", 'a fact nobody gave: "July"'),
    ("stock?", "Hello Omar, the date is not known and your 3 ceramic mugs are here.", "says something else"),
]


@pytest.mark.parametrize(("name", "text"), ACCEPTABLE)
def test_acceptable(name, text):
    assert verdict(NOTES[name], text) is None


@pytest.mark.parametrize(("name", "text", "reason"), REFUSED)
def test_refused_with_its_reason(name, text, reason):
    assert verdict(NOTES[name], text) == reason


def test_a_message_that_was_cut_is_not_acceptable():
    assert verdict(NOTES["refund"], ACCEPTABLE[11][1], ended=False) == "not finished"


def test_prompts_repeat_and_the_held_out_situation_stands_apart():
    for role, (count, _) in ROLES.items():
        made = prompts(role)
        assert len({name for name, _ in made}) == count
        assert {note.situation == HELD_OUT for _, note in made} == {role == "held-out"}
        assert made == prompts(role)
    name, note = prompts("evaluate")[0]
    assert messages(note, name) == messages(note, name)
    assert 0.15 < sum(not note.dated for _, note in prompts("evaluate")) / ROLES["evaluate"][0] < 0.2


def flat(tree, path=""):
    if isinstance(tree, dict):
        return {key: value for name, part in tree.items() for key, value in flat(part, f"{path}/{name}").items()}
    if isinstance(tree, list):
        return flat(dict(enumerate(tree)), path)
    return {path: tree}


def test_the_kept_figures_come_from_the_kept_draws(tmp_path):
    again, kept = evaluate(tmp_path), json.loads(RESULTS.read_text(encoding="utf-8"))
    assert [profile["command"] for profile in again["profiles"].values()] == [
        profile["command"] for profile in kept["profiles"].values()
    ]
    for part in ("figures", "intervals", "scores"):
        assert flat(json.loads(json.dumps(again[part]))) == pytest.approx(flat(kept[part]), abs=1e-6)
    guardrail = again["figures"]["evaluation prompts"]["guardrail"]
    assert guardrail["served_and_bad_rate"] <= 0.05
    assert guardrail["recall_vs_best_of_n"] >= 0.6
    assert guardrail["mean_draws"] <= 0.6 * 16
    assert again["scores"]["evaluate"]["tied_at_top"] <= 0.05


def test_another_seed_is_compared_on_the_rows_that_it_scored(tmp_path, monkeypatch):
    rows = log_rows("held-out")[:20]
    for row in rows:
        for each in row["candidates"]:
            each["score"] = float(each["acceptable"])
    write_rows(tmp_path / "seed-9.jsonl.gz", rows)
    monkeypatch.setattr(seeds, "RESULTS", tmp_path / "seeds.json")
    seeds.seeds([tmp_path / "seed-9.jsonl.gz"])
    found = json.loads((tmp_path / "seeds.json").read_text())
    assert found["seed-9"]["auc"] == 1
    assert found["seed-9"]["draws"] == found["shipped, 20 prompts"]["draws"] == 640
    assert 0.9 < found["shipped, 20 prompts"]["auc"] < 1


@pytest.mark.skipif(room.missing() is not None, reason=f"the desk's model: {room.missing()}")
def test_the_reward_model_is_the_one_that_scored_the_draws():
    model = RewardModel.load(PROFILES / "desk-reward", base=room.language_model())
    for row in log_rows("evaluate")[:2]:
        assert row["scored_by"] in (model.fingerprint(), model.earlier_fingerprint())
        candidates = row["candidates"][:8]
        scores = model.score(convert_to_messages(row["prompt"]), [each["text"] for each in candidates])
        assert scores == pytest.approx([each["score"] for each in candidates], abs=2e-3)
    model.close()


def test_the_picture_is_what_the_recorded_demonstration_prints():
    assert TARGET.read_text(encoding="utf-8") == svg(lines_of(100), 100)


def test_draws_go_on_behind_a_line_that_a_killed_run_left_torn(tmp_path):
    class Drawer:
        async def draw_group(self, requests):
            for place, _ in enumerate(requests):
                yield place, AIMessage("m", response_metadata={"finish_reason": "stop"})

    file = tmp_path / "train.jsonl"
    file.write_text('{"name": "a", "first": 0, "draws": []}\n{"name": "b", "fir')
    asyncio.run(Drawing(Drawer(), file, 2).all({"a": [], "b": []}, 0))
    assert {row["name"]: len(row["draws"]) for row in read_rows(file)} == {"a": 0, "b": 2}
