"""One score for each padded text, read at its true last token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PooledScorer(nn.Module):
    """A one-label sequence classifier whose decoder head reads the last *attended* token.

    Decoder classifiers of transformers read the last token that is not the pad token, so a text that really ends with
    that token (where padding and end of text share one) would be read at an earlier place than by servers that do not
    pad. Encoders pool at the front and are called as they are.

    Args:
        model: an ``AutoModelForSequenceClassification`` with one label.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.decoder = isinstance(getattr(model, "score", None), nn.Linear)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores, shape (B,), of right-padded texts.

        Args:
            input_ids: int, shape (B, T).
            attention_mask: int, shape (B, T), 1 at tokens and 0 at padding.
        """
        if not self.decoder:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]  # type: ignore[no-any-return]
        output = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        last = attention_mask.sum(dim=1) - 1
        rows = torch.arange(len(last), device=last.device)
        return self.head(output.last_hidden_state[rows, last])

    def head(self, hidden: Tensor) -> Tensor:
        """Scores, shape (B,), of final hidden states, shape (B, width).

        In float32 whatever the model's precision: bfloat16 would round scores to two or three digits and make ties.
        """
        linear: nn.Linear = self.model.score
        bias = None if linear.bias is None else linear.bias.float()
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), linear.weight.float(), bias)[:, 0]


def pad(texts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded token ids and their attention mask, each of shape (len(texts), longest)."""
    width = max(map(len, texts))
    ids = torch.tensor([text + [pad_id] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return ids, mask
