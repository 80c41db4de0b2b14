"""A turn of a conversation, and every form that it takes: LangChain's message, chat template, wire and traces, page, digest.

What a form has no place for is written into its text or named there: nothing vanishes between one form and the next.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bonmini_guard.errors import InputError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

#: What tools and data sets call the roles.
ROLES = {
    **{name: name for name in ("user", "assistant", "system", "developer", "tool")},
    **dict.fromkeys(("ai", "gpt", "bot", "model", "chatbot"), "assistant"),
    "human": "user",
    "function": "tool",
}
#: Parts of answers that users do not get where a model scores texts alone, unless it is said otherwise.
NOT_SHOWN = ("reasoning",)
_SURROGATES = re.compile("[\ud800-\udfff]")
_BRACKETS = re.compile(r"[][{}]")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_THOUGHT = re.compile("reasoning|thinking")
#: Where a prompt is to be cached, to servers that are told (Anthropic's, through OpenRouter or LiteLLM).
_MARKER = "cache_control"
_CALL = ("tool_call", "tool_use", "function_call", "invalid_tool_call")


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool; ``arguments`` is its JSON as written, perhaps broken."""

    name: str
    arguments: str
    id: str = ""

    @property
    def args(self) -> dict[str, Any] | None:
        """The arguments; None where they are no JSON object."""
        try:
            read = json.loads(self.arguments, strict=False)
        except (ValueError, RecursionError):
            return None
        return read if isinstance(read, dict) else None

    def differs(self, other: Call) -> bool:
        """Whether it says something, and something else than another of the same id; blocks of a stream may still be empty."""
        mine, its = ((call.name, call.args or call.arguments) for call in (self, other))
        return self.arguments not in ("", "{}") and mine != its

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Call:
        """From OpenAI's form, from LangChain's, or from a content block.

        Raises:
            InputError: it is none of these.
        """
        inner = value.get("function", value) if isinstance(value, Mapping) else None
        inner = inner if isinstance(inner, Mapping) else {"name": 0}
        name = inner.get("name")
        said = next((inner[key] for key in ("arguments", "args", "input") if inner.get(key) is not None), None)
        if not isinstance(name, str | None) or (name is None and said is None):
            raise InputError("a tool call is not as chat APIs write it; give it a name and arguments")
        text = said if isinstance(said, str) else json.dumps({} if said is None else said, ensure_ascii=False, default=str)
        return cls(name or "", text, str(value.get("call_id") or value.get("id") or ""))


