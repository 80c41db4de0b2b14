"""The desk's benchmark, step by step; see the README beside this file."""

from __future__ import annotations

import argparse
from pathlib import Path

from bonmini_guard.demo.desk import ROLES


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.desk", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    draw = steps.add_parser("draw", help="draw for the prompts with the real model; resumable")
    draw.add_argument("folder", type=Path)
    draw.add_argument("roles", nargs="*", metavar="ROLE", help=f"{', '.join(ROLES)} (default: all)")
    steps.add_parser("label", help="the check's verdicts, as rows for train, score and calibrate").add_argument("folder", type=Path)
    steps.add_parser("ship", help="put a trained reward model into the package").add_argument("folder", type=Path)
    steps.add_parser("keep", help="put a folder's draws and scores beside the benchmark").add_argument("folder", type=Path)
    steps.add_parser("evaluate", help="calibrate and replay; writes both profiles and results/desk.json")
    further = steps.add_parser("seeds", help="what further seeds of the reward model give; writes results/desk_seeds.json")
    further.add_argument("scored", nargs="+", type=Path, help="held-out draws as bonmini-guard score wrote them, a file a seed")
    steps.add_parser("walk", help="from a log without labels to a certificate; writes results/desk_walk.json")
    steps.add_parser("record", help="record what bonmini-guard demo --recorded shows: a live run")
    steps.add_parser("picture", help="draw docs/images/demo.svg from the recorded demonstration")
    options = parser.parse_args()
    if options.step == "draw":
        from benchmarks.desk.draw import draw as run

        run(options.roles or list(ROLES), options.folder / "draws")
    elif options.step == "ship":
        from benchmarks.desk.ship import ship

        ship(options.folder)
    elif options.step == "evaluate":
        from benchmarks.desk.evaluate import main as evaluate

        evaluate()
    elif options.step == "seeds":
        from benchmarks.desk.seeds import seeds

        seeds(options.scored)
    elif options.step == "walk":
        from benchmarks.desk.walk import main as walk

        walk()
    elif options.step == "record":
        from benchmarks.desk.record import main as record

        record()
    elif options.step == "picture":
        from benchmarks.desk.picture import main as picture

        picture()
    else:
        from benchmarks.desk import label

        getattr(label, options.step)(options.folder)


if __name__ == "__main__":
    main()
