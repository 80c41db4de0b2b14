"""``bonmini-guard zero``: give a reward model that only ranks a zero, from labelled answers."""

from __future__ import annotations

import argparse
import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from bonmini_guard.commands import check_readable, say_left_out, say_torn
from bonmini_guard.commands.terminal import say, table, width
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.logs.odd import Odd
from bonmini_guard.writing import check_output, write_atomically

if TYPE_CHECKING:
    from bonmini_guard.calibration.zero import Choice, Labels

#: Answers whose worth hardly depends on what was asked.
ANCHORS = ("I do not know.", "I cannot help with that.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="folder or id of a reward model, or a scorer spec")
    parser.add_argument("--labels", nargs="+", required=True, metavar="FILE", help="log rows with acceptable = true or false")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="SPEC", help="where to write the spec: a name in .json")
    anchors = parser.add_mutually_exclusive_group()
    anchors.add_argument("--anchor", action="append", metavar="TEXT", help="a fixed answer to compare with; may be repeated")
    anchors.add_argument("--no-anchors", action="store_true", help="fit a shift and a factor only")
    parser.add_argument("--base", metavar="DIR", help="the base of low-rank adapters, if it is not where they say")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")


def run(options: argparse.Namespace) -> int:
    """Fit, say what it is worth, and write the spec."""
    if options.output.suffix != ".json":
        raise ConfigurationError(f"{options.output}: a spec is written as JSON: give a name that ends in .json")
    check_output(options.output, options.labels)
    check_readable(options.labels)
    from bonmini_guard.calibration.scoring_logs import learnt_from
    from bonmini_guard.calibration.zero import choose, labels_of
    from bonmini_guard.logs.rows import rows_in
    from bonmini_guard.reward.declared import load_scorer
    from bonmini_guard.reward.spec import ScorerSpec, seen_from

    spec = ScorerSpec.of(options.model) or ScorerSpec(kind="template", model=options.model)
    spec = spec.model_copy(update={"zero": None, "has_zero": None})
    texts = () if options.no_anchors else tuple(options.anchor or ANCHORS)
    with closing(load_scorer(spec, device=options.device, base=options.base)) as scorer:
        rows = list(rows_in(*options.labels, told=say_torn))
        fresh = [row for row in rows if not learnt_from(row, scorer)]
        say_left_out(Odd(), {"rows that the reward model was trained on, which flatter it": len(rows) - len(fresh)})
        labels = labels_of(fresh, scorer, texts)
    choice = choose(labels)
    said = spec.model_copy(update={"zero": choice.fit.zero(texts)}).model_dump(mode="json", exclude_defaults=True)
    write_atomically(options.output, json.dumps(seen_from(said, options.output.parent), indent=1) + "\n")
    say(_said(labels, choice))
    base = f" --base {shlex.quote(options.base)}" if options.base else ""
    asked = f"--reward-model {shlex.quote(str(options.output))} -o SCORED{base}"
    say(f"{options.output} is written\nnext: bonmini-guard score LOG {asked}")
    return 0


def _said(labels: Labels, choice: Choice) -> str:
    rows = [[form, *(f"{worth[key]:.3f}" for key in ("log_loss", "right_side", "auc"))] for form, worth in choice.table.items()]
    lines = [
        f"{labels.raw.size:,} labelled answers to {int(labels.unit.max()) + 1:,} prompts, {labels.good.mean():.0%} acceptable",
        table(("on held-out prompts", "log loss", "right side of zero", "AUC"), rows, width()),
    ]
    for form, (gain, error) in choice.gain.items():
        lines.append(f"{form}: log loss lower by {gain:.4f}, standard error {error:.4f}")
    lines.append(f"a good answer scores above a bad one: {choice.within:.3f} to the same prompt, {choice.between:.3f} to another")
    why = "more is taken for a gain above a standard error; fixed answers where prompts have offsets"
    return "\n".join([*lines, f"chosen: {choice.form} ({why})"])
