"""Stage 5c: put the four models into the package, weights in half precision, so that all together stay under 16 MB."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bonmini_guard.demo.models import MODELS, model_path

LIMIT = 16_500_000


def bundle(source: Path, name: str) -> None:
    """Write a checkpoint's weights as float16, with its tokenizer and configuration."""
    family = AutoModelForCausalLM if name == "lm" else AutoModelForSequenceClassification
    target = model_path(name)
    shutil.rmtree(target, ignore_errors=True)
    family.from_pretrained(source, dtype=torch.float16, use_safetensors=True).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def bundled_bytes() -> int:
    """Bytes of everything that ships."""
    return sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file())


def main() -> None:
    """Bundle what WORK holds of lm, reward, twin and truth; refuse to ship more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/imdb"))
    parser.add_argument("names", nargs="*", default=["lm", "reward", "twin", "truth"])
    options = parser.parse_args()
    for name in options.names:
        if name == "truth":
            shutil.copytree(options.work / name, model_path(name), dirs_exist_ok=True)
        else:
            bundle(options.work / name, name)
    size = bundled_bytes()
    print(f"{size / 1e6:.1f} MB ship with the package")
    if size > LIMIT:
        raise SystemExit(f"too large: {size} bytes, {LIMIT} allowed")


if __name__ == "__main__":
    main()
