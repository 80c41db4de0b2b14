"""One rich message through every place that makes something of messages: what was said is there, or declared as not shown."""

from __future__ import annotations

import json

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from bonmini_guard import BestOfMiniN
from bonmini_guard.cli import main
from bonmini_guard.conversation import Turn
from bonmini_guard.testing import FakeGenerator
from tests.reward.tiny import CHATML, make_tokenizer

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
CALL = {"name": "lookup", "args": {"film": "Alien"}, "id": "c1"}
ANSWER = AIMessage(
    [{"type": "text", "text": "part one, "}, {"type": "text", "text": "part two"}, PICTURE],
    tool_calls=[CALL],
    additional_kwargs={"reasoning_content": "a thought"},
)
PROMPT = [SystemMessage("be brief"), HumanMessage("which film"), ANSWER, ToolMessage("of 1979", tool_call_id="c1")]
#: What was said, and what is declared as not shown in a place.
SAID = {"part one, ", "part two", "image_url", "lookup", "Alien", "of 1979", "a thought"}
#: A reward model is shown no reasoning (:class:`bonmini_guard.reward.formatting.Formatter`), servers none of earlier turns.
NOT_SHOWN = {"a thought"}


@pytest.fixture
async def log(tmp_path):
    """The trace of a guarded request whose prompt and answer are rich, labelled."""
    path = tmp_path / "log.jsonl"
    guard = BestOfMiniN(
        generator=FakeGenerator(lambda request: ANSWER),
        reward_model=lambda messages, candidates: [1.0] * len(candidates),
        schedule=[1],
        threshold=0.0,
        explore=1.0,
        trace_to=path,
        tool_turns="judge",
    )
    await guard.arun(PROMPT)
    await guard.afinish()
    [row] = map(json.loads, path.read_text().splitlines())
    row["candidates"][0]["acceptable"] = True
    rows = [row | {"id": str(n), "prompt": [*row["prompt"], {"role": "user", "content": str(n)}]} for n in range(5)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def in_templates():
    from bonmini_guard.reward.formatting import Formatter

    return Formatter(make_tokenizer(CHATML), not_shown=["reasoning", "image_url"]).render(PROMPT, ANSWER)


def before_generators():
    from bonmini_guard.reward.formatting import rendered

    return json.dumps(rendered(PROMPT, make_tokenizer(CHATML)))


def before_completion_models():
    from bonmini_guard.reward.formatting import rendered

    tokenizer = make_tokenizer(CHATML)
    tokenizer.chat_template = None
    return rendered(PROMPT, tokenizer)


def on_the_wire():
    from bonmini_guard.adapters.requests import turns

    return json.dumps(turns(PROMPT))


def in_completion_requests():
    from bonmini_guard.adapters.requests import completion_prompt

    return completion_prompt(PROMPT)


def at_a_scoring_server():
    from bonmini_guard.adapters.rewards.inputs import as_messages
    from bonmini_guard.server.schemas import ScoreRequest, read

    [(messages, candidate)] = as_messages(PROMPT, [ANSWER])
    request = read(ScoreRequest, json.dumps({"messages": messages, "candidates": [candidate]}).encode())
    assert [Turn.of(message) for message in request.conversation()] == [Turn.of(message) for message in PROMPT]
    return str([Turn.of(message).openai() for message in (*request.conversation(), *request.answers())])


@pytest.mark.parametrize(
    ("place", "not_shown"),
    [
        (in_templates, NOT_SHOWN),
        (before_generators, set()),
        (before_completion_models, NOT_SHOWN),
        (on_the_wire, NOT_SHOWN),
        (in_completion_requests, NOT_SHOWN),
        (at_a_scoring_server, set()),
    ],
)
def test_nothing_vanishes_where_messages_go(place, not_shown):
    found = place()
    assert {part for part in SAID if part not in found.replace("\\n", "\n")} == not_shown


@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_nothing_vanishes_in_what_is_made_of_logs(log, tmp_path, capsys):
    from bonmini_guard.calibration.scoring_logs import score_log
    from bonmini_guard.labelling import Plan, Session, choice_rows, read_rows
    from bonmini_guard.training.choices import read_choices
    from bonmini_guard.training.distill import read_prompts

    turns = [*map(Turn.of, PROMPT)]
    scored = []

    class Scorer:
        def score(self, messages, candidates):
            scored.append(([Turn.of(message) for message in messages][:-1], Turn.of(candidates[0])))
            return [0.5]

        def fingerprint(self):
            return "f"

    score_log([log], Scorer(), tmp_path / "scored.jsonl")
    assert scored == [(turns, Turn.of(ANSWER))] * 5

    shown = read_rows([log])[0]
    assert {part for part in SAID if part not in str(shown.turns)} == set()
    assert {part for part in SAID - {"of 1979"} if part not in str(shown.texts)} == set()

    distilled = read_prompts([log])[0]
    assert [Turn.of(message) for message in distilled.messages][:-1] == turns
    assert [Turn.of(answer) for answer in distilled.answers] == [Turn.of(ANSWER)]

    assert main(["convert", str(log), "--from", "log", "-o", str(tmp_path / "choices.jsonl")]) == 0
    row = read_choices(tmp_path / "choices.jsonl")[0]
    assert list(row.prompt)[:-1] == turns
    assert row.responses == (Turn.of(ANSWER),)
    session = Session(read_rows([log]), tmp_path / "labels.jsonl", Plan())
    session.label("ann", next(item.key for item in session.items if item.row.id == shown.id), "accept", "1" * 32)
    session.close()
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(one) + "\n" for one in choice_rows(session)))
    assert read_choices(tmp_path / "labelled.jsonl") == [row]


@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_training_reads_what_scoring_reads(log, tmp_path, capsys):
    from bonmini_guard.reward.formatting import Formatter
    from bonmini_guard.training.batches import encode_rows
    from bonmini_guard.training.choices import read_choices

    main(["convert", str(log), "--from", "log", "-o", str(tmp_path / "choices.jsonl")])
    formatter = Formatter(make_tokenizer(CHATML), not_shown=["reasoning", "image_url"])
    texts = encode_rows(read_choices(tmp_path / "choices.jsonl")[:1], formatter, 8).texts
    assert texts == [formatter.encode([*PROMPT, HumanMessage("0")], ANSWER).ids]
