"""Low-rank adapters by peft: trained in place of the base's weights, and merged into them at the end."""

from __future__ import annotations

from typing import Any

from torch import nn

from bonmini_guard.errors import MissingExtraError


def add_adapters(model: Any, rank: int, alpha: int | None, missing: list[str]) -> Any:
    """Put adapters beside all linear layers but the head; only they, the head and weights new to the base will be trained.

    Args:
        model: a sequence classifier with one label; changed in place.
        rank: of the adapters.
        alpha: their scale; None takes twice the rank.
        missing: names of weights that the base lacked.

    Returns:
        What :func:`merge` takes.

    Raises:
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise MissingExtraError("peft", "train") from error
    own = {name for name, _ in head_weights(model)} | set(missing)
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION, r=rank, lora_alpha=alpha or 2 * rank, target_modules=_linear(model, own)
    )
    adapted = get_peft_model(model, config)
    for name, weight in model.named_parameters():
        if name in own:
            weight.requires_grad_(True)
    return adapted


def merge(adapted: Any) -> Any:
    """The plain model again, with the adapters added to its weights."""
    return adapted.merge_and_unload()


def head_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The weights of the layers that give the one score."""
    heads = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    return [(name, weight) for name, weight in model.named_parameters() if name.rpartition(".")[0] in heads]


def _linear(model: nn.Module, own: set[str]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and f"{name}.weight" not in own]
