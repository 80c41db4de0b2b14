"""Real servers on the loopback, started for a test and stopped after it, on the desk's language model."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from bonmini_guard.demo import room

#: The interpreter of the server's own environment; the make targets set it.
PYTHON = os.environ.get("LIVE_PYTHON")
START_SECONDS = 900


def python() -> str:
    """The server's interpreter; skips the test where there is none."""
    if not PYTHON:
        pytest.skip("set LIVE_PYTHON to the interpreter of the server's environment, or use the make target")
    return PYTHON


def language_model(folder: Path) -> Path:
    """SmolLM2 as a chat server can serve it: links to the converted checkpoint."""
    folder.mkdir()
    for file in room.language_model().iterdir():
        (folder / file.name).symlink_to(file)
    # Some servers sample only where the model says so, whatever the request's temperature, and refuse a request's top_k.
    generation = json.loads((folder / "generation_config.json").read_text()) | {"do_sample": True, "top_k": 50}
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@contextlib.contextmanager
def running(arguments: Sequence[str], port: int, health: str, log: Path, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """The base URL of a server while it runs.

    Args:
        arguments: what the interpreter is started with.
        port: where it listens.
        health: a path that answers 200 once it is up.
        log: where its output goes.
        env: more environment variables.
    """
    with log.open("wb") as out:
        several = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **(env or {})}
        process = subprocess.Popen([python(), *arguments], stdout=out, stderr=subprocess.STDOUT, env=several, cwd=log.parent)
        try:
            _wait_until_up(process, f"http://127.0.0.1:{port}{health}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not come up:\n{log.read_text(errors='replace')[-4000:]}")
