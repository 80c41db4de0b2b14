"""Do annotators agree? Krippendorff's alpha over the items that several of them judged."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import fmean
from typing import Any

import numpy as np

from bonmini_guard.errors import needing
from bonmini_guard.labelling.events import Ledger

with needing("label"):
    import krippendorff


def agreement(ledger: Ledger) -> dict[str, Any]:
    """Figures of agreement over the judgements that stand.

    ``alpha`` is Krippendorff's alpha for nominal values (first answer, second answer, none): 1 is perfect agreement, 0 what chance
    would give. ``alpha_acceptable`` is alpha of "none" against anything else, which is what decides about the zero.
    ``agreeing_pairs`` is the share of pairs of annotators, averaged over items, that said the same; unlike alpha it is not
    corrected for chance. All three are None where no item was judged twice, and alpha also where everybody always said the
    same thing.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), computed by the ``krippendorff`` library.
    """
    by_item = defaultdict[str, list[Any]](list)
    for event in ledger.judgements():
        chosen = event["chosen"]
        by_item[event["item"]].append("none" if chosen == "none" else str(event["candidates"].index(chosen)))
    several = [said for said in by_item.values() if len(said) > 1]
    by_name = {name: [event["chosen"] for event in ledger.labels(name).values()] for name in ledger.annotators}
    pairs = [sum(count * (count - 1) for count in Counter(said).values()) / (len(said) * (len(said) - 1)) for said in several]
    return {
        "annotators": {
            name: {"labels": len(said), "none": round(said.count("none") / len(said), 6)} for name, said in by_name.items()
        },
        "items": len(by_item),
        "items_judged_by_several": len(several),
        "alpha": _alpha(several),
        "alpha_acceptable": _alpha([[value != "none" for value in said] for said in several]),
        "agreeing_pairs": round(fmean(pairs), 6) if pairs else None,
    }


def describe(figures: dict[str, Any]) -> str:
    """The figures for a reader."""
    lines = []
    for name, own in figures["annotators"].items():
        lines.append(f"{name}: {own['labels']:,} labels, {100 * own['none']:.0f} % neither or rejected")
    lines.append(f"items: {figures['items']:,}, judged by several: {figures['items_judged_by_several']:,}")
    if figures["items_judged_by_several"]:
        lines.append(f"Krippendorff's alpha: {_said(figures['alpha'])}; acceptable or not: {_said(figures['alpha_acceptable'])}")
        lines.append(f"pairs of annotators who said the same: {100 * figures['agreeing_pairs']:.0f} %")
    else:
        lines.append("no item was judged by several annotators, so there is no agreement to measure")
    return "\n".join(lines)


def _said(alpha: float | None) -> str:
    return "undefined (everybody always said the same)" if alpha is None else f"{alpha:.3f}"


def _alpha(units: list[list[Any]]) -> float | None:
    values = sorted({value for unit in units for value in unit})
    if len(values) < 2:
        return None
    counts = np.array([[unit.count(value) for value in values] for unit in units])
    return round(float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")), 6)
