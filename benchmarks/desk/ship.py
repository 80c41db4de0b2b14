"""Put a trained checkpoint of adapters into the package, in half precision: that changes a score by at most about 0.0001."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

TARGET = Path(__file__).parents[2] / "bonmini_guard" / "demo" / "models" / "desk-reward"


def ship(checkpoint: Path) -> None:
    """Copy it; the head stays in full precision."""
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.copytree(checkpoint, TARGET)
    weights = TARGET / "adapter_model.safetensors"
    halved = {name: weight.half() if "lora_" in name else weight for name, weight in load_file(weights).items()}
    save_file(halved, weights, metadata={"format": "pt"})
    for file in TARGET.iterdir():
        file.chmod(0o644)
