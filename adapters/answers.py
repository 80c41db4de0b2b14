"""What chat and completion servers answer, whatever their protocol's details: from choices to candidates. No effects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata, add_usage

from bonmini_guard.adapters.bodies import DEEPEST
from bonmini_guard.adapters.http_errors import (
    EndpointError,
    GenerationFailedAtEndpoint,
    MalformedAnswer,
    NoAnswer,
    TruncatedAnswer,
    from_answer,
)
from bonmini_guard.conversation import Call, Turn, deeper_than
from bonmini_guard.engine.snapshot import cut_short
from bonmini_guard.errors import InputError

#: What stands beside an answer. Reasoning has two names, and some servers give it under both of them.
_BESIDE = ("reasoning_content", "reasoning", "refusal")
#: Where a bill tells what came out of the server's cache, and what was thought.
_DETAILS = (("prompt_tokens_details", "cached_tokens"), ("completion_tokens_details", "reasoning_tokens"))


@dataclass(frozen=True)
class Answer:
    """What a server answered to one draw; usage is None where it told none, and so is a finish reason."""

    turn: Turn
    finish_reason: str | None
    usage: UsageMetadata | None = None
    seed: int | None = None
    model: str | None = None
    logprobs: Any = None
    #: Whether there was any content at all, if only an empty one.
    spoke: bool = True

    def check(self, accept_truncated: bool) -> None:
        """NoAnswer if it is none: withheld by a filter, nothing but reasoning, or cut where that is not accepted.

        MalformedAnswer if a tool call in it is nested so deeply that whoever reads it may fail.
        """
        empty = not self.turn.text and self.turn.is_blank
        error: NoAnswer | None = None
        filtered, cut, _ = cut_short((self.finish_reason or "",))
        if filtered:
            error = NoAnswer("a content filter of the endpoint withheld or cut the answer", status=200, error_type="content_filter")
        elif cut and (empty or not accept_truncated):
            at = "its token limit" if self.usage is None else f"{self.usage['output_tokens']} tokens"
            thought = " before it began: there is nothing but reasoning" if empty and self.turn.reasoning else ""
            error = TruncatedAnswer(f"the answer was cut at {at}{thought}: raise the limit", status=200)
        elif empty and not self.spoke:
            error = NoAnswer("the endpoint answered without content, tool call or refusal", status=200, error_type="empty")
        if error is not None:
            error.usage_metadata = self.usage
            raise error
        if any(deeper_than(DEEPEST, call.arguments) for call in self.turn.calls):
            raise MalformedAnswer(f"the endpoint answered a tool call that is nested more than {DEEPEST} deep", status=200)

    def message(self, seed: int | None, stop: Sequence[str]) -> AIMessage:
        """The answer as a candidate; a stop string that ended it is cut off, as chat models do it."""
        _, cut, _ = cut_short((self.finish_reason or "",))
        ended = () if cut or self.finish_reason == "eos_token" else stop
        # Of several that end there the longest, which began first.
        text = min((self.turn.text.removesuffix(string) for string in ended), key=len, default=self.turn.text)
        about = {
            "finish_reason": self.finish_reason,
            "seed": seed if self.seed is None else self.seed,
            "model_name": self.model or None,
            "truncated": cut or None,
            "logprobs": self.logprobs,
        }
        metadata = {name: value for name, value in about.items() if value is not None}
        message = replace(self.turn, text=text).message(usage_metadata=self.usage, response_metadata=metadata)
        assert isinstance(message, AIMessage)
        return message


def read_answers(payloads: Sequence[Any], *, ended: bool = False, secret: str | None = None) -> list[Answer]:
    """The answers in a response, in the order of their indices: servers send them in any order.

    Choices that are no answer are left out while another one is.

    Args:
        payloads: the whole response alone, or the chunks of a stream, which hold one answer, as plain JSON.
        ended: whether the stream said that it ends.
        secret: a token that must not show, even if the server echoes it.

    Raises:
        MalformedAnswer: there is none.
        GenerationFailedAtEndpoint: not one of them ended.
        EndpointError: the server told an error in place of an answer.
    """
    # Groq tells errors and bills apart.
    places = [place for payload in payloads for place in (payload, payload.get("x_groq") or {})]
    for place in places:
        if place.get("error") or place.get("error_code") or place.get("object") == "error":
            raise from_answer(place, secret)
    choices = [payload.get("choices") or [] for payload in payloads]
    if len(choices) == 1:
        whole = choices[0] if len(choices[0]) == 1 else sorted(choices[0], key=_index)
        several = [[choice] for choice in whole]
    else:
        pieces = [choice for each in choices for choice in each]
        # Several answers that are streamed although nobody asked for that have an end each; of one, indices mean nothing.
        ends = sorted({_index(piece) for piece in pieces if piece.get("finish_reason")})
        groups = [[piece for piece in pieces if _index(piece) == end] for end in ends] if len(ends) > 1 else [pieces]
        several = [group for group in groups if group]
    # The last chunk tells the usage.
    usage = next((place["usage"] for place in reversed(places) if place.get("usage")), None)
    model = next((payload["model"] for payload in payloads if payload.get("model")), None)
    # A bill says that a stream has ended where it comes after all choices; some servers send one with each of them.
    told = ended or (bool(usage) and not any("delta" in choice for choice in choices[-1]))
    answers: list[Answer] = []
    failure: EndpointError | None = None
    for parts in several:
        try:
            if (failed := next((part for part in parts if part.get("error")), None)) is not None:
                raise from_answer(failed, secret)
            answers.append(_read(parts, told, model))
        except EndpointError as error:
            failure = error
    if not answers:
        raise failure or MalformedAnswer("the endpoint answered without a choice", status=200, retryable=True)
    return share_usage(answers, usage)


def _index(choice: Mapping[str, Any]) -> int:
    return counts(choice).get("index", 0)


def share_usage(answers: Sequence[Answer], usage: Any) -> list[Answer]:
    """The tokens of one request, shared among its answers so that their sum is the bill.

    By the answers' log-probabilities where they were asked for (that is, exactly), else by their lengths in characters.
    """
    tokens = counts(usage) if isinstance(usage, Mapping) else {}
    if not {"prompt_tokens", "completion_tokens"} & tokens.keys():
        return list(answers)
    read = tokens.get("prompt_tokens", 0)
    # Thoughts are in the total alone at xAI and Gemini.
    made = max(tokens.get("completion_tokens", 0), tokens.get("total_tokens", 0) - read)
    bills = [used(read, made)] if len(answers) == 1 else shared(read, made, [_size(answer) for answer in answers])
    cached, reasoned = (
        counts(inner).get(name) if isinstance(inner := usage.get(place), Mapping) else None for place, name in _DETAILS
    )
    if cached is not None:
        bills[0]["input_token_details"] = InputTokenDetails(cache_read=cached)
    if reasoned is not None:
        bills[0]["output_token_details"] = OutputTokenDetails(reasoning=reasoned)
    return [replace(answer, usage=bill) for answer, bill in zip(answers, bills, strict=True)]


def keep(answers: Sequence[Answer], count: int) -> list[Answer]:
    """The first so many answers; the last of them bears the tokens of those that are left out, which were billed too."""
    kept, bills = list(answers[:count]), [answer.usage for answer in answers[count - 1 :] if answer.usage is not None]
    return [*kept[:-1], replace(kept[-1], usage=reduce(add_usage, bills))] if bills else kept


def used(read: int, made: int) -> UsageMetadata:
    """Tokens read and made, as messages have them."""
    return UsageMetadata(input_tokens=read, output_tokens=made, total_tokens=read + made)


def shared(read: int, made: int, sizes: Sequence[int]) -> list[UsageMetadata]:
    """What answers of such sizes bear of one bill: the first one the prompt, each its share of what was made, in whole tokens."""
    whole = sum(sizes)
    edges = [round(made * sum(sizes[:position]) / whole) for position in range(len(sizes) + 1)]
    return [used(0 if place else read, high - low) for place, (low, high) in enumerate(pairwise(edges))]


def finish_reason(reason: Any, told: bool = False) -> str | None:
    """A finish reason that says that the answer came to an end; None where there is none and the end was told otherwise.

    Any other is a GenerationFailedAtEndpoint.
    """
    if isinstance(reason, str) and reason and not cut_short((reason,))[2]:
        return reason
    if reason is None and told:
        return None
    raise GenerationFailedAtEndpoint("the endpoint's answer broke off before its end", status=200, retryable=True)


def _read(choices: Sequence[Any], told: bool, model: Any) -> Answer:
    """One answer from its choice, or from all its choices in a stream."""
    messages: list[Mapping[str, Any]] = []
    # Some streams end with the whole message, once more.
    pieces = any(choice.get("delta") for choice in choices)
    for choice in choices:
        message = choice.get("delta") if pieces else choice.get("message") or choice.get("delta")
        if message is None and isinstance(text := choice.get("text"), str):
            # A completion's choice is its own message.
            message = {"content": text}
        if isinstance(message, Mapping):
            messages.append(message)
    reasons = [reason for choice in choices if (reason := choice.get("finish_reason"))]
    if not messages:
        raise MalformedAnswer("the endpoint answered without a message", status=200, retryable=True)
    content: Any = messages[0].get("content")
    beside = {name: "".join(said for each in messages if isinstance(said := each.get(name), str)) for name in _BESIDE}
    called = any(each.get("tool_calls") or each.get("function_call") for each in messages)
    if spoke := len(messages) == 1 and isinstance(content, str) and not called:
        turn = Turn("assistant", content, reasoning=beside["reasoning_content"] or beside["reasoning"], refusal=beside["refusal"])
    else:
        content = _merged([part for message in messages for part in _parts(message)])
        try:
            turn = Turn.of({"content": content, "tool_calls": list(_tool_calls(messages)), **beside}, "assistant")
        except InputError as error:  # not the request's
            raise MalformedAnswer("the endpoint answered a part that cannot be read", status=200, retryable=True) from error
    return Answer(
        turn=turn,
        finish_reason=finish_reason(reasons[-1] if reasons else None, told),
        model=model if isinstance(model, str) else None,
        logprobs=choices[0].get("logprobs") if len(choices) == 1 else None,
        spoke=spoke or bool(content),
    )


def _parts(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a message says, as blocks."""
    content = message.get("content")
    for part in content if isinstance(content, list) else [] if content is None else [content]:
        said = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(said, Mapping) or said.get("type") is None:
            raise MalformedAnswer("the endpoint answered without a message", status=200, retryable=True)
        yield {"type": "text", "text": str(said.get("text") or "")} if said["type"] in ("text", "output_text") else dict(said)


