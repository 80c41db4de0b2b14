"""A small untrained decoder that can tell how long an answer is: what real labels are learnt with on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from bonmini_guard.demo.models import model_path


def write_base(folder: Path, *, layers: int, length: int, seed: int) -> Path:
    """Write a one-label GPT-2 whose token embeddings are the bundled language model's, everything else new.

    Its first layer starts with nearly uniform attention, so the last token sees the mean of all tokens before it, and with places
    that grow along two directions, with the place and with its logarithm: places near each other mean nearly the same.

    Args:
        folder: where to write it, with its tokenizer.
        layers: of the decoder.
        length: most tokens of a text.
        seed: of what is new.
    """
    torch.manual_seed(seed)
    source = model_path("lm")
    tokenizer = AutoTokenizer.from_pretrained(source)
    embeddings = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).get_input_embeddings().weight.detach()
    width = embeddings.shape[1]
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=embeddings.shape[0],
            n_embd=width,
            n_inner=2 * width,
            n_layer=layers,
            n_head=4,
            n_positions=length,
            num_labels=1,
            **ends,
        )
    )
    place = torch.arange(length).unsqueeze(1)
    ways: torch.Tensor = torch.randn(2, width) * width**-0.5
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(embeddings)
        model.transformer.wpe.weight.copy_(place / length * ways[0] + torch.log1p(place) / 5 * ways[1])
    model.save_pretrained(folder)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    return folder
