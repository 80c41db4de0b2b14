"""Policies in one line."""

from __future__ import annotations

from bonmini_guard.policy.policy import Never, Policy, spread


def guardrail(schedule, threshold=0.0, stop=None):
    """Serve only what passed; abstain otherwise."""
    return Policy("guardrail", tuple(schedule), spread(threshold, len(schedule)), stop=stop or Never())


def accelerator(schedule, threshold=0.0, stop=None):
    """Serve the first best that passed, else the best of all."""
    return Policy("accelerator", tuple(schedule), spread(threshold, len(schedule)), stop=stop or Never())
