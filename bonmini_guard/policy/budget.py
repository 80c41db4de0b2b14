"""A budget of one request in tokens or money: a stop rule like those of the policy, and as pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.policy.policy import State, Stop, StopRule
from bonmini_guard.validation import is_number


@dataclass(frozen=True)
class Budget(StopRule):
    """No further loop begins once the draws so far have used up what a request may cost.

    The loop in flight is not cut short: its cost comes on top, one loop's at most. Counted is what the generator reports as
    usage, for failed draws too. The rule never accepts: a guardrail abstains with reason ``budget``, an
    accelerator serves the best so far.

    Attributes:
        tokens: tokens read and written, each draw's prompt included; None for no limit.
        money: in the currency of the prices; None for no limit.
        input_price: of a million tokens read.
        output_price: of a million tokens written.

    Raises:
        ConfigurationError: no limit at all, a negative number, or money without a price.
    """

    tokens: int | None = None
    money: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0

    def __post_init__(self) -> None:
        numbers = [number for number in (self.tokens, self.money, self.input_price, self.output_price) if number is not None]
        if self.tokens is None and self.money is None:
            raise ConfigurationError("a budget needs tokens=, or money= with prices")
        if not all(is_number(number) and 0 <= number < math.inf for number in numbers):
            raise ConfigurationError("a budget and its prices are numbers of 0 or more")
        if self.money is not None and not self.input_price and not self.output_price:
            raise ConfigurationError("a budget in money needs input_price= or output_price=, each of a million tokens")

    def cost(self, state: State) -> float:
        """What the draws so far have cost, in the currency of the prices."""
        read, written = state.tokens
        return (read * self.input_price + written * self.output_price) / 1e6

    def __call__(self, state: State) -> Stop | None:
        """Stop once either limit is reached."""
        if state.loops == 0:
            return None
        too_many = self.tokens is not None and sum(state.tokens) >= self.tokens
        too_dear = self.money is not None and self.cost(state) >= self.money
        return Stop("budget") if too_many or too_dear else None
