"""``bonmini-guard gateway``: serve guards as models behind OpenAI's chat protocol."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from bonmini_guard.commands.serve import add_address, begin, limits_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("guards", type=Path, metavar="GUARDS", help="guards.toml: upstreams, and the guards on them")
    add_address(parser, "address; any but a loopback one needs keys_env in the file", 8080, 256)


def run(options: argparse.Namespace) -> int:
    """Build the guards and serve until SIGTERM."""
    from bonmini_guard.gateway.app import Gateway
    from bonmini_guard.gateway.config import Configuration
    from bonmini_guard.server.running import run as serve

    # One that comes while models load waits until the server has a way to take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    configuration = Configuration(options.guards.absolute())
    cure = f'name variables that hold keys in {options.guards}, e.g. keys_env = ["GATEWAY_KEY"]'
    begin(options.host, bool(configuration.keys), cure)
    serve(Gateway(configuration, limits_of(options)), options.host, options.port, options.drain)
    return 0
