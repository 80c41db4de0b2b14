"""Stage 5c: keep the models that the tests use, weights in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.imdb.models import MODELS
from benchmarks.tables import arguments


def bundle(source: Path, name: str) -> None:
    """Write a checkpoint's weights as float16, with its tokenizer and configuration."""
    family = AutoModelForCausalLM if name == "lm" else AutoModelForSequenceClassification
    target = MODELS / name
    shutil.rmtree(target, ignore_errors=True)
    family.from_pretrained(source, dtype=torch.float16, use_safetensors=True).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def main() -> None:
    """Keep what WORK holds of lm, reward and truth."""
    parser = arguments(__doc__, work=Path("build/imdb"))
    parser.add_argument("names", nargs="*", default=["lm", "reward", "truth"])
    options = parser.parse_args()
    for name in options.names:
        if name == "truth":
            shutil.copytree(options.work / name, MODELS / name, dirs_exist_ok=True)
        else:
            bundle(options.work / name, name)


if __name__ == "__main__":
    main()
