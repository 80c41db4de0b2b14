"""``bonmini-guard gateway``: guards behind OpenAI's chat protocol."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from bonmini_guard.commands.serve import add_address, limits_of
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.validation import is_loopback

HELP = "serve guards as models behind OpenAI's chat protocol"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("guards", type=Path, metavar="GUARDS", help="guards.toml: upstreams, and the guards on them")
    add_address(parser, "address; any but a loopback one needs keys_env in the file", 8080, 256)


def run(options: argparse.Namespace) -> int:
    """Build the guards and serve until SIGTERM."""
    from bonmini_guard.gateway.app import Gateway
    from bonmini_guard.gateway.config import Configuration
    from bonmini_guard.server.running import run as serve

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    configuration = Configuration(options.guards.absolute())
    if not configuration.keys() and not is_loopback(options.host):
        raise ConfigurationError(
            f"--host {options.host} can be reached from outside: name variables that hold keys in {options.guards}, e.g. "
            'keys_env = ["GATEWAY_KEY"]'
        )
    serve(Gateway(configuration, limits_of(options)), options.host, options.port, options.drain)
    return 0
