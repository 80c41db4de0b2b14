"""Training a reward model on choice rows: from rows to a checkpoint folder with its evidence."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from pydantic_core import to_json
from torch import Tensor
from transformers import set_seed

from bonmini_guard.conversation import Turn, prompt_digest
from bonmini_guard.errors import ConfigurationError, InputError, Unscorable
from bonmini_guard.logs.appending import lock
from bonmini_guard.reward.checkpoint import (
    base_of,
    check_vocabulary,
    check_whole,
    inputs_of,
    keep_layers,
    length_limit,
    load_classifier,
    load_config,
    load_tokenizer,
    pad_id,
    sidecar,
    vocabulary_digest,
    weights_digest,
    without_default_system,
    zero_new_head,
)
from bonmini_guard.reward.formatting import Formatter
from bonmini_guard.reward.lora import add_adapters, save_adapters
from bonmini_guard.reward.model import trained_prompts
from bonmini_guard.reward.pairs import formatter
from bonmini_guard.reward.pooling import PooledScorer
from bonmini_guard.training.batches import Encoding, encode_rows
from bonmini_guard.training.card import model_card
from bonmini_guard.training.choices import ChoiceRow, as_record
from bonmini_guard.training.evidence import constant_loss, figures, score_texts, troubles
from bonmini_guard.training.hub import make_repository, push
from bonmini_guard.training.settings import Settings
from bonmini_guard.training.trainer import PartialState, fit, last_checkpoint, remove_torn, whole_weights

logger = logging.getLogger(__name__)


def train_reward_model(
    rows: Sequence[ChoiceRow],
    base: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    eval_rows: Sequence[ChoiceRow] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train a reward model and write it as an ordinary checkpoint.

    docs/training.md says what the folder holds, and how a killed run goes on: by the same call.

    Args:
        rows: the judgements to learn from.
        base: folder or model id of a causal language model, an encoder or a one-label classifier, in safetensors.
        output: the folder to write, which appears whole at the end or not at all; missing or empty.
        eval_rows: held-out judgements.
        settings: fields of :class:`Settings`.

    Returns:
        What ``training.json`` says.

    Raises:
        ConfigurationError: a setting is wrong, the output folder is not empty, ``OUTPUT.partial`` is of another run, or the hub
            refuses.
        CheckpointError: the base cannot be used.
        InputError: the rows cannot teach the objective.
        MissingExtraError: accelerate or peft is not installed.
    """
    plan = Settings(**settings)
    check_output(Path(output))
    learnt = usable_rows(rows, plan.objective)
    if (plan.early_stopping or plan.twin) and not eval_rows:
        raise ConfigurationError("early stopping needs held-out rows, and so does a twin: give --eval or --eval-share")
    # Checked now, because a mistake told after the training would cost the training.
    held_out = usable_rows(eval_rows, plan.objective) if eval_rows and plan.objective == "bradley_terry" else eval_rows
    # Every process loads the base: new heads and adapters are made, and sharing is tried, before weights are sharded.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    together = PartialState(cpu=not plan.cuda)
    if plan.push_to_hub and together.is_main_process:
        make_repository(plan.push_to_hub)
    with partial(Path(output), _mark(learnt, held_out, str(base), plan), together) as folder:
        report = _train(learnt, str(base), folder, plan, held_out)
    if plan.push_to_hub and together.is_main_process:
        push(Path(output), plan.push_to_hub)
    return report


def part() -> None:
    """End the company of processes that trained together: one that leaves it by exiting may be aborted, and the others with it."""
    together = PartialState()
    together.wait_for_everyone()
    together.destroy_process_group()


def evaluate_reward_model(path: str | os.PathLike[str], rows: Sequence[ChoiceRow], batch_size: int = 32) -> dict[str, Any]:
    """How well a checkpoint predicts choice rows: see :func:`bonmini_guard.training.evidence.figures`.

    The likelihood takes score 0 for "none", whether or not the checkpoint was trained so.

    Raises:
        CheckpointError: there is no usable checkpoint.
        InputError: no row fits the model.
    """
    scores, encoding = scored_rows(path, rows, batch_size)
    return figures(scores, encoding.groups, outside=True)


