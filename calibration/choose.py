"""Thresholds with a promise, for both modes: the laxest that the evidence certifies, or why there is none.

The unit is the prompt, or the ``group`` where rows carry one; of each unit one row counts, chosen by digest. Each row is run on
its one order (:mod:`bonmini_guard.calibration.orders`), so its loss is 0 or 1, and counts are tested
(:mod:`bonmini_guard.calibration.certify`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, TypedDict, Unpack

import numpy as np

from bonmini_guard import __version__
from bonmini_guard.calibration import search as search_space
from bonmini_guard.calibration.certify import Found, Risk, certify, first_threshold, risk_named
from bonmini_guard.calibration.evidence import (
    Certificate,
    NotEnoughEvidence,
    base_evidence,
    check_share,
    consequence,
    profile_fingerprints,
    sealed,
)
from bonmini_guard.calibration.logs import Integers, Log
from bonmini_guard.calibration.orders import Order, mixed, one_a_unit, split
from bonmini_guard.calibration.paths import Cost, Missing, Paths, Steps, exits, labels_used, paths, steps
from bonmini_guard.calibration.simulate import enough_rows
from bonmini_guard.engine.load import LADDER
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.policy.policy import Exit, Mode, check_schedule
from bonmini_guard.policy.profile import GuardProfile

#: A certificate must rest on at least this many served answers: one that serves next to nothing is no success.
LEAST_SERVED = 5
#: How many best scores of first loops a profile keeps for drift; each row's in its one order, one row a unit.
REFERENCE = 1000
#: Rows that say where ``bad_among_served`` begins; rows on which ``search`` chooses; rows below which it does not.
START_SHARE, FIT_SHARE, LEAST_SEARCHED = 0.2, 0.25, 1000


@dataclass(frozen=True)
class Request:
    """What is asked for: a mode, its risk (None: an accelerator's loss of quality), level, chance of missing it, and the shape.

    A rolling exit is certified for each of ``in_flight`` with a threshold of its own, all at once: a request may take any, by
    whatever tells nothing of it.
    ``wait``, ``price`` and ``max_p95`` are a search's: see :meth:`bonmini_guard.calibration.search.Pace.price`; and the most
    seconds that 95 % of the requests may wait.
    """

    mode: Mode
    risk: Risk | None
    level: float
    delta: float
    schedule: tuple[int, ...]
    offsets: tuple[float, ...] | None = None
    order: Order = "auto"
    cost: Cost = "draws"
    seed: int = 0
    calibrations: int = 1
    start: float | None = None
    exit: Exit = "loop"
    in_flight: tuple[int, ...] = (1,)
    wait: float | None = None
    price: float | None = None
    max_p95: float | None = None

    @property
    def share(self) -> float:
        """The part of delta that each sequence of tests may use: none of them fails with more than the whole (Bonferroni)."""
        return self.delta / self.calibrations / len(self.in_flight)

    @property
    def begins_later(self) -> bool:
        """Whether the first threshold comes from rows that are not tested."""
        return self.start is None and self.risk is not None and self.risk.name == "bad_among_served"

    def thresholds(self, threshold: float) -> tuple[float, ...]:
        """Those of all loops."""
        return tuple(threshold + offset for offset in self.offsets or (0.0,) * len(self.schedule))

    def __str__(self) -> str:
        sure = f"with confidence {1 - self.delta:g}"
        what = f"{self.risk.name} <= {self.level:g}" if self.risk else f"a quality within {self.level:g} of best-of-N"
        return f"{what} {sure}"


@dataclass(frozen=True)
class Rung:
    """One way to run the rows (of a rolling exit with so many draws in flight): counts under every threshold, and what passed.

    ``start`` is the first threshold tested; infinity is the strictest that serves anything.
    """

    in_flight: int
    path: Paths
    steps: Steps
    found: Found
    start: float = math.inf

    @property
    def threshold(self) -> float:
        """The laxest certified; infinity where none is."""
        return math.inf if self.found.cut is None else min(self.steps.threshold(self.found.cut), self.start)

    @property
    def served(self) -> float:
        """Rows that it serves."""
        return 0.0 if self.found.cut is None else float(self.steps.served[self.found.cut])


@dataclass(frozen=True)
class Evidence:
    """Rows that are tested, the ways to run them that were certified (the first one, where none was), and the labels looked at."""

    log: Log
    rungs: tuple[Rung, ...]
    labels: int

    @property
    def path(self) -> Paths:
        """Of the first way, of a rolling exit the one with the fewest draws in flight."""
        return self.rungs[0].path

    @property
    def steps(self) -> Steps:
        """Of the first way."""
        return self.rungs[0].steps

    @property
    def found(self) -> Found:
        """Of the first way."""
        return self.rungs[0].found


class Asked(TypedDict, total=False):
    """What may be asked of a calibration beside its promise.

    delta: the chance that the promise is missed, in (0, 1), over logs like this one (default 0.1).
    offsets: of a guardrail: loop l exits at ``t + offsets[l]``, t being searched; they must not be chosen on this log's labels.
    search: choose the schedule's shape (same budget), then a guardrail's offsets, on 25 % of the units; the rest certifies.
    cost: what is counted: draws, tokens or seconds (the log read with that ``cost``).
    order: which order of its draws a row is run in.
    seed: another digest order and split; each seed tried is a calibration.
    calibrations: how many calibrations on this log are made and chosen from: each gets ``delta / calibrations``.
    exit: ``eager`` and ``rolling`` (a schedule of ones) decide in order of arrival, which the log's ``costs`` tell (see
        :func:`bonmini_guard.calibration.logs.load_timed`); without, draws arrive as launched, and the profile says so.
    in_flight: for a rolling exit, the draws in flight that the promise is to hold for, ascending.
    wait: of a search: what waiting for as long as a draw takes costs, in draws (default 1). A loop waits for its slowest draw.
    price: of a search: what a draw (or one of ``cost``) costs in money; ``wait`` is then what waiting a second costs.
    max_p95: of a search: the most that 95 % of the requests may wait, in what the log's ``costs`` count.
    """

    delta: float
    offsets: Sequence[float] | None
    search: bool
    cost: Cost
    order: Order
    seed: int
    calibrations: int
    exit: Exit
    in_flight: Sequence[int]
    wait: float | None
    price: float | None
    max_p95: float | None


def calibrate_guardrail(
    log: Log, *, schedule: Sequence[int], risk: str = "served_and_bad", alpha: float = 0.05, **more: Unpack[Asked]
) -> Certificate | NotEnoughEvidence:
    """Choose a guardrail's thresholds: the laxest whose risk is at most alpha with confidence 1 - delta.

    Args:
        log: complete rows. Rows without any label are left out, unless a set was fixed for labelling (``label_sampling``), of which
            every row counts, and a label that is missing where it is needed counts as bad.
        schedule: draws of each loop.
        risk: served_and_bad, bad_among_served or false_acceptance.
        alpha: the most that the risk may be, in (0, 1).
        more: see :class:`Asked`.

    Raises:
        ConfigurationError: a number, the risk or the schedule is not usable.
        InputError: the log has too few candidates a row, or no label.
    """
    return calibrated(log, _request("guardrail", risk_named(risk), alpha, schedule, more), more.get("search", False))


def calibrate_accelerator(
    log: Log, *, schedule: Sequence[int], epsilon: float = 0.01, **more: Unpack[Asked]
) -> Certificate | NotEnoughEvidence:
    """Choose an accelerator's threshold: the laxest whose answers are acceptable at most epsilon less often than best-of-N's.

    Without any label "acceptable" is the scorer's own word (score >= 0): an estimate of agreement with the scorer, not a promise.

    Args:
        log: complete rows; as :func:`calibrate_guardrail`.
        schedule: draws of each loop, two loops or more.
        epsilon: the most quality that may be lost, in (0, 1).
        more: see :class:`Asked`.

    Raises:
        ConfigurationError: epsilon, delta or the schedule is not usable.
        InputError: a row has fewer candidates than the schedule draws.
    """
    asked, search = _request("accelerator", None, epsilon, schedule, more), more.get("search", False)
    if bool(np.all(np.isnan(log.labels))):
        return _estimated(calibrated(_by_scorer(log), asked, search))
    return calibrated(log, asked, search)


def _request(mode: Mode, risk: Risk | None, level: float, schedule: Sequence[int], more: Asked) -> Request:
    given: dict[str, Any] = {"delta": 0.1} | {name: value for name, value in more.items() if name != "search"}
    if given.get("offsets") is not None:
        given["offsets"] = tuple(given["offsets"])
    widths = tuple(given.get("in_flight", LADDER))
    # No request has more draws in flight than it makes.
    rungs = tuple(width for width in widths if width <= len(schedule)) or widths[:1]
    given["in_flight"] = rungs if given.get("exit") == "rolling" else (1,)
    return Request(mode, risk, level, schedule=tuple(schedule), **given)


def calibrated(log: Log, asked: Request, search: bool) -> Certificate | NotEnoughEvidence:
    """What is asked for, on the labelled rows of a log; see :func:`calibrate_guardrail`."""
    if search and (asked.exit != "loop" or asked.offsets is not None):
        raise ConfigurationError(f"a search is for loops (exit={asked.exit!r}) and finds their offsets: leave it out")
    units, requests, missing, evidence = prepared(log, asked)
    part = units
    if search and len(units) >= LEAST_SEARCHED:
        fit, rest = split(units, FIT_SHARE, asked.seed * 2 + 1)
        asked, front = searched(units.take(fit), asked, missing)
        evidence, part = evidence | {"front": front, "priced": priced(asked, log.costs_are)}, units.take(rest)
    elif search:
        evidence["search"] = f"not made: {len(units)} units are fewer than {LEAST_SEARCHED}, and all of them certify instead"
    tested = test(part, asked, missing)
    evidence |= {"certify_rows": len(tested.log), "fit_rows": len(units) - len(tested.log), "missing_labels": missing}
    evidence |= {"labels_used": tested.labels, "tested": tested.found.tested, "p_value": tested.found.p_value}
    if not suffices(tested.rungs[0], asked):
        return _refused(part, len(tested.log), asked, evidence)
    if asked.max_p95 is not None and (slow := pace_of(tested, asked).p95) > asked.max_p95:
        return NotEnoughEvidence(
            f"95 % of the requests wait up to {slow:.3g} s on the rows that certify, and --max-p95 is {asked.max_p95:g}: allow "
            "more, or draw fewer",
            evidence,
        )
    return certificate_of(tested, asked, evidence, requests)


def prepared(log: Log, asked: Request) -> tuple[Log, Log | None, Missing, dict[str, Any]]:
    """The labelled rows, one a unit; those that drift looks at, if others; what a missing label means; evidence before any test.

    Raises:
        ConfigurationError, InputError: as :func:`calibrate_guardrail`.
    """
    check(asked)
    log.require(sum(asked.schedule))
    log.require_scores()
    log, missing = log.labelled_set()
    units = one_a_unit(log)
    evidence = base_evidence(log, units=len(units), order=asked.order)
    if asked.calibrations > 1 or asked.seed:
        evidence |= {"calibrations": asked.calibrations, "seed": asked.seed}
    return units, None if len(units) == len(log) else log.take(log.requests), missing, evidence


def aside(part: Log, asked: Request) -> tuple[Integers, Integers]:
    """Row numbers: those that only say where ``bad_among_served`` begins, and those that are tested."""
    return split(part, START_SHARE, asked.seed * 2 + 2)


def test(part: Log, asked: Request, missing: Missing) -> Evidence:
    """Run the rows and the sequence of tests on them."""
    if not asked.begins_later:
        return _tested(part, _run(part, asked), (), asked, missing)
    other, rest = (part.take(rows) for rows in aside(part, asked))
    return _tested(rest, _run(rest, asked), _run(other, asked), asked, missing)


def _run(part: Log, asked: Request) -> tuple[Paths, ...]:
    shape = asked.schedule, asked.order, asked.exit
    return tuple(paths(part, *shape, width, seed=asked.seed, cost=asked.cost) for width in asked.in_flight)


def _tested(log: Log, runs: tuple[Paths, ...], others: tuple[Paths, ...], asked: Request, missing: Missing) -> Evidence:
    """The sequences of tests on some rows; ``others`` say where each begins."""
    rungs = []
    for width, run, other in zip_longest(asked.in_flight[: len(runs)], runs, others):
        counts, start = steps(run, asked.offsets, missing), math.inf if asked.start is None else asked.start
        if other is not None:
            many = len(run) / max(1, len(other))
            start = first_threshold(steps(other, asked.offsets, missing), many, asked.level, asked.share)
        found = certify(counts, asked.risk, asked.level, asked.share, start)
        if other is not None and found.first < counts.cuts.size:
            start = float(counts.cuts[found.first])
        rungs.append(Rung(width, run, counts, found, start))
    certified = [rung for rung in rungs if suffices(rung, asked)] or rungs[:1]
    return Evidence(log, tuple(certified), labels_used(runs) + (labels_used(others) if others else 0))


def rows_needed(part: Log, asked: Request, above: int = 0) -> tuple[int, list[Evidence]] | None:
    """How many rows like these, more than ``above``, give a certificate in four cases of five, and what is then found.

    None if too many. The labels of these rows, one a unit, say how labels depend on scores; without any, sigmoid(score) does.
    """

    def calibrate(path: Paths) -> Evidence | None:
        first = round(START_SHARE * len(path)) if asked.begins_later else 0
        others = (path.take(np.arange(first)),) if asked.begins_later else ()
        tested = _tested(part, (path.take(np.arange(first, len(path))),), others, asked, "left_out")
        return tested if suffices(tested.rungs[0], asked) else None

    return enough_rows(_run(part, asked)[0], calibrate, above)


def suffices(rung: Rung, asked: Request) -> bool:
    """Whether it serves enough to be certified."""
    return rung.served >= (LEAST_SERVED if asked.risk else 1)


def searched(fit: Log, asked: Request, missing: Missing) -> tuple[Request, list[dict[str, Any]]]:
    """The request with the best shape, then offsets, judged by what they would certify on the fit split; and the shapes' front.

    Better is: serves at least 1 % of the requests more, or as many (within 1 %) at a lower price: what the draws cost, and the
    waiting for each loop's slowest one. A shape under which over 5 % of the requests may wait longer than ``max_p95`` is none.
    """
    best, worth = asked, _worth(fit, asked, missing)
    tried = [(asked, worth)]

    def wishes() -> Iterator[Request]:
        yield from (replace(asked, schedule=shape) for shape in search_space.shapes(sum(asked.schedule)))
        shape = best
        yield from (replace(shape, offsets=offsets) for offsets in search_space.tilts(fit, len(shape.schedule)))

    for wish in wishes():
        now = _worth(fit, wish, missing)
        tried += [(wish, now)] if wish.offsets is asked.offsets else []
        if now.better(worth):
            best, worth = wish, replace(now, served=max(now.served, worth.served))
    return best, search_space.front([{"schedule": list(wish.schedule), **each.told()} for wish, each in tried])


def priced(asked: Request, times: str | None) -> str:
    """What a search's prices are in."""
    if asked.price is None:
        return f"draws; waiting as long as one takes costs {1.0 if asked.wait is None else asked.wait:g}"
    waited = {"seconds": "second", "tokens": "token of a loop's longest answer"}.get(str(times), "loop")
    return f"money; {asked.price:g} for each of its {asked.cost}, {asked.wait:g} for each {waited} that it waits"


