"""Draw messages for the desk's prompts with the product's generator; resumable: what a file holds is not drawn again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import convert_to_messages

from benchmarks.desk.label import read, seeds
from bonmini_guard.adapters.local import TransformersGenerator
from bonmini_guard.demo.desk import ROLES, SAMPLING, messages, prompts
from bonmini_guard.demo.room import language_model
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.logs.appending import Appender, encoded

#: Rows asked for at a time: enough to fill a batch while the last ones of a prompt are short of company.
ROWS = 192


class Drawing:
    """Draws for many prompts at a time and appends each to a file as it ends.

    Args:
        generator: what draws.
        output: the file of JSON lines: ``name``, ``first`` (number of the first draw) and ``draws``.
        size: draws of a prompt at a time.
    """

    def __init__(self, generator: TransformersGenerator, output: Path, size: int) -> None:
        self._generator, self._output, self._size = generator, output, size
        self._room = asyncio.Semaphore(ROWS // size)
        self._file = Appender(output)
        self._file.cut()  # a line that a killed run left torn would spoil the next one
        self._done = {(row["name"], row["first"]) for row in read(output)}

    async def all(self, asked: Mapping[str, Sequence[BaseMessage]], first: int) -> None:
        """Draw for each prompt that the file does not hold yet."""
        left = [name for name in asked if (name, first) not in self._done]
        print(f"{self._output.name}: {len(left)} of {len(asked)} prompts to draw from {first} on", file=sys.stderr, flush=True)
        await asyncio.gather(*(self._one(name, asked[name], first) for name in left))

    async def _one(self, name: str, prompt: Sequence[BaseMessage], first: int) -> None:
        numbers = range(first, first + self._size)
        requests = [DrawRequest(prompt, seed, draw) for draw, seed in zip(numbers, seeds(name, numbers), strict=True)]
        async with self._room:
            drawn = {place: answer async for place, answer in self._generator.draw_group(requests)}
        row = {"name": name, "first": first, "draws": [_draw(drawn[place]) for place in range(len(requests))]}
        self._file.append(encoded(row))


def _draw(answer: AIMessage | BaseException) -> list[Any]:
    """Text, tokens and whether it ended by itself."""
    if isinstance(answer, BaseException):
        raise answer
    tokens = answer.usage_metadata["output_tokens"] if answer.usage_metadata else 0
    return [answer.text, tokens, answer.response_metadata["finish_reason"] == "stop"]


def draw(folder: Path, roles: Sequence[str]) -> None:
    """Draw for the prompts of roles (all, if none is named): 16 draws of each, then 16 more where a role has 32."""
    torch.set_num_threads(1)
    work = folder / "draws"
    work.mkdir(parents=True, exist_ok=True)
    generator = TransformersGenerator.load(str(language_model()), device="cpu", **SAMPLING)
    for first in (0, 16):
        for role in roles or ROLES:
            count = ROLES[role][1]
            if first < count:
                asked = {name: convert_to_messages(messages(note, name)) for name, note in prompts(role)}
                asyncio.run(Drawing(generator, work / f"{role}.jsonl", min(count, 16)).all(asked, first))
