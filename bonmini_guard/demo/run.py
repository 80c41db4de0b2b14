"""The demonstration, live: five notes of the desk, each answered by one draw, by plain best-of-N and by both guards."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from bonmini_guard.demo.check import verdict
from bonmini_guard.demo.desk import SAMPLING, Note, messages, prompts
from bonmini_guard.demo.room import language_model, place
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.protocols import Generator, GroupGenerator, Scorer
from bonmini_guard.engine.result import Candidate, sigmoid
from bonmini_guard.policy.policy import Action, Policy, best_of_n, run
from bonmini_guard.policy.profile import GuardProfile

HERE = Path(__file__).parent
MODELS, RECORDED = HERE / "models", HERE / "recorded.json"
GUARDS = ("guardrail", "accelerator")

#: What one request of the demonstration holds: its note, and under "answers" what each procedure did with it.
Request = dict[str, Any]


def chosen() -> list[tuple[str, Note]]:
    """Which notes are shown, by a rule that sees no answer.

    Of the evaluation prompts in the order of their digests the first of each of the four situations, all facts known, and then the
    first whose date is not known.
    """
    first: dict[str, tuple[str, Note]] = {}
    for name, note in sorted(prompts("evaluate"), key=lambda prompt: hashlib.sha256(prompt[0].encode()).digest()):
        first.setdefault(note.situation if note.dated else "", (name, note))
    return [*(first[key] for key in first if key), first[""]]


def recorded() -> dict[str, Any]:
    """What a live run has given: ``source``, which says where and when, and ``requests``."""
    return dict(json.loads(RECORDED.read_text(encoding="utf-8")))


def entries(requests: Sequence[Request]) -> dict[str, dict[str, Any]]:
    """One entry for each request and guard: what it did, beside plain best-of-N and one draw."""
    return {
        f"{request['name']} {guard}": {"prompt": request["note"], **request["answers"][guard]}
        | {name: request["answers"][name] for name in ("best_of_n", "single_draw")}
        for request in requests
        for guard in GUARDS
    }


def live(say: Callable[[str], None], threads: int = 2) -> Iterator[Request]:
    """Conduct the requests with the real model, one after the other; OSError if it cannot be kept in the user's cache."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    say("loading SmolLM2 and the reward model" + ("" if place().is_dir() else " (converted first, this once: half a minute)"))
    disable_progress_bar()  # type: ignore[no-untyped-call]  # the demonstration tells its own progress
    torch.set_num_threads(threads)
    desk, notes = Desk(*models()), chosen()
    for number, (name, note) in enumerate(notes, start=1):
        yield desk.answer(name, note, lambda what, number=number: say(f"request {number} of {len(notes)}: {what}"))  # type: ignore[misc]


def models() -> tuple[GroupGenerator, Scorer]:
    """The language model and the reward model, on the processor."""
    from bonmini_guard.adapters.local import TransformersGenerator
    from bonmini_guard.reward.model import RewardModel

    base = language_model()
    generator = TransformersGenerator.load(str(base), device="cpu", **SAMPLING)
    return generator, RewardModel.load(MODELS / "desk-reward", base=base, device="cpu")


class Desk:
    """The four procedures on one generator and one reward model."""

    def __init__(self, generator: Generator | GroupGenerator, reward: Scorer) -> None:
        self._generator, self._reward = generator, reward
        profiles = [GuardProfile.load(MODELS / f"{name}.json") for name in GUARDS]
        guards = {name: profile.policy() for name, profile in zip(GUARDS, profiles, strict=True)}
        self._policies = {"single_draw": best_of_n(1), "best_of_n": best_of_n(sum(profiles[0].schedule)), **guards}
        # Both draw the same answers in the same loops, and the stricter one goes on for longer: one run shows both.
        self._longer = max(guards, key=lambda name: guards[name].thresholds)

    def answer(self, name: str, note: Note, say: Callable[[str], None]) -> Request:
        """One request by all four. Its draws have the same seeds, so the guards look at the first of best-of-N's."""
        from langchain_core.messages.utils import convert_to_messages

        runs: dict[str, Sequence[Candidate]] = {}
        for procedure, what in (("single_draw", "one draw"), ("best_of_n", "best of N"), (self._longer, "the guards")):
            say(what)
            engine = Engine(self._generator, self._reward, self._policies[procedure])
            asked = convert_to_messages(messages(note, name))
            runs[procedure] = asyncio.run(engine.run(asked, seed=crc32(name.encode()))).candidates
        answers = {each: _facts(note, policy, runs.get(each, runs[self._longer])) for each, policy in self._policies.items()}
        return {"name": name, "note": messages(note, name)[-1]["content"], "date_known": note.dated, "answers": answers}


def _facts(note: Note, policy: Policy, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """What a policy does on draws in their order; ``check`` says why the selected answer is not acceptable, even a withheld one."""
    ran = run(policy, [each.score for each in candidates])
    drawn, decision = [candidates[place] for place in ran.order], ran.decision
    selected = candidates[decision.index or 0]
    assert selected.message is not None
    assert selected.score is not None
    reason = verdict(note, selected.message.text, selected.message.response_metadata.get("finish_reason") != "length")
    served = decision.action is Action.SERVE
    return {
        "mode": policy.mode,
        "decision": "abstained" if not served else "accepted" if decision.accepted else "best_effort",
        "reason": decision.reason,
        "draws": ran.draws,
        "loops": ran.loops,
        "tokens": sum((each.usage or {}).get("output_tokens", 0) for each in drawn),
        "seconds": round(max(each.scored or 0.0 for each in drawn), 2),
        "score": round(selected.score, 4),
        "threshold": threshold if math.isfinite(threshold := policy.thresholds[ran.loops - 1]) else None,
        "acceptance_probability": round(sigmoid(selected.score), 4),
        "acceptable": reason is None,
        "check": reason,
        "answer": selected.message.text.strip() if served else None,
    }
