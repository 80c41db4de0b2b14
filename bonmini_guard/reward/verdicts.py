"""Language models that answer with a verdict: the score is the log-odds of its tokens (guard models, rerankers, chat models)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bonmini_guard.errors import CheckpointError
from bonmini_guard.reward.checkpoint import load_model
from bonmini_guard.reward.formatting import Formatter, without_oldest
from bonmini_guard.reward.reading import Reading
from bonmini_guard.reward.scoring import TOLERANCE
from bonmini_guard.reward.spec import Token
from bonmini_guard.reward.template import Conversation, Template


class VerdictReading(Reading):
    """The log-odds of the wanted verdicts against the unwanted ones, where the model would write one.

    Only the rows of the output layer that stand for verdicts are kept, so the model is read, packed and shared as classifiers are.
    """

    zero = True  # at even odds

    def __init__(self, token: Token) -> None:
        super().__init__()
        self._token = token
        self._number = 0
        self.mark = json.dumps(token.model_dump(), sort_keys=True)

    def load(self, path: str, config: Any, dtype: Any, base: str | None) -> tuple[Any, list[str]]:
        """See :class:`Reading`."""
        return load_model(path, config, dtype, "language model")

    def formatter(self, model: Any, tokenizer: Any, max_length: int | None, not_shown: Collection[str]) -> Formatter:
        """What makes the model's inputs; the model gets its verdicts here, which only the tokenizer can name."""
        wanted, unwanted = (
            # Ways to write a verdict may begin with one token, which counts once.
            list(dict.fromkeys(_token_of(tokenizer, word) for word in given))
            for given in (self._token.wanted, self._token.unwanted)
        )
        if set(wanted) & set(unwanted):
            same = tokenizer.convert_ids_to_tokens((set(wanted) & set(unwanted)).pop())
            raise CheckpointError(f"a wanted and an unwanted verdict begin with the same token {same!r}: write them as it does")
        self._number = len(wanted)
        self._keep(model, [*wanted, *unwanted])
        return VerdictFormatter(self._token, tokenizer, max_length, not_shown)

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-odds, shape (B,), of logits, shape (B, verdicts)."""
        logits = _capped(logits.float() * self._factor, self._cap)
        return logits[:, : self._number].logsumexp(dim=1) - logits[:, self._number :].logsumexp(dim=1)

    def _keep(self, model: Any, verdicts: Sequence[int]) -> None:
        """Put the verdicts' rows of the output layer where classifiers have their head, and try them against the model itself."""
        config, whole = model.config.get_text_config(), model.get_output_embeddings()
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        if max(verdicts) >= len(whole.weight):
            raise CheckpointError(
                "a verdict is a token for which the model has no output: use the tokenizer that it was trained with"
            )
        index = torch.tensor(verdicts, device=whole.weight.device)
        head = nn.Linear(whole.weight.shape[1], len(verdicts), bias=getattr(whole, "bias", None) is not None)
        head = head.to(whole.weight)
        with torch.inference_mode():
            tried = torch.arange(8, device=index.device).remainder(config.vocab_size)[None]
            own = model(input_ids=tried).logits[0, -1, index].float()
        with torch.no_grad():
            head.weight.copy_(whole.weight[index])
            if head.bias is not None:
                head.bias.copy_(whole.bias[index])
            hidden = model.base_model(input_ids=tried).last_hidden_state[0, -1]
            ours = _capped(nn.functional.linear(hidden, head.weight, head.bias).float() * self._factor, self._cap)
        if (ours - own).abs().max() > TOLERANCE[model.dtype] * (1 + own.abs().max()):
            raise CheckpointError(
                f"{type(model).__name__}: does more to its logits than is known here, and cannot be read: serve it, and "
                "use a function over its answers"
            )
        model.score = head


class VerdictFormatter(Formatter):
    """Formats the question about an answer, up to where the model would write its verdict."""

    def __init__(self, token: Token, tokenizer: Any, max_length: int | None, not_shown: Collection[str]) -> None:
        template = Template(tokenizer, {"add_generation_prompt": True, **token.options}, token.after)
        super().__init__(tokenizer, max_length, not_shown, template)
        self._token = token

    def _ids(self, turns: Conversation, cut: int) -> list[int]:
        return super()._ids(self._question(without_oldest(turns, cut)), 0)

    def _shows_tool_calls(self, turn: dict[str, Any]) -> bool:
        return self._token.ask is None and super()._shows_tool_calls(turn)

    def _question(self, turns: Conversation) -> Conversation:
        first = [] if self._token.system is None else [{"role": "system", "content": self._token.system}]
        if self._token.ask is None:
            return [*first, *turns]
        *before, answer = turns
        prompt = before[0]["content"] if len(before) == 1 else "\n".join(f"{turn['role']}: {turn['content']}" for turn in before)
        said = "\n".join(filter(None, (answer.get("reasoning_content"), answer["content"])))
        return [*first, {"role": "user", "content": self._token.asked(prompt, said)}]


def _token_of(tokenizer: Any, word: str) -> int:
    """The token that a verdict begins with: itself, where the vocabulary has it as it is written."""
    if word in (vocabulary := tokenizer.get_vocab()):
        return int(vocabulary[word])
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise CheckpointError(f"the verdict {word!r} has no tokens: write it as the model does")
    return int(ids[0])


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)
