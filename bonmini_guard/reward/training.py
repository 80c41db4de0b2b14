"""Training a reward model on choice rows with transformers' Trainer."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed

from bonmini_guard.errors import ConfigurationError, InputError, MissingExtraError
from bonmini_guard.reward.batches import Batches, Collator, Encoding, encode_rows, summary
from bonmini_guard.reward.checkpoint import (
    keep_layers,
    length_limit,
    load_classifier,
    load_config,
    load_tokenizer,
    pad_id,
    sidecar,
    zero_new_head,
)
from bonmini_guard.reward.choices import ChoiceRow
from bonmini_guard.reward.formatting import Formatter
from bonmini_guard.reward.loss import OBJECTIVES, choice_logits
from bonmini_guard.reward.pooling import PooledScorer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        objective: "outside_option", or "bradley_terry", which learns to rank only.
        epochs: passes over the rows; may be a fraction.
        learning_rate: its peak; it rises over the first 5 % of the steps and falls with a cosine.
        batch_size: most distinct (prompt, answer) texts in a step.
        seed: of the order of batches, of new weights and of dropout.
        max_length: most tokens a text may have, if less than the model's own limit.
        layers: keep only so many of the first layers of the base.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; None leaves torch's setting alone.
        weight_decay: of AdamW.
    """

    objective: str = "outside_option"
    epochs: float = 2.0
    learning_rate: float = 5e-5
    batch_size: int = 32
    seed: int = 0
    max_length: int | None = None
    layers: int | None = None
    device: str = "auto"
    threads: int | None = None
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigurationError(f"unknown objective {self.objective!r}: use one of {', '.join(OBJECTIVES)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigurationError(f"unknown device {self.device!r}: use auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("no CUDA device here: use --device cpu")
        for name in ("epochs", "learning_rate", "batch_size", "max_length", "layers", "threads"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} is {value}: it must be a positive number")

    @property
    def cuda(self) -> bool:
        """Whether to train on a GPU."""
        return self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())


class OutsideOptionTrainer(Trainer):
    """A Trainer whose batches come from :class:`bonmini_guard.reward.batches.Collator`.

    Args:
        objective: a name of :data:`bonmini_guard.reward.loss.OBJECTIVES`.
        arguments: those of ``transformers.Trainer``; the model is a :class:`~bonmini_guard.reward.pooling.PooledScorer`.
    """

    def __init__(self, *, objective: str = "outside_option", **arguments: Any) -> None:
        super().__init__(**arguments)
        self._objective = OBJECTIVES[objective]

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mean loss over the batch's rows; every distinct text is scored once, whatever the number of its rows."""
        scores = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        members = scores.float()[inputs["members"]]
        loss = self._objective(members, inputs["sizes"], inputs["choices"], inputs["weights"])
        return (loss, scores) if return_outputs else loss


def train_reward_model(
    rows: Sequence[ChoiceRow],
    base: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    eval_rows: Sequence[ChoiceRow] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train a reward model and write it as an ordinary checkpoint.

    The folder holds safetensors weights, the tokenizer with its chat template, a configuration whose ``bonmini_guard``
    entry says what the zero means, and ``training.json``. It appears whole at the end or not at all.

    Args:
        rows: the judgements to learn from.
        base: folder or model id of a causal language model, an encoder or a one-label classifier, in safetensors.
        output: the folder to write; missing or empty.
        eval_rows: held-out judgements.
        settings: fields of :class:`Settings`.

    Returns:
        What ``training.json`` says.

    Raises:
        ConfigurationError: a setting is wrong, or the output folder is not empty.
        CheckpointError: the base cannot be used.
        InputError: the rows cannot teach the objective.
        MissingExtraError: accelerate is not installed.
    """
    plan = Settings(**settings)
    check_output(Path(output))
    learnt = usable_rows(rows, plan.objective)
    # Checked now, because a mistake told after the training would cost the training.
    held_out = usable_rows(eval_rows, plan.objective) if eval_rows and plan.objective == "bradley_terry" else eval_rows
    if find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", "train")
    with _appearing(Path(output)) as folder:
        return _train(learnt, str(base), folder, plan, held_out)


def check_output(output: Path) -> None:
    """Raise ConfigurationError unless the output folder is missing or empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output}: exists already; remove it, or name another output folder")


def usable_rows(rows: Sequence[ChoiceRow], objective: str) -> list[ChoiceRow]:
    """The rows that the objective can learn from.

    Raises:
        InputError: there are none, or they do not say where the zero is.
    """
    if objective == "outside_option":
        nones = sum(row.choice == "none" for row in rows)
        if nones in (0, len(rows)):
            share = "no row" if nones == 0 else "every row"
            raise InputError(
                f'{share} chose "none", so nothing says where zero is; collect both, or use the objective bradley_terry'
            )
        return list(rows)
    chosen = [row for row in rows if row.choice != "none"]
    if any(len(row.responses) == 1 for row in chosen):
        raise InputError("a row has a single response, which compares nothing; leave it out, or use the objective outside_option")
    if not chosen:
        raise InputError("no row compares two responses; add some, or use the objective outside_option")
    return chosen


