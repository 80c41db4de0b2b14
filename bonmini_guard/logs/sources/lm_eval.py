"""lm-evaluation-harness: ``samples_*.jsonl``, as ``--log_samples`` writes them; repeats of one document are one row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError
from bonmini_guard.logs.sources.draws import Draw, generator_of
from bonmini_guard.logs.sources.messages import prompt_in

#: What a sample holds beside its metrics.
_KNOWN = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
_KNOWN |= {"doc_hash", "prompt_hash", "target_hash", "task_name", "schema_version", "model"}


def draws(filters: dict[Any, Any], record: Mapping[str, Any], left_out: Counter[str]) -> Iterator[Draw]:
    """The answers of one sample; log-likelihoods, which are none, are left out, and what other filters write once more."""
    asked = record.get("arguments")
    requests = list(asked.values()) if isinstance(asked, Mapping) else asked
    if not isinstance(requests, list) or not requests:
        raise InputError('no "arguments"; give samples that lm-eval wrote with --log_samples')
    prompt, settings = _request(requests[0])
    if not isinstance(settings, Mapping):
        left_out["log-likelihoods, which are no answers"] += 1
        return
    name = (str(record.get("doc_id")), str(record.get("prompt_hash") or prompt))
    if filters.setdefault(name, record.get("filter")) != record.get("filter"):
        left_out["the same answers under another filter"] += 1
        return
    responses = [said for each in record.get("resps") or () for said in (each if isinstance(each, list) else [each])]
    answers = [Turn("assistant", said) for said in responses if isinstance(said, str)]
    if not answers:
        raise InputError('no "resps"; give samples that lm-eval wrote with --log_samples')
    verdicts = {key: value for key, value in record.items() if key not in _KNOWN} if len(answers) == 1 else {}
    generator = generator_of(record.get("model"), settings)
    for answer in answers:
        yield Draw(prompt_in(prompt), answer, id=name[0], generator=generator, verdicts=verdicts)


def _request(request: Any) -> tuple[Any, Any]:
    """Context and settings, or context and continuation."""
    parts = list(request.values()) if isinstance(request, Mapping) else request
    if not isinstance(parts, list) or not parts:
        raise InputError('"arguments" holds no request; give samples that lm-eval wrote with --log_samples')
    return parts[0], parts[1] if len(parts) > 1 else {}
