"""``bonmini-guard inspect``: try a reward model on fixed texts and labelled examples: swapped verdicts, a wrong sign, no zero."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from bonmini_guard.commands import say_torn
from bonmini_guard.commands.replay import REFUTED
from bonmini_guard.commands.terminal import say

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, BaseMessage

    from bonmini_guard.reward.selftest import Answers

Example = tuple["Sequence[BaseMessage]", "list[AIMessage]", list[bool | None]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("reward_model", metavar="SPEC", help="folder or id of the reward model, or a scorer spec")
    parser.add_argument("--examples", metavar="FILE", help="a log with a handful of labelled answers, both kinds")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(options: argparse.Namespace) -> int:
    """Score and tell; 4 if something speaks against the scorer."""
    from bonmini_guard.reward.declared import load_scorer
    from bonmini_guard.reward.selftest import problems, ranked_rightly
    from bonmini_guard.reward.spec import COMBINED, ScorerSpec

    spec = ScorerSpec.of(options.reward_model)
    kind, examples = "template" if spec is None else spec.kind, _examples(options.examples)
    with closing(load_scorer(spec or options.reward_model, device=options.device)) as scorer:
        # A program may well find the same of all fixed texts.
        fixed = [] if kind in ("check", *COMBINED) else _scored(scorer, _fixed())
        labelled = _scored(scorer, examples)
        told = [problems(texts, kind, scorer.has_zero) for texts in (fixed, labelled) if texts]
        found = list(dict.fromkeys(problem for each in told for problem in each))
        about = {
            "reward_model": str(options.reward_model),
            "kind": kind,
            "has_zero": scorer.has_zero,
            "not_shown": sorted(scorer.not_shown),
            "fingerprint": scorer.fingerprint(),
            "examples": sum(map(len, labelled)),
            "ranked_rightly": ranked_rightly(labelled),
            "scores": [[score for score, _ in answers] for answers in labelled or fixed],
            "problems": found,
        }
    print(json.dumps(about, indent=2)) if options.json else say(_lines(about))
    return REFUTED if found else 0


def _fixed() -> list[Example]:
    """Two answers to each of a few prompts, as a remote scorer is probed with."""
    from bonmini_guard.adapters.rewards.probe import probe_pairs

    pairs = probe_pairs()
    return [(pairs[at][0], [pairs[at][1], pairs[at + 1][1]], [None, None]) for at in range(0, len(pairs), 2)]


def _examples(path: str | None) -> list[Example]:
    from bonmini_guard.errors import InputError
    from bonmini_guard.logs.rows import rows_in

    if path is None:
        return []
    found: list[Any] = []
    for row in rows_in(path, told=say_torn):
        known = [one for one in row.candidates if one.label is not None]
        found.append(([turn.message() for turn in row.prompt], [one.turn.message() for one in known], [one.label for one in known]))
    if len({label for _, _, labels in found for label in labels}) < 2:
        raise InputError(f"{path}: needs both kinds of answers, acceptable and not; 'bonmini-guard label' asks for them")
    return [example for example in found if example[1]]


def _scored(scorer: Any, examples: Sequence[Example]) -> list[Answers]:
    return [list(zip(scorer.score(prompt, answers), labels, strict=True)) for prompt, answers, labels in examples]


def _lines(about: dict[str, Any]) -> str:
    zero = {True: "0 means acceptable", False: "none, it only ranks", None: "not said"}[about["has_zero"]]
    hidden = ", ".join(about["not_shown"]) or "nothing"
    lines = [
        f"{about['reward_model']}: kind {about['kind']}; zero: {zero}; not shown to it, and not served: {hidden}",
        f"fingerprint {about['fingerprint']}",
    ]
    if about["ranked_rightly"] is not None:
        lines.append(f"{about['examples']} examples: acceptable answers score higher in {about['ranked_rightly']:.0%} of pairs")
    return "\n".join([*lines, *(f"PROBLEM  {problem}" for problem in about["problems"]), *([] if about["problems"] else ["ok"])])
