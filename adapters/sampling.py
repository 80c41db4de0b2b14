"""Which token comes next: exact samples, each from a random state of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples next tokens by inverting the distribution function: one uniform number a token.

    The number comes from the row's own state, not from torch's global one, through which concurrent requests would interfere.

    Attributes:
        temperature: above 0 for sampling, 0 for the likeliest token.
        top_k: sample among the k likeliest tokens; None for all.
        top_p: sample among the likeliest tokens that reach this total probability; None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def choose(self, logits: torch.Tensor, states: Sequence[Random]) -> torch.Tensor:
        """A token for each row.

        Args:
            logits: shape (rows, vocabulary).
            states: the random state of each row; each gives one number.

        Returns:
            Token ids; shape (rows,).
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        kept, tokens = self._likeliest(logits.float())
        # In double precision: a sum over a whole vocabulary loses the last digits of single.
        reached = (kept / self.temperature).softmax(-1, dtype=torch.float64).cumsum(-1)
        if self.top_p is not None:
            reached = self._nucleus(reached, self.top_p)
        drawn = torch.tensor([[state.random()] for state in states], dtype=torch.float64, device=logits.device)
        at = torch.searchsorted(reached, drawn * reached[:, -1:], right=True).clamp_(max=reached.shape[1] - 1)
        return at.squeeze(1) if tokens is None else tokens.gather(1, at).squeeze(1)

    def _likeliest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        size = logits.shape[-1]
        if self.top_k is None and self.top_p is None:
            return logits, None
        kept = logits.topk(min(self.top_k or size, size), dim=-1)
        return kept.values, kept.indices

    @staticmethod
    def _nucleus(reached: torch.Tensor, top_p: float) -> torch.Tensor:
        # A token is kept if those before it have not reached top_p; from the last kept one on, the sum stands still.
        last = (reached < top_p).sum(-1, keepdim=True).clamp_(max=reached.shape[1] - 1)
        return torch.minimum(reached, reached.gather(1, last))