def scored_rows(path: str | os.PathLike[str], rows: Sequence[ChoiceRow], batch_size: int = 32) -> tuple[Tensor, Encoding]:
    """The scores that a checkpoint gives to every text of choice rows, and the rows as judgements of these; errors as above."""
    config, tokenizer = load_config(str(path)), load_tokenizer(str(path))
    model, missing = load_classifier(str(path), config, torch.float32)
    check_whole(str(path), missing)
    made = formatter(model, tokenizer, length_limit(config, tokenizer))
    encoding = _encode(rows, made, batch_size, _known(model))
    return score_texts(PooledScorer(model), encoding, pad_id(config, tokenizer), batch_size), encoding


def check_output(output: Path) -> None:
    """Raise ConfigurationError unless the output folder is missing or empty, and can be replaced by a whole one."""
    if output.is_symlink() or output.name in ("", ".."):
        raise ConfigurationError(f"{output}: is replaced as a whole, which this cannot be; name the folder itself")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output}: exists already; remove it, or name another output folder")


def usable_rows(rows: Sequence[ChoiceRow], objective: str) -> list[ChoiceRow]:
    """The rows that the objective can learn from; InputError if there are none, or they do not say where the zero is."""
    if objective == "outside_option":
        check_zero([row.choice == "none" for row in rows if row.none_offered], "row")
        return list(rows)
    chosen = [row for row in rows if row.choice != "none"]
    if any(len(row.responses) == 1 for row in chosen):
        raise InputError("a row has a single response, which compares nothing; leave it out, or use the objective outside_option")
    if not chosen:
        raise InputError("no row compares two responses; add some, or use the objective outside_option")
    return chosen


def check_zero(nones: Sequence[bool], what: str, more: str = "") -> None:
    """Raise InputError unless some of those who could choose "none" did, and some did not."""
    if all(nones) or not any(nones):
        share = f"no {what} offered or" if not nones else f"every {what}" if all(nones) else f"no {what}"
        cure = "collect both, or use the objective bradley_terry"
        raise InputError(f'{share} chose "none", so nothing says where zero is{more}; {cure}')


class _Loaded(NamedTuple):
    """A base with one label, what reads its scores, its tokenizer, the names of the weights that are new, what makes its inputs."""

    model: Any
    scorer: PooledScorer
    tokenizer: Any
    missing: list[str]
    formatter: Formatter


def _train(rows: list[ChoiceRow], base: str, folder: Path, plan: Settings, eval_rows: Sequence[ChoiceRow] | None) -> dict[str, Any]:
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    loaded = load_base(base, plan)
    known = _known(loaded.model)
    # Without one that can be read nothing could be stopped by.
    encode = _encode if plan.early_stopping else encode_rows
    held_out = encode(eval_rows, loaded.formatter, plan.batch_size, known) if eval_rows else None
    learnt = _encode(rows, loaded.formatter, plan.batch_size, known)
    comparisons = [row for row in rows if row.choice != "none" and len(row.responses) > 1] if plan.twin else []
    compared = encode_rows(comparisons, loaded.formatter, plan.batch_size, known)
    if plan.twin and not compared.groups:
        raise InputError("no row that can be read prefers one of several responses, as a twin learns: add some, or leave it out")
    report = _report(rows, learnt, plan, base, loaded)
    if held_out is not None and not loaded.missing:
        # The base scores already: what it could do before is the first thing to compare with.
        report["base_eval"] = _evaluate(loaded, held_out, plan, plan.objective)
    losses = _fitted(loaded, learnt, folder / "checkpoints", plan, held_out)
    if held_out is not None:
        report["eval"] = _evaluate(loaded, held_out, plan, plan.objective)
    chance = constant_loss(learnt.judgements, outside=plan.objective == "outside_option")
    report["warnings"] = list(troubles(losses, chance, report.get("eval")))
    if plan.twin and held_out is not None:
        report["twin_eval"] = _twin(compared, held_out, base, folder / "twin", plan)
    seen, held = ({prompt_digest(row.prompt) for row in some} for some in (rows, eval_rows or ()))
    seen |= trained_prompts(base)
    report["held_out_trained_on"] = len(seen & held)
    weights = whole_weights(loaded.scorer)
    if PartialState().is_main_process:
        if not all(weight.isfinite().all() for weight in weights.values()):
            report["warnings"].append("the run diverged: weights are no numbers, and nothing can be scored; lower --learning-rate")
        _write(loaded, weights, folder / "model", report, base if plan.lora_rank else None)
        # Held-out prompts, too, where they chose the checkpoint.
        digests = sorted(seen | held if plan.early_stopping else seen)
        (folder / "model" / "trained_on.json").write_text(json.dumps({"prompts": digests}), encoding="utf-8")
    return report


