"""The process that is measured: this version of the package or an earlier one, with one thread for torch.

``python worker.py MODELS`` with the package's source as PYTHONPATH, told what to do line by line. A line is a JSON object:
``regime``, ``prompts``, ``seed``, ``together`` (requests at once) and ``way``; the answer is one, too: ``seconds`` of all, and of
each request ``latencies``, ``draws`` and ``tokens``. It imports nothing that an earlier version does not have.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import convert_to_messages

from bonmini_guard.adapters.local import TransformersGenerator
from bonmini_guard.reward.model import RewardModel

try:
    from bonmini_guard.engine.engine import Engine
    from bonmini_guard.engine.protocols import DrawRequest
    from bonmini_guard.policy.policy import Policy
except ImportError:
    from bonmini_guard.protocols import DrawRequest  # type: ignore[no-redef]

    from bonmini_guard.engine import Engine  # type: ignore[attr-defined, no-redef]
    from bonmini_guard.policy import Policy  # type: ignore[attr-defined, no-redef]

#: Most tokens of an answer. In the first regime an answer ends with its sentence, in the second at the limit.
LIMITS = {"ends": 64, "equal": 32}
ENDS = ".!?"
#: The demo's messages to customers, by its language model, scored by its reward model.
DESK = "desk"


class Worker:
    """Generator, reward model and what has been asked of them."""

    def __init__(self, models: Path) -> None:
        self._models, self._parts, self._engines = models, dict[str, tuple[Any, Any]](), dict[str, Any]()
        self._reward = RewardModel.load(str(models / "reward"), device="cpu")

    def generator(self, regime: str) -> Any:
        """What draws in a regime."""
        return self._parts_of(regime)[0]

    def reward(self, regime: str) -> Any:
        """What scores in a regime."""
        return self._parts_of(regime)[1]

    def _parts_of(self, regime: str) -> tuple[Any, Any]:
        if regime not in self._parts:
            self._parts[regime] = _desk() if regime == DESK else (self._tiny(regime), self._reward)
        return self._parts[regime]

    def _tiny(self, regime: str) -> Any:
        made = TransformersGenerator.load(str(self._models / "lm"), device="cpu", max_new_tokens=LIMITS[regime], top_k=50)
        texts = {number: made.tokenizer.decode([number]) for number in range(made.model.config.vocab_size)}
        stops = [number for number, text in texts.items() if set(text) & set(ENDS)]
        config: Any = made.model.generation_config
        config.eos_token_id = [config.eos_token_id, *stops] if regime == "ends" else None
        return made

    def engine(self, regime: str, way: dict[str, Any]) -> Any:
        """What conducts a way's requests, the same one each time, since it may learn the load."""
        key = json.dumps([regime, way])
        if key not in self._engines:
            policy = Policy("accelerator", tuple(way["schedule"]), tuple(way["thresholds"]), way.get("exit", "loop"))
            if "ladder" in way:
                policy = replace(policy, ladder=tuple(map(tuple, way["ladder"])))
            more = {name: way[name] for name in ("lookahead", "in_flight") if name in way}
            if "in_flight" in more:
                from bonmini_guard.engine.load import Load

                # As a guard has it: what a local generator carries, it says itself.
                more |= {"in_flight": tuple(more["in_flight"]), "load": Load(self.generator(regime).carries)}
            self._engines[key] = Engine(self.generator(regime), self.reward(regime), policy, **more)
        return self._engines[key]

    async def conduct(self, regime: str, way: dict[str, Any] | None, prompt: Any, seed: int) -> tuple[float, int, int]:
        """Seconds, draws and tokens of a request; without a way, of 32 draws that nobody scores."""
        messages: list[BaseMessage] = convert_to_messages([prompt] if isinstance(prompt, str) else prompt)
        begun = time.perf_counter()
        if way is None:
            asked = [DrawRequest(messages, seed * 32 + number, number) for number in range(32)]
            drawn = [answer async for _, answer in self.generator(regime).draw_group(asked)]
            return time.perf_counter() - begun, 32, sum(answer.usage_metadata["output_tokens"] for answer in drawn)
        result = await self.engine(regime, way).run(messages, seed=seed)
        started = getattr(result, "draws_started", result.draws)
        return time.perf_counter() - begun, started, result.usage.get("output_tokens", 0)

    async def all(self, regime: str, way: dict[str, Any] | None, prompts: list[Any], seed: int, together: int) -> dict[str, Any]:
        """So many requests at once, until all are done."""
        turn = asyncio.Semaphore(together)

        async def one(number: int, prompt: Any) -> tuple[float, int, int]:
            async with turn:
                return await self.conduct(regime, way, prompt, seed + number)

        begun = time.perf_counter()
        done = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
        latencies, draws, tokens = zip(*done, strict=True)
        return {"seconds": time.perf_counter() - begun, "latencies": latencies, "draws": draws, "tokens": tokens}


def _desk() -> tuple[Any, Any]:
    from bonmini_guard.demo.run import models

    return models()


def main() -> None:
    """Answer line by line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    worker = Worker(Path(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(asyncio.run(worker.all(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
