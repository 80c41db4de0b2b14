"""Stage 3: draw candidates for the prompts of one role, and write them as log rows without scores.

A prompt is the first tokens of a held-out review; prompts of one call have equal length, so no padding enters. The
sampling settings are the model's own (``generation_config.json``), the same that the engine uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.imdb.models import NEW_TOKENS, TOP_K, model_path
from benchmarks.imdb.reviews import prompt_reviews
from benchmarks.tables import arguments, write_rows

PROMPT_TOKENS = 48


def prompts(tokenizer: PreTrainedTokenizerBase, data: Path, role: str, limit: int, length: int) -> torch.Tensor:
    """The first ``length`` tokens of the role's reviews; shape (prompts, length)."""
    texts = [review.text[: 12 * length] for review in prompt_reviews(data, role)]
    rows = [ids[:length] for ids in tokenizer(texts)["input_ids"] if len(ids) >= length]
    return torch.tensor(rows[:limit])


@torch.inference_mode()
def draw(model: PreTrainedModel, tokens: torch.Tensor, n: int, new_tokens: int) -> torch.Tensor:
    """``n`` continuations of each row; shape (rows * n, new_tokens), padded after the end token.

    A prompt is read once for all of its draws: that is most of the work.
    """
    tokens = tokens.to(model.device)
    cache = model(tokens[:, :-1], use_cache=True).past_key_values
    cache.batch_repeat_interleave(n)
    every = tokens.repeat_interleave(n, 0)
    output = model.generate(
        every,
        past_key_values=cache,
        attention_mask=torch.ones_like(every),
        do_sample=True,
        temperature=1.0,
        top_k=TOP_K,
        max_new_tokens=new_tokens,
    )
    answers = output[:, tokens.shape[1] :].cpu()
    return torch.nn.functional.pad(answers, (0, new_tokens - answers.shape[1]), value=int(model.config.pad_token_id))


def rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Log rows in the order of the prompts, ``options.n`` candidates each."""
    n, role = options.n, options.role
    per_call = max(1, options.batch // n)
    for start in track(range(0, len(tokens), per_call), description=f"drawing {role}"):
        part = tokens[start : start + per_call]
        answers = tokenizer.batch_decode(draw(model, part, n, options.new_tokens), skip_special_tokens=True)
        for offset, prompt in enumerate(tokenizer.batch_decode(part, skip_special_tokens=True)):
            texts = answers[offset * n : (offset + 1) * n]
            yield {"id": f"{role}/{start + offset}", "prompt": prompt, "candidates": [{"text": text} for text in texts]}


def main() -> None:
    """Draw ``--n`` candidates for each prompt of ``--role`` into WORK/draws-ROLE.jsonl.gz."""
    sizes = {"n": 32, "limit": 10**6, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "batch": 256, "threads": 1}
    parser = arguments(__doc__, work=Path("build/imdb"), **sizes, seed=0, output=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--role", required=True, choices=["develop", "calibrate", "evaluate", "choices"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", type=Path, help="folder of the language model (default: the bundled one)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    source = options.model or model_path("lm")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(options.device).eval()
    tokens = prompts(tokenizer, options.data, options.role, options.limit, options.prompt_tokens)
    output = options.output or options.work / f"draws-{options.role}.jsonl.gz"
    write_rows(output, rows(model, tokenizer, tokens, options))


if __name__ == "__main__":
    main()
