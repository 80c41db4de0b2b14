"""The page in a real browser: by keyboard alone, accessible, safe with hostile answers, and nothing acknowledged is lost."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from bonmini_guard.labelling.events import Ledger, read
from bonmini_guard.labelling.rows import read_rows
from tests.labelling.helpers import log_file, row, serving

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script></textarea>**bold** \u202egnol"
LONG = "\n\n".join(f"Paragraph {i}. " + "word " * 60 for i in range(30))
ROWS = [
    row("markup", (HOSTILE, "plain")),
    row("long", (LONG, "short\n\n- a *list*")),
    {**row("talk"), "prompt": [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": "Hi"}]},
    row("single", ("only",)),
    row("blank", ("  ", "")),
]
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One server for annotators of many names: (log, file of events, address)."""
    folder = tmp_path_factory.mktemp("labelling")
    log, out = log_file(folder / "log.jsonl", ROWS), folder / "out.jsonl"
    with serving(log, "-o", out, "--question", "Would <you>?") as (_, url):
        yield log, out, url


@pytest.fixture
def page(browser):
    """A page whose console must stay silent, but for a server that is gone."""
    context = browser.new_context()
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.set_default_timeout(30_000)
    yield page
    context.close()
    assert [text for text in said if "net::ERR_" not in text] == []


def enter(page, url, name="ann"):
    page.goto(url)
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_be_focused()


def is_at(page, done):
    expect(page.locator("#count")).to_have_text(f"{done} of {len(ROWS)}")


def violations(page):
    found = Axe().run(page).response["violations"]
    return [(entry["id"], [node["html"] for node in entry["nodes"]]) for entry in found]


def events_of(out, name):
    return [event for event in read(out)[1] if event["annotator"] == name]


def test_a_session_by_keyboard_alone(served, page):
    _, out, url = served
    enter(page, url, "keyboard")
    first = page.locator("#answers").inner_text()
    page.keyboard.press("s")
    expect(page.locator("#said")).to_contain_text("Put off")
    for done in range(len(ROWS)):
        is_at(page, done)
        page.keyboard.press("n" if done % 2 else "1")
    expect(page.locator("#finished")).to_be_focused()
    expect(page.locator("#possible")).to_contain_text("train a reward model")
    expect(page.locator("#commands")).to_contain_text(f"-o {out} --export choices=choices.jsonl")
    page.keyboard.press("u")  # the last one was the one put off
    is_at(page, len(ROWS) - 1)
    assert page.locator("#answers").inner_text() == first
    for _ in range(30):  # by Tab to a button, and Enter
        if page.evaluate("document.activeElement.dataset.answer") == "none":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#finished")).to_be_focused()
    kinds = [event["kind"] for event in events_of(out, "keyboard")]
    assert kinds == ["skip", *["label"] * len(ROWS), "undo", "label"]


