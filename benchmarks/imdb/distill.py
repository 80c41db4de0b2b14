"""Stage 8: distil best-of-N into the bundled language model, and compare on held-out prompts.

``python -m benchmarks.imdb.distill --data DIR --json benchmarks/results/distill.json``. Prompts come from the reviews of the role
"calibrate", none of which the language model, the truth or the reward model was fitted on. Answers are sampled from the whole
vocabulary, in training and in the figures, so that the KL divergences are those of the laws that are sampled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from langchain_core.messages import HumanMessage
from transformers import AutoTokenizer

from benchmarks.imdb.models import NEW_TOKENS, model_path
from benchmarks.imdb.sample import PROMPT_TOKENS, prompts
from benchmarks.imdb.sentiment import SentimentTruth
from benchmarks.tables import arguments, write_json
from bonmini_guard import RewardModel
from bonmini_guard.commands.distill import shown_front
from bonmini_guard.training.distill import DistillPrompt, distill


def main() -> None:
    """Distil, print the front with the true utilities, and write JSON with --json."""
    parser = arguments(__doc__, work=Path("build/imdb"), prompts=200, n=16, steps=32, learning_rate=3e-4, json=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="folder of the distilled model (default: WORK/distilled)")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(model_path("lm"))
    rows = prompts(tokenizer, options.data, "calibrate", options.prompts, PROMPT_TOKENS)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    truth = SentimentTruth.load(model_path("truth"))

    def utilities(prompt: DistillPrompt, answers: Sequence[str]) -> list[float]:
        return [float(value) for value in truth.utilities([prompt.messages[0].text + answer for answer in answers])]

    begun = time.perf_counter()
    report = distill(
        [DistillPrompt((HumanMessage(text),)) for text in texts],
        str(model_path("lm")),
        RewardModel.load(model_path("reward"), device=options.device),
        options.output or options.work / "distilled",
        truth=utilities,
        n=options.n,
        reference_draws=16,
        eval_prompts=40,
        steps=options.steps,
        prompts_a_step=8,
        draws=8,
        max_new_tokens=NEW_TOKENS,
        learning_rate=options.learning_rate,
        device=options.device,
        threads=1,
    )
    report["minutes"] = (time.perf_counter() - begun) / 60
    print(shown_front(report["front"], None))
    for name, figures in report["variety"].items():
        print(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in figures.items()))
    write_json(options.json, report)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
