"""Labels on demand: which answers a certificate needs judged next, strict to lax, and what those judged so far certify.

The rows are fixed before the first label, and a label that is missing where a test needs it counts against the promise. So labels
only ever help a test. Where m served answers are good and not labelled, ``served_and_bad`` and ``bad_among_served`` count m bad
ones too many of as many units. ``false_acceptance`` counts at most m units too many, each of them a failure, and misses units that
are none; neither makes the lower tail smaller. An accelerator's losses are as many or more, and gains that are not known do no harm
(:func:`bonmini_guard.calibration.certify.net_loss`). Hence nothing is certified on some of the labels that is not certified on all
of them: whoever labels may look, and stop, at any moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from bonmini_guard.calibration.blocks import row_keys
from bonmini_guard.calibration.certify import in_sequence, p_values
from bonmini_guard.calibration.choose import calibrated, check
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence, percent
from bonmini_guard.calibration.logs import Bools, Integers, Log
from bonmini_guard.calibration.orders import mixed, one_a_unit
from bonmini_guard.calibration.paths import Paths, counts_at, exits, labels_used, paths, steps, wished
from bonmini_guard.calibration.sequence import LEAST_SERVED, Evidence, Request, Rung, aside, rows_needed, test
from bonmini_guard.calibration.simulate import MOST_ROWS, Labels, least_rows
from bonmini_guard.errors import ConfigurationError, InputError

#: Answers asked about before the next look.
BATCH = 20
#: Names the order in which rows are taken into a set.
_SALT = -2
#: Labellings simulated to say what a set may reach.
_SIMULATED = 20


def request(what: str, level: float, delta: float, schedule: Sequence[int], **more: Any) -> Request:
    """What labels are asked for, if usable: a risk by name or ``accelerator``, with its alpha or epsilon, and more of a request."""
    risk = None if what == "accelerator" else what
    asked = Request("guardrail" if risk else "accelerator", risk, level, delta, tuple(schedule), **more)
    check(asked)
    return asked


def fixed_set(log: Log, rows: int | None) -> Log:
    """Rows for labelling, without labels: one a unit, those with the least digests, so that neither scores nor labels chose them.

    So many ``rows``, None for all units: ConfigurationError if there are fewer. InputError if a set was labelled before.
    """
    if log.asked.any():
        raise InputError(
            f'{log.source}: {int(log.asked.sum()):,} rows say "label_sampling": "random", so that a set was fixed before; rows '
            f"added after a look at labels void the promise; calibrate on that set, or give a log of others"
        )
    log.require_scores()
    units = one_a_unit(log)
    if rows is not None and not 1 <= rows <= len(units):
        raise ConfigurationError(f"--rows is {rows}, and {log.source} has {len(units):,} prompts: give 1 to {len(units)}")
    return _blank(units.take(np.sort(np.argsort(mixed(units.keys, _SALT), kind="stable")[:rows])))


def same_set(log: Log, ids: Sequence[str]) -> Log:
    """The :func:`fixed_set` of these rows, without labels, of a log that may hold others; InputError if it lacks some."""
    found = log.take(np.isin(log.keys, row_keys(name.encode(errors="backslashreplace") for name in ids)))
    if len(found) != len(ids):
        raise InputError(f"{log.source}: lacks {len(ids) - len(found):,} of the rows that were fixed; give the log as it was then")
    return _blank(found)


def _blank(log: Log) -> Log:
    return replace(log, labels=np.full_like(log.labels, np.nan), asked=np.ones(len(log), dtype=bool))


@dataclass(frozen=True)
class Demand:
    """What the labels so far certify, and what to judge next.

    Attributes:
        outcome: as calibrate gives it; None while nothing is labelled.
        wanted: (m, 2) row and candidate: labels that the first test not passed lacks, then those of the tests after it, strict to
            lax; empty if no label can help.
        sentence: all that in one line.
    """

    outcome: Certificate | NotEnoughEvidence | None
    wanted: Integers
    sentence: str


def demand(log: Log, asked: Request) -> Demand:
    """Calibrate on the labels so far, and see what the sequence of tests needs to go on.

    Args:
        log: a :func:`fixed_set`, with the labels so far.
        asked: the promise, its level and the schedule, without offsets.
    """
    outcome = None if np.isnan(log.labels).all() else calibrated(log, asked, search=False)
    if (first := _aside(log, asked)).size:
        return Demand(outcome, first, f"nothing is certified yet; {len(first):,} labels that say where to begin come first")
    tested = test(log, asked, "counts_as_bad")
    rung, entry = tested.rungs[0], _first_not_passed(tested.rungs[0])
    path = rung.path
    if entry >= rung.steps.cuts.size or _in_vain(path, at := exits(path, float(rung.steps.cuts[entry])), asked):
        said = f"{_certified(outcome)}; no further label of these rows can help"
        return Demand(outcome, np.zeros((0, 2), dtype=np.int64), said)
    against, others = _lacking(path, at, asked)
    now = against if against.any() else others
    later = _later(path, rung.steps.cuts[entry], asked) & ~now
    # of the others the lowest scores first: the surest to be bad, which is what they are asked for
    wanted = np.concatenate([_pairs(path, now) if against.any() else _pairs(path, now)[::-1], _pairs(path, later)])
    rows = np.flatnonzero(np.isin(log.keys, tested.log.keys))
    said = f"{_certified(outcome)}; {_hope(rung, asked, entry, now)}"
    return Demand(outcome, np.column_stack([rows[wanted[:, 0]], wanted[:, 1]]), said)


def _aside(log: Log, asked: Request) -> Integers:
    """(m, 2) labels that rows lack whose only use is to say where the sequence of tests begins.

    They come before all others: a beginning that changed after a look at tests would be one of several, and the best of these.
    """
    if not asked.begins_later:
        return np.zeros((0, 2), dtype=np.int64)
    rows, _ = aside(log, asked)
    path = paths(log.take(rows), asked.schedule, asked.order)
    row, loop = np.nonzero(_unknown(path))
    return np.column_stack([rows[row], path.holder[row, loop]])


def batch_of(log: Log, wanted: Integers) -> Integers:
    """(n, 2) of the first :data:`BATCH` wanted, in an order by digest: within a batch neither place nor order tells of scores."""
    some = wanted[:BATCH]
    with np.errstate(over="ignore"):
        names = log.keys[some[:, 0]] + some[:, 1].astype(np.uint64)
    return some[np.argsort(mixed(names, _SALT), kind="stable")]


def labels_asked(tested: Evidence, asked: Request) -> int:
    """About how many labels of a set that has all are asked for until no further one can help: batches are not counted whole.

    Simulated labels end that sooner than most real ones, whose losses come together.
    """
    rung = tested.rungs[0]
    path, entry = rung.path, min(_first_not_passed(rung), rung.steps.cuts.size - 1)
    before = tested.labels - labels_used([path])
    at = exits(path, float(rung.steps.cuts[entry]))
    blank = replace(path, good=np.full_like(path.good, np.nan))
    reached = _unknown(blank) & ~_later(blank, rung.steps.cuts[entry], asked)
    if asked.risk is None:
        best = path.holder == path.holder[:, -1:]
        reached = (reached & ~best) | _lacking(replace(path, good=np.where(best, np.nan, path.good)), at, asked)[1]
    elif asked.risk == "false_acceptance":
        reached |= _lacking(blank, at, asked)[1]
    return before + int(reached.sum())


def too_few(log: Log, asked: Request) -> str | None:
    """Why no labels of the set could certify anything: it has too few rows for even a spotless record. None if it has enough."""
    least, rows = least_rows(asked.level, asked.share), len(test(log, asked, "counts_as_bad").log)
    if asked.risk is None or rows >= least:
        return None
    of = "" if rows == len(log) else f" ({rows:,} of them tested; the others say where to begin)"
    return f"{asked} takes {least:,} rows at the very least, and there are {len(log):,}{of}; label more rows, or ask for less"


def prospect(log: Log, asked: Request) -> str:
    """What the set may reach, in one line: with labels drawn from ``Bernoulli(sigmoid(score))``, the model's own word."""
    generator = np.random.default_rng(0)
    labels = (np.where(log.drawn, generator.random(log.scores.shape) < expit(log.scores), np.nan) for _ in range(_SIMULATED))
    runs = [test(replace(log, labels=each.astype(np.float32)), asked, "counts_as_bad") for each in labels]
    most = runs[0].labels
    head = f"{len(log):,} rows, at most {most:,} labels; {asked} takes {_floor(asked)}"
    firsts = [(run.rungs[0], len(run.log)) for run in runs]
    found = [(rung.steps, rung.found.cut, rows) for rung, rows in firsts if rung.found.cut is not None]
    if 2 * len(found) < len(runs):
        return f"{head}; if sigmoid(score) is right, these rows will hardly do: see 'bonmini-guard calibrate --plan'"
    used = np.mean([labels_asked(run, asked) for run in runs])
    served, draws = (float(np.mean([getattr(s, name)[cut] / rows for s, cut, rows in found])) for name in ("served", "draws"))
    reach = _reached(served if asked.risk else None, draws)
    return f"{head}; if sigmoid(score) is right, about {used:,.0f} labels may do for a profile that {reach}"