def _worth(fit: Log, asked: Request, missing: Missing) -> search_space.Worth:
    """What would be certified if the fit split were the whole log."""
    tested = test(fit, asked, missing)
    pace, cut = pace_of(tested, asked), tested.found.cut
    cost = float(tested.path.cost[:, -1].mean()) if cut is None else float(tested.steps.cost[cut]) / len(tested.log)
    served = 1.0 if not asked.risk else 0.0 if cut is None else tested.rungs[0].served / max(1.0, tested.steps.rows[cut])
    price = pace.price(cost, asked.cost, 1.0 if asked.wait is None else asked.wait, asked.price)
    return search_space.Worth(served, price, pace, asked.max_p95 is not None and pace.p95_limit > asked.max_p95)


def pace_of(tested: Evidence, asked: Request) -> search_space.Pace:
    """How long requests take under what the rows certify; to their end where they certify nothing."""
    path = tested.path
    ran = np.minimum(exits(path, asked.thresholds(tested.rungs[0].threshold)), path.draws.size - 1)
    return search_space.Pace.of(tested.log, asked.schedule, asked.order, asked.seed, ran)


def check(asked: Request) -> None:
    """Refuse what no log could certify.

    Raises:
        ConfigurationError: a number or the schedule is not usable.
    """
    check_share("alpha" if asked.risk else "epsilon", asked.level)
    check_share("delta", asked.delta)
    try:
        check_schedule(asked.schedule)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if asked.risk is None and len(asked.schedule) < 2:
        raise ConfigurationError(f"schedule {list(asked.schedule)} has one loop, so nothing can be saved; use e.g. 4,28")
    if asked.offsets is not None and asked.mode == "accelerator":
        raise ConfigurationError("offsets are of a guardrail: an accelerator has one threshold")
    if asked.offsets is not None and len(asked.offsets) != len(asked.schedule):
        raise ConfigurationError(f"{len(asked.offsets)} offsets for {len(asked.schedule)} loops: give one for each loop")
    if asked.exit != "loop" and (asked.offsets is not None or asked.cost != "draws"):
        raise ConfigurationError(f"exit={asked.exit!r} decides at each draw: offsets and other costs than draws are of loops")
    if asked.exit == "rolling" and (set(asked.schedule) != {1} or list(asked.in_flight) != sorted(set(asked.in_flight))):
        raise ConfigurationError("a rolling exit has a schedule of ones, and in_flight ascending")
    if asked.price is not None and (asked.wait is None or not math.isfinite(asked.price) or min(asked.price, asked.wait) < 0):
        raise ConfigurationError("a price in money is 0 or more, and needs wait=: what waiting a second costs, 0 for nothing")
    if asked.calibrations < 1:
        raise ConfigurationError(f"calibrations is {asked.calibrations}: give how many are made and chosen from, 1 or more")


