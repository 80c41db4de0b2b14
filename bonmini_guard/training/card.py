"""The model card of a trained reward model: what its zero means, and the evidence for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_ZERO = {
    "outside_option": (
        "Score 0 is the outside option: a labeller is as likely to take the answer as to take none. `sigmoid(score)` is the\n"
        "probability that the answer is preferred to none."
    ),
    "bradley_terry": (
        "The scores rank the answers to one prompt. They have no zero: adding a constant to all answers of a prompt\n"
        "changes nothing that was learnt, so no threshold on them means anything without calibration."
    ),
}

_FIGURES = {
    "judgements": "held-out judgements",
    "log_likelihood": "choice log-likelihood (nats a judgement)",
    "accuracy": "judgements that are the first choice",
    "pair_accuracy": "pairs ranked as judged",
    "acceptances": "sampled judgements of single answers",
    "acceptance_auc": "acceptance AUC",
    "acceptance_accuracy": "acceptance decided rightly at score 0",
    "reliability_error": "reliability error of sigmoid(score)",
    "tied_at_top": "scores that tie at the top",
}

_WHOLE = (
    "A sequence classifier with one label: `AutoModelForSequenceClassification` loads it, and servers of such models can\nserve it."
)
_ADAPTERS = (
    "Low-rank adapters and a head over the base, which `bonmini_guard.RewardModel.load` loads with them. For servers of\n"
    "sequence classifiers, merge them by peft."
)

_INPUTS = {
    "text": "Render the conversation and the answer with\nthe tokenizer's chat template,",
    "pair": "Give the tokenizer two texts,\nthe conversation (a line for each turn) and the answer,",
}

_COLUMNS = {"eval": "this model", "twin_eval": "Bradley-Terry twin", "base_eval": "the base, before"}


def model_card(report: Mapping[str, Any]) -> str:
    """A model card in Markdown from what ``training.json`` says."""
    base = [f"base_model: {report['base']}"] if _HUB_NAME.fullmatch(report["base"]) else []
    head = ["library_name: transformers", "pipeline_tag: text-classification", "tags:", "- reward-model", *base]
    parts = ["# Reward model\n", _ZERO[report["objective"]] + "\n", _data(report), _evidence(report), _use(report)]
    return "\n".join(["---", *head, "---\n", *parts])


def _data(report: Mapping[str, Any]) -> str:
    zero = report["objective"] == "outside_option"  # without one the rows that chose "none" were left out
    said = f' "None" was chosen in {report["share_of_none"]:.1%} of them.' if zero else ""
    said += f" Left out, as the base cannot read them: {report['judgements_too_long']:,}." if report["judgements_too_long"] else ""
    return (
        f"## Trained on\n\n{report['judgements']:,} judgements of {report['texts']:,} answers to "
        f"{report['prompts']:,} prompts.{said}\n"
        f"Base: {report['base']}; objective: {report['objective']}; seed: {report['seed']}. All settings are in `training.json`.\n"
    )


def _evidence(report: Mapping[str, Any]) -> str:
    columns = {key: title for key, title in _COLUMNS.items() if report.get(key)}
    if not columns:
        return "## Evidence\n\nNone: nothing was held out.\n"
    leaked = report["held_out_trained_on"]
    said = f"{leaked:,} of its prompts were trained on, too: it flatters." if leaked else "On prompts that were not trained on."
    said += " The checkpoint was chosen by them: its own figures flatter a little." if report["settings"]["early_stopping"] else ""
    lines = ["## Evidence", "", said, "", f"| | {' | '.join(columns.values())} |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    lines += [f"| {title} | {' | '.join(_shown(report[key].get(name)) for key in columns)} |" for name, title in _FIGURES.items()]
    lines.append("")
    if bins := report["eval"].get("reliability"):
        lines += ["Reliability:", "", "| predicted | observed | judgements |", "| ---: | ---: | ---: |"]
        lines += [f"| {part['predicted']:.3f} | {part['observed']:.3f} | {part['weight']:,.0f} |" for part in bins]
    return "\n".join([*lines, ""])


def _use(report: Mapping[str, Any]) -> str:
    kind = _ADAPTERS if report["settings"]["lora_rank"] else _WHOLE
    example = f"The first text above is read as\n\n```\n{report['example']}\n```\n\n" if report["example"] else ""
    name = report["settings"]["push_to_hub"] or "path/to/this/folder"
    limit = f"at most {report['max_length']:,} tokens a text, prompt and answer together; " if report["max_length"] else ""
    return (
        f"## Use\n\n```python\nfrom bonmini_guard import RewardModel\n\nmodel = RewardModel.load({json.dumps(name)})\n"
        f'model.score("What is asked?", ["An answer.", "Another."])\n```\n\n{kind} {_INPUTS[report["inputs"]]}\n'
        f"and read the raw logit (no sigmoid, no softmax).\n\n{example}"
        f"## Limits\n\nIt reads {limit}texts only, no images. It learnt what its labellers take from prompts like theirs; what\n"
        "was held out resembles what was trained on: calibrate on labelled traffic of your own before you rely on a threshold.\n"
    )


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
