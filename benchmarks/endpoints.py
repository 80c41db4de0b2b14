"""Endpoints beside ours, over one upstream: best of four by the gateway, optillm and its_hub's service, and a dead upstream.

In turns, so that what else the machine does falls on all alike. Each is asked as its own documents say: optillm rates its draws by
asking the upstream again, its_hub's service votes, the gateway asks a reward server. Give the environments that hold them::

    python -m benchmarks.endpoints --optillm .venv-optillm --its-hub .venv-its-hub -o endpoints.json
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.gateway import length
from benchmarks.tables import print_table, write_json
from tests.adapters.loopback import InThread
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.reward_server import RewardServer

#: Seconds of an answer; that an endpoint may take to start; that it may take over a dead upstream.
_ANSWER, _START, _DEAD = 0.2, 400.0, 120.0
_ASKED = [{"role": "user", "content": "q"}]
_FILE = """
[upstreams.plain]
base_url = "{upstream}/v1"
model = "tiny"
[guards.guarded]
upstream = "plain"
reward_model = {{ endpoint = "{scorer}", kind = "bonmini" }}
schedule = [4]
"""


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[float]:
    """A process that answers HTTP at a port; the seconds that it took to."""
    begun = time.monotonic()
    with log.open("w") as file:
        environment = os.environ | {"OPENAI_API_KEY": "k", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > begun + _START:
                    raise SystemExit(f"{command[0]} does not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield time.monotonic() - begun
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def ask(client: httpx.Client, url: str, model: str, patience: float = 60.0) -> tuple[int | str, float, str]:
    """The status (or what went wrong), seconds, and the beginning of the body."""
    begun = time.monotonic()
    try:
        answer = client.post(f"{url}/chat/completions", json={"model": model, "messages": _ASKED}, timeout=patience)
    except httpx.HTTPError as error:
        return type(error).__name__, time.monotonic() - begun, ""
    return answer.status_code, time.monotonic() - begun, answer.text[:300]


def commands(options: argparse.Namespace, folder: Path, upstream: str) -> dict[str, tuple[list[str], int, str]]:
    """By name: how it is started, its port, the model to ask for."""
    ports = [free_port() for _ in range(3)]
    gateway = [sys.executable, "-m", "bonmini_guard.cli", "gateway", str(folder / "guards.toml"), "--port", str(ports[0])]
    found = {"gateway": (gateway, ports[0], "guarded")}
    if options.optillm is not None:
        arguments = ["--approach", "bon", "--best-of-n", "4", "--base-url", f"{upstream}/v1", "--host", "127.0.0.1"]
        found["optillm"] = ([f"{options.optillm}/bin/optillm", *arguments, "--port", str(ports[1])], ports[1], "tiny")
    if options.its_hub is not None:
        found["its_hub"] = ([f"{options.its_hub}/bin/its-iaas", "--port", str(ports[2])], ports[2], "tiny")
    return found


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """What each adds, asks for and says."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        upstream = OpenAIServer()
        alive = stack.enter_context(ExitStack())
        alive.enter_context(InThread(upstream))
        scorer = stack.enter_context(InThread(RewardServer(length)))
        upstream.slow = _ANSWER
        (folder / "guards.toml").write_text(_FILE.format(upstream=upstream.url, scorer=scorer.url))
        models: dict[str, tuple[str, str]] = {"the upstream itself": (f"{upstream.url}/v1", "tiny")}
        for name, (command, port, model) in commands(options, folder, upstream.url).items():
            found[name] = {"started_after": round(stack.enter_context(running(command, port, folder / f"{name}.log")), 1)}
            models[name] = (f"http://127.0.0.1:{port}/v1", model)
            if name == "its_hub":
                about = {"endpoint": f"{upstream.url}/v1", "api_key": "k", "model": "tiny", "budget": 4}
                about |= {"alg": "self-consistency", "regex_patterns": ["(.*)"]}  # the only algorithm of its service
                httpx.post(f"http://127.0.0.1:{port}/configure", json=about, timeout=60).raise_for_status()
        client = stack.enter_context(httpx.Client())
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(options.turns + 1):
            for name, (url, model) in models.items():
                before = len(upstream.requests)
                status, took, said = ask(client, url, model)
                if status != 200:
                    raise SystemExit(f"{name} answered {status}: {said}")
                if turn:  # the first is for warming up
                    seconds[name].append(took)
                found.setdefault(name, {})["requests_upstream"] = len(upstream.requests) - before
        alive.close()
        for name, (url, model) in models.items():
            status, took, said = ask(client, url, model, _DEAD)
            milliseconds = round(1000 * (median(seconds[name]) - _ANSWER), 1)
            found[name] |= {"added_milliseconds": milliseconds, "dead": {"status": status, "seconds": round(took, 2), "body": said}}
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optillm", type=Path, help="environment that holds optillm")
    parser.add_argument("--its-hub", type=Path, help="environment that holds its_hub[iaas]")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    rows = [
        [name, *(about.get(key) for key in ("started_after", "requests_upstream", "added_milliseconds", "dead"))]
        for name, about in found.items()
    ]
    print_table(["endpoint", "started after s", "requests upstream", "added ms (median)", "dead upstream"], rows)
    write_json(
        options.output, {"turns": options.turns, "answer_seconds": _ANSWER, "load_average": os.getloadavg()[0], "found": found}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
