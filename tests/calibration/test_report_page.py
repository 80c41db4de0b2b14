"""The report in a real browser: its slider says what ``replay --json`` says, and the page is for everyone, on every width."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from bonmini_guard.calibration.choose import calibrate_guardrail
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.logs import load_log
from bonmini_guard.calibration.prices import Prices, calibrate_costs
from bonmini_guard.calibration.report import build_report
from bonmini_guard.calibration.sliding import slider
from bonmini_guard.cli import main
from bonmini_guard.policy.profile import GuardProfile
from tests.calibration.helpers import rows_of, written
from tests.calibration.populations import Population

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
PROFILE = GuardProfile(mode="guardrail", schedule=(2, 2, 4), thresholds=(0.8, 0.6, 0.5))
expect.set_options(timeout=300_000)
SHOWN = ("bad_among_served_rate", "served_and_bad_rate", "acceptable_rate", "mean_draws")


def log_rows(prompts=120, unlabelled=0.0, seed=0):
    chance = np.random.default_rng(seed)
    for number, row in enumerate(rows_of(Population(size=8).log(prompts, seed))):
        for at, one in enumerate(row["candidates"]):
            one["text"] = f"{HOSTILE} answer {number}.{at}"
            one["acceptable"] = None if chance.random() < unlabelled else one["acceptable"]
        yield {**row, "prompt": f"question {number}", "topic": ["bills", "a slice with <b>markup</b>"][number % 2]}


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report of the command; the console must stay silent, and nothing may be asked for."""
    said, contexts = [], []

    def open_report(log, *options, profile=PROFILE, scheme="light", width=1280):
        profile.save(tmp_path / "profile.json")
        main(["report", str(log), "--profile", str(tmp_path / "profile.json"), "-o", str(tmp_path / "report.html"), *options])
        contexts.append(browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(300_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.endswith("/report.html") else said.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        expect(page.locator("#threshold-0")).to_be_visible()
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert said == []


def replayed(log, folder, capsys, profile):
    """``replay --json`` of a profile on a log."""
    profile.save(folder / "moved.json")
    capsys.readouterr()
    main(["replay", str(log), "--profile", str(folder / "moved.json"), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("unlabelled", [0.0, 0.4])
def test_the_slider_says_what_replay_says(opened, tmp_path, capsys, unlabelled):
    log = written(tmp_path / "log.jsonl", log_rows(unlabelled=unlabelled))
    page = opened(log)
    slider, thresholds = page.locator("#threshold-0"), page.evaluate("data.profiles[0].thresholds")
    assert thresholds[int(slider.input_value())] == list(PROFILE.thresholds)
    slider.focus()
    seen = set()
    for key in ("ArrowRight", "Home", "PageUp", "PageUp", "ArrowLeft", "PageUp", "End"):
        page.keyboard.press(key)
        position = int(slider.input_value())
        figures = replayed(log, tmp_path, capsys, PROFILE.model_copy(update={"thresholds": tuple(thresholds[position])}))
        shown = {name: page.locator(f'data[data-key="{name}"]').get_attribute("value") for name in ("served", *SHOWN)}
        assert float(shown["served"]) == pytest.approx(figures["served"] / figures["requests"], abs=1e-9)
        for name in SHOWN:
            expected = "" if figures[name] is None else pytest.approx(figures[name], abs=1e-9)
            assert (float(shown[name]) if shown[name] else "") == expected
        cell = page.locator("#cell-0 b")
        if figures["false_acceptances"] and cell.count():
            assert float(cell.inner_text().replace(",", "")) == pytest.approx(figures["false_acceptances"], abs=0.051)
        seen.add(position)
    assert len(seen) > 5
    page.get_by_role("button", name="Back to the profile's own").click()
    assert thresholds[int(slider.input_value())] == list(PROFILE.thresholds)


def test_every_certified_position_would_have_been_certified(opened, tmp_path):
    log = written(tmp_path / "log.jsonl", log_rows(400))
    profile = calibrate_guardrail(load_log(log), schedule=(4, 4), alpha=0.1).profile
    page = opened(log, profile=profile)
    expect(page.get_by_role("status")).to_contain_text("Certified")
    slider, (first, last) = page.locator("#threshold-0"), page.evaluate("data.profiles[0].certified")
    assert first == int(slider.input_value()) < last == page.evaluate("data.profiles[0].thresholds.length - 1")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("status")).to_contain_text("Not certified")
    edited = profile.model_copy(update={"thresholds": (-5.0, -5.0)})
    assert opened(log, profile=edited).evaluate("data.profiles[0].certified") is None


@pytest.mark.parametrize(("risk", "all_of_them"), [("bad_among_served", False), ("served_and_bad", True)])
def test_a_sequence_that_begins_later_certifies_nothing_stricter(risk, all_of_them):
    log = Population(size=8).log(1500, 1)
    profile = calibrate_guardrail(log, schedule=(4, 4), alpha=0.15, risk=risk).profile
    text = build_report(log, profile)
    shown = json.loads(text.split('id="data">')[1].split("</script>")[0])["profiles"][0]
    above = profile.evidence.get("certified_above", math.inf)
    held = [t[0] for t in shown["thresholds"][shown["certified"][0] : shown["certified"][1] + 1]]
    assert max(held) <= profile.thresholds[0] + above
    assert (shown["certified"][1] == len(shown["thresholds"]) - 1) is all_of_them


def test_prices_certify_one_threshold_and_a_refuted_promise_none():
    log = Population(size=8).log(1500, 1)
    priced = calibrate_costs(log, schedule=(4, 4), prices=Prices(5.0, 1.0, 0.01)).profile
    found = slider(log, priced, replay_log(log, priced))
    assert found["certified"] == (found["at"], found["at"])
    fooled = Population(size=8, tail=0.3).log(1500, 2)
    promised = calibrate_guardrail(log, schedule=(4, 4), alpha=0.1).profile
    assert slider(log, promised, replay_log(log, promised))["certified"] is not None
    assert slider(fooled, promised, replay_log(fooled, promised))["certified"] is None
    assert "REFUTED by this log" in build_report(fooled, promised)


def test_rows_behind_a_cell_move_with_the_slider_and_lead_to_labelling(opened, tmp_path, capsys):
    page = opened(written(tmp_path / "log.jsonl", log_rows()), "--texts")
    page.locator("#cell-0").click()
    listed = page.locator(".case")
    assert listed.count()
    expect(listed.first).to_contain_text("not acceptable")
    expect(listed.first).to_contain_text("question")
    expect(listed.first).to_contain_text(HOSTILE)
    assert page.title() == "Calibration report"
    command = listed.first.locator("code").inner_text().split()
    assert command[:2] == ["bonmini-guard", "label"]
    page.locator("#threshold-0").focus()
    page.keyboard.press("End")
    expect(page.locator("#cell-0")).to_have_count(0)  # nothing is served there
    expect(page.get_by_role("heading", name="listed")).to_contain_text("Abstained")


def test_without_texts_none_is_in_the_page(opened, tmp_path):
    page = opened(written(tmp_path / "log.jsonl", log_rows()))
    assert "onerror" not in page.content()
    assert "question" not in page.locator("#cells").inner_text()


@pytest.mark.parametrize(
    ("kind", "scheme", "width"),
    [(kind, *look) for kind in ("two", "ten", "bare", "texts") for look in (("light", 1280), ("dark", 360))]
    + [("two", "dark", 768), ("two", "light", 1920)],
)
def test_no_barrier_that_axe_knows_and_nothing_scrolls_sideways(opened, tmp_path, kind, scheme, width):
    PROFILE.model_copy(update={"mode": "accelerator"}).save(tmp_path / "other.json")
    options = {"two": ["--against", str(tmp_path / "other.json"), "--slice", "topic"], "texts": ["--texts"]}.get(kind, [])
    rows = log_rows(10 if kind == "ten" else 120, unlabelled=1.0 if kind == "bare" else 0.0)
    page = opened(written(tmp_path / "log.jsonl", rows), *options, scheme=scheme, width=width)
    found = Axe().run(page).response["violations"]
    assert [(entry["id"], [node["html"] for node in entry["nodes"]]) for entry in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("svg").count() == {"two": 5, "ten": 3, "bare": 3, "texts": 5}[kind]
    if kind == "two":
        assert page.locator("input[type=range]").count() == 2
    if kind == "ten":
        expect(page.locator("dd").nth(1)).to_contain_text("of 10")
        assert page.locator("path.line").count() == 0
    page.emulate_media(media="print")
    assert page.locator("input[type=range]").first.is_hidden()


def test_a_hundred_thousand_rows_are_less_than_five_megabytes():
    text = build_report(Population(size=4).log(100_000, 0), GuardProfile(mode="guardrail", schedule=(2, 2), thresholds=(0.5, 0.5)))
    assert len(text.encode()) < 5e6
