"""Ways of asking a decision model about a loop's answers: one by one, together in one request, or as a choice with "none".

``python -m benchmarks.decision_ways`` lets the desk's own language model decide, by its probabilities of "Yes" and "No" or of the
labels of a choice, and sets the ways beside each other on the same draws: requests, tokens that a server reads (what the
questions of a request share once), agreement, area under the ROC curve, error at zero, and how far a place in the list sways a
choice. Then the package's own time a loop, against a loopback server that answers at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import httpx
import torch
from langchain_core.messages import AIMessage, HumanMessage, convert_to_messages
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.desk.label import log_rows
from benchmarks.overhead import Request, in_turns
from benchmarks.tables import arguments, print_table, write_json
from bonmini_guard.adapters.rewards.decision_wires import Answers, DecisionEndpoint, Question
from bonmini_guard.adapters.rewards.decisions import NONE, Decisions
from bonmini_guard.conversation import Turn
from bonmini_guard.demo.room import language_model
from bonmini_guard.training.evidence import area
from tests.adapters.decision_server import DecisionServer
from tests.adapters.loopback import InThread

QUESTION = "Does the last answer state every fact of the last notice, and no fact that it does not give?"
LETTERS = "ABCDEFGH"


class LocalDecisions:
    """A language model that decides by the probability of its next token; counts what a server with a prefix cache would read."""

    model_id = "smollm2-135m-instruct"

    def __init__(self) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(language_model()))
        self._model = AutoModelForCausalLM.from_pretrained(str(language_model()), dtype=torch.float32).eval()
        self.requests = self.tokens = 0

    async def yes(self, state: Sequence[Turn], questions: Sequence[Question]) -> Answers:
        """The share of "Yes" beside "No"."""
        self.requests += 1
        asked = [self._ids(state, f"{question.instructions}\nAnswer Yes or No.") for question in questions]
        self._read(asked)
        told = [self._next(ids, ["Yes", "No"])[0] for ids in asked]
        return Answers({question.name: share for question, share in zip(questions, told, strict=True)})

    async def choose(self, state: Sequence[Turn], instructions: str, labels: Mapping[str, str]) -> Answers:
        """The shares of the labels' letters; "none" has the last one."""
        self.requests += 1
        listed = "\n".join(f"{letter}: {text}" for letter, text in zip(LETTERS, labels.values(), strict=False))
        ids = self._ids(state, f"Here are possible answers.\n{listed}\nWhich one holds? {instructions}\nGive its letter.")
        self._read([ids])
        return Answers(dict(zip(labels, self._next(ids, list(LETTERS[: len(labels)])), strict=True)))

    async def aclose(self) -> None:
        """Nothing is open."""

    def _ids(self, state: Sequence[Turn], question: str) -> list[int]:
        turns = [*(turn.template() for turn in state), {"role": "user", "content": question}]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _read(self, asked: Sequence[Sequence[int]]) -> None:
        shared = 0
        if len(asked) > 1:
            shared = next(place for place, ids in enumerate(zip(*asked, strict=False)) if len(set(ids)) > 1)
        self.tokens += shared + sum(len(ids) - shared for ids in asked)

    @torch.inference_mode()
    def _next(self, ids: Sequence[int], words: Sequence[str]) -> list[float]:
        logits = self._model(torch.tensor([list(ids)]), logits_to_keep=1).logits[0, -1]
        first = [self._tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        return [float(share) for share in logits[first].softmax(-1)]


def ways(prompts: int, loop: int) -> dict[str, Any]:
    """All figures by way of asking."""
    rows = [row | {"candidates": row["candidates"][:loop]} for row in log_rows("evaluate")[:prompts]]
    good = [bool(one["acceptable"]) for row in rows for one in row["candidates"]]
    model = LocalDecisions()
    scorers = {
        "each": Decisions(model, QUESTION),
        "together": Decisions(model, QUESTION, ask="together"),
        **{f"choice, {n} orders": Decisions(model, QUESTION, ask="choice", rotations=n) for n in (1, 2, loop)},
    }
    found, alone = {}, list[float]()
    for name, scorer in scorers.items():
        asyncio.run(scorer.ready())
        model.requests = model.tokens = 0
        scores = asyncio.run(_scores(scorer, rows))
        alone = alone or scores
        found[name] = {
            "requests a loop": model.requests / len(rows),
            "tokens read a loop": model.tokens / len(rows),
            "area under the ROC curve": area(torch.tensor(scores), torch.tensor(good), torch.ones(len(good))),
            "right side of zero": fmean((score >= 0) == each for score, each in zip(scores, good, strict=True)),
            "passed at zero": fmean(score >= 0 for score in scores),
            "same side as one by one": fmean((a >= 0) == (b >= 0) for a, b in zip(scores, alone, strict=True)),
            "same best as one by one": fmean(_best(scores, at, loop) == _best(alone, at, loop) for at in range(len(rows))),
        }
    return found


async def _scores(scorer: Decisions, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    scores = list[float]()
    for row in rows:
        told = await scorer.session(convert_to_messages(row["prompt"])).score([AIMessage(one["text"]) for one in row["candidates"]])
        scores += [score for score in told if score is not None]
    return scores


def _best(scores: Sequence[float], row: int, loop: int) -> int:
    own = scores[row * loop : (row + 1) * loop]
    return max(range(loop), key=own.__getitem__)


def sway(prompts: int, loop: int) -> dict[str, float]:
    """What a place in the list is worth: the same answers in every order, log p(answer) - log p(none) by place."""
    model, by_place, firsts = LocalDecisions(), [list[float]() for _ in range(loop)], list[bool]()
    for row in log_rows("evaluate")[:prompts]:
        asked = list(map(Turn.of, convert_to_messages(row["prompt"])))
        texts = [one["text"] for one in row["candidates"][:loop]]
        for shift in range(loop):
            order = [*range(shift, loop), *range(shift)]
            labels = {f"answer {place}": texts[number] for place, number in enumerate(order)} | {NONE: "None of these."}
            told = asyncio.run(model.choose(asked, QUESTION, labels)).probabilities
            odds = [math.log(told[f"answer {place}"] or 1e-9) - math.log(told[NONE] or 1e-9) for place in range(loop)]
            firsts.append(max(range(loop), key=odds.__getitem__) == 0)
            for place, value in enumerate(odds):
                by_place[place].append(value)
    means = [fmean(values) for values in by_place]
    return {
        "first place is the best": fmean(firsts),
        "expected without sway": 1 / loop,
        "log-odds between places": max(means) - min(means),
    }


def own_time(loop: int, rounds: int) -> dict[str, float]:
    """Milliseconds a loop over loopback, in turns: this kind by its ways, and a bare client that sends the same requests."""
    answers = [AIMessage(f"on {number} July") for number in range(loop)]
    with InThread(DecisionServer(lambda text: 0.75)) as server:
        model = DecisionEndpoint(server.url, model="m", api_key="")
        scorers = {ask: Decisions(model, QUESTION, ask=ask) for ask in ("each", "together")}
        return asyncio.run(_in_turns(server, scorers, answers, rounds))


async def _in_turns(server: Any, scorers: Mapping[str, Decisions], answers: Sequence[AIMessage], rounds: int) -> dict[str, float]:
    bodies = [
        {
            "model": "m",
            "state": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": one.text}],
            "questions": {"a": {"type": "noul", "instructions": QUESTION}},
        }
        for one in answers
    ]

    async def scored(scorer: Decisions) -> None:
        await scorer.session([HumanMessage("When?")]).score(answers)

    async def bare() -> None:
        await asyncio.gather(*(client.post(f"{server.url}/v1/systemone", json=body) for body in bodies))

    async with httpx.AsyncClient() as client:
        rows: dict[str, Request] = {name: partial(scored, scorer) for name, scorer in scorers.items()}
        times = await in_turns(rows | {"bare requests": bare}, rounds - 2, 2)
    for scorer in scorers.values():
        await scorer.aclose()
    return {name: 1000 * median(each.wall for each in taken) for name, taken in times.items()}


def main() -> None:
    """Print the three tables."""
    parser = arguments(__doc__, prompts=60, rounds=60, json=Path)
    parser.add_argument("--loop", type=int, default=4, help="answers of a loop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = ways(given.prompts, given.loop)
    keys = list(next(iter(found.values())))
    print_table(["", *found], [[key, *(f"{each[key]:.3f}" for each in found.values())] for key in keys])
    swayed, taken = sway(given.prompts // 2, given.loop), own_time(8, given.rounds)
    print_table(["a choice's places", ""], [[key, f"{value:.3f}"] for key, value in swayed.items()])
    print_table(["milliseconds a loop of 8", ""], [[key, f"{value:.2f}"] for key, value in taken.items()])
    write_json(given.json, {"prompts": given.prompts, "loop": given.loop, "ways": found, "sway": swayed, "milliseconds": taken})


if __name__ == "__main__":
    main()
