"""Reading and writing reward-model checkpoints: ordinary sequence classifiers, with a note about their zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from bonmini_guard.errors import CheckpointError

Zero = Literal["outside_option"]

#: Position tables of these models begin behind the padding index.
_OFFSET_POSITIONS = ("roberta", "camembert", "xlm-roberta", "longformer", "mpnet")
_UNLIMITED = 10**9


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a checkpoint, with a padding token and a chat template.

    One without a chat template gets one that writes the contents one after the other, with the control tokens that the
    tokenizer itself puts around a text.

    Raises:
        CheckpointError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: no usable tokenizer ({first_line(error)}); name a checkpoint folder or a model id"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{path}: the tokenizer has no token to pad with; set its pad_token")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = concatenation_template(tokenizer)
    return tokenizer


def concatenation_template(tokenizer: Any) -> str:
    """A chat template that concatenates all contents, between the tokens that the tokenizer adds around a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    before = "".join(tokenizer.convert_ids_to_tokens(whole[:start]))
    after = "".join(tokenizer.convert_ids_to_tokens(whole[start + len(plain) :]))
    contents = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return _literal(before) + contents + _literal(after)


def load_classifier(path: str, *, dtype: torch.dtype, layers: int | None = None) -> tuple[Any, list[str]]:
    """A one-label classifier of a checkpoint, and the names of the weights that the checkpoint lacked.

    Args:
        path: folder or model id; its weights must be safetensors.
        dtype: the precision to load in, whatever the stored one.
        layers: keep only so many of the first layers.

    Raises:
        CheckpointError: missing, no safetensors, or of a kind that cannot classify.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        config.num_labels = 1
        if layers is not None:
            keep_layers(config, layers)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(_why_unusable(path, error)) from error
    return model, sorted(report["missing_keys"])


def keep_layers(config: Any, layers: int) -> None:
    """Shorten a configuration to its first ``layers`` layers.

    Raises:
        ValueError: it has not so many.
    """
    text = config.get_text_config()
    if not 1 <= layers <= text.num_hidden_layers:
        raise ValueError(f"layers must be 1 to {text.num_hidden_layers}, not {layers}")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]


def zero_new_head(model: nn.Module, missing: list[str]) -> None:
    """Let a new head begin at score 0 for every text: no answer is acceptable or not before anything is learnt."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == 1 and f"{name}.weight" in missing:
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def length_limit(config: Any, tokenizer: Any, requested: int | None = None) -> int | None:
    """Most tokens a text may have: the least of what the model, its tokenizer and the caller allow; None if none does."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and config.model_type in _OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    limits = [limit for limit in (positions, tokenizer.model_max_length, requested) if limit and 0 < limit < _UNLIMITED]
    return min(limits) if limits else None


def sidecar(objective: str) -> dict[str, Any]:
    """What ``config.bonmini_guard`` records of a model trained with an objective."""
    zero: Zero | None = "outside_option" if objective == "outside_option" else None
    return {"zero": zero, "objective": objective, "version": 1}


def has_zero(config: Any) -> bool:
    """Whether a checkpoint's configuration says that score 0 is the outside option."""
    note = getattr(config, "bonmini_guard", None)
    return isinstance(note, dict) and note.get("zero") == "outside_option"


def first_line(error: BaseException) -> str:
    """The first line of an error, for a message of one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _why_unusable(path: str, error: Exception) -> str:
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        return f"{path}: no safetensors weights; save the model again with save_pretrained(safe_serialization=True)"
    return f"{path}: cannot be loaded as a sequence classifier ({first_line(error)}); name a checkpoint folder or a model id"


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""