def test_what_is_pressed_is_what_was_shown(served, page):
    log, out, url = served
    enter(page, url, "pressed")
    taken = []
    for done in range(len(ROWS)):
        is_at(page, done)
        texts = page.locator("#answers .text").all_text_contents()
        taken.append(texts[-1])
        page.keyboard.press("b" if len(texts) == 2 else "y")
    expect(page.locator("#finished")).to_be_focused()
    texts = {one.id: one.texts for one in read_rows([log])}
    events = events_of(out, "pressed")
    shown = [text if text.strip() else "only blanks" for text in (texts[e["row"]][e["chosen"]] for e in events)]
    assert shown == taken


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_no_barrier_that_axe_knows(served, browser, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(served[2])
    expect(page.locator("#name")).to_be_focused()
    assert violations(page) == []
    page.keyboard.type(f"axe {scheme}")
    page.keyboard.press("Enter")
    seen = set()
    for done in range(len(ROWS)):
        is_at(page, done)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        answers = page.locator("#answers .scroll").count()
        if answers not in seen or page.get_by_text("Paragraph 29").count():
            assert violations(page) == []
        seen.add(answers)
        page.keyboard.press("n")
    expect(page.locator("#finished")).to_be_focused()
    assert violations(page) == []
    assert seen == {1, 2}
    context.close()


def test_hostile_answers_stay_text(served, page):
    url, asked = served[2], []
    page.on("request", lambda request: asked.append(request.url))
    enter(page, url, "hostile")
    seen = []
    for done in range(len(ROWS)):
        is_at(page, done)
        seen += page.locator(".text").all_text_contents()
        assert page.locator(".scroll :is(img, script, b, textarea, a, iframe)").count() == 0
        page.keyboard.press("0")
    expect(page.locator("#finished")).to_be_focused()
    assert HOSTILE in seen
    assert "Be <b>brief</b>." in seen
    assert page.title() != "taken"
    assert all(address.startswith((url, "data:")) for address in asked)


def test_conversations_are_shown_turn_by_turn_and_long_answers_scroll(served, page):
    enter(page, served[2], "reader")
    roles, scrolled = [], 0
    for done in range(len(ROWS)):
        is_at(page, done)
        expect(page.locator("#question")).to_have_text("Would <you>?")
        roles.append(page.locator(".role").all_text_contents())
        if page.get_by_text("Paragraph 29").count():
            pane = page.locator("#answers .scroll", has_text="Paragraph 29")
            assert pane.evaluate("e => e.scrollHeight > 2 * e.clientHeight")
            pane.focus()
            page.keyboard.press("End")
            expect(page.locator("#title")).to_be_visible()
            scrolled += 1
        page.keyboard.press("n")
    assert ["system", "user"] in roles
    assert scrolled == 1


def test_a_name_that_is_refused_can_be_corrected(served, browser):
    page = browser.new_page()
    page.goto(served[2])
    page.locator("#name").fill("with\u200da joiner")
    page.keyboard.press("Enter")
    expect(page.locator("#trouble")).to_contain_text("an annotator's name is 1 to 80 printable characters")
    page.locator("#name").fill("corrected")
    page.locator("#name").press("Enter")
    is_at(page, 0)
    expect(page.locator("#problem")).to_be_hidden()
    page.close()


def test_two_annotators_at_once_and_their_agreement(tmp_path, browser):
    log, out = log_file(tmp_path / "log.jsonl", ROWS), tmp_path / "out.jsonl"
    with serving(log, "-o", out) as (_, url):
        pages = [browser.new_context().new_page() for _ in range(2)]
        for name, page in zip(("ann", "bob"), pages, strict=True):
            enter(page, url, name)
        for done in range(len(ROWS)):
            for page in pages:
                is_at(page, done)
                page.keyboard.press("n" if done % 2 else "1")
                if done == len(ROWS) - 1:  # or the second one might be told before the first one's last label is there
                    expect(page.locator("#finished")).to_be_focused()
        expect(pages[1].locator("#agreement")).to_contain_text("5 items were judged by several annotators")
        for page in pages:
            page.context.close()
    ledger = Ledger(read(out)[1])
    assert {name: len(ledger.labels(name)) for name in ledger.annotators} == {"ann": 5, "bob": 5}


@pytest.mark.parametrize(("button", "said"), [("#judge button:last-child", "{} of 5 judged"), ("#skip", "{} put off")])
def test_a_double_click_is_one_act_and_fast_clicks_on_items_that_were_shown_are_one_each(served, page, button, said):
    page.clock.install()
    enter(page, served[2], f"double {button[:5]}")
    page.clock.pause_at(datetime.now(UTC) + timedelta(days=1))
    box = page.locator(button).bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    for clicks, later, acts in ((1, 300, 1), (2, 120, 1), (3, 180, 2), (4, 300, 3)):  # as browsers count those in a row
        page.clock.run_for(later)
        page.mouse.down(click_count=clicks)
        page.mouse.up(click_count=clicks)
        expect(page.locator("#said")).to_contain_text(said.format(acts))
        assert page.evaluate("[busy, state.done + state.put_off]") == [False, acts]


def test_letters_can_be_switched_off_and_a_held_key_judges_once(served, page):
    enter(page, served[2], "letters")
    is_at(page, 0)
    page.keyboard.down("n")
    for _ in range(5):
        page.keyboard.down("n")  # repeats, as a held key sends them
    page.keyboard.up("n")
    is_at(page, 1)
    page.keyboard.press("Control+u")
    page.locator("#letters").click()
    expect(page.locator("#letters")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("n")
    page.keyboard.press("u")
    before = page.locator("#answers").inner_text()
    page.reload()  # goes on where it was
    is_at(page, 1)
    expect(page.locator("#who")).to_have_text("letters")
    assert page.locator("#answers").inner_text() == before
    page.keyboard.press("n")
    page.locator("#letters").click()
    page.keyboard.press("n")
    is_at(page, 2)


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path, page):
    """The server is killed with a label on its way; what the page called saved is in the file, and a restart goes on there."""
    rows = [row(str(i)) for i in range(40)]
    log, out = log_file(tmp_path / "log.jsonl", rows), tmp_path / "out.jsonl"
    with serving(log, "-o", out, "--annotator", "ann") as (process, url):
        page.goto(url)
        for done in range(12):
            expect(page.locator("#count")).to_have_text(f"{done} of 40")
            page.keyboard.press("n")
        process.kill()
        while page.locator("#problem").is_hidden():
            page.keyboard.press("n")
        acknowledged = int(page.locator("#count").inner_text().split()[0])
    expect(page.locator("#trouble")).to_contain_text("Nothing was saved: the server does not answer")
    assert acknowledged >= 11
    kept = [json.loads(line) for line in out.read_bytes()[: out.read_bytes().rfind(b"\n")].split(b"\n")[1:]]
    assert acknowledged <= len(kept) <= acknowledged + 1  # one may be on disk whose acknowledgement was lost
    assert len({event["item"] for event in kept}) == len(kept)
    with serving(log, "-o", out, "--annotator", "ann") as (_, url):
        page.goto(url)
        expect(page.locator("#count")).to_have_text(f"{len(kept)} of 40")
        page.keyboard.press("n")
        expect(page.locator("#count")).to_have_text(f"{len(kept) + 1} of 40")