@dataclass(frozen=True, slots=True)
class Turn:
    """Who said what.

    Attributes:
        role: one of ``ROLES``, or any of a LangChain ChatMessage.
        text: all its text.
        parts: its content blocks, where it is more than one text, or a text with a marker for the server's cache.
        calls: of tools.
        reasoning: what was thought before it.
        refusal: what the model said in place of an answer.
        answers: of a tool's result: the id of the call.
        name: of who speaks.
    """

    role: str
    text: str = ""
    parts: tuple[Any, ...] = field(default=(), hash=False)
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    refusal: str = ""
    answers: str | None = None
    name: str | None = None

    @classmethod
    def of(cls, value: Any, role: str = "user") -> Turn:
        """From a message, a dictionary (also of data sets: ``from`` and ``value``), a (role, content) pair or a text.

        Where it says no role it has the given one.

        Raises:
            InputError: it is none of these.
        """
        if isinstance(value, Turn):
            return value
        if isinstance(value, str):
            return cls(role, value)
        if hasattr(value, "additional_kwargs"):
            return _of_message(value)
        if isinstance(value, Mapping):
            return _of_mapping(value, role)
        if isinstance(value, list | tuple) and len(value) == 2:
            return _of_mapping({"role": value[0], "content": value[1]}, role)
        raise InputError(f"a turn is a message or {{role, content}}, not a {type(value).__name__}; give every turn both")

    def without(self, not_shown: Collection[str]) -> Turn:
        """The turn without the parts of these kinds: "reasoning", "refusal", or types of content blocks."""
        parts = tuple(part for part in self.parts if not hides(str(part.get("type")), not_shown))
        reasoning = "" if "reasoning" in not_shown else self.reasoning
        return replace(self, parts=parts, reasoning=reasoning, refusal="" if "refusal" in not_shown else self.refusal)

    @property
    def kinds(self) -> frozenset[str]:
        """The types of its content blocks that are no text."""
        return frozenset(str(part.get("type")) for part in self.parts if not _is_text(part))

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but a text."""
        return not (self.parts or self.calls or self.reasoning or self.refusal)

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.text.strip() or self.parts or self.calls or self.refusal)

    @property
    def shown(self) -> str:
        """The text with a refusal, and with the kinds of parts that are no text, in brackets."""
        text = self.text
        if not all(map(_is_text, self.parts)):
            text = "".join(part["text"] if _is_text(part) else f"\n[{part.get('type')}]\n" for part in self.parts).strip("\n")
        return "\n".join(filter(None, (text, self.refusal)))

    def plain(self, *, thoughts: bool = False) -> str:
        """As one text, for a page (with thoughts) or a model without templates: thoughts and calls in brackets."""
        thought = f"[thinks: {self.reasoning}]" if self.reasoning and thoughts else ""
        calls = [f"[calls {call.name} {call.arguments}]" for call in self.calls]
        return "\n".join(filter(None, (thought, self.shown, *calls)))

    def template(self) -> dict[str, Any]:
        """As chat templates take it: arguments of calls are objects; lone surrogates, which no tokenizer reads, are U+FFFD."""
        content = self.shown if self.parts or self.refusal else self.text
        said = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.reasoning or self.answers is not None or self.name is not None:
            said |= self._rest()
        turn: dict[str, Any] = {key: value if value.isascii() else clean(value) for key, value in said.items()}
        if self.calls:
            calls = [_called(call, call.arguments if call.args is None else call.args) for call in self.calls]
            turn["tool_calls"] = json.loads(clean(json.dumps(calls, ensure_ascii=False)))
        return turn

    def openai(self) -> dict[str, Any]:
        """As OpenAI's protocol writes it: traces and bodies of requests."""
        turn: dict[str, Any] = {"role": self.role, "content": [*map(_openai_part, self.parts)] or self.text}
        if self.calls:
            turn["tool_calls"] = [_called(call, call.arguments) for call in self.calls]
        return turn | ({"refusal": self.refusal} if self.refusal else {}) | self._rest()

    def message(self, **more: Any) -> BaseMessage:
        """As LangChain has it, with further fields."""
        from langchain_core import messages

        about = {"reasoning_content": self.reasoning, "refusal": self.refusal}
        fields: dict[str, Any] = {"content": list(self.parts) or self.text, "name": self.name, **more}
        fields["additional_kwargs"] = {key: said for key, said in about.items() if said}
        if self.role == "developer":
            fields["additional_kwargs"]["__openai_role__"] = "developer"
        match self.role:
            case "user":
                return messages.HumanMessage(**fields)
            case "assistant":
                return messages.AIMessage(**fields, **(_calls_of_langchain(self.calls) if self.calls else {}))
            case "tool":
                return messages.ToolMessage(**fields, tool_call_id=self.answers or "")
            case "system" | "developer":
                return messages.SystemMessage(**fields)
            case role:
                return messages.ChatMessage(**fields, role=role)

    def digest(self) -> str:
        """Equal for turns that a reader could not tell apart: 128 bits in hex, over all but names and ids."""
        if self.is_plain:
            said: Any = self.text
        else:
            parts = [{key: value for key, value in part.items() if key != "id"} for part in self.parts]
            calls = [[call.name, call.arguments if call.args is None else call.args] for call in self.calls]
            said = [self.text, parts, calls, self.reasoning, self.refusal]
        # Twice: keys that are no texts cannot be sorted, and are texts afterwards.
        whole = json.dumps(json.loads(json.dumps(said, default=repr)), sort_keys=True)
        return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()

    def _rest(self) -> dict[str, Any]:
        """What chat templates and the wire say alike."""
        more = {"reasoning_content": self.reasoning or None, "tool_call_id": self.answers, "name": self.name}
        return {key: each for key, each in more.items() if each is not None}