@dataclass(frozen=True)
class Plan:
    """Rows that a promise will take, None if no number would do, and all that in one line, with its floor and its assumptions."""

    rows: int | None
    sentence: str


def plan(log: Log, asked: Request) -> Plan:
    """How many rows and labels a promise takes, found by calibrating: on rows drawn with replacement, with labels by their scores.

    Args:
        log: complete scored rows; where there are labels, they say how labels depend on scores, else sigmoid(score) does.
        asked: the promise, its level and the schedule.
    """
    log.require_scores()
    labels = int(np.isfinite(log.labels).sum())
    what = f"labels depend on scores as {labels:,} of this log do" if labels else "sigmoid(score) is right, so the model's zero is"
    head, assumed = f"{asked} takes {_floor(asked)}", f"assumed: {what}"
    if len(units := one_a_unit(log)) < LEAST_SERVED:
        return Plan(None, f"{head}; {len(units)} are too few to say what others would be like: collect more")
    needed = rows_needed(units, asked)
    if needed is None:
        return Plan(None, f"{head}; {MOST_ROWS:,} rows would not do; {assumed}")
    rows, found = needed
    most, fewer = (
        round(float(np.mean(each))) for each in zip(*((run.labels, labels_asked(run, asked)) for run in found), strict=True)
    )
    served = float(np.mean([run.rungs[0].served / len(run.rungs[0].path) for run in found]))
    then = f", which would then serve about {percent(served)} of requests (more rows serve more)" if asked.risk else ""
    return Plan(rows, f"{head}; about {rows:,} rows with {most:,} labels, {fewer:,} or more with 'label --for'{then}; {assumed}")


