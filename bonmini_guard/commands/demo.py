"""``bonmini-guard demo``: watch real models draw, score, exit early and refuse. Offline, or against any server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bonmini_guard.demo.servers import REWARD_KINDS, Servers
from bonmini_guard.errors import InputError, MissingExtraError
from bonmini_guard.writing import check_output

HELP = "watch a guarded answer, offline, on the bundled models, next to plain best-of-N"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--prompt", help="the beginning of a film review, to be guarded in both configurations")
    parser.add_argument("--seed", type=int, default=0, help="repeats the same draws (default 0)")
    parser.add_argument("--svg", metavar="FILE", help="save what was shown as a picture")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with one entry for each request, and nothing else"
    )
    servers = parser.add_argument_group("servers", "instead of the bundled models; keys come from the environment")
    servers.add_argument("--base-url", metavar="URL", help="draw from a server that speaks OpenAI's protocol")
    servers.add_argument("--model", metavar="NAME", help="the model to ask it for (default: its only one)")
    servers.add_argument("--reward-url", metavar="URL", help="score on a reward server")
    servers.add_argument("--reward-kind", choices=REWARD_KINDS, help="what the reward server is")
    servers.add_argument(
        "--reward-tokenizer", metavar="DIR", help="its model's tokenizer (default: that of the bundled reward model)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the requests and show them."""
    if options.prompt is not None and not options.prompt.strip():
        raise InputError("--prompt is empty: pass the beginning of a film review")
    if options.svg is not None:
        check_output(Path(options.svg))
    servers = Servers(options.base_url, options.model, options.reward_url, options.reward_kind, options.reward_tokenizer)
    try:
        from bonmini_guard.demo.run import Demonstration, requests
        from bonmini_guard.demo.show import Silent, Stage
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "local") from error
    stage = Silent() if options.json else Stage(calibrated=not servers.any)
    with stage:
        stage.loading()
        demonstration = Demonstration(options.seed, servers)
        entries = {name: demonstration.conduct(request, stage) for name, request in requests(options.prompt).items()}
        stage.summary(entries)
    if options.svg is not None:
        stage.save(options.svg)
    if options.json:
        print(json.dumps(entries, indent=2))
    return 0