def as_turns(prompt: Any) -> tuple[Turn, ...]:
    """The turns of a row's prompt: a text is one user turn.

    Raises:
        InputError: it is empty, or not something that holds turns.
    """
    turns = (Turn("user", prompt),) if isinstance(prompt, str) else tuple(map(Turn.of, _listed(prompt)))
    _refuse_blank(turns)
    return turns


def as_messages(prompt: Any) -> list[BaseMessage]:
    """Messages of a string (one user turn), a prompt value, or anything LangChain takes as messages.

    Raises:
        InputError: the prompt is empty, or not something that holds messages.
    """
    from langchain_core.messages import BaseMessage, HumanMessage
    from langchain_core.prompt_values import PromptValue

    messages: list[BaseMessage]
    if isinstance(prompt, str):
        messages = [HumanMessage(prompt)]
    elif isinstance(prompt, PromptValue):
        messages = prompt.to_messages()
    else:
        messages = _converted([prompt] if isinstance(prompt, BaseMessage) else _listed(prompt))
    if not any(isinstance(message.content, str) and message.content.strip() for message in messages):
        _refuse_blank(map(Turn.of, messages))
    return messages


def is_call(part: Any) -> bool:
    """Whether a content block calls a tool."""
    return isinstance(part, Mapping) and part.get("type") in _CALL


def hides(kind: str, not_shown: Collection[str]) -> bool:
    """Whether a content block of this type is one of the kinds; blocks of reasoning have several types."""
    return kind in not_shown or ("reasoning" in not_shown and _THOUGHT.search(kind) is not None)


def clean(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def deeper_than(most: int, written: str) -> bool:
    """Whether JSON opens more brackets one inside the other, strings aside."""
    if written.count("{") + written.count("[") <= most:
        return False
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub("", written)):
        depth += 1 if bracket in "{[" else -1
        if depth > most:
            return True
    return False


def prompt_digest(turns: Iterable[Turn]) -> str:
    """64 bits of BLAKE2b over the texts of a conversation, in hex; white space and case make no difference."""
    said = json.dumps([[turn.role, " ".join(turn.text.casefold().split())] for turn in turns])
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def _listed(prompt: Any) -> list[Any]:
    if not isinstance(prompt, Sequence):
        raise InputError(f"a prompt is a string, a prompt value or a list of messages, not a {type(prompt).__name__}")
    return list(prompt)


def _converted(listed: list[Any]) -> list[BaseMessage]:
    """Messages, also where LangChain refuses some: a history holds calls whose arguments are no JSON, as a model wrote them."""
    from langchain_core.messages import convert_to_messages

    try:
        return convert_to_messages(listed)
    except (ValueError, TypeError, NotImplementedError, KeyError, AttributeError) as error:
        if not any(isinstance(each, Mapping) and each.get("tool_calls") for each in listed):
            what = f"one has no {error}" if isinstance(error, KeyError) else type(error).__name__
            problem = f"the prompt's messages cannot be read: {what}; pass (role, content) pairs or messages"
            raise InputError(problem) from error
    # LangChain refuses a tool's message that says not what it answers.
    own = [isinstance(each, Mapping) and each.get("role") not in ("tool", "function") for each in listed]
    return [Turn.of(each).message() if ours else _converted([each])[0] for each, ours in zip(listed, own, strict=True)]


