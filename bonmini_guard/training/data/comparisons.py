"""Comparisons: two answers or more of which one won, in the shapes of public sets and labelling tools.

A record is known by its keys. Whether "none" could be chosen is what its set says, unless the options say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from bonmini_guard.errors import InputError
from bonmini_guard.logs.sources.messages import unpacked
from bonmini_guard.training.choices import Answer
from bonmini_guard.training.data.fields import Record, answer_of, answers_of, asked, listed, number_of, prompt_of, transcript

Chosen = int | Literal["none", "both_good", "tie"]


@dataclass(frozen=True)
class Compared:
    """Two or more answers to one prompt; the index of the best, or what was said in its place; whether "none" could be said.

    ``best`` are the indices of the best of a tie that not all answers are in.
    """

    prompt: Any
    answers: Sequence[Answer]
    chosen: Chosen
    offered: bool = False
    best: Sequence[int] = ()


class ApartError(Exception):
    """The answers belong to conversations that part before the last turn: each was given to its own."""


Reader = Callable[[Record], Iterator[Compared]]


def comparisons(record: Record, expected: Reader) -> Iterator[Compared]:
    """The comparisons in a record of any known shape; ``expected`` reads those of none of them, or says what they lack."""
    known = (reader for keys, reader in _SHAPES.items() if all(record.get(key) is not None for key in keys))
    answers = record.get("answers")
    has_ranks = isinstance(answers, list) and answers and isinstance(answers[0], Mapping) and answers[0].get("rank") is not None
    return next(known, ranked if has_ranks else expected)(record)


def pair(record: Record) -> Iterator[Compared]:
    """``chosen`` and ``rejected``: texts, conversations, or lists of several answers each.

    Without a prompt, the two are conversations that share all turns but the last, or "Human: ... Assistant: ..." transcripts.
    """
    if record.get("chosen") is None or record.get("rejected") is None:
        raise InputError('no "chosen" or no "rejected"; give both, or use another format')
    prompt, chosen, rejected = _pair(record)
    for one in chosen:
        yield Compared(prompt, [one, *rejected], 0)


def labelled(record: Record) -> Iterator[Compared]:
    """Two answers with a label: A, B, neither (or both bad), both good, or tie."""
    label = next((record[key] for key in ("preference", "winner", "choice", "label") if record.get(key) is not None), None)
    if label is None:
        raise InputError('no label; give A, B, neither, both_good or tie under "preference" or "winner"')
    chosen = preference(label)
    answers, prompt = _two(record)
    yield Compared(prompt, answers, chosen, offered=True)


def ranked(record: Record) -> Iterator[Compared]:
    """Answers with a ``rank``, of which the least is the best (Nectar)."""
    answers = listed(record)
    ranks = [rank for answer in answers if (rank := number_of(answer, "rank")) is not None]
    if not 1 < len(answers) == len(ranks):
        raise InputError('an answer has no rank; give each of two or more a number under "rank", 1 for the best')
    best = [place for place, rank in enumerate(ranks) if rank == min(ranks)]
    texts = [answer_of(answer, f"answer {number}") for number, answer in enumerate(answers, start=1)]
    yield Compared(prompt_of(record), texts, best[0] if len({texts[place] for place in best}) == 1 else "tie", best=best)


def every_pair(compared: Record) -> Iterator[Compared]:
    """:func:`ranked`, as one comparison for each pair of answers."""
    answers, prompt = listed(compared), prompt_of(compared)
    for pair_of in combinations(answers, 2):
        yield from ranked({"prompt": prompt, "answers": list(pair_of)})


def _preferred(record: Record) -> Iterator[Compared]:
    """OpenAI's preference data: ``{"input": {"messages"}, "preferred_output": [...], "non_preferred_output": [...]}``."""
    answers = [answer_of(record[key], key) for key in ("preferred_output", "non_preferred_output")]
    yield Compared(prompt_of(record), answers, 0)