def _refused(part: Log, seen: int, asked: Request, evidence: dict[str, Any]) -> NotEnoughEvidence:
    def further() -> int | None:
        needed = rows_needed(part, asked, len(part))
        return None if needed is None else math.ceil((needed[0] - len(part)) * evidence["units"] / len(part))

    units = "prompts" if evidence["units"] == evidence["rows"] else "groups of prompts"
    why = f"not enough evidence for {asked}: the test saw {seen:,} {units}"
    if len(part) < LEAST_SERVED:
        return NotEnoughEvidence(f"{why}, too few to say what others would be like; collect more", evidence)
    return NotEnoughEvidence(why, evidence, further)


def certificate_of(tested: Evidence, asked: Request, evidence: dict[str, Any], requests: Log | None) -> Certificate:
    """The profile and the sentence of what was found; ``requests`` are those that drift looks at, where they are other rows."""
    cut = tested.found.cut
    assert cut is not None
    counts = {
        name: float(getattr(tested.steps, name)[cut]) for name in ("rows", "served", "served_bad", "selected_bad", "lost", "won")
    }
    rows, draws = len(tested.log), float(tested.steps.draws[cut])
    evidence |= {"requests": float(rows), "counted": counts["rows"], "mean_draws": draws / rows, "order_of": "one order a row"}
    evidence |= {name: counts[name] for name in ("served", "served_bad", "selected_bad")} if asked.risk else {}
    others = counts["rows"] - counts["served"]
    evidence |= {} if asked.risk else {"lost": counts["lost"], "won": counts["won"], "best_effort": others}
    evidence |= {"abstained": others, "false_acceptances": counts["served_bad"]} if asked.risk else {}
    if asked.cost != "draws":
        full = float(tested.path.cost[:, -1].mean())
        evidence |= {"cost": asked.cost, "mean_cost": float(tested.steps.cost[cut]) / rows, "cost_of_whole_budget": full}
    start, thresholds = tested.rungs[0].start, [rung.threshold for rung in tested.rungs]
    evidence |= {} if math.isinf(start) else {"certified_above": start - thresholds[0]}
    rolling: dict[str, Any] = {}
    if asked.exit != "loop":
        evidence["arrivals"] = tested.log.costs_are or "launch order"
    if asked.exit == "rolling":
        evidence["in_flight"] = {str(rung.in_flight): _means(rung, asked) for rung in tested.rungs}
        rolling = {"in_flight": tuple(rung.in_flight for rung in tested.rungs), "max_draws": len(asked.schedule)}
        rolling |= {"in_flight_thresholds": tuple(thresholds)} if len(thresholds) > 1 else {}
    path, of = tested.path, tested.log
    if requests is not None and asked.exit == "loop":
        path, of = paths(requests, asked.schedule, asked.order, seed=asked.seed), requests
    seen = np.isfinite(path.best[:, 0])  # drift leaves out requests whose first loop failed as a whole
    if asked.exit == "loop" and (requests is not None or not seen.all()):
        others = int(np.sum(exits(path, asked.thresholds(max(thresholds)))[seen] == path.draws.size))
        evidence["first_of_groups"] = {"requests": int(seen.sum()), "abstained" if asked.risk else "best_effort": others}
    # by digest: a log's first rows may be of one of its shards
    kept = np.flatnonzero(seen)[np.argsort(mixed(of.keys[seen], -2), kind="stable")[:REFERENCE]]
    profile = GuardProfile(
        mode=asked.mode,
        schedule=asked.schedule,
        thresholds=asked.thresholds(max(thresholds)),
        exit=asked.exit,
        risk=asked.risk.name if asked.risk else None,
        alpha=asked.level if asked.risk else None,
        epsilon=None if asked.risk else asked.level,
        delta=asked.delta,
        evidence=evidence,
        reference=tuple(path.best[np.sort(kept), 0].tolist()),
        fingerprints=profile_fingerprints(tested.log),
        created_at=datetime.now(UTC).replace(microsecond=0),
        package_version=__version__,
        **rolling,
    )
    return Certificate(sealed(profile), consequence(profile))