def _refuse_blank(turns: Iterable[Turn]) -> None:
    blank = [turn.is_blank for turn in turns]
    if not blank:
        raise InputError("the prompt holds no messages: pass a string or at least one message")
    if all(blank):
        raise InputError("the prompt is empty: every message is blank")


def _of_message(message: Any) -> Turn:
    # To ask a message itself for what it has not takes longer than all of this.
    fields, more = vars(message), message.additional_kwargs
    kind = message.type.removesuffix("MessageChunk").lower()
    role = fields.get("role") or more.get("__openai_role__") or ROLES.get(kind)
    if role is None:
        raise InputError(f"a message of type {message.type!r} says nothing to a model; use human, ai, system or tool messages")
    invalid, answers = fields.get("invalid_tool_calls", ()), fields.get("tool_call_id")
    called = fields.get("tool_calls") or (_of_old(more) if more else ())
    if isinstance(message.content, str) and not (more or called or invalid or answers):
        return Turn(role, message.content, name=message.name or None)
    # A broken call may lack anything, and a message that was drawn is never refused.
    left = [{key: each for key, each in call.items() if each is not None} for call in invalid]
    broken = [{"name": "", "args": "", **call} for call in left]
    # OpenAI's models keep a summary of their thoughts, and what is spoken in place of a text, beside the content.
    thought = "".join(_texts(more.get("reasoning_content") or more.get("reasoning")))
    said = {"reasoning": thought, "refusal": more.get("refusal"), "name": message.name}
    # And what their own tools gave, where their client (``output_version="v0"``) does not leave it in the content.
    content = _beside(message.content, more.get("audio"), more.get("tool_outputs") or ())
    return _turn(role, content, [*called, *broken], said, answers)


def _of_mapping(value: Mapping[str, Any], role: str) -> Turn:
    if "lc" in value or (isinstance(value.get("data"), Mapping) and "role" not in value):
        return _of_dumped(value)
    said = next((value[key] for key in ("role", "from", "type") if value.get(key) is not None), role)
    known = ROLES.get(said) if isinstance(said, str) else None
    if known is None:
        raise InputError(f"unknown role {json.dumps(said, default=str)[:20]}; use one of {', '.join(ROLES)}")
    content, called = value.get("content", value.get("value")), value.get("tool_calls") or _of_old(value)
    if not isinstance(content, str | list) and not (content is None and (called or "content" in value)):
        raise InputError("a turn is not {role, content} with a text or a list of parts as content; give every turn both")
    if not isinstance(called, Sequence) or isinstance(called, str):
        raise InputError("tool_calls is no list; write calls as chat APIs do")
    about = {"reasoning": value.get("reasoning_content") or value.get("reasoning"), "refusal": value.get("refusal")}
    answers = value.get("tool_call_id", "" if known == "tool" else None)
    return _turn(known, _beside(content or "", value.get("audio")), called, about | {"name": value.get("name")}, answers)


def _beside(content: str | Sequence[Any], spoken: Any, given: Iterable[Any] = ()) -> str | Sequence[Any]:
    """A content with what stands beside it: what is spoken in place of a text, and what tools gave."""
    parts = [*([{**spoken, "type": "audio"}] if isinstance(spoken, Mapping) else ()), *given]
    return [*([content] if isinstance(content, str) and content else content), *parts] if parts else content


def _of_old(value: Mapping[str, Any]) -> tuple[Any, ...]:
    """The one call that a message could hold before there were tools."""
    return () if value.get("function_call") is None else (value["function_call"],)


def _of_dumped(value: Mapping[str, Any]) -> Turn:
    """From what LangChain's ``message_to_dict`` writes, {type, data}, and from what its ``dumpd`` does, a constructor."""
    from langchain_core.messages import convert_to_messages, messages_from_dict

    try:
        return _of_message((convert_to_messages if "lc" in value else messages_from_dict)([dict(value)])[0])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("a turn looks like LangChain's {type, data}, and cannot be read as that; give {role, content}") from error


