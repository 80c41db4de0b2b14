"""Speculative decoding of one loop's draws against drawing them as one batch, on the bundled language model.

transformers' assisted generation computes one sequence at a time. The noise that samples a token depends on the draw's seed
and the token's position alone, so the draft model meets the same noise as the model it drafts for: they agree as often as they
can, and an assisted answer is the very answer of the same seed without assistance (checked here). All rows are measured in
turns in one process, on one thread; processor time is given as a ratio to the batch's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks.imdb.models import model_path
from benchmarks.tables import print_table, write_json
from bonmini_guard.engine.engine import draw_seed

PROMPT = "A wonderful film from the first minute to the last, and"
HEAD = ("way", "draft layers", "processor time / batch", "model calls a draw", "same answers")


class PositionNoise(LogitsProcessor):
    """Gumbel noise from each row's seed and the position, whichever model asks, and however often."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores plus noise; shape (rows, vocabulary)."""
        position = input_ids.shape[1]
        states = [torch.Generator().manual_seed(draw_seed(seed, position)) for seed in self._seeds]
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=state) for state in states])
        return scores - noise.log_()  # type: ignore[return-value]


class Drawing:
    """Draws of one prompt, in every way.

    Args:
        draws: rows of a loop.
        tokens: tokens of each answer, exactly.
    """

    def __init__(self, draws: int, tokens: int) -> None:
        path = str(model_path("lm"))
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        # Answers of one length, so that ways are compared on the same work.
        self._model.generation_config.eos_token_id = None
        self._prompt = torch.tensor([AutoTokenizer.from_pretrained(path)(PROMPT)["input_ids"]])
        self._tokens = tokens
        self._seeds = list(range(draws))
        self.calls = 0
        self._model.register_forward_pre_hook(self._count)

    @property
    def layers(self) -> int:
        """Layers of the model itself."""
        return int(self._model.config.num_hidden_layers)

    def draft(self, layers: int, ahead: int) -> Any:
        """The model's own first layers as a draft model: a real one would be trained for it, and agree more often."""
        draft = copy.deepcopy(self._model)
        draft._forward_pre_hooks.clear()
        draft.model.layers = draft.model.layers[:layers]
        draft.config.num_hidden_layers = layers
        draft.generation_config.num_assistant_tokens = ahead
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        return draft

    def batch(self) -> list[list[int]]:
        """All draws as rows of one batch."""
        return self._generate(self._seeds)

    def one_by_one(self, draft: Any = None) -> list[list[int]]:
        """Each draw apart, assisted or not."""
        return [self._generate([seed], draft)[0] for seed in self._seeds]

    @torch.inference_mode()
    def _generate(self, seeds: Sequence[int], draft: Any = None) -> list[list[int]]:
        rows = self._prompt.repeat(len(seeds), 1)
        output = self._model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=False,
            max_new_tokens=self._tokens,
            logits_processor=LogitsProcessorList([PositionNoise(seeds)]),
            **({} if draft is None else {"assistant_model": draft}),
        )
        return [row.tolist() for row in output]

    def _count(self, *_: Any) -> None:
        self.calls += 1


def measure(draws: int, tokens: int, ahead: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each way."""
    drawing = Drawing(draws, tokens)
    ways: list[tuple[str, int | None, Callable[[], list[list[int]]]]] = [
        ("one batch", None, drawing.batch),
        ("one by one", None, drawing.one_by_one),
    ]
    for layers in (1, 2, drawing.layers):
        draft = drawing.draft(layers, ahead)
        ways.append(("one by one, assisted", layers, lambda draft=draft: drawing.one_by_one(draft)))  # type: ignore[misc]
    expected = drawing.batch()
    seconds: list[list[float]] = [[] for _ in ways]
    calls, same = [0] * len(ways), [True] * len(ways)
    for _ in range(rounds):
        for number, (_, _, draw) in enumerate(ways):
            drawing.calls = 0
            begun = process_time()
            same[number] &= draw() == expected
            seconds[number].append(process_time() - begun)
            calls[number] = drawing.calls
    batch = statistics.median(seconds[0])
    return [
        {
            "way": way,
            "draft_layers": layers,
            "processor_time_over_batch": round(statistics.median(each) / batch, 2),
            "model_calls_a_draw": round(count / draws, 1),
            "same_answers": alike,
        }
        for (way, layers, _), each, count, alike in zip(ways, seconds, calls, same, strict=True)
    ]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4, help="draws of a loop (default 4)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer (default 48)")
    parser.add_argument("--ahead", type=int, default=4, help="tokens that the draft model guesses at a time (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="median over so many (default 5)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    rows = measure(options.draws, options.tokens, options.ahead, options.rounds)
    print_table(HEAD, [["-" if value is None else value for value in row.values()] for row in rows])
    write_json(options.output, {"draws": options.draws, "tokens": options.tokens, "ahead": options.ahead, "rows": rows})


if __name__ == "__main__":
    main()
