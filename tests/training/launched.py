"""Trainings in processes of their own, forked from one that has imported torch and transformers, which each would take seconds for.

Under FSDP on CPUs, which accelerate passes over there: it would keep whole weights in every process.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils.launch import prepare_multi_gpu_env

from bonmini_guard.cli import main
from bonmini_guard.training import run, trainer

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload([__name__])
state, fit, save = AcceleratorState.__init__, run.fit, trainer.OutsideOptionTrainer._save_checkpoint


def begun(arguments: Sequence[str], said: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """The command line in a process that has begun.

    Args:
        arguments: of the command.
        said: a file for what it writes.
        environment: more of it. ``LOSSES`` names a file for the losses of the run; ``STOP`` the step whose checkpoint, or the next
            one, is the last thing that it writes: it is killed (SIGKILL).
    """
    process = forks.Process(target=_command, args=(list(arguments), said, dict(environment or {})))
    process.start()
    return process


def ended(arguments: Sequence[str], said: Path, launch: Sequence[str], **environment: str) -> list[int | None]:
    """The exit codes of two processes, in the environment in which ``accelerate launch`` with these options would start them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    options, *_ = _validate_launch_command(launch_command_parser().parse_args([*launch, "--num_processes", "2", "main"]))
    given = prepare_multi_gpu_env(options)
    changed = {name: value for name, value in given.items() if os.environ.get(name) != value} | environment
    changed |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [begun(arguments, said, changed | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _command(arguments: list[str], said: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with said.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if "ACCELERATE_USE_FSDP" in os.environ:
        AcceleratorState.__init__ = _with_fsdp  # type: ignore[method-assign]
    if "LOSSES" in os.environ:
        run.fit = _noted
    if "STOP" in os.environ:
        trainer.OutsideOptionTrainer._save_checkpoint = _stopped
    sys.exit(main(arguments))


def _with_fsdp(self: AcceleratorState, *given: Any, fsdp_plugin: Any = None, **named: Any) -> None:
    """What accelerate does for GPUs."""
    state(self, *given, fsdp_plugin=fsdp_plugin, **named)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


def _noted(*given: Any, **named: Any) -> list[float]:
    """The losses, also written down."""
    losses = fit(*given, **named)
    Path(os.environ["LOSSES"]).write_text(json.dumps(losses))
    return losses


def _stopped(self: Any, *given: Any, **named: Any) -> None:
    """Save and be killed, once nobody waits in a barrier any more, which a process that is gone would break."""
    save(self, *given, **named)
    PartialState().wait_for_everyone()
    if self.state.global_step >= int(os.environ["STOP"]):
        here = Path(self.args.output_dir)
        (here / f"stopped-{os.getpid()}").touch()
        while len(list(here.glob("stopped-*"))) < PartialState().num_processes:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
