"""What a GPU is asked, in one run of at most eight minutes: drawing, scoring, and whether scores are exact. It downloads nothing.

``make gpu`` or ``python -m benchmarks.gpu --json FILE``. Models have random weights in the shapes of 0.6B and, where memory
allows, 8B. A sixty-fourth of the vocabulary ends an answer, so that lengths differ as those of real answers do, and a draw passes
by chance. ``--tiny`` is the same on a CPU, in seconds. What there was no time or memory for is listed, not guessed.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from langchain_core.messages import HumanMessage
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.scoring.models import SHAPES, finish, matmul_ceiling, save_model, useful_flops, words
from benchmarks.scoring.rivals import Rival, rivals
from benchmarks.scoring.turns import first_loop, following_loop, seconds_in_turns, separate, shared
from benchmarks.tables import percentile, print_table, write_json
from bonmini_guard import RewardModel
from bonmini_guard.adapters.local import TransformersGenerator
from bonmini_guard.engine.engine import Engine
from bonmini_guard.policy.policy import Policy, accelerator, best_of_n
from bonmini_guard.testing import FakeRewardModel

#: Seconds after which nothing more is begun, of the eight minutes.
TIME = 420.0
#: Bytes of GPU memory that a shape needs, with keys and values.
NEEDED = {"tiny": 0.0, "0.6B": 8e9, "8B": 60e9}
#: A draw's chance to pass.
PASSES = 0.08


def generator(shape: str, device: str, folder: Path, tokens: int) -> TransformersGenerator:
    """A plain Llama of a shape with random weights, whose answers end by themselves."""
    torch.manual_seed(0)
    plain = {
        key: value
        for key, value in SHAPES[shape].to_dict().items()
        if key not in ("id2label", "label2id", "model_type", "architectures")
    }
    plain |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**plain)).to(torch.float32 if device == "cpu" else torch.bfloat16).eval()
    config: Any = model.generation_config
    config.eos_token_id = list(range(1, model.config.vocab_size, 64))
    return TransformersGenerator(model, AutoTokenizer.from_pretrained(folder), max_new_tokens=tokens)


def ways() -> dict[str, tuple[Policy, dict[str, Any]]]:
    """Each way to spend 32 draws, and what the engine is told of it."""
    rolling = Policy("accelerator", (1,) * 32, (0.0,) * 32, "rolling")
    return {
        "best-of-32": (best_of_n(32), {}),
        "[4] x 8": (accelerator((4,) * 8), {}),
        "[8, 24]": (accelerator((8, 24)), {}),
        "[4] x 8, lookahead 12": (accelerator((4,) * 8), {"lookahead": 12}),
        "rolling, 8 in flight": (rolling, {"in_flight": (8,)}),
        "rolling, auto": (rolling, {}),
    }


def chance(text: str) -> float:
    """A score that only the text decides, above 0 as often as a draw passes."""
    return PASSES - zlib.crc32(text.encode()) / 2**32


async def conduct(engine: Engine, prompts: Sequence[str], together: int) -> tuple[float, list[float], int]:
    """Seconds of all requests, of each, and all of their tokens, those of cancelled draws not counted."""
    turn = asyncio.Semaphore(together)

    async def one(number: int, prompt: str) -> tuple[float, int]:
        async with turn:
            begun = perf_counter()
            result = await engine.run([HumanMessage(prompt)], seed=number)
            return perf_counter() - begun, result.usage.get("output_tokens", 0)

    begun = perf_counter()
    done = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    return perf_counter() - begun, [seconds for seconds, _ in done], sum(tokens for _, tokens in done)


def drawing(shape: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Each way, alone and with many requests at once."""
    made = generator(shape, options.device, folder, options.tokens)
    source, rows = torch.Generator().manual_seed(0), {}
    prompts = [words(options.prompt, source) for _ in range(options.requests)]
    for name, (policy, told) in ways().items():
        engine = Engine(made, FakeRewardModel(chance), policy, **told)
        asyncio.run(conduct(engine, prompts[:1], 1))
        _, alone, _ = asyncio.run(conduct(engine, prompts[: options.alone], 1))
        seconds, _, tokens = asyncio.run(conduct(engine, prompts, len(prompts)))
        rows[name] = {"p50": percentile(alone, 0.5), "p95": percentile(alone, 0.95)}
        rows[name] |= {"requests_per_second": len(prompts) / seconds, "tokens_per_second": tokens / seconds}
    print(f"\n{shape}: {options.prompt} tokens of prompt, {len(prompts)} requests at once")
    head = ["way", "idle p50 (s)", "idle p95 (s)", "requests / s", "tokens / s"]
    print_table(head, [[name, *(f"{value:.3f}" for value in row.values())] for name, row in rows.items()])
    return rows


