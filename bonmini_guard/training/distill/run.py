"""Fine-tune a generator towards its own best-of-N: reward log F, KL coefficient 1 / (N - 1), by trl's RLOO."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from langchain_core.messages import AIMessage
from pydantic_core import to_json
from transformers import GenerationConfig, set_seed

from bonmini_guard.engine.result import finite
from bonmini_guard.errors import CheckpointError, InputError, first_line, needing
from bonmini_guard.reward.checkpoint import load_language_model
from bonmini_guard.reward.formatting import prompt_ids, rendered
from bonmini_guard.reward.lora import peft_for
from bonmini_guard.reward.model import RewardModel, device_of
from bonmini_guard.training.distill.drawing import Draw, divergence, draw, log_likelihood
from bonmini_guard.training.distill.front import Drawn, front, log_f
from bonmini_guard.training.distill.prompts import DistillPrompt
from bonmini_guard.training.run import check_output, partial
from bonmini_guard.training.settings import DistillSettings
from bonmini_guard.training.trainer import PartialState

#: True utilities of answers to one prompt, for experiments in which they are known.
Truth = Callable[[DistillPrompt, Sequence[str]], Sequence[float]]


def distill(
    prompts: Sequence[DistillPrompt],
    generator: str | os.PathLike[str],
    reward_model: RewardModel,
    output: str | os.PathLike[str],
    *,
    truth: Truth | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Distil best-of-N into a generator, and measure what that keeps and loses (docs/distillation.md).

    Args:
        prompts: five or more; a fifth, two at least and at most ``eval_prompts``, is held out for the figures.
        generator: folder or id of a causal language model in safetensors.
        reward_model: what ranks its answers.
        output: the folder to write, which appears whole at the end or not at all; missing or empty.
        truth: true utilities, to report beside the scores.
        settings: fields of :class:`DistillSettings`.

    Returns:
        What ``distillation.json`` says: the settings, and ``front`` with a record for each way to answer.

    Raises:
        ConfigurationError: a setting is wrong, or the output folder is not empty.
        CheckpointError: the generator cannot be used.
        InputError: the generator's chat template refuses a prompt, it leaves no room for an answer, or it cannot be scored.
        MissingExtraError: trl is not installed.
    """
    plan = DistillSettings(**settings)
    check_output(Path(output))
    with needing("distill"):
        import trl
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    device = device_of(None if plan.device == "auto" else plan.device)
    with partial(Path(output), {"generator": str(generator)}, PartialState(cpu=device.type == "cpu")) as folder:
        set_seed(plan.seed)
        model, tokenizer, settings = _load(str(generator), device)
        _check(prompts, model, tokenizer, plan.max_new_tokens)
        shuffled = random.Random(plan.seed).sample(list(prompts), len(prompts))
        aside = max(2, min(plan.eval_prompts, len(shuffled) // 5))
        held_out, learnt = shuffled[:aside], shuffled[aside:]
        references = _references(learnt, model, tokenizer, reward_model, plan)
        tuned = _tune(trl, (model, tokenizer), learnt, references, reward_model, plan=plan, folder=folder)
        original, _, _ = _load(str(generator), device)
        name = Path(generator).name if Path(generator).is_dir() else str(generator)
        report = {"generator": name, "prompts": len(learnt), "beta": plan.beta, "settings": asdict(plan)}
        report |= _measure((original, tuned), tokenizer, held_out, reward_model, plan, truth=truth)
        tuned.generation_config = settings
        tuned.to("cpu").save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / "model" / "distillation.json").write_bytes(to_json(report, indent=2, inf_nan_mode="null") + b"\n")
        return report


def _load(generator: str, device: torch.device) -> tuple[Any, Any, Any]:
    """Model, tokenizer, and the model's own settings of generation: penalties and the like would make draws of another law."""
    model, tokenizer = load_language_model(generator, torch.float32)
    if (end := tokenizer.eos_token_id) is None:
        raise CheckpointError(f"{generator}: its tokenizer names no end token, so no answer would end; give it its eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    own = model.generation_config
    ends = [own.eos_token_id] if isinstance(own.eos_token_id, int) else own.eos_token_id or []
    if end not in ends:
        own.eos_token_id = [*ends, end]  # trl ends answers there too, so that what it teaches is to end so
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)  # type: ignore[no-untyped-call]
    return model.to(device), tokenizer, own


def _check(prompts: Sequence[DistillPrompt], model: Any, tokenizer: Any, new_tokens: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, prompt in enumerate(prompts, start=1):
        try:
            whole = len(prompt_ids(rendered(prompt.messages, tokenizer), tokenizer)) + new_tokens
        except (TemplateError, TypeError) as error:  # as templates fail on what they were not written for
            problem = f"prompt {number}: the generator's chat template refuses it ({first_line(error)}); leave it out"
            raise InputError(problem) from error
        if limit is not None and 0 < limit < whole:  # XLNet says -1 where there is none
            raise InputError(f"prompt {number}: with its answer {whole} tokens, and the generator reads {limit}; leave it out")


def _references(
    prompts: Sequence[DistillPrompt], model: Any, tokenizer: Any, reward: RewardModel, plan: DistillSettings
) -> list[list[float]]:
    """The ascending reference scores of each prompt: logged where there are enough, else of fresh draws."""
    short = [place for place, prompt in enumerate(prompts) if len(prompt.answers) < plan.reference_draws]
    asked = [rendered(prompts[place].messages, tokenizer) for place in short]
    drawn = draw(model, tokenizer, asked, plan.reference_draws, new_tokens=plan.max_new_tokens, temperature=plan.temperature)
    fresh: dict[int, Sequence[Any]] = {place: [one.text for one in own] for place, own in zip(short, drawn, strict=True)}
    mark, found = reward.fingerprint(), []
    for place, prompt in enumerate(prompts):
        kept = [] if place in fresh or prompt.scored_by != mark else prompt.scores
        scores = kept if kept and None not in kept else reward.score(prompt.messages, fresh.get(place, prompt.answers))
        known = [score for score in map(finite, scores) if score is not None]
        if not known:
            said = prompt.messages[-1].text[:60]
            raise InputError(f"no draw for the prompt {said!r} can be scored; leave out prompts that are too long")
        found.append(sorted(known))
    return found


def _tune(
    trl: Any,
    loaded: tuple[Any, Any],
    prompts: Sequence[DistillPrompt],
    references: Sequence[Sequence[float]],
    reward: RewardModel,
    *,
    plan: DistillSettings,
    folder: Path,
) -> Any:
    from datasets import Dataset

    model, tokenizer = loaded
    rows = [{"prompt": rendered(prompt.messages, tokenizer), "place": place} for place, prompt in enumerate(prompts)]

    def log_rank(completions: Sequence[Any], place: Sequence[int], **_: Any) -> list[float | None]:
        """Log F of each completion; None, which trl leaves out of the gradient, for one that cannot be scored."""
        texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
        found: list[float | None] = [None] * len(texts)
        for one in set(place):
            members = [index for index, other in enumerate(place) if other == one]
            scores = reward.score(prompts[one].messages, [AIMessage(texts[index]) for index in members])
            for index, score in zip(members, map(finite, scores), strict=True):
                found[index] = None if score is None else log_f(references[one], score)
        return found

    adapters: dict[str, Any] = {"r": plan.lora_rank, "lora_alpha": 2 * (plan.lora_rank or 0), "target_modules": "all-linear"}
    trainer = trl.RLOOTrainer(
        model=model,
        reward_funcs=log_rank,
        args=_arguments(trl, plan, folder, len(rows), cuda=model.device.type == "cuda"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if plan.lora_rank is None else peft_for("distill").LoraConfig(task_type="CAUSAL_LM", **adapters),
    )
    trainer.train()
    tuned = trainer.accelerator.unwrap_model(trainer.model)
    return tuned.merge_and_unload() if plan.lora_rank else tuned


def _arguments(trl: Any, plan: DistillSettings, folder: Path, prompts: int, *, cuda: bool) -> Any:
    return trl.RLOOConfig(
        output_dir=str(folder),
        beta=plan.beta,
        num_generations=plan.draws,
        per_device_train_batch_size=plan.draws * min(plan.prompts_a_step, prompts),  # trl drops what does not fill a step
        max_steps=plan.steps,
        max_completion_length=plan.max_new_tokens,
        temperature=plan.temperature,
        top_k=0,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(min(1, plan.steps - 1), plan.steps // 20),
        disable_dropout=True,
        normalize_advantages=False,
        gradient_checkpointing=False,
        bf16=cuda,
        use_cpu=not cuda,
        seed=plan.seed,
        save_strategy="no",
        report_to=[],
        logging_steps=max(1, plan.steps // 20),
        dataloader_pin_memory=cuda,
    )


def _measure(
    models: tuple[Any, Any],
    tokenizer: Any,
    prompts: Sequence[DistillPrompt],
    reward: RewardModel,
    plan: DistillSettings,
    *,
    truth: Truth | None,
) -> dict[str, Any]:
    original, tuned = models
    questions = [rendered(prompt.messages, tokenizer) for prompt in prompts]
    budget = max(plan.eval_draws, plan.n)
    before = draw(original, tokenizer, questions, budget, new_tokens=plan.max_new_tokens, temperature=plan.temperature)
    after = draw(tuned, tokenizer, questions, max(2, budget // 4), new_tokens=plan.max_new_tokens, temperature=plan.temperature)
    tables = [_drawn(prompts, drawn, reward, truth) for drawn in (before, after)]
    kl = float(divergence(tuned, original, [one for row in after for one in row], plan.temperature).mean())
    sizes = sorted({size for size in (4, plan.n, budget) if size <= budget})
    lost = {name: _variety(drawn, original, plan) for name, drawn in (("original", before), ("distilled", after))}
    return {"front": front(tables[0], tables[1], kl, sizes), "variety": lost, "held_out_prompts": len(prompts)}


def _drawn(prompts: Sequence[DistillPrompt], drawn: Sequence[Sequence[Draw]], reward: RewardModel, truth: Truth | None) -> Drawn:
    pairs = [(prompt, [one.text for one in row]) for prompt, row in zip(prompts, drawn, strict=True)]
    rows = [reward.score(prompt.messages, texts) for prompt, texts in pairs]
    scores = np.array([[np.nan if score is None else score for score in row] for row in rows])
    return Drawn(scores, None if truth is None else np.array([truth(prompt, texts) for prompt, texts in pairs]))


def _variety(drawn: Sequence[Sequence[Draw]], original: Any, plan: DistillSettings) -> dict[str, float]:
    """How varied the answers to one prompt are, how long, and how likely the original generator finds them."""
    pairs = [set(zip(one.answer, one.answer[1:], strict=False)) for row in drawn for one in row[:2]]
    shared = [len(a & b) / max(1, len(a | b)) for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
    flat = [one for row in drawn for one in row[:4]]
    return {
        "shared_token_pairs": float(np.mean(shared)),
        "mean_tokens": float(np.mean([len(one.answer) for one in flat])),
        "log_likelihood_by_original": log_likelihood(original, flat, plan.temperature),
    }
