"""The command line under FSDP on CPUs, which accelerate passes over there: it would keep whole weights in every process.

``LOSSES`` names a file for the losses of the run; ``STOP`` a step at which the processes die once its checkpoint is whole.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState

from bonmini_guard.cli import main
from bonmini_guard.training import run, trainer

state, fit, save = AcceleratorState.__init__, run.fit, trainer.OutsideOptionTrainer._save_checkpoint


def with_fsdp(self: AcceleratorState, *given: Any, fsdp_plugin: Any = None, **named: Any) -> None:
    """What accelerate does for GPUs."""
    state(self, *given, fsdp_plugin=fsdp_plugin, **named)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


def noted(*given: Any, **named: Any) -> list[float]:
    """The losses, also written down."""
    losses = fit(*given, **named)
    Path(os.environ["LOSSES"]).write_text(json.dumps(losses))
    return losses


def stopped(self: Any, *given: Any, **named: Any) -> None:
    """Save and die."""
    save(self, *given, **named)
    PartialState().wait_for_everyone()
    if self.state.global_step == int(os.environ["STOP"]):
        os._exit(9)


if __name__ == "__main__":
    AcceleratorState.__init__ = with_fsdp  # type: ignore[method-assign]
    run.fit = noted
    if os.environ.get("STOP"):
        trainer.OutsideOptionTrainer._save_checkpoint = stopped
    sys.exit(main(sys.argv[1:]))