def scoring(shape: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """First and following loops against the matmul ceiling and CrossEncoder, and how exact they are."""
    ceiling, model = matmul_ceiling(options.device), RewardModel.load(folder, device=options.device)
    prompt, answers, length = options.scored
    texts = partial(shared, prompt, answers, length)
    others: dict[str, Rival] = {
        name: score for name, score in rivals(folder, options.device, None)[0].items() if name == "CrossEncoder"
    }
    again = partial(texts, same_prompt=True)
    times = seconds_in_turns({"": {"first loop": first_loop(model)} | others}, texts, 3, options.device)
    times |= seconds_in_turns({"": {"following loop": following_loop(model, again(0))}}, again, 3, options.device)
    flops = useful_flops(shape, prompt, [length] * answers)
    rows: dict[str, Any] = {
        name: {"seconds": value["wall"], "candidates_per_second": answers / value["wall"]} for name, value in times.items()
    }
    rows["first loop"]["of_the_matmul_ceiling"] = flops / times["first loop"]["wall"] / ceiling
    rows["largest difference of a score"] = exactness(model, again(1), again(0))
    model.close()
    print(f"\n{shape}, scoring {prompt} + {answers} x {length}:", rows)
    return {"ceiling_flops": ceiling} | rows


def exactness(model: RewardModel, pairs: Sequence[tuple[str, str]], before: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Largest distance of scores computed in one batch, and behind a kept prompt, from each computed alone."""
    alone = torch.tensor([score for pair in pairs for score in separate(model)([pair])])
    ways_to: dict[str, Rival] = {
        "packed": first_loop(model),
        "kept prompt": following_loop(model, before),
        "together": separate(model),
    }
    found = {name: float((torch.tensor(score(pairs)) - alone).abs().max()) for name, score in ways_to.items()}
    return found | {"spread of scores": float(alone.std())}


def room(shape: str, device: str) -> bool:
    """Whether a shape fits into what is free."""
    return device == "cpu" or torch.cuda.mem_get_info()[0] >= NEEDED[shape]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts that there is time for, the smaller shape first."""
    begun, results, missing = perf_counter(), dict[str, Any](), list[str]()
    parts: list[tuple[str, Callable[[str, Path, argparse.Namespace], dict[str, Any]]]] = [
        ("drawing", drawing),
        ("scoring", scoring),
    ]
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            for name, part in parts:
                late = perf_counter() - begun > TIME
                if late or not room(shape, options.device):
                    missing.append(f"{shape}, {name}: {'no time was left' if late else 'too little memory'}")
                    continue
                if not any(Path(folder).iterdir()):
                    save_model(Path(folder), shape, options.device)
                results.setdefault(shape, {})[name] = part(shape, Path(folder), options)
                finish(options.device)
                if options.device != "cpu":
                    torch.cuda.empty_cache()
    for line in missing:
        print(f"not measured: {line}")
    return {"device": options.device, "seconds": perf_counter() - begun, "shapes": results, "not_measured": missing}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, in seconds")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here: --tiny runs the same on the CPU")
    warnings.simplefilter("ignore")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    sizes: dict[str, Any] = {"device": "cuda", "shapes": ["0.6B", "8B"], "prompt": 512, "tokens": 256, "alone": 8, "requests": 32}
    if options.tiny:
        torch.set_num_threads(1)
        sizes = {"device": "cpu", "shapes": ["tiny"], "prompt": 16, "tokens": 8, "alone": 1, "requests": 2}
    options.scored = (32, 4, 8) if options.tiny else (2048, 32, 128)
    vars(options).update(sizes)
    write_json(options.json, measure(options))


if __name__ == "__main__":
    main()