def _floor(asked: Request) -> str:
    """What a spotless record needs, in words; an accelerator's losses are tested at half of delta."""
    of = {"bad_among_served": "served answers", "false_acceptance": "rows whose best answer is bad"}
    if asked.risk is None:
        return f"{least_rows(asked.level, asked.share / 2):,} rows at the very least (fewer if it gains by stopping early)"
    return f"{least_rows(asked.level, asked.share):,} {of.get(asked.risk, 'rows')} at the very least"


def _first_not_passed(rung: Rung) -> int:
    return rung.found.first if rung.found.cut is None else rung.found.cut + 1


def _in_vain(path: Paths, at: Integers, asked: Request) -> bool:
    """Whether a test fails even if every label still missing turns out as it would wish: the served good, the others bad."""
    return bool(p_values(counts_at(wished(path, at), at, "counts_as_bad"), asked.risk, asked.level, asked.share)[0] > asked.share)


def _unknown(path: Paths) -> Bools:
    """(R, L) where an answer without label becomes the best so far."""
    return path.changes() & np.isnan(path.good)


def _lacking(path: Paths, at: Integers, asked: Request) -> tuple[Bools, Bools]:
    """(R, L) labels that a test lacks, if loop ``at`` (R,) serves: those that count against it, and those that may outweigh these.

    The latter are bad answers that are not served, or best-of-N's that a good answer was served for.
    """
    unknown, last = _unknown(path), path.holder == path.holder[:, -1:]
    here = np.arange(path.draws.size) == at[:, None]
    if asked.risk is not None:
        return unknown & here, unknown & last & (at == path.draws.size)[:, None]
    other = (here & ~last).any(axis=1, keepdims=True)
    lost = other & (here & (path.good == 0)).any(axis=1, keepdims=True)
    return unknown & ((here & ~last) | (last & lost)), unknown & last & other


def _later(path: Paths, cut: float, asked: Request) -> Bools:
    """(R, L) unlabelled answers that are first served below a threshold; of best-of-N's own no loss can come."""
    later: Bools = _unknown(path) & (path.best < cut)
    return later if asked.risk is not None else later & (path.holder != path.holder[:, -1:])


def _pairs(path: Paths, chosen: Bools) -> Integers:
    """(m, 2) row and candidate, highest scores first."""
    row, loop = np.nonzero(chosen)
    order = np.argsort(-path.best[row, loop], kind="stable")
    return np.column_stack([row, path.holder[row, loop]])[order]


def _certified(outcome: Certificate | NotEnoughEvidence | None) -> str:
    if outcome is None:
        return "nothing is judged yet"
    if isinstance(outcome, NotEnoughEvidence):
        return "nothing is certified yet"
    profile, seen = outcome.profile, outcome.profile.evidence
    served = seen["served"] / seen["counted"] if profile.risk else None
    return f"certified down to {profile.thresholds[0]:.3g}, {_reached(served, seen['mean_draws'])}"


def _hope(rung: Rung, asked: Request, entry: int, now: Bools) -> str:
    """Where further labels may lead, if they are as those so far say: an estimate, which nothing else rests on."""
    path = rung.path
    counts = steps(replace(path, good=np.where(np.isnan(path.good), Labels.fitted(path).chances(path.best), path.good)))
    cut = in_sequence(p_values(counts, asked.risk, asked.level, asked.share), rung.found.first, asked.share).cut
    if cut is None or cut < entry:
        return "the next labels decide whether more can be"
    more = now | (_later(path, counts.cuts[entry], asked) & (path.best >= counts.cuts[cut]))
    if asked.risk == "false_acceptance":
        more = more | _lacking(path, exits(path, float(rung.steps.cuts[cut])), asked)[1]
    rows = len(path)
    reach = f"{counts.served[cut] / rows:.2f}" if asked.risk else f"{counts.draws[cut] / rows:.1f} draws"
    return f"about {int(more.sum()):,} more labels may reach {reach}"


def _reached(served: float | None, draws: float) -> str:
    return f"takes {draws:.1f} draws" if served is None else f"serves {served:.2f}"