def _turn(role: str, content: str | Sequence[Any], called: Sequence[Any], said: Mapping[str, Any], answers: Any) -> Turn:
    alone: Any = content[0] if role == "user" and len(content) == 1 else None
    if isinstance(alone, Mapping) and alone.get("type") == "tool_result" and isinstance(alone.get("content", ""), str | list):
        # As Anthropic's protocol writes it.
        return _turn("tool", alone.get("content", ""), called, said, alone.get("tool_use_id") or "")
    calls = tuple(map(Call.of, called))
    thought, refusal, name = (value if isinstance(value, str) else "" for value in said.values())
    answers = None if answers is None else str(answers)
    if isinstance(content, str):
        return Turn(role, content, (), calls, thought, refusal, answers, name or None)
    known, parts = calls, list[Any]()
    thoughts: list[str] = []
    refusals: list[str] = []
    for part in map(_part, content):
        kind = str(part.get("type"))
        if _THOUGHT.search(kind):
            thoughts.extend(_texts(part))
        elif kind == "refusal":
            refusals.append(str(part.get("refusal")))
        elif role == "user" and kind == "tool_result" and isinstance(part.get("content", ""), str | list):
            result = Turn.of((role, [part]))  # one of several, or beside a text
            parts.extend(result.parts or [{"type": "text", "text": f"{result.text}\n"}])
        elif kind not in _CALL:
            parts.append(part)
        else:
            call = Call.of(part)
            if not any(each.id == call.id and not call.differs(each) for each in known):
                calls += (call,)
    thought, refusal = _both(thought, "".join(thoughts)), _both(refusal, "".join(refusals))
    text = "".join(part["text"] for part in parts if _is_text(part))
    plain = all(map(_is_text, parts)) and len(parts) < 2 and not any(_MARKER in part for part in parts)
    return Turn(role, text, () if plain else tuple(parts), calls, thought, refusal, answers, name or None)


def _both(beside: str, among: str) -> str:
    """What is said beside the content and among its parts: mostly the same, and all of it is shown where it is not."""
    return beside or among if not beside or not among or beside == among else f"{beside}\n{among}"


def _part(block: Any) -> Mapping[str, Any]:
    if isinstance(block, str):
        return {"type": "text", "text": block}
    if not isinstance(block, Mapping):
        raise InputError("a part of a content is neither a text nor an object; write {type, text}")
    # Bedrock's blocks, and Gemini's, say what they are by their keys.
    kind = block.get("type", "output_text" if isinstance(block.get("text"), str) else None)
    return {**block, "type": "text"} if kind in ("input_text", "output_text") else block


def _is_text(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a block of reasoning, however its maker nests them; signatures and the like are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, Mapping):
        for key in ("reasoning", "thinking", "text", "reasoning_content", "summary"):
            yield from _texts(value.get(key))


def _openai_part(part: Mapping[str, Any]) -> dict[str, Any]:
    marker = {_MARKER: part[_MARKER]} if _MARKER in part else {}
    if _is_text(part):
        return {"type": "text", "text": part["text"], **marker}
    from langchain_core.messages import HumanMessage, convert_to_openai_messages

    try:
        [said] = convert_to_openai_messages(HumanMessage([dict(part)]))["content"]
        return {**said, **marker}
    except (ValueError, KeyError, TypeError):  # what this form has no words for stays as it is
        return dict(part)


def _called(call: Call, arguments: Any) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _calls_of_langchain(calls: Iterable[Call]) -> dict[str, Any]:
    from langchain_core.messages.tool import invalid_tool_call, tool_call

    fine, broken = [], []
    for call in calls:
        if call.args is not None and call.name:
            fine.append(tool_call(name=call.name, args=call.args, id=call.id or None))
        else:
            problem = "its arguments are no JSON object"
            broken.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.id or None, error=problem))
    return {"tool_calls": fine, "invalid_tool_calls": broken}
