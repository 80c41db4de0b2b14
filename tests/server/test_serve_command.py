"""The command: a real process on a real port."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from bonmini_guard.cli import main
from bonmini_guard.server.running import _Server, run
from tests.reward.test_model import CONFIGS, save

BODY = {"messages": [{"role": "user", "content": "the film"}], "candidates": ["good", "dull"]}


@pytest.fixture
def serving(folder):
    """A started server: its process, its address, the lines of its log."""
    command = [sys.executable, "-m", "bonmini_guard.cli", "serve", "--reward-model", str(folder), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"BONMINI_GUARD_TOKEN": "s3cret"})
    lines, address = [], []
    known = threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                address.append(found.group())
                known.set()
        known.set()

    reader = threading.Thread(target=read)
    reader.start()
    known.wait(120)
    assert address, "".join(lines)
    with httpx.Client(base_url=address[0], headers={"Authorization": "Bearer s3cret"}, timeout=60) as client:
        yield process, client, lines
    process.kill()
    process.wait()
    reader.join()
    process.stderr.close()


def inside(client, answers):
    """The thread of a request that the server has taken; where this one stalls, a request may be over before it is seen."""

    def ask():
        with contextlib.suppress(httpx.HTTPError):
            answers.append(client.post("/score", json=BODY | {"candidates": [f"good {number}" for number in range(600)]}))

    for _ in range(100):
        asking = threading.Thread(target=ask)
        asking.start()
        while asking.is_alive():
            if "requests_in_flight 1.0" in client.get("/metrics").text:
                return asking
    raise AssertionError("no request was seen")


def test_it_serves_and_ends_in_order(serving):
    process, client, lines = serving
    assert client.get("/ready").json()["status"] == "ready"
    answers = []
    asking = inside(client, answers)
    process.send_signal(signal.SIGTERM)
    asking.join()
    assert process.wait(60) == 0
    assert answers[-1].status_code == 200
    assert len(answers[-1].json()["scores"]) == 600
    assert any("POST /score 200 600 texts" in line for line in lines)
    assert not any("good" in line for line in lines)


def test_a_second_signal_ends_at_once_and_is_no_error(serving):
    process, client, lines = serving
    asking = inside(client, [])
    process.send_signal(signal.SIGTERM)
    while process.poll() is None and not any("Shutting down" in line for line in lines):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    asking.join()
    assert "Traceback" not in "".join(lines)


async def test_a_second_signal_cancels_what_runs(monkeypatch):
    """For whose connections a server waits from Python 3.12 on, whatever the signals."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", False)
    server, running = _Server(uvicorn.Config(None), SimpleNamespace(ending=False)), asyncio.create_task(asyncio.sleep(60))
    server.server_state.tasks.add(running)
    server._end()
    await asyncio.sleep(0)
    assert (server.force_exit, running.cancelling()) == (False, 0)
    server._end()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_connections_do_not_wait_for_acknowledgements(monkeypatch):
    opened = []
    monkeypatch.setattr("bonmini_guard.server.running.uvicorn.Server.serve", lambda self, sockets: serve(sockets))

    async def serve(sockets):
        opened.extend(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)
        for each in sockets:
            each.close()

    run(SimpleNamespace(app=None, ending=False, renew=None), "127.0.0.1", 0, 1.0)
    assert len(opened) == 1
    assert all(opened)


def test_it_refuses_the_network_without_a_token(monkeypatch, capsys, folder):
    monkeypatch.delenv("BONMINI_GUARD_TOKEN", raising=False)
    assert main(["serve", "--reward-model", str(folder), "--host", "0.0.0.0"]) == 2
    assert "BONMINI_GUARD_TOKEN" in capsys.readouterr().err


def test_a_taken_port_is_told(capsys, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--reward-model", str(folder), "--port", port, "--device", "cpu"]) == 2
    assert "cannot listen on" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--question", "Is it polite?"], ["--any-question"]])
def test_a_model_without_a_zero_answers_no_question(tmp_path, capsys, option):
    ranks = save(tmp_path, CONFIGS["llama"])
    assert main(["serve", "--reward-model", str(ranks), "--device", "cpu", *option]) == 2
    assert "has no zero" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--port", "70000"], ["--max-requests", "0"], ["--drain", "x"]])
def test_wrong_options_are_told(option, folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--reward-model", str(folder), *option])
    assert caught.value.code == 2
    assert option[1] in capsys.readouterr().err