def _graded(key: str) -> Reader:
    def read(record: Record) -> Iterator[Compared]:
        """Two answers and a number below 0 for the first and above it for the second (HelpSteer); 0 says that they are alike."""
        answers, prompt = _two(record)
        grade = number_of(record, key) or 0.0
        yield Compared(prompt, answers, "tie" if grade == 0 else int(grade > 0))

    return read


def _won(key: str, names: tuple[str, str], second: int = 1) -> Reader:
    def read(record: Record) -> Iterator[Compared]:
        """Which of two answers won, as 0 or 1, of which ``second`` is the second answer."""
        won = number_of(record, key)
        if won not in (0, 1):
            raise InputError(f'"{key}" is {str(record[key])[:20]}; give 0 or 1')
        about = {"prompt": record.get("history"), **record}  # of SHP
        yield Compared(prompt_of(about), [answer_of(record.get(name), name) for name in names], int(won == second))

    return read


def _votes(record: Record) -> Iterator[Compared]:
    """A vote as columns of 0 and 1, texts of all turns as a JSON list (Chatbot Arena, 55k)."""
    names: list[Chosen] = [0, 1, "tie"]
    votes = [str(record.get(f"winner_{name}", 0)).strip() in ("1", "1.0", "True") for name in ("model_a", "model_b", "tie")]
    if sum(votes) != 1:
        raise InputError("not exactly one winner; write 1 in one of winner_model_a, winner_model_b, winner_tie")
    read = [unpacked(record.get(key)) for key in ("prompt", "response_a", "response_b")]
    prompts, *answers = (texts if isinstance(texts, list) else [texts] for texts in read)
    if len(prompts) != 1:
        raise ApartError
    texts = [answer_of(said, name) for said, name in zip(answers, ("response_a", "response_b"), strict=True)]
    yield Compared(prompts[0], texts, names[votes.index(True)], offered=True)


def _summaries(record: Record) -> Iterator[Compared]:
    """OpenAI's comparisons of summaries: ``{"info": {"post"}, "summaries": [{"text"}, ...], "choice": 0}``."""
    about, choice = record["info"], record["choice"]
    if not isinstance(about, Mapping) or isinstance(choice, bool) or choice not in (0, 1):
        raise InputError('"info" is no object, or "choice" neither 0 nor 1; give them as OpenAI\'s set does')
    parts = {"SUBREDDIT": about.get("subreddit"), "TITLE": about.get("title"), "POST": about.get("post") or about.get("article")}
    prompt = "\n\n".join(f"{name}: {text}" for name, text in parts.items() if text)
    answers = [answer_of(said, f"summary {number}") for number, said in enumerate(record["summaries"], start=1)]
    yield Compared(f"{prompt}\n\nTL;DR:", answers, choice)


def _scored(record: Record) -> Iterator[Compared]:
    """OpenAI's WebGPT comparisons: ``answer_0`` and ``answer_1`` with opposite scores."""
    first, second = (number_of(record, key) or 0.0 for key in ("score_0", "score_1"))
    asked = record["question"]
    prompt = asked.get("full_text") if isinstance(asked, Mapping) else asked
    answers = [answer_of(record.get(key), key) for key in ("answer_0", "answer_1")]
    yield Compared(prompt, answers, "tie" if first == second else int(second > first))


def _annotated(record: Record) -> Iterator[Compared]:
    """A task of Label Studio with its annotations: left or right (pairwise), or a choice in words."""
    data = record["data"]
    if not isinstance(data, Mapping):
        raise InputError('"data" of the task is no object; export JSON, not JSON-MIN')
    done = [one for one in record["annotations"] if isinstance(one, Mapping) and not one.get("was_cancelled")]
    for result in (result for one in done for result in one.get("result") or ()):
        value = result.get("value") or {}
        side, words = value.get("selected"), value.get("choices")
        if result.get("type") == "pairwise" and side in ("left", "right"):
            answers, prompt = _two(data)
            yield Compared(prompt, answers, int(side == "right"))
        elif result.get("type") == "choices" and words:
            answers, prompt = _two(data)
            yield Compared(prompt, answers, preference(words[0]), offered=True)


