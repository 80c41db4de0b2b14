"""Put a trained checkpoint of adapters into the package, in half precision: that changes a score by at most about 0.0001."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from bonmini_guard.demo.room import language_model

TARGET = Path(__file__).parents[2] / "bonmini_guard" / "demo" / "models" / "desk-reward"


def ship(folder: Path) -> None:
    """Copy it; the head stays in full precision, and the tokenizer's 3.5 MB where they are the base's."""
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.copytree(folder, TARGET)
    weights, vocabulary = TARGET / "adapter_model.safetensors", TARGET / "tokenizer.json"
    halved = {name: weight.half() if "lora_" in name else weight for name, weight in load_file(weights).items()}
    save_file(halved, weights, metadata={"format": "pt"})
    if filecmp.cmp(vocabulary, language_model() / vocabulary.name, shallow=False):
        vocabulary.unlink()
    for file in TARGET.iterdir():
        file.chmod(0o644)