def _fitted(loaded: _Loaded, learnt: Encoding, folder: Path, plan: Settings, held_out: Encoding | None) -> list[float]:
    model = loaded.model
    if plan.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if plan.lora_rank is not None:
        add_adapters(model, plan.lora_rank, plan.lora_alpha, loaded.missing)
    return fit(loaded.scorer, learnt, folder, plan, held_out, new=loaded.missing)


def _twin(compared: Encoding, held_out: Encoding, base: str, folder: Path, plan: Settings) -> dict[str, Any]:
    """The held-out figures of a Bradley-Terry model of the same base and settings, read as if its zero meant something."""
    plan = replace(plan, objective="bradley_terry", twin=False)
    loaded = load_base(base, plan)
    _fitted(loaded, compared, folder, plan, held_out)
    return _evaluate(loaded, held_out, plan, "outside_option")


def load_base(base: str, plan: Settings) -> _Loaded:
    """A base as settings want it, ready to be trained."""
    adapters = base_of(base) is not None
    if adapters and plan.lora_rank:
        raise ConfigurationError(f"{base}: adapters, which no others can be put onto: merge them first, or leave lora_rank out")
    set_seed(plan.seed)
    config, tokenizer = load_config(base), load_tokenizer(base)
    config.num_labels = 1
    if plan.layers is not None:
        keep_layers(config, plan.layers)
    # Frozen weights need no further digits: half the memory. What is trained gets them back beside the adapters.
    frozen = plan.half and plan.lora_rank is not None
    model, missing = load_classifier(base, config, torch.bfloat16 if frozen else torch.float32)
    if plan.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ConfigurationError(f"{base}: {type(model).__name__} knows no gradient checkpointing: leave it out")
    zero_new_head(model, missing)
    if adapters:
        model.requires_grad_(True)  # peft freezes what it merges into
    if missing and (unasked := without_default_system(tokenizer)):
        logger.warning("the base's template writes a system prompt that nobody gave (%r): it is left out", unasked)
    if plan.max_length:
        # A tokenizer's own limit is a habit, not a table of positions; and so every reader of the checkpoint knows the limit.
        tokenizer.model_max_length = plan.max_length
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad_id(config, tokenizer)
    # A base that scores already knows its inputs, or is asked for them; another one learns them here.
    inputs = plan.inputs or ("text" if missing and inputs_of(config) is None else None)
    made = formatter(model, tokenizer, length_limit(model.config, tokenizer, plan.max_length), inputs)
    check_vocabulary(base, tokenizer, made, model)
    note = getattr(model.config, "bonmini_guard", None) or {}
    model.config.bonmini_guard = sidecar(plan.objective) | {key: note[key] for key in ("inputs", "separator") if key in note}
    return _Loaded(model, PooledScorer(model), tokenizer, missing, made)


def _known(model: Any) -> int:
    """How many tokens have embeddings."""
    return int(model.get_input_embeddings().weight.shape[0])


def _encode(rows: Sequence[ChoiceRow], made: Formatter, batch_size: int, known: int) -> Encoding:
    encoding = encode_rows(rows, made, batch_size, known)
    if not encoding.groups:
        raise InputError(f"no row can be read: all have {unread(made.max_length)}; or use another base")
    if encoding.cut:
        logger.warning("oldest turns cut from %d texts", encoding.cut)
    return encoding


def unread(max_length: int | None) -> str:
    """What judgements have that are left out."""
    limit = f"more than {max_length:,} tokens (raise --max-length, if the base can read more), or " if max_length else ""
    return f"{limit}parts, tokens or an order of turns that the base cannot read"


def _evaluate(loaded: _Loaded, held_out: Encoding, plan: Settings, objective: str) -> dict[str, Any]:
    scores = score_texts(loaded.scorer, held_out, loaded.model.config.pad_token_id, plan.batch_size)
    return figures(scores, held_out.groups, outside=objective == "outside_option")


