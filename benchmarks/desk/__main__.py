"""The desk's benchmark, step by step; see the README beside this file."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from bonmini_guard.demo.desk import ROLES

#: Of each step the function, in which module of this folder, and what it does.
STEPS = {
    "draw": ("draw", "draw", "draw for the prompts with the real model; resumable"),
    "label": ("label", "label", "the check's verdicts, as rows for train, score and calibrate"),
    "ship": ("ship", "ship", "put a trained reward model into the package"),
    "keep": ("label", "keep", "put a folder's draws and scores beside the benchmark"),
    "evaluate": ("evaluate", "main", "calibrate and replay; writes both profiles and results/desk.json"),
    "seeds": ("seeds", "seeds", "what further seeds of the reward model give; writes results/desk_seeds.json"),
    "walk": ("walk", "main", "from a log without labels to a certificate; writes results/desk_walk.json"),
    "record": ("record", "main", "record what bonmini-guard demo --recorded shows: a live run"),
    "picture": ("picture", "main", "draw docs/images/demo.svg from the recorded demonstration"),
}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.desk", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    known = {step: steps.add_parser(step, help=about) for step, (_, _, about) in STEPS.items()}
    for step in ("draw", "label", "ship", "keep"):
        known[step].add_argument("folder", type=Path)
    known["draw"].add_argument("roles", nargs="*", metavar="ROLE", help=f"{', '.join(ROLES)} (default: all)")
    about = "held-out draws as bonmini-guard score wrote them, a file a seed"
    known["seeds"].add_argument("scored", nargs="+", type=Path, help=about)
    given = vars(parser.parse_args())
    module, function, _ = STEPS[given.pop("step")]
    getattr(import_module(f"benchmarks.desk.{module}"), function)(**given)


if __name__ == "__main__":
    main()
