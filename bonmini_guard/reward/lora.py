"""Low-rank adapters by peft: trained beside the base's weights, and kept in a folder of peft's own that names its base.

Such a folder is small, and peft puts it onto any copy of the base. The base is given by hand, or found by its name: as it is
written, beside the folder, in the user's cache of models, or on a hub.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bonmini_guard.errors import CheckpointError, first_line, needing

WEIGHTS = "adapter_model.safetensors"
#: What peft writes before the name of each weight.
_PREFIX = "base_model.model."


def add_adapters(model: Any, rank: int, alpha: int | None, missing: list[str]) -> None:
    """Put adapters beside all linear layers but the head; only they, the head and ``missing`` weights will be trained.

    The classifier is changed in place; an ``alpha`` of None is twice the rank.
    """
    peft = peft_for("train")
    heads = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    own = {f"{name}.{part}" for name in heads for part in ("weight", "bias")} | set(missing)
    config = peft.LoraConfig(
        task_type=peft.TaskType.FEATURE_EXTRACTION,
        r=rank,
        lora_alpha=alpha or 2 * rank,
        target_modules=[
            name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and f"{name}.weight" not in own
        ],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # as GPT-2 keeps its weights
    )
    peft.get_peft_model(model, config)
    for name, weight in model.named_parameters():
        if name in own:
            weight.requires_grad_(True)
    for module in model.modules():
        if any(weight.requires_grad and weight.dtype != torch.float32 for weight in module.parameters(recurse=False)):
            # As peft does with adapters: steps of a small rate are lost in bfloat16.
            module.float()
            module.register_forward_pre_hook(lambda _, given: tuple(part.float() for part in given))


def save_adapters(model: Any, weights: Mapping[str, Tensor], folder: Path, base: str) -> None:
    """Write the adapters of a model that :func:`add_adapters` has changed, its head and its configuration."""
    from safetensors.torch import save_file

    trained = {name: weights[name].contiguous() for name, weight in model.named_parameters() if weight.requires_grad}
    whole = sorted({name.rpartition(".")[0] for name in trained if "lora_" not in name})
    folder.mkdir(parents=True, exist_ok=True)
    save_file({_PREFIX + name.replace(".default.", "."): weight for name, weight in trained.items()}, folder / WEIGHTS)
    config = model.peft_config["default"]
    config.task_type, config.modules_to_save, config.base_model_name_or_path = peft_for("train").TaskType.SEQ_CLS, whole, base
    config.inference_mode = True
    config.save_pretrained(folder)
    model.config.save_pretrained(folder)


def with_adapters(model: Any, path: str) -> tuple[Any, set[str]]:
    """A base with a folder's adapters in its weights, and the names of those kept whole; CheckpointError if they do not fit."""
    from safetensors import safe_open

    peft = peft_for("train")
    try:
        with safe_open(Path(path) / WEIGHTS, framework="pt") as weights:
            whole = {name.removeprefix(_PREFIX) for name in weights.keys() if "lora_" not in name}  # noqa: SIM118
        with warnings.catch_warnings():
            # peft asks transformers by a name that is on its way out.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("error", "Found missing adapter keys")  # it would score as its base does
            return peft.PeftModel.from_pretrained(model, path).merge_and_unload(), whole
    except Exception as error:  # broken files raise whatever they please
        wrong = f"its adapter does not fit the base, or is broken ({first_line(error)[:200]})"
        raise CheckpointError(f"{path}: {wrong}; give the base it was trained on, or copy it anew") from error


def peft_for(extra: str) -> Any:
    """peft, or the MissingExtraError that names the extra it comes with."""
    with needing(extra):
        import peft
    return peft
