"""What small seeded logs calibrate to, replay to and show. ``python -m tests.calibration.figures_of_seeds`` writes it anew."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bonmini_guard import GuardProfile
from bonmini_guard.calibration import curves, martingale, on_demand, simulate, zero
from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.drift import find_drift
from bonmini_guard.calibration.evidence import Certificate, consequence, sealed
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.findings import labels_needed, refuted_by_bets
from bonmini_guard.calibration.judging import agreement, judged, moved_certificate
from bonmini_guard.calibration.orders import order_of, split
from bonmini_guard.calibration.prices import Prices, calibrate_costs
from bonmini_guard.calibration.refutation import standing
from bonmini_guard.calibration.relax import relax_guardrail
from bonmini_guard.calibration.replay import rank
from bonmini_guard.calibration.report import build_report
from bonmini_guard.calibration.traces import traces_of_rows
from bonmini_guard.calibration.watch import Watch
from bonmini_guard.logs.rows import Row
from tests.calibration.helpers import rows_of
from tests.calibration.populations import Population
from tests.calibration.recalibrations import CLUSTERED
from tests.calibration.test_relax import cut_short
from tests.calibration.test_zero import world
from tests.calibration.watching import TRAFFIC, guarded, placed

FIGURES = Path(__file__).parent.parent / "data" / "figures_of_seeds.json"
WORLD, TIES, HASTE = Population(), Population(digits=1), Population(haste=-0.4, flattery=0.3)
SHAPE, LONGEST = (2, 2, 4), 16
#: Of evidence: what no log decides, and digests of numbers, whose last digits differ between machines.
_NOT_TOLD = {"created_at", "package_version", "seal", "fingerprints", "sources", "source", "log_digest", "digest"}


def part(log, share=0.5, seed=9):
    """The log with so many of its labels."""
    known = np.random.default_rng(seed).random(log.labels.shape) < share
    return replace(log, labels=np.where(known, log.labels, np.nan).astype(np.float32))


def outcome(found):
    return (
        {"sentence": found.sentence, "profile": found.profile.model_dump(mode="json")}
        if isinstance(found, Certificate)
        else {"why": found.why, "sentence": found.sentence, "evidence": found.evidence}
    )


def guardrail(log, **more):
    return outcome(calibrate_guardrail(log, **{"schedule": SHAPE, "alpha": 0.1} | more))


def accelerator(log, epsilon, **more):
    return outcome(calibrate_accelerator(log, **{"schedule": SHAPE, "epsilon": epsilon} | more))


def profile(population=WORLD, rows=400, **more):
    certified = calibrate_guardrail(population.log(rows, 5), **{"schedule": SHAPE, "alpha": 0.1} | more).profile
    # A watch draws its chances from the whole profile.
    return sealed(certified.model_copy(update={"created_at": datetime(2026, 1, 1, tzinfo=UTC), "package_version": "1"}))


def shown(*arguments, **named):
    """The figures of a report: the data of its page, and the cells of its tables."""
    page = build_report(*arguments, **named)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    tables = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", table)) for table in re.findall(r"<table>.*?</table>", page, re.S)]
    return {"data": data, "tables": tables, "said": re.findall(r'<p class="lead">(.*?)</p>', page, re.S)}


def sliced(log):
    return replace(log, extra={"lang": tuple("abc"[number % 3] for number in range(len(log)))})


def looks():
    certified = profile(TRAFFIC, 300, schedule=(2, 2))
    watch = Watch(certified, false_alarm_rate=0.05, key="lang")
    for week, middle in enumerate((0.0, -0.3, -1.0)):
        rows = guarded(certified, replace(TRAFFIC, middle=middle).log(150, week), 0.5, week, f"{week}-")
        some = [row | {"lang": "ab"[number % 2], "created_at": number} for number, row in enumerate(rows)]
        found = watch.look(traces_of_rows(placed(some), certified, memory=watch.memory, key="lang"))
        yield asdict(found)
    yield json.loads(watch.state().model_dump_json(exclude={"memory", "profile"}))


def drifted(middle, labelled=0.5, risk="served_and_bad", **more):
    certified = profile(TRAFFIC, 300, schedule=(2, 2), risk=risk)
    rows = [
        row | {"lang": "ab"[at % 2]}
        for at, row in enumerate(guarded(certified, replace(TRAFFIC, middle=middle).log(200, 8), labelled))
    ]
    return asdict(find_drift(certified, traces_of_rows(placed(rows), certified, key="lang"), key="lang", **more))


def bets():
    ranks = martingale.Ranks(0.05, [0.1, 0.4, 0.4, 0.9, 1.6], "seed")
    cells = martingale.Ranks(0.05, [0.0, 1.0], "seed", reference=False)
    shares, refuted = martingale.Shares(0.05, 4, 20), martingale.Refutation(0.05)
    for number, value in enumerate(np.random.default_rng(0).normal(1.0, 1.0, 60)):
        ranks.add(float(value), f"r{number}")
        cells.add(float(value), f"r{number}")
        shares.add(bool(value > 0.5))
        refuted.add(bool(value > 1.2), 0.1)
    processes = {"ranks": ranks, "cells": cells, "shares": shares, "refuted": refuted}
    return {name: each.state().model_dump() | {"p": each.p_value} for name, each in processes.items()} | {
        "predicted": martingale.predicted(7, 30),
        "lower": [martingale.lower_sequence(*each) for each in ((7, 30, 0.05), (30, 30, 0.1), (0, 4, 0.1))],
        "payoffs": [martingale.promise_payoffs(bad, 0.2) for bad in (True, False)],
        "chances": martingale.chances("a", "b"),
    }


def consequences():
    log = WORLD.log(200, 6)
    accelerated = calibrate_accelerator(WORLD.log(400, 4), schedule=SHAPE, epsilon=0.05).profile
    return [consequence(each, replay_log(log, each)) for each in (profile(), accelerated)]


def curved():
    log = TIES.log(60, 3)
    rankings, certified = rank(log.scores, log.labels.astype(float), log.counts), profile()
    fixed = curves.fixed_n(rankings, 8, 0.3)
    return {
        "fixed": vars(fixed),
        "difference": curves.paired_difference(rankings, 2, 8),
        "over": curves.over_optimised(rankings, fixed, 8),
        "equal": [curves.smallest_equal_n(fixed, certified, good) for good in (0.2, 0.5, 0.65)],
        "oracle": curves.clairvoyant_draws(rankings, certified),
        "reliability": vars(curves.reliability(log)) | {"error": curves.reliability(log).error},
        "few": vars(curves.reliability(log, 3)),
    }


def zeros():
    labels, _ = world(40, 4, offsets=1.0, seed=2)
    choice = zero.choose(labels, seed=3)
    fits = {form: zero.fit(labels, form) for form in choice.table}
    return {
        "choice": asdict(choice),
        "nearly": asdict(zero.choose(world(60, 4, offsets=0.2, seed=6)[0], seed=3)),
        "fits": {form: (asdict(fit), float(fit.scores(labels).sum())) for form, fit in fits.items()},
        "orders": zero.orders(labels),
        "auc": zero.auc(labels.raw, labels.good),
    }


def judges():
    log, random = WORLD.log(80, 4), np.random.default_rng(0)
    rows = []
    for number, row in enumerate(rows_of(log)):
        for each in row["candidates"]:
            each |= {
                "verdicts": {"j": bool(each["acceptable"]) ^ bool(random.random() < 0.2)},
                "text": "x" * int(random.integers(1, 9)),
            }
        rows.append(Row({**row, "topic": "ab"[number % 2]}, f"test:{number}"))
    return {"agreement": agreement(judged(rows, "j", "topic")), "moved": moved_certificate(rows, "j", 0.1, 0.1)}


def demanded(risk, level):
    asked, full = on_demand.request(risk, level, 0.1, SHAPE), WORLD.log(150, 6)
    log = on_demand.fixed_set(full, 120)
    first = on_demand.demand(log, asked)
    known = log.labels.copy()
    known[tuple(first.wanted.T)] = full.labels[: len(log)][tuple(first.wanted.T)] if len(log) == len(full) else 1.0
    later = on_demand.demand(replace(log, labels=known), asked)
    return {
        "first": len(first.wanted),
        "sum": int(first.wanted.sum()),
        "later": later.wanted,
        "batch": on_demand.batch_of(log, first.wanted),
        "prospect": on_demand.prospect(log, asked),
        "few": on_demand.too_few(log, asked),
        "plan": asdict(on_demand.plan(full, asked)),
    }


def edges():
    return {
        "least": [simulate.least_rows(*each) for each in ((0.05, 0.1), (0.01, 0.05))],
        "needed": [labels_needed(0.1, actual, refuted_by_bets(0.1, 0.01)) for actual in (0.12, 0.3, 0.9)],
        "order": order_of(WORLD.log(4, 1)),
        "split": split(WORLD.log(20, 1), 0.25, 3),
        "standing": [standing(replace(WORLD, middle=middle).log(300, 7), profile()) for middle in (0.0, -2.0)],
    }


CASES: dict[str, Callable[[], Any]] = {
    **{
        f"guardrail, {risk}": lambda risk=risk: guardrail(WORLD.log(400, 1), risk=risk, alpha=0.15)
        for risk in ("served_and_bad", "bad_among_served", "false_acceptance")
    },
    "guardrail, ties": lambda: guardrail(TIES.log(300, 2)),
    "guardrail, offsets": lambda: guardrail(WORLD.log(300, 2), offsets=(0.5, 0.2, 0.0), calibrations=3, seed=2),
    "guardrail, another seed": lambda: guardrail(TIES.log(300, 2), seed=5),
    "guardrail, some labels": lambda: guardrail(part(WORLD.log(400, 3))),
    "guardrail, groups": lambda: guardrail(replace(WORLD, per_group=3).log(900, 3)),
    "guardrail, failing": lambda: guardrail(replace(WORLD, failing=0.3).log(300, 3)),
    "guardrail, too few": lambda: guardrail(WORLD.log(30, 3), alpha=0.03),
    "accelerator": lambda: accelerator(WORLD.log(400, 4), 0.04),
    "accelerator, no labels": lambda: accelerator(part(WORLD.log(300, 4), 0.0), 0.05),
    "accelerator, too few": lambda: accelerator(WORLD.log(40, 4), 0.005),
    "eager": lambda: guardrail(HASTE.log(300, 4), exit="eager"),
    "rolling": lambda: accelerator(HASTE.log(400, 4), 0.05, schedule=(1,) * 8, exit="rolling", in_flight=(1, 2, 8)),
    "search": lambda: accelerator(HASTE.log(1300, 4), 0.05, schedule=(2,) * 4, search=True, cost="seconds", max_p95=9.0),
    "search, guardrail": lambda: guardrail(WORLD.log(1200, 4), schedule=(4,) * 2, search=True, wait=2.0, price=0.5),
    "costs": lambda: outcome(calibrate_costs(WORLD.log(500, 2), schedule=(4, 4), prices=Prices(bad=5.0, abstain=1.0, draw=0.01))),
    "relaxed": lambda: outcome(relax_guardrail(cut_short(CLUSTERED.log(300, 2), (2.0, 2.1, 2.2, 2.3), explored=0.1), alpha=0.1)),
    "replayed": lambda: replay_log(TIES.log(80, 6), profile()),
    "replayed, one order": lambda: replay_log(part(WORLD.log(200, 6)), profile()),
    "replayed, accelerator": lambda: replay_log(
        part(WORLD.log(200, 6)), calibrate_accelerator(WORLD.log(400, 4), schedule=SHAPE, epsilon=0.05).profile
    ),
    "replayed, hopeless": lambda: replay_log(
        WORLD.log(80, 6), GuardProfile(mode="guardrail", schedule=SHAPE, thresholds=(0.9, 0.7, 0.5), hopeless=(-0.5, -0.2, None))
    ),
    "replayed, no labels": lambda: replay_log(part(WORLD.log(80, 6), 0.0), profile()),
    "consequences": consequences,
    "report": lambda: shown(sliced(WORLD.log(120, 6)), profile(), "lang"),
    "report, two": lambda: shown(
        TIES.log(100, 7),
        profile(risk="bad_among_served", alpha=0.2),
        against=GuardProfile(mode="accelerator", schedule=(4, 4), thresholds=(1.0, 0.5)),
    ),
    "report, some labels": lambda: shown(sliced(part(WORLD.log(120, 6))), profile(), "lang"),
    "drift, none": lambda: drifted(0.0),
    "drift": lambda: drifted(-0.8, looks=3, false_alarm_rate=0.05),
    "drift, few labels": lambda: drifted(-0.3, labelled=0.05, risk="bad_among_served"),
    "drift, false acceptance": lambda: drifted(-0.3, labelled=0.05, risk="false_acceptance"),
    "watch": lambda: list(looks()),
    "bets": bets,
    "curves": curved,
    "zero": zeros,
    "judges": judges,
    "edges": edges,
    "no number of rows": lambda: on_demand.plan(WORLD.log(50, 6), on_demand.request("served_and_bad", 1e-5, 0.1, (2, 2))),
    **{
        f"on demand, {risk}": lambda risk=risk, level=level: demanded(risk, level)
        for risk, level in (("served_and_bad", 0.1), ("bad_among_served", 0.2), ("false_acceptance", 0.3), ("accelerator", 0.1))
    },
}


def plain(value: Any) -> Any:
    """As JSON writes it: numbers to nine digits, of long lists the length, the sum, and entries here and there."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items() if key not in _NOT_TOLD}
    if isinstance(value, list | tuple):
        if len(value) > LONGEST:
            told = [each for each in value if isinstance(each, int | float) and math.isfinite(each)]
            value = [len(value), math.fsum(told), *value[:: len(value) // 6]]
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else str(value)
    return value


if __name__ == "__main__":
    FIGURES.write_text(json.dumps({name: plain(case()) for name, case in CASES.items()}, indent=1, sort_keys=True) + "\n")
