"""An ASGI application on a real socket, in a thread."""

from __future__ import annotations

import socket
import threading

import uvicorn


class Served:
    """``with Served(app) as served``: answers at ``served.url`` until it is told to stop."""

    def __init__(self, app):
        place = socket.create_server(("127.0.0.1", 0))
        self.port = place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        self._thread = threading.Thread(target=self._server.run, args=([place],))
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._server.should_exit = True
        self._thread.join()
