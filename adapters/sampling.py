"""Which token comes next: exact samples, each from a number that its row's seed and its step alone decide."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

#: With top_p alone so many of the likeliest tokens are looked at first: they nearly always reach it, and sorting all is slow.
LIKELIEST = 256


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples next tokens by inverting the distribution function: one uniform number a token.

    The number is a counter's, not torch's global state's, through which concurrent requests would interfere. Temperature 0 takes
    the likeliest token; ``top_k`` and ``top_p`` (a total probability) leave the likeliest ones, None all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def choose(self, logits: torch.Tensor, seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """A token id for each row; shape (rows,).

        Args:
            logits: shape (rows, vocabulary).
            seeds: of each row; shape (rows,), 64-bit integers.
            steps: how many tokens each row has already; likewise.
        """
        if self.temperature < 1e-30:  # over which logits are no numbers of single precision
            return logits.argmax(-1)
        drawn = uniform(seeds, steps).unsqueeze(1)
        if self.top_k is None and self.top_p is None:
            return _inverted(self._weights(logits), drawn)
        # In double precision: a sum over a whole vocabulary loses the last digits of single.
        reached, tokens = self._nucleus(logits) if self.top_k is None else self._of_likeliest(logits, self.top_k)
        if self.top_p is not None:
            # A token is kept if those before it have not reached the goal; from the last kept one on, the sum stands still.
            last = (reached < self.top_p * reached[:, -1:]).sum(-1, keepdim=True)
            reached = torch.minimum(reached, reached.gather(1, last))
        return tokens.gather(1, _above(reached[:, : tokens.shape[1]].contiguous(), drawn * reached[:, -1:])).squeeze(1)

    def _weights(self, logits: torch.Tensor) -> torch.Tensor:
        # Softmax takes a row at a time; what goes over all rows at once ends in other digits in the last of them.
        return torch.softmax(logits.float() / self.temperature, -1)

    def _of_likeliest(self, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over the likeliest tokens in descending order, and the tokens."""
        kept, tokens = logits.topk(min(count, logits.shape[1]), -1)
        return self._weights(kept).cumsum(-1, dtype=torch.float64), tokens

    def _nucleus(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same over as many as reach top_p, with the sum over all tokens at the end."""
        assert self.top_p is not None
        weights = self._weights(logits)
        total = weights.sum(-1, keepdim=True, dtype=torch.float64)
        for count in (min(LIKELIEST, weights.shape[1]), weights.shape[1]):
            kept, tokens = weights.topk(count, -1)
            reached = kept.cumsum(-1, dtype=torch.float64)
            if bool((reached[:, -1:] >= self.top_p * total).all()):
                break
        return torch.cat([reached, torch.maximum(total, reached[:, -1:])], 1), tokens


def uniform(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """A number in [0, 1) for each seed and step: splitmix64 of both; doubles of the same shape."""
    state = seeds * -0x61C8864680B583EB + (steps + 1) * -0x2E4AB5CD2E6D12FD
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        state = (state ^ _right(state, shift)) * factor
    return _right(state ^ _right(state, 31), 11).double() * 2.0**-53


def signed(seed: int) -> int:
    """The last 64 bits of a seed, as a number that fits into a tensor."""
    return (seed + 2**63) % 2**64 - 2**63


def _right(state: torch.Tensor, by: int) -> torch.Tensor:
    # torch's own shift repeats the sign.
    shifted: torch.Tensor = (state >> by) & (2 ** (64 - by) - 1)
    return shifted


def _inverted(weights: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Tokens whose share of a row's weights holds the number drawn: first the block of 64 of them, then the token in it."""
    blocks = pad(weights, (0, -weights.shape[1] % 64)).view(len(weights), -1, 64)
    reached = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    goal = drawn * reached[:, -1:]
    block = _above(reached, goal)
    before = torch.where(block > 0, reached.gather(1, (block - 1).clamp_(min=0)), 0)
    within = blocks.take_along_dim(block.unsqueeze(2), 1).squeeze(1).cumsum(-1, dtype=torch.float64)
    chosen: torch.Tensor = (block * 64 + _above(within, goal - before)).squeeze(1)
    return chosen.clamp_(max=weights.shape[1] - 1)


def _above(reached: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """The first place of each row whose sum is above the goal; shape (rows, 1)."""
    place: torch.Tensor = torch.searchsorted(reached, goal, right=True)
    return place.clamp_(max=reached.shape[1] - 1)