def _means(rung: Rung, asked: Request) -> dict[str, float]:
    draws = np.minimum(exits(rung.path, asked.thresholds(rung.threshold)) + 1, len(asked.schedule))
    started = np.minimum(draws + rung.in_flight - 1, len(asked.schedule))
    return {"mean_draws": float(draws.mean()), "mean_started": float(started.mean())}


def _by_scorer(log: Log) -> Log:
    """The log with the scorer's own word for a label; refused where scores show no zero."""
    scores = log.scores[np.isfinite(log.scores)]
    if scores.size and not (scores.min() < 0.0 <= scores.max()):
        raise ConfigurationError(
            f"{log.source}: no label, and no score changes sign, so that nothing says which answers are acceptable; "
            f"label rows with 'bonmini-guard label'"
        )
    labels = np.where(np.isfinite(log.scores), log.scores >= 0.0, np.nan).astype(np.float32)
    return replace(log, labels=labels, asked=np.zeros(len(log), dtype=bool))


def _estimated(outcome: Certificate | NotEnoughEvidence) -> Certificate | NotEnoughEvidence:
    """The outcome without a promise: its labels were the scorer's own word."""
    said = "An estimate of agreement with the scorer (acceptable = score >= 0; no labels), not a promise"
    if isinstance(outcome, NotEnoughEvidence):
        return replace(outcome, why=f"{said}: {outcome.why}")
    profile = sealed(outcome.profile, {"estimated": said, "labels": 0}, delta=None)
    return Certificate(profile, f"{said}. {outcome.sentence.rsplit(', with ', 1)[0]}.")