def _train(rows: list[ChoiceRow], base: str, folder: Path, plan: Settings, eval_rows: Sequence[ChoiceRow] | None) -> dict[str, Any]:
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    set_seed(plan.seed)
    config, tokenizer = _base_config(base, plan), load_tokenizer(base)
    model = _load_base(base, config, tokenizer, plan)
    formatter = Formatter(tokenizer, length_limit(model.config, tokenizer, plan.max_length))
    encoding = _encode(rows, formatter, plan.batch_size)
    trainer = _fit(model, encoding, folder, plan)
    report = _report(rows, encoding, plan, base)
    if eval_rows:
        report["eval"] = evaluate(trainer.model, eval_rows, formatter, model.config.pad_token_id, plan)
    _write(model, tokenizer, folder, report)
    return report


def _base_config(base: str, plan: Settings) -> Any:
    config = load_config(base)
    config.num_labels = 1
    if plan.layers is not None:
        keep_layers(config, plan.layers)
    return config


def _load_base(base: str, config: Any, tokenizer: Any, plan: Settings) -> Any:
    model, missing = load_classifier(base, config, torch.float32)
    zero_new_head(model, missing)
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad_id(config, tokenizer)
    model.config.bonmini_guard = sidecar(plan.objective)
    return model


def _encode(rows: Sequence[ChoiceRow], formatter: Formatter, batch_size: int) -> Encoding:
    encoding = encode_rows(rows, formatter, batch_size)
    if not encoding.groups:
        raise InputError(f"no row fits in {formatter.max_length} tokens; raise --max-length or use a base with a longer context")
    if encoding.too_long or encoding.cut:
        logger.warning(
            "%d judgements left out: an answer is too long; oldest turns cut from %d texts", encoding.too_long, encoding.cut
        )
    return encoding


def _fit(model: Any, encoding: Encoding, folder: Path, plan: Settings) -> OutsideOptionTrainer:
    batches = Batches(encoding, plan.batch_size, plan.epochs, plan.seed)
    trainer = OutsideOptionTrainer(
        objective=plan.objective,
        model=PooledScorer(model),
        args=_arguments(plan, folder, steps=len(batches)),
        train_dataset=batches,
        data_collator=Collator(encoding.texts, model.config.pad_token_id),
    )
    trainer.train()
    return trainer


def _arguments(plan: Settings, folder: Path, steps: int) -> TrainingArguments:
    # The data set lists every batch of every epoch in order, so one pass over it with "batches" of one is the whole run.
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=plan.weight_decay,
        max_grad_norm=1.0,
        logging_steps=max(10, steps // 20),
        save_strategy="no",
        report_to=[],
        disable_tqdm=False,
        remove_unused_columns=False,
        seed=plan.seed,
        use_cpu=not plan.cuda,
        bf16=plan.cuda,
        dataloader_num_workers=0,
        dataloader_pin_memory=plan.cuda,
    )


@torch.inference_mode()
def evaluate(
    model: Any, rows: Sequence[ChoiceRow], formatter: Formatter, pad_id: int, plan: Settings
) -> dict[str, float | int | None]:
    """How well a model predicts held-out choices.

    Returns:
        ``log_likelihood`` (mean, nats per judgement), ``accuracy`` (share of judgements that are the model's first choice,
        "none" included where the objective knows it), ``judgements``.
    """
    encoding = encode_rows(rows, formatter, plan.batch_size)
    outside, total, likelihood, right = plan.objective == "outside_option", 0.0, 0.0, 0.0
    collate = Collator(encoding.texts, pad_id)
    model.eval()
    device = next(model.parameters()).device
    batches = Batches(encoding, plan.batch_size)
    for step in range(len(batches)):
        inputs = {name: part.to(device) for name, part in collate([batches[step]]).items()}
        scores = model(inputs["input_ids"], inputs["attention_mask"])[inputs["members"]]
        logits = choice_logits(scores, inputs["sizes"], outside=outside)
        chosen, weights = inputs["choices"].unsqueeze(1), inputs["weights"]
        likelihood += float((logits.log_softmax(1).gather(1, chosen).squeeze(1) * weights).sum())
        right += float(((logits.argmax(1) == inputs["choices"]) * weights).sum())
        total += float(weights.sum())
    share = (
        {"log_likelihood": likelihood / total, "accuracy": right / total} if total else {"log_likelihood": None, "accuracy": None}
    )
    return {**share, "judgements": int(total)}


def _report(rows: Sequence[ChoiceRow], encoding: Encoding, plan: Settings, base: str) -> dict[str, Any]:
    counts = summary(rows) | {"prompts": len({row.prompt for row in rows}), "texts": len(encoding.texts)}
    left_out = {"judgements_too_long": encoding.too_long, "texts_cut": encoding.cut}
    return {"base": base} | counts | left_out | {"settings": asdict(plan), "objective": plan.objective, "seed": plan.seed}


def _write(model: Any, tokenizer: Any, folder: Path, report: dict[str, Any]) -> None:
    model.to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its place at the end, or vanishes after an error."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        yield folder
        folder.chmod(0o755)
        os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
