"""The demonstration's requests: each guarded, and again as plain best-of-N with the same budget."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from langchain_core.messages import HumanMessage
from transformers.utils.logging import disable_progress_bar

from bonmini_guard.adapters.local import TransformersGenerator
from bonmini_guard.demo.models import MODELS, NEW_TOKENS, TOP_K, model_path
from bonmini_guard.demo.servers import Servers
from bonmini_guard.demo.truth import SentimentTruth
from bonmini_guard.engine import Engine
from bonmini_guard.errors import GenerationError, InputError
from bonmini_guard.policy import Decision, State, best_of_n
from bonmini_guard.profile import GuardProfile
from bonmini_guard.result import Candidate, GuardResult
from bonmini_guard.reward.model import RewardModel

PROMPTS = Path(__file__).parent / "prompts.json"


@dataclass(frozen=True)
class DemoRequest:
    """One request: what it shows, its prompt, and the profile that guards it (guardrail or accelerator)."""

    title: str
    prompt: str
    profile: str


class Audience(Protocol):
    """Shown what happens; see :mod:`bonmini_guard.demo.show`."""

    def begin(self, request: DemoRequest, profile: GuardProfile) -> None:
        """A request begins."""

    def loop(self, state: State, decision: Decision) -> None:
        """A loop of the guard ended."""

    def best_of_n(self, budget: int) -> None:
        """Plain best-of-N begins."""

    def end(self, entry: dict[str, Any]) -> None:
        """Both are done."""


def requests(prompt: str | None) -> dict[str, DemoRequest]:
    """The hand-written requests, or one prompt in both configurations."""
    if prompt is not None:
        return {
            "guardrail": DemoRequest("your prompt, guardrail", prompt, "guardrail"),
            "accelerator": DemoRequest("your prompt, accelerator", prompt, "accelerator"),
        }
    written = json.loads(PROMPTS.read_text(encoding="utf-8"))
    return {name: DemoRequest(**fields) for name, fields in written.items()}


class Demonstration:
    """Loads the bundled models once and conducts requests on them, or on servers.

    Args:
        seed: the seed of every request.
        servers: what draws and scores instead of the bundled models.

    Raises:
        ConfigurationError: a reward server gives no scores.
    """

    def __init__(self, seed: int, servers: Servers | None = None) -> None:
        disable_progress_bar()  # type: ignore[no-untyped-call]  # the models load in an instant, and the terminal is the stage
        torch.set_num_threads(1)  # models this small lose time to a second thread
        self._seed = seed
        servers = servers or Servers()
        self._generator = servers.generator() or TransformersGenerator.load(
            str(model_path("lm")), max_new_tokens=NEW_TOKENS, top_k=TOP_K
        )
        self._reward = servers.scorer() or RewardModel.load(str(model_path("reward")))
        self._truth = SentimentTruth.load(model_path("truth"))

    def conduct(self, request: DemoRequest, audience: Audience) -> dict[str, Any]:
        """Guard one request, then draw plain best-of-N at the same budget.

        Returns:
            ``mode``, ``decision``, ``reason``, ``draws``, ``loops``, ``tokens``, ``seconds``, ``score``,
            ``acceptance_probability``, ``acceptable`` (the truth about the selected answer), ``answer`` (null when abstained)
            and ``best_of_n`` with the same keys where they apply.

        Raises:
            InputError: a server gives no answer.
        """
        profile = GuardProfile.load(MODELS / f"{request.profile}.json")
        audience.begin(request, profile)
        guarded = asyncio.run(self._run(self._engine(profile), request, _Listener(audience)))
        audience.best_of_n(sum(profile.schedule))
        plain_engine = Engine(self._generator, self._reward, best_of_n(sum(profile.schedule)))
        plain = asyncio.run(self._run(plain_engine, request, None))
        entry = {"prompt": request.prompt, "mode": profile.mode, "decision": guarded.decision, "reason": guarded.reason}
        entry |= self._facts(request, guarded) | {"best_of_n": self._facts(request, plain)}
        audience.end(entry)
        return entry

    def _engine(self, profile: GuardProfile) -> Engine:
        return Engine(self._generator, self._reward, profile.policy(), transform=profile.score_transform)

    async def _run(self, engine: Engine, request: DemoRequest, listener: _Listener | None) -> GuardResult:
        try:
            return await engine.run([HumanMessage(request.prompt)], seed=self._seed, observer=listener)
        except GenerationError as error:
            raise InputError(f"no draw arrived: {_first_cause(error)}") from error
        finally:
            # Servers' connections belong to this event loop.
            for part in (self._generator, self._reward):
                if hasattr(part, "aclose"):
                    await part.aclose()

    def _facts(self, request: DemoRequest, result: GuardResult) -> dict[str, Any]:
        selected = result.selected
        text = "" if selected is None or selected.message is None else selected.message.text
        return {
            "draws": result.draws,
            "loops": result.loops,
            "tokens": result.usage.get("output_tokens", 0),
            "seconds": round(result.timings.total, 3),
            "score": result.score,
            "acceptance_probability": result.acceptance_probability,
            "acceptable": bool(self._truth.utilities([request.prompt + text])[0] > 0),
            "answer": text if result.served else None,
        }


def _first_cause(error: GenerationError) -> BaseException:
    cause = error.__cause__
    return cause.exceptions[0] if isinstance(cause, ExceptionGroup) else cause or error


class _Listener:
    """Passes the engine's loops on to the audience."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience

    async def drawn(self, candidate: Candidate) -> None:
        """Nothing: loops are shown whole."""

    async def scored(self, candidates: Sequence[Candidate], seconds: float) -> None:
        """Nothing: loops are shown whole."""

    async def looped(self, state: State, decision: Decision) -> None:
        """Show the loop."""
        self._audience.loop(state, decision)
