"""``bonmini-guard serve``: serve a reward model over HTTP: our own route, those of TEI and vLLM, and those of decision models."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from bonmini_guard.commands import whole
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.server import TOKEN
from bonmini_guard.validation import is_loopback

if TYPE_CHECKING:
    from bonmini_guard.server.door import Limits

#: Tokens of the longest text for a model that has no limit of its own.
_LONGEST = 32768


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--reward-model", required=True, metavar="SPEC", help="folder or id of the reward model, or a scorer spec")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    parser.add_argument("--max-length", type=whole, help="most tokens of a text (default: the model's limit)")
    parser.add_argument("--batch-tokens", type=whole, help="most tokens of a batch")
    parser.add_argument("--cache-mb", type=whole, help="most memory for prompts that further loops share, in MiB")
    parser.add_argument("--question", help="of /v1/systemone and /v1/decisions (default: is the last answer acceptable?)")
    parser.add_argument("--any-question", action="store_true", help="answer any question there as if it were that one")
    add_address(parser, f"address; any but a loopback one needs a token in {TOKEN}", 8000, 64)


def add_address(parser: argparse.ArgumentParser, about: str, port: int, requests: int) -> None:
    """Declare what every server takes: where it listens, and its limits."""
    parser.add_argument("--host", default="127.0.0.1", help=about)
    parser.add_argument("--port", type=partial(whole, least=0, most=65535), default=port, help=f"0: any free one; default {port}")
    parser.add_argument("--max-body-mb", type=whole, default=8, help="most MiB of one body (default 8)")
    parser.add_argument("--max-requests", type=whole, default=requests, help=f"at once; more get 429 (default {requests})")
    parser.add_argument("--drain", type=whole, default=30, help="seconds to finish what runs, at SIGTERM (default 30)")


def begin(host: str, secured: bool, cure: str) -> None:
    """What every server does first: refuse to be reached from outside without a key (ConfigurationError), and begin its log."""
    if not secured and not is_loopback(host):
        raise ConfigurationError(f"--host {host} can be reached from outside: {cure}")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.captureWarnings(True)
    # One line a request is ours.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def limits_of(options: argparse.Namespace) -> Limits:
    """What a server takes, from the options."""
    from bonmini_guard.server.door import Limits

    body = options.max_body_mb * 2**20
    return Limits(body, options.max_requests, max(8 * body, 64 * 2**20))


def run(options: argparse.Namespace) -> int:
    """Load the model and serve until SIGTERM."""
    # Without the newline that files of secrets end in: a client strips it too.
    token = os.environ.get(TOKEN, "").strip() or None
    begin(options.host, token is not None, f"set a token in the environment as {TOKEN}")
    from bonmini_guard.reward.declared import load_scorer
    from bonmini_guard.server.app import ScoringServer
    from bonmini_guard.server.running import run as serve

    model = load_scorer(
        options.reward_model,
        device=options.device,
        max_length=options.max_length,
        batch_tokens=options.batch_tokens,
        cache_bytes=None if options.cache_mb is None else options.cache_mb * 2**20,
    )
    if getattr(model, "max_length", _LONGEST) is None:
        model.close()
        raise ConfigurationError(f"{options.reward_model} has no limit of its own: give one, e.g. --max-length {_LONGEST}")
    asked = {"question": options.question, "any_question": options.any_question}
    serve(ScoringServer(model, token, limits_of(options), **asked), options.host, options.port, options.drain)
    return 0
