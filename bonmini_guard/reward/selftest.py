"""What a scorer's own scores say against what is declared of it: on fixed texts, and on examples that people have labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from bonmini_guard.reward.spec import LOG_ODDS

#: A score and a label, for each answer of one prompt; None where there is none.
Answers = Sequence[tuple[float | None, bool | None]]

#: Differences below this are rounding.
_SAME = 1e-6
#: Of pairs of an acceptable and an unacceptable answer: the share ranked rightly below which a scorer is upside down, and above
#: which it tells them apart.
_UPSIDE_DOWN, _APART = 0.3, 0.7


def problems(prompts: Sequence[Answers], kind: str, has_zero: bool | None) -> list[str]:
    """What speaks against a scorer of this kind, each with its cure; nothing where nothing does."""
    scores = [score for answers in prompts for score, _ in answers if score is not None]
    if not scores:
        return ["not one text has a score: read the warnings above; what does not reach the scorer's input is never scored"]
    return [*_about_scores(prompts, scores, has_zero and kind not in LOG_ODDS), *_about_labels(prompts, kind, has_zero)]


def ranked_rightly(prompts: Sequence[Answers]) -> float | None:
    """Of all pairs of an acceptable and an unacceptable answer, the share in which the former scores higher; ties are half."""
    good, bad = (scores_of(prompts, label) for label in (True, False))
    pairs = [0.5 if abs(one - other) < _SAME else float(one > other) for one, other in product(good, bad)]
    return sum(pairs) / len(pairs) if pairs else None


def scores_of(prompts: Sequence[Answers], wanted: bool) -> list[float]:
    """The scores of all answers with a label."""
    return [score for answers in prompts for score, label in answers if label is wanted and score is not None]


def _about_scores(prompts: Sequence[Answers], scores: Sequence[float], has_zero: bool | None) -> Iterator[str]:
    missing = sum(score is None for answers in prompts for score, _ in answers)
    if missing:
        yield f"{missing} of {missing + len(scores)} texts have no score: read the warnings above"
    several = [[score for score, _ in answers if score is not None] for answers in prompts]
    several = [found for found in several if len(found) > 1]
    if several and all(max(found) - min(found) < _SAME for found in several):
        yield "answers to one prompt all score alike: the template, or the question, leaves the answer out"
    elif has_zero and all(0 <= score <= 1 for score in scores):
        yield "all scores lie between 0 and 1, so a threshold of 0 accepts everything: declare scale = 'probability'"


def _about_labels(prompts: Sequence[Answers], kind: str, has_zero: bool | None) -> Iterator[str]:
    rightly, good, bad = ranked_rightly(prompts), scores_of(prompts, True), scores_of(prompts, False)
    if rightly is None:
        return
    found = f"acceptable answers score higher in {rightly:.0%} of {len(good) * len(bad)} pairs"
    if rightly <= _UPSIDE_DOWN:
        swapped = kind in ("labels", "token")
        cure = "wanted and unwanted are swapped, or" if swapped else "the sign is wrong (a score of badness?), or"
        yield f"{found}: {cure} the scorer judges something else"
    elif rightly < _APART:
        yield f"{found}: it hardly tells these apart; look at what it is asked, or take another scorer"
    elif has_zero and (min(bad) >= 0 or max(good) < 0):
        cut = (sorted(good)[len(good) // 2] + sorted(bad)[len(bad) // 2]) / 2
        yield f"{found}, but not at 0: with zero = {{ shift = {-cut:.3g} }} it would lie between them"
