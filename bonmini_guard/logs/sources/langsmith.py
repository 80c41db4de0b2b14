"""LangSmith: runs as its client lists them, as JSON, or as its bulk export writes them, as Parquet with JSON in its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from bonmini_guard.logs.rows import name_of
from bonmini_guard.logs.sources.draws import Draw, first, generator_of, of_call
from bonmini_guard.logs.sources.messages import answers_in, prompt_in, unpacked


def draws(record: Mapping[str, Any], left_out: Counter[str]) -> Iterator[Draw]:
    """The answers of one run of a model; runs of chains and tools are left out."""
    run = {key: unpacked(value) for key, value in record.items()}
    if run.get("run_type") not in ("llm", "chat_model", None):
        left_out[f"runs of type {run['run_type']}"] += 1
        return
    about, called = (run.get("extra") or {}), first(run, "extra.metadata") or {}
    asked = about.get("invocation_params") or {}
    model = run.get("model") or first(asked, "model", "model_name") or called.get("ls_model_name")
    settings = {key.removeprefix("ls_"): value for key, value in called.items() if key.startswith("ls_")}
    said = first(run, "feedback_stats") or {}
    verdicts = {key: one.get("avg") for key, one in said.items() if isinstance(one, Mapping) and one.get("avg") is not None}
    usage = ("outputs.llm_output.token_usage.completion_tokens", "outputs.usage_metadata.output_tokens", "completion_tokens")
    yield from of_call(
        [None] if run.get("error") else answers_in(run.get("outputs")),
        prompt_in(run.get("inputs")),
        first(run, *usage, "outputs.usage.completion_tokens"),
        (run.get("start_time"), run.get("end_time")),
        id=name_of(run.get("id")),
        group=name_of(called.get("thread_id")),
        generator=generator_of(model, settings, asked),
        verdicts=verdicts,
    )
