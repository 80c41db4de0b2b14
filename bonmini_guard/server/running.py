"""Run the server until it is told to end: then nothing new is taken, and what is in the house is finished."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Iterator

from bonmini_guard.errors import ConfigurationError, needing

with needing("serve"):
    import uvicorn

from bonmini_guard.server.door import Door


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
        yield

    def _end(self) -> None:
        # A second signal does not wait for what is still running.
        self.force_exit = self.should_exit
        self.should_exit = self._served.ending = True


def run(server: Door, host: str, port: int, drain: float) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        server: what answers.
        host: address to listen at.
        port: to listen at; 0 takes a free one, which the log names.
        drain: seconds that running requests get to finish.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    config = uvicorn.Config(
        server.app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain)),
        lifespan="on",
    )
    try:
        listening = config.bind_socket()
        # An answer is written in two pieces, and the second would wait for the client to acknowledge the first: 40 ms.
        # Connections inherit it; asyncio sets it only where the socket names its protocol, which uvicorn's does not.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Uvicorn tells the address before it listens there: whoever comes at once waits, and is not refused.
        listening.listen(config.backlog)
    except (OSError, SystemExit):
        # Uvicorn has told why, and leaves its socket open: not chained, it is closed with the frames that hold it.
        raise ConfigurationError(f"{host}:{port} cannot be listened at; use another --host or --port") from None
    # What was loaded stays: looking through all of it for garbage again and again would hold requests up.
    gc.freeze()
    try:
        asyncio.run(_Server(config, server).serve(sockets=[listening]))
    finally:
        gc.unfreeze()
