"""A chat template, asked what it writes: templates drop text, refuse roles, and read clocks, and none of them says so."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from bonmini_guard.errors import CheckpointError, NotRendered

Conversation = list[dict[str, Any]]

logger = logging.getLogger(__name__)

#: What a template is told of the time: scores must be the same tomorrow.
_DAY = datetime(2025, 1, 1)
_WAYS = {way: _DAY.strftime(f"%{way}") for way in "aAbBcdDeFfGhHIjmMpRSTuUVwWxXyYzZ"}
_WAYS |= {f"-{way}": text.lstrip("0") or "0" for way, text in _WAYS.items()}
_TOLD = "".join(f"|replace('%{way}',{json.dumps(text)})" for way, text in _WAYS.items())
#: A macro hears however a template asks; transformers lets no caller bring a clock of his own.
_CLOCK = f"{{% macro strftime_now(format) %}}{{{{ format{_TOLD} }}}}{{% endmacro %}}{{{{ '' }}}}"


class Template:
    """Renders conversations with a tokenizer's chat template, adapted where it has to be.

    Plain text is given as a list of parts to a template that reads nothing else; system turns are written before the user's for one
    that takes none; one that asks for the time is told a fixed day. Each is logged once.

    The template takes ``options`` beside the conversation; ``after`` is written behind what it writes. CheckpointError: it writes
    nothing of an answer, or none of several is the default.

    Attributes:
        shows_calls: whether names and arguments of tool calls, and the text beside them, come out of it.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None, after: str = "") -> None:
        self._tokenizer, self._options, self._after = tokenizer, dict(options or {}), after
        self._in_parts = self._folds = False
        self._end: str | None = None
        try:
            self._source = tokenizer.get_chat_template(tools=self._options.get("tools"))  # of several the one for this
        except ValueError as error:
            raise CheckpointError(f"the tokenizer has no chat template that could be taken: {error}") from error
        if re.search(r"strftime_now\b(?! is )", self._source):
            self._source = _CLOCK + self._source
            logger.warning("the chat template writes today's date, on which scores would depend: it is told %s", f"{_DAY:%d %B %Y}")
        self._learn()
        self.shows_calls = self._tries_calls()

    def render(self, conversation: Conversation) -> str:
        """The text that it writes; TemplateError if it refuses the conversation."""
        turns = _folded(conversation) if self._folds else conversation
        if self._in_parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(turns, chat_template=self._source, tokenize=False, **self._options)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:  # of what the template does
            raise TemplateError(str(error)) from error
        return str(text) + self._after

    def proven(self, conversation: Conversation) -> str:
        """The text that it writes, the whole last turn in it: its content (but white space around it), calls and reasoning.

        NotRendered if a part of the last turn is missing, TemplateError if it refuses the conversation.
        """
        rendered, answer = self.render(conversation), conversation[-1]
        content, end = answer["content"].strip(), self._end
        last = end is not None and rendered.endswith(end) and rendered[: len(rendered) - len(end)].rstrip().endswith(content)
        if content and not last and self._between(conversation, rendered) != content:
            raise NotRendered("the chat template leaves out or changes some of its text")
        more = [answer.get("reasoning_content", "").strip()]
        for call in answer.get("tool_calls", ()):
            more += texts_in([call["function"]["name"], call["function"]["arguments"]])
        if not all(text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered for text in more):
            raise NotRendered("the chat template leaves out some of its tool calls or its reasoning")
        return rendered

    def _between(self, conversation: Conversation, rendered: str) -> str | None:
        """What stands where another content would: templates write around one what they like, if it is the same around all."""
        mark = secrets.token_hex(8)
        before, found, after = self.render([*conversation[:-1], {**conversation[-1], "content": mark}]).partition(mark)
        if not found or not rendered.startswith(before) or not rendered.endswith(after):
            return None
        return rendered[len(before) : len(rendered) - len(after)].strip()

    def _learn(self) -> None:
        mark, user = secrets.token_hex(8), {"role": "user", "content": "q"}
        answered = [user, {"role": "assistant", "content": mark}]
        plain = self._tried(answered)
        if plain is not None and mark not in plain:
            self._in_parts = True
            plain = self._tried(answered)
            if plain is None or mark not in plain:
                raise CheckpointError(
                    "the chat template writes nothing of an answer, so every one would have the same score: give the tokenizer "
                    "another chat_template that writes the turns' content"
                )
            logger.warning("the chat template reads no plain text: turns are given to it as lists of parts")
        if plain is None:
            return
        self._end = plain.partition(mark)[2]
        instructed = self._tried([{"role": "system", "content": mark}, user, {"role": "assistant", "content": "a"}])
        if instructed is None or mark not in instructed:
            self._folds = True
            logger.warning("the chat template takes no system turn: what it says is written before the user's next turn")
        thinks = {"role": "assistant", "content": f"a</think>{mark}"}
        if "a</think>" not in (self._tried([user, thinks]) or "a</think>"):
            logger.warning("the chat template cuts answers at </think>: one that spells it has no score")

    def _tries_calls(self) -> bool:
        name, key, value, text = (secrets.token_hex(8) for _ in range(4))
        call = {"id": "call12345", "type": "function", "function": {"name": name, "arguments": {key: value}}}
        user = {"role": "user", "content": "q"}
        for content in ("", text):
            shown = self._tried([user, {"role": "assistant", "content": content, "tool_calls": [call]}])
            if shown is None or not all(part in shown for part in (name, key, value, content)):
                return False
        return True

    def _tried(self, conversation: Conversation) -> str | None:
        try:
            return self.render(conversation)
        except TemplateSyntaxError as error:
            raise CheckpointError(f"the chat template is broken (line {error.lineno}: {error.message}): write it anew") from error
        except TemplateError:
            return None


def _folded(conversation: Conversation) -> Conversation:
    """With what system turns say before the user's next turn; those that none follows stay."""
    turns: Conversation = []
    said: Conversation = []
    for turn in conversation:
        if turn["role"] == "system":
            said.append(turn)
        elif turn["role"] == "user" and said:
            turns.append({**turn, "content": "\n\n".join([*(each["content"] for each in said), turn["content"]])})
            said = []
        else:
            turns.append(turn)
    return [*said, *turns]


def texts_in(value: Any) -> Iterator[str]:
    """Every text inside a list or an object: contents, names, arguments and the keys of arguments."""
    if isinstance(value, dict):
        yield from value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(part, str):
            yield part
        else:
            yield from texts_in(part)
