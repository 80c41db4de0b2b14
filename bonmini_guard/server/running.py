"""Run the server until it is told to end: then nothing new is taken, and what is in the house is finished."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

from bonmini_guard.errors import ConfigurationError, needing

with needing("serve"):
    import uvicorn

from bonmini_guard.server.door import Door

logger = logging.getLogger("bonmini_guard.server")
#: Connections that wait to be taken up, at most.
_BACKLOG = 2048


class _Server(uvicorn.Server):
    """Uvicorn, but an orderly end is a success, and ``/ready`` knows about it."""

    def __init__(self, config: uvicorn.Config, served: Door) -> None:
        super().__init__(config)
        self._served = served

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        if self._served.renew is not None:
            loop.add_signal_handler(signal.SIGHUP, self._served.renew)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        yield

    def _end(self) -> None:
        # A second signal does not wait for what is still running; that it is cut off is no error, with a traceback for each task.
        self.force_exit = logging.getLogger("uvicorn.error").disabled = self.should_exit
        if self.force_exit:  # from Python 3.12 on, their connections would be waited for all the same
            for task in self.server_state.tasks:
                task.cancel()
        self.should_exit = self._served.ending = True


def run(server: Door, host: str, port: int, drain: float) -> None:
    """Serve until SIGTERM or SIGINT; running requests then get ``drain`` seconds to finish. Errors are those of :func:`listen`."""
    listening = listen(host, port)
    settings: dict[str, Any] = {"access_log": False, "log_config": None, "server_header": False, "lifespan": "on"}
    config = uvicorn.Config(server.app, timeout_graceful_shutdown=max(1, round(drain)), **settings)
    logger.info("serving at %s", address(listening))
    # What was loaded stays: looking through all of it for garbage again and again would hold requests up.
    gc.freeze()
    try:
        asyncio.run(_Server(config, server).serve(sockets=[listening]))
    finally:
        gc.unfreeze()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that the address is known and free before anything is begun; port 0 takes a free one.

    Raises:
        ConfigurationError: it cannot be had.
    """
    family, both = (socket.AF_INET6, socket.has_dualstack_ipv6()) if ":" in host else (socket.AF_INET, False)
    try:
        if port > 65535:  # which create_server finds out with a socket open
            raise OverflowError("there is no such port")
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"cannot listen on {host} port {port} ({error}); give another --host or --port") from error
    # An answer is written in two pieces, and the second would wait for the client to acknowledge the first: 40 ms.
    # Connections inherit it; asyncio sets it only where the socket names its protocol, which these do not.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address(listening: socket.socket) -> str:
    """Its address, without a slash."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
