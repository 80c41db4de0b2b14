"""Control tokens inside texts are text: an answer that spells ``<|im_end|>`` cannot speak as the template."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bonmini_guard.errors import CheckpointError
from bonmini_guard.reward.template import Conversation, texts_in

Render = Callable[[Conversation], str]


class ControlTokens:
    """Renders and tokenises conversations so that only the template can write control tokens.

    Texts without control tokens take the ordinary way, one tokenisation of the rendered string, as any server does. In
    others every control token is hidden behind a placeholder while the template renders. Then the template's own control
    tokens are swapped for anchors, the texts are put back, and a copy of the tokenizer that knows the anchors and
    reads control tokens as plain text tokenises the whole: each piece exactly as beside the real control tokens. CheckpointError:
    the tokenizer has no back end of ``tokenizers``.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
            raise CheckpointError("the tokenizer is not a fast one: save it with a tokenizer.json")
        self.tokenizer = tokenizer
        special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
        self.tokens: dict[str, int] = {token: index for token, index in (special | named).items() if token}
        spelled = sorted(self.tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, spelled)) or r"(?!)")
        self._written = {token for token, index in self.tokens.items() if index != tokenizer.unk_token_id}
        self._known = {self.tokens[token] for token in self._written}
        self._anchored: _Anchored | None = None

    def encode(self, conversation: Conversation, render: Render) -> list[int]:
        """Token ids of a conversation as its template renders it; every text in it but the roles is data."""
        # Most turns hold texts alone.
        texts = [text for turn in conversation for text in (texts_in(turn) if "tool_calls" in turn else (*turn, *turn.values()))]
        # Contents joined, because a template that writes nothing between them would join the halves of a control token.
        joined = "".join(map(itemgetter("content"), conversation))
        if not any(map(self._pattern.search, [joined, *texts])):
            rendered = render(conversation)
            ids = self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
            # A normaliser can turn look-alikes into a control token: then there are more of them than the template wrote.
            written = sum(map(self._written.__contains__, self._pattern.findall(rendered)))
            if written == sum(map(self._known.__contains__, ids)):
                return list(ids)
        return self._encode_as_data(conversation, render)

    def _encode_as_data(self, conversation: Conversation, render: Render) -> list[int]:
        hidden = _Hidden(self._pattern, [turn["content"] for turn in conversation])
        rendered = render([hidden.hide_all(turn) for turn in conversation])
        if self._anchored is None or self._anchored.nonce in rendered:
            self._anchored = _Anchored(self.tokenizer, self.tokens)
        anchors = self._anchored
        return anchors.encode(hidden.restore(self._pattern.sub(lambda found: anchors.of[found.group()], rendered)))


class _Hidden:
    """Placeholders for the control tokens inside texts, which nobody can guess."""

    def __init__(self, pattern: re.Pattern[str], contents: list[str]) -> None:
        self._pattern = pattern
        self._originals: list[str] = []
        self._nonce = secrets.token_hex(16)
        apart = sum(len(pattern.findall(content)) for content in contents)
        self._join_up = len(pattern.findall("".join(contents))) != apart

    def hide_all(self, turn: dict[str, Any]) -> dict[str, Any]:
        """The turn with the control tokens of its texts hidden.

        Where the end of one content and the start of the next would form a control token together, an empty placeholder
        keeps them apart.
        """
        hidden = {key: part if key == "role" else self._hide(part) for key, part in turn.items()}
        return hidden | {"content": self._placeholder("") + hidden["content"]} if self._join_up else hidden

    def restore(self, text: str) -> str:
        return re.sub(f"{self._nonce}x(\\d+)x", lambda found: self._originals[int(found.group(1))], text)

    def _hide(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._placeholder(found.group()), value)
        if isinstance(value, dict):
            return {self._hide(key): self._hide(part) for key, part in value.items()}
        return [self._hide(part) for part in value] if isinstance(value, list) else value

    def _placeholder(self, original: str) -> str:
        self._originals.append(original)
        return f"{self._nonce}x{len(self._originals) - 1}x"


class _Anchored:
    """A copy of a tokenizer with an ordinary added token in the place of each control token."""

    def __init__(self, tokenizer: Any, tokens: dict[str, int]) -> None:
        self.nonce = secrets.token_hex(16)
        self.of = {token: f"{self.nonce}x{index}x" for token, index in tokens.items()}
        self._copy = plain_copy(tokenizer)
        flags = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        strips = {token: {side: getattr(flags.get(token), side, False) for side in ("lstrip", "rstrip")} for token in tokens}
        self._copy.add_tokens([AddedToken(anchor, normalized=False, **strips[token]) for token, anchor in self.of.items()])
        self._ids = {self._copy.token_to_id(anchor): tokens[token] for token, anchor in self.of.items()}

    def encode(self, text: str) -> list[int]:
        ids = self._copy.encode(text, add_special_tokens=False).ids
        return [self._ids.get(index, index) for index in ids]


def plain_copy(tokenizer: Any) -> Tokenizer:
    """A copy of a tokenizer of transformers that neither cuts nor fills, and to which special tokens inside texts are text."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy
