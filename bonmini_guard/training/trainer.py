"""transformers' Trainer for choice rows: the loss, the held-out loss, and where a killed run goes on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from bonmini_guard.errors import ConfigurationError, first_line, needing
from bonmini_guard.reward.pooling import PooledScorer
from bonmini_guard.training.batches import Collator, Encoding, batches_of, model_inputs
from bonmini_guard.training.evidence import figures, score_texts
from bonmini_guard.training.loss import OBJECTIVES
from bonmini_guard.training.settings import Settings

with needing("train"):
    from accelerate import PartialState as PartialState  # noqa: PLC0414 - for run.py, too


class OutsideOptionTrainer(Trainer):
    """A Trainer whose batches come from :class:`bonmini_guard.training.batches.Collator`.

    Args:
        objective: a name of :data:`bonmini_guard.training.loss.OBJECTIVES`.
        held_out: judgements for the loss that early stopping watches, in batches of ``batch_size`` texts.
        new: names of weights that have a learning rate of their own, with the peak ``new_rate``.
        arguments: those of ``transformers.Trainer``; the model is a :class:`~bonmini_guard.reward.pooling.PooledScorer`.
    """

    def __init__(
        self,
        *,
        objective: str = "outside_option",
        held_out: Encoding | None = None,
        batch_size: int = 32,
        new: Collection[str] = (),
        new_rate: float = 1e-3,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._objective = OBJECTIVES[objective]
        self._outside = objective == "outside_option"
        self._held_out, self._batch_size = held_out, batch_size
        self._new, self._new_rate = set(new), new_rate

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, with a rate of their own for new weights."""
        if self.optimizer is not None:
            return self.optimizer
        try:
            optimizer = super().create_optimizer(model)
        except (ImportError, ValueError) as error:  # one that is not installed, or wants settings that are none of ours
            raise ConfigurationError(f"--optimizer: {first_line(error)}") from error
        scorer: Any = self.model
        new = [weight for name, weight in scorer.named_parameters() if name.removeprefix("model.") in self._new]
        own = set(map(id, new))
        for group in list(optimizer.param_groups):
            apart = [weight for weight in group["params"] if id(weight) in own]
            if apart:
                group["params"] = [weight for weight in group["params"] if id(weight) not in own]
                optimizer.add_param_group({**group, "params": apart, "lr": self._new_rate})
        return optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mean loss over the batch's rows; every distinct text is scored once, whatever the number of its rows."""
        scores = model(**model_inputs(inputs))
        members = scores.float()[inputs["members"]]
        loss = self._objective(members, inputs["sizes"], inputs["choices"], inputs["weights"], inputs["offered"])
        return (loss, scores) if return_outputs else loss

    def evaluate(self, *arguments: Any, **more: Any) -> dict[str, float]:
        """The held-out loss, weighted over all judgements."""
        if self._held_out is None:
            raise ValueError("no held-out rows to evaluate on")
        collate: Any = self.data_collator
        scores = score_texts(self.model, self._held_out, collate.pad_id, self._batch_size)
        found = figures(scores, self._held_out.groups, outside=self._outside)["log_likelihood"]
        metrics = {"eval_loss": math.inf if found is None else -float(found)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Epochs(TrainerCallback):
    """Says how many passes are done: to the Trainer, all passes together are one."""

    def __init__(self, epochs: float) -> None:
        self._epochs = epochs

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        if logs and "epoch" in logs:
            logs["epoch"] = round(state.epoch * self._epochs, 2)


def fit(
    scorer: PooledScorer, learnt: Encoding, folder: Path, plan: Settings, held_out: Encoding | None, *, new: Collection[str]
) -> list[float]:
    """Train a sequence classifier in place, going on from the last whole checkpoint in ``folder``; the losses in order.

    Where ``accelerate launch`` has weights sharded (FSDP2), they stay so. ``new`` names weights that the base lacked.
    """
    batches = batches_of(learnt, plan.batch_size, plan.epochs, plan.seed)
    watched = held_out if plan.early_stopping else None
    pad = scorer.model.config.pad_token_id
    callbacks: list[TrainerCallback] = [_Epochs(plan.epochs)]
    if watched is not None:
        callbacks.append(EarlyStoppingCallback(plan.early_stopping or 1))
    trainer = OutsideOptionTrainer(
        objective=plan.objective,
        held_out=watched,
        batch_size=plan.batch_size,
        new=new,
        new_rate=plan.head_learning_rate or max(plan.learning_rate, 1e-3),
        model=scorer,
        args=_arguments(plan, folder, len(batches), watched is not None),
        train_dataset=batches,
        eval_dataset=None if watched is None else batches,  # unread: evaluate has the rows
        data_collator=Collator(learnt.texts, pad, scorer.shares(pad)),
        callbacks=callbacks,
    )
    last = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; its state is what the Trainer writes last, so one without it was cut off."""
    found = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            found.append((int(json.loads(state.read_text(encoding="utf-8"))["global_step"]), state.parent))
        except (ValueError, KeyError):
            continue
    return max(found)[1] if found else None


def remove_torn(folder: Path) -> None:
    """Remove checkpoints that a killed run did not finish writing."""
    for part in folder.glob("checkpoint-*"):
        if last_checkpoint(part.parent) is None or not (part / "trainer_state.json").exists():
            shutil.rmtree(part)


def whole_weights(scorer: PooledScorer) -> dict[str, Any]:
    """The classifier's weights by name, on the CPU, whole even if they are sharded; every process asks, and the first gets them."""
    wanted = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {name.removeprefix("model."): weight for name, weight in get_model_state_dict(scorer, options=wanted).items()}


def _arguments(plan: Settings, folder: Path, batches: int, watched: bool) -> TrainingArguments:
    # The data set lists every batch of every epoch in order, so one pass over it with "batches" of one is the whole run.
    together = PartialState().num_processes
    steps = math.ceil(math.ceil(batches / together) / plan.accumulate)
    every = max(1, math.ceil(steps / plan.checkpoints)) if plan.checkpoints else steps
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.accumulate,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(min(1, steps - 1), steps // 20),
        weight_decay=plan.weight_decay,
        logging_steps=max(10, steps // 20),
        optim=plan.optimizer,
        save_strategy="steps" if plan.checkpoints else "no",
        save_steps=every,
        save_total_limit=2 if watched else 1,
        eval_strategy="steps" if watched else "no",
        eval_steps=every,
        load_best_model_at_end=watched,
        restore_callback_states_from_checkpoint=watched,
        report_to=plan.trackers,
        disable_tqdm=False,
        remove_unused_columns=False,
        seed=plan.seed,
        use_cpu=not plan.cuda,
        bf16=plan.half,
        ddp_backend="gloo" if together > 1 and not plan.cuda else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=plan.cuda,
    )