def _merged(content: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of a stream, neighbouring texts as one."""
    found: list[dict[str, Any]] = []
    for part in content:
        joins = bool(found) and part["type"] == found[-1]["type"] == "text"
        found.append({**part, "text": found.pop()["text"] + part["text"]} if joins else part)
    return found


def _tool_calls(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tool calls, put together from the pieces of a stream: a piece with an id of its own begins another call."""
    calls: list[dict[str, Any]] = []
    latest: dict[Any, dict[str, Any]] = {}
    for message in messages:
        legacy = message.get("function_call")
        for piece in message.get("tool_calls") or ([{"function": legacy}] if isinstance(legacy, Mapping) else []):
            index, identity, function = piece.get("index"), piece.get("id"), piece.get("function") or {}
            call = latest.get(index)
            another = call is not None and (
                call["id"] not in (None, "", identity)
                if identity
                # Gemini's route gives all its calls index 0 and no id, and each its arguments at once.
                else function.get("name")
                and (index is None or (call["arguments"] and function.get("arguments") and Call.of(call).args is not None))
            )
            if call is None or another or len(messages) == 1:
                call = latest[index] = {"id": None, "name": None, "arguments": None}
                calls.append(call)
            call["id"] = call["id"] or identity
            call["name"] = call["name"] or function.get("name")
            call["arguments"] = _longer(call["arguments"], function.get("arguments"))
    for call in calls:
        # Nothing stands for a tool without parameters, and whoever answers the call needs something to refer to.
        if isinstance(call["arguments"], str) and not call["arguments"].strip():
            call["arguments"] = {}
        yield {**call, "name": str(call["name"] or ""), "id": call["id"] or f"call_{uuid4().hex}"}


def _longer(before: Any, more: Any) -> Any:
    if more is None:
        return before
    return before + more if isinstance(before, str) and isinstance(more, str) else more


def _size(answer: Answer) -> int:
    logprobs: Mapping[str, Any] = answer.logprobs if isinstance(answer.logprobs, Mapping) else {}
    tokens = logprobs.get("content") or logprobs.get("tokens")
    return len(tokens) if tokens else len(answer.turn.text) + len(answer.turn.reasoning) + 1


def counts(told: Mapping[str, Any]) -> dict[str, int]:
    """What is a number of tokens, or an index; some servers write numbers as text."""
    return {
        name: int(value)
        for name, value in told.items()
        if (0 <= value < 10**18 if type(value) in (int, float) else type(value) is str and value.isdecimal() and len(value) < 19)
    }
