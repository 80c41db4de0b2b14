"""Reading and writing reward-model checkpoints: ordinary sequence classifiers, with a note about their zero."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import AutoConfig, AutoTokenizer

from bonmini_guard.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    # Tokenizers and configurations are read without torch, for models that run elsewhere.
    import torch
    from torch import nn

Zero = Literal["outside_option"]

#: Position tables of these models begin behind the padding index.
_OFFSET_POSITIONS = ("roberta", "camembert", "xlm-roberta", "longformer", "mpnet")
_UNLIMITED = 10**9
#: A model id of a hub: owner/name, never a path.
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a checkpoint, with a padding token and a chat template.

    One without a chat template gets one that writes the contents one after the other, with the control tokens that the
    tokenizer itself puts around a text.

    Raises:
        CheckpointError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{path}: no usable tokenizer ({first_line(error)}); save one into the checkpoint") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = concatenation_template(tokenizer)
    return tokenizer


def concatenation_template(tokenizer: Any) -> str:
    """A chat template that concatenates all contents, between the tokens that the tokenizer adds around a text."""
    before, after = added_tokens(tokenizer)
    contents = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return _literal(before) + contents + _literal(after)


def added_tokens(tokenizer: Any) -> tuple[str, str]:
    """What a tokenizer itself puts before and behind a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    before, after = whole[:start], whole[start + len(plain) :]
    return "".join(tokenizer.convert_ids_to_tokens(before)), "".join(tokenizer.convert_ids_to_tokens(after))


def load_config(path: str) -> Any:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    check_place(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: neither a folder here nor a model to be had ({first_line(error)}); check the name"
        ) from error


def check_place(path: str) -> None:
    """Raise CheckpointError at once for a folder that is no checkpoint, and for a name that is neither a folder nor a model id.

    Asking a hub about a mistyped folder takes half a minute of retries without a network.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json in it; name a folder written by save_pretrained or 'bonmini-guard train'")
    if not folder.is_dir() and not _MODEL_ID.fullmatch(path):
        raise CheckpointError(f"{path}: no such folder; name a checkpoint's folder, or a model id like owner/name")


def load_classifier(path: str, config: Any, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """A sequence classifier of a checkpoint, and the names of the weights that the checkpoint lacked.

    Args:
        path: folder or model id; its weights must be safetensors.
        config: the configuration to build it with.
        dtype: the precision to load in, whatever the stored one.

    Raises:
        CheckpointError: no safetensors, or of a kind that cannot classify.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{path}: no safetensors weights; save the model anew with a current save_pretrained")
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be loaded as a sequence classifier ({first_line(error)}); use another model"
        ) from error
    return model, sorted(report["missing_keys"])


def keep_layers(config: Any, layers: int) -> None:
    """Shorten a configuration to its first ``layers`` layers.

    Raises:
        ConfigurationError: it has not so many.
    """
    text = config.get_text_config()
    if not 1 <= layers <= text.num_hidden_layers:
        raise ConfigurationError(f"cannot keep {layers} layers: use 1 to {text.num_hidden_layers}")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]


def zero_new_head(model: nn.Module, missing: list[str]) -> None:
    """Let a new head begin at score 0 for every text: no answer is acceptable or not before anything is learnt."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == 1 and f"{name}.weight" in missing:
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def pad_id(config: Any, tokenizer: Any) -> int:
    """The token to fill batches with: the model's own, else the tokenizer's, if the model has an embedding for it."""
    text = config.get_text_config()
    known = [index for index in (text.pad_token_id, tokenizer.pad_token_id) if index is not None]
    return next((index for index in known if 0 <= index < text.vocab_size), 0)


def length_limit(config: Any, tokenizer: Any, requested: int | None = None) -> int | None:
    """Most tokens a text may have: the least of what the model, its tokenizer and the caller allow; None if none does.

    Raises:
        ConfigurationError: the caller allows less than one.
    """
    if requested is not None and requested < 1:
        raise ConfigurationError(f"max_length is {requested}: a text has at least one token; give a larger one, or None")
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


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""