def _report(rows: Sequence[ChoiceRow], encoding: Encoding, plan: Settings, base: str, loaded: _Loaded) -> dict[str, Any]:
    judged, max_length = encoding.judgements, loaded.formatter.max_length
    if plan.objective == "outside_option":  # of what could be read
        more = f" ({encoding.too_long:,} are left out, with {unread(max_length)})" if encoding.too_long else ""
        check_zero([one.is_none for one in judged if one.offered], "judgement that can be read", more)
    judgements, none = (sum(one.weight for one in some) for some in (judged, [one for one in judged if one.is_none]))
    counts = {"rows": len(rows), "judgements": int(judgements), "share_of_none": none / judgements}
    counts |= {"prompts": encoding.prompts, "texts": len({text for one in judged for text in one.members})}
    left_out = {"judgements_too_long": encoding.too_long, "texts_cut": encoding.cut, "max_length": max_length}
    # A folder's place on this machine says nothing elsewhere.
    name = Path(base).name if Path(base).is_dir() else base
    about = {"settings": asdict(plan), "objective": plan.objective, "seed": plan.seed}
    reads = {"inputs": inputs_of(loaded.model.config), "example": _example(loaded)}
    return {"base": name} | counts | left_out | about | {"processes": PartialState().num_processes} | reads


def _example(loaded: _Loaded) -> str | None:
    """What it reads of a question and an answer; None where its chat template wants more than these."""
    try:
        return str(loaded.tokenizer.decode(loaded.formatter.encode([Turn("user", "What is asked?")], "An answer.").ids))
    except (InputError, Unscorable):
        return None


def _write(loaded: _Loaded, weights: dict[str, Any], folder: Path, report: dict[str, Any], base: str | None) -> None:
    model = loaded.model
    if base is None:
        model.save_pretrained(folder, state_dict=weights)
    else:
        note = {"name": base, "digest": weights_digest(base), "vocabulary": vocabulary_digest(loaded.tokenizer)}
        model.config.bonmini_guard |= {"base": note}
        save_adapters(model, weights, folder, base)
    loaded.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(report), encoding="utf-8")
    (folder / "training.json").write_bytes(to_json(report, indent=2, inf_nan_mode="null") + b"\n")


def _mark(rows: Sequence[ChoiceRow], held_out: Sequence[ChoiceRow] | None, base: str, plan: Settings) -> dict[str, Any]:
    """What two runs must have in common for one to go on where the other stopped."""
    digests = {"rows": _digest(rows), "held-out rows": _digest(held_out or [])}
    return digests | {"base": base, "processes": PartialState().num_processes} | asdict(plan)


def _digest(rows: Sequence[ChoiceRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(as_record(row)).encode())
    return digest.hexdigest()


@contextmanager
def partial(output: Path, mark: dict[str, Any], together: PartialState) -> Iterator[Path]:
    """The working folder ``OUTPUT.partial``, whose ``model`` is the output at the end; after an error it stays if a run can go on.

    ConfigurationError if something else has come there meanwhile, or another run is at work: what is finished stays then.
    """
    folder = output.with_name(output.name + ".partial")
    held, is_whole = _prepare(folder, mark) if together.is_main_process else nullcontext(), False
    try:
        with held:
            together.wait_for_everyone()
            yield folder
            together.wait_for_everyone()
            is_whole = True
            if together.is_main_process:
                os.replace(folder / "model", output)
    except BaseException as error:
        if is_whole and isinstance(error, OSError):
            told = f"cannot be written ({error.strerror}); the whole of it is in {folder / 'model'}"
            raise ConfigurationError(f"{output}: {told}") from error
        if together.is_main_process and folder.is_dir() and not is_whole and not _resumable(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if together.is_main_process:
        shutil.rmtree(folder)


def _prepare(folder: Path, mark: dict[str, Any]) -> IO[bytes]:
    """Make the folder ready for a run; its mark, which no other run can have until it is closed."""
    if (folder / "run.json").is_file():
        _held(folder).close()
    if folder.is_dir() and _resumable(folder):
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        other = [name for name, value in mark.items() if found.get(name) != value]
        if other:
            raise ConfigurationError(
                f"{folder}: holds a run that was begun with other {', '.join(other)}; go on with the same, or remove the folder"
            )
        logger.warning("going on from the checkpoints in %s", folder)
        for part in ("checkpoints", "twin"):
            remove_torn(folder / part)
    else:
        if folder.exists() and not (folder / "run.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigurationError(f"{folder}: checkpoints go here, and it holds something else; move it, or name another output")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(mark), encoding="utf-8")
    shutil.rmtree(folder / "model", ignore_errors=True)
    return _held(folder)


def _held(folder: Path) -> IO[bytes]:
    mark = (folder / "run.json").open("r+b")
    if not lock(mark.fileno(), wait=False):
        mark.close()
        raise ConfigurationError(f"{folder}: another run is at work there; wait for it, or name another output")
    return mark


def _resumable(folder: Path) -> bool:
    return (folder / "run.json").is_file() and last_checkpoint(folder / "checkpoints") is not None