_SHAPES: Mapping[tuple[str, ...], Reader] = {
    ("chosen", "rejected"): pair,
    ("preferred_output", "non_preferred_output"): _preferred,
    ("data", "annotations"): _annotated,
    ("overall_preference",): _graded("overall_preference"),
    ("preference_strength",): _graded("preference_strength"),
    ("better_response_id",): _won("better_response_id", ("response_0", "response_1")),
    ("human_ref_A", "human_ref_B", "labels"): _won("labels", ("human_ref_A", "human_ref_B"), second=0),
    ("winner_model_a", "winner_model_b"): _votes,
    ("summaries", "choice", "info"): _summaries,
    ("question", "score_0", "score_1"): _scored,
}

_NAMES = {
    0: "a model_a answer_a response_a response_1 response1 left",
    1: "b model_b answer_b response_b response_2 response2 right",
    "none": "none neither both_bad bothbad tie_(bothbad) tie_(both_bad)",
    "both_good": "both_good bothgood tie_(bothgood) tie_(both_good)",
    "tie": "tie equal same",
}
_LABELS: dict[str | None, Any] = {name: label for label, names in _NAMES.items() for name in names.split()}


def preference(label: Any) -> Chosen:
    """What a label in words says; numbers are refused, because sets differ in what they count from."""
    word = label.strip().lower().replace(" ", "_").replace("-", "_") if isinstance(label, str) else None
    if word not in _LABELS:
        raise InputError(f"unknown choice {str(label)[:20]!r}; use A, B, neither, both_good or tie")
    known: Chosen = _LABELS[word]
    return known


def _pair(record: Record) -> tuple[Any, list[Answer], list[Answer]]:
    chosen, rejected = record["chosen"], record["rejected"]
    if any(record.get(key) is not None for key in ("prompt", "messages", "instruction", "question")):
        prompt, other = asked(record, chosen), asked(record, rejected)
        these, those = answers_of(chosen, "chosen"), answers_of(rejected, "rejected")
    elif isinstance(chosen, str) and isinstance(rejected, str):
        (prompt, said), (other, refused) = transcript(chosen), transcript(rejected)
        these, those = [answer_of(said, "chosen")], [answer_of(refused, "rejected")]
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, these = prompt_of(record, chosen), [answer_of(chosen, "chosen")]
        other, those = prompt_of(record, rejected), [answer_of(rejected, "rejected")]
    else:
        raise InputError('no prompt; give one under "prompt"')
    if prompt != other:
        raise InputError("chosen and rejected do not answer the same conversation; give pairs that differ in the last turn only")
    return prompt, these, those


_TWO = [(f"{name}{gap}a", f"{name}{gap}b") for name in ("response", "answer", "conversation", "output") for gap in ("_", "")]
_TWO += [(f"{name}{gap}1", f"{name}{gap}2") for name in ("response", "answer", "output") for gap in ("_", "")]


def _two(record: Record) -> tuple[list[Answer], Any]:
    """Two answers and their prompt; two conversations have it in them."""
    keys = next(((one, two) for one, two in _TWO if record.get(one) is not None and record.get(two) is not None), None)
    said = listed(record) if keys is None else [record[key] for key in keys]
    if len(said) != 2:
        raise InputError(f'{len(said)} answers; give two, under "response_a" and "response_b" or in a list')
    answers = [answer_of(one, name) for one, name in zip(said, keys or ("answer 1", "answer 2"), strict=True)]
    if keys is None or not keys[0].startswith("conversation") or record.get("prompt") is not None:
        return answers, prompt_of(record)
    first, second = (prompt_of(record, one) for one in said)
    if first != second:
        raise ApartError
    return answers, first
