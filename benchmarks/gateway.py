"""The gateway under load: its own time, many streams, twice what it lets in, an upstream that dies; a broken promise exits 1.

The upstream is a process of its own that answers after a second; the first draw passes. Times are those of the gateway's own log,
less that second: what the upstream is late by counts against the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.loopback import resident, started
from benchmarks.tables import arguments, percentile, print_table, write_json
from tests.adapters.loopback import LoopbackServer
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.reward_server import RewardServer

#: Seconds of an answer; of an outage.
_ANSWER, _OUTAGE = 1.0, 3.0
_BODY = {"model": "guarded", "messages": [{"role": "user", "content": "q"}]}
_FILE = """
[upstreams.plain]
base_url = "{upstream}"
model = "tiny"
api_key_env = "UPSTREAM_KEY"
max_concurrency = 4096
[guards.guarded]
upstream = "plain"
reward_model = {{ endpoint = "{scorer}", kind = "bonmini", max_concurrency = 256 }}
schedule = [1, 3]
"""


def length(asked: Any) -> float:
    """A score of what was asked for: all of them pass."""
    return 2.0 + len(str(asked[1])) % 7 / 100


class House:
    """A gateway between its servers."""

    def __init__(self, folder: Path, stack: ExitStack, requests: int) -> None:
        self._folder, self._stack = folder, stack
        self.upstream, upstream = self.start("upstream")
        _, scorer = self.start("scorer")
        (folder / "guards.toml").write_text(_FILE.format(upstream=upstream, scorer=scorer))
        self.port = int(upstream.rpartition(":")[2])
        self.log = self._folder / "gateway.log"
        command = ["bonmini_guard.cli", "gateway", str(folder / "guards.toml"), "--port", "0", "--max-requests", str(requests)]
        self.gateway, self.url = self._stack.enter_context(started(["-m", *command], self._file("gateway.log"), UPSTREAM_KEY="k"))

    def start(self, kind: str, port: int = 0) -> tuple[subprocess.Popen[str], str]:
        """A server of ours, and its address."""
        command = ["benchmarks.gateway", "--serve", kind, "--port", str(port)]
        return self._stack.enter_context(started(["-m", *command], self._file(f"{kind}-{port}.log")))

    def work(self) -> float:
        """Seconds of computing that its process has used; on a busy machine they say more than waiting does."""
        fields = Path(f"/proc/{self.gateway.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def seconds(self) -> list[float]:
        """What its log says of answers."""
        noted = [json.loads(line.partition("INFO ")[2]) for line in self.log.read_text().splitlines() if '"decision"' in line]
        return [note["seconds"] for note in noted if note["status"] == 200]

    def _file(self, name: str) -> Any:
        return self._stack.enter_context((self._folder / name).open("w"))


class Line:
    """A connection to the gateway, and as little of a client as will do: what a whole one costs would be taken from the gateway."""

    def __init__(self, url: str, **more: Any) -> None:
        self._address = url.removeprefix("http://").split(":")
        body = json.dumps(_BODY | more).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        self._asked = head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> tuple[int | str, str]:
        """The status, and what is odd about the answer."""
        try:
            head, said = await asyncio.wait_for(self._answer(), 120)
        except (OSError, EOFError, TimeoutError) as error:
            self._open = None
            return type(error).__name__, ""
        status = int(head.split()[1])
        # A stream that had to wait tells of an outage in its last event.
        if status == 200 and b'"type": "outage"' in said:
            return "outage in a stream", ""
        late = status in (429, 503) and b"retry-after" not in head.lower()
        return status, "not decided" if status == 200 and b'"accepted"' not in said else "no retry-after" if late else ""

    async def _answer(self) -> tuple[bytes, bytes]:
        if self._open is None:
            self._open = await asyncio.open_connection(self._address[0], int(self._address[1]))
        reader, writer = self._open
        writer.write(self._asked)
        head = await reader.readuntil(b"\r\n\r\n")
        if (length := re.search(rb"content-length: (\d+)", head)) is not None:
            return head, await reader.readexactly(int(length[1]))
        return head, await reader.readuntil(b"\r\n0\r\n\r\n")  # in chunks


async def crowd(
    url: str, people: int, seconds: float, within: float = 0.0, **more: Any
) -> tuple[Counter[Any], Counter[str], list[tuple[float, Any]]]:
    """So many clients, each asking again and again: statuses, oddities, (time, status) of each.

    Args:
        url: of the gateway.
        people: clients.
        seconds: that they go on for.
        within: seconds over which they begin; 0 has all ask at once.
        more: of what they ask.
    """
    statuses: Counter[Any] = Counter()
    odd: Counter[str] = Counter()
    events: list[tuple[float, Any]] = []
    end = time.monotonic() + within + seconds

    async def person(number: int) -> None:
        await asyncio.sleep(within * number / people)
        line = Line(url, **more)
        while True:
            status, what = await line.ask()
            statuses[status] += 1
            odd.update([what] if what else [])
            events.append((time.monotonic(), status))
            if time.monotonic() >= end:
                return
            if status != 200:
                await asyncio.sleep(0.2)

    await asyncio.gather(*map(person, range(people)))
    return statuses, odd, events


async def outage(house: House, people: int) -> dict[str, Any]:
    """The upstream killed and started again under load."""
    asking = asyncio.create_task(crowd(house.url, people, 4 * _OUTAGE + 12))
    await asyncio.sleep(_OUTAGE)
    house.upstream.kill()
    await asyncio.sleep(_OUTAGE)
    back = time.monotonic()
    await asyncio.to_thread(house.start, "upstream", house.port)
    statuses, odd, events = await asking
    good = [at - back - _ANSWER for at, status in events if status == 200 and at > back + _ANSWER]
    return {"statuses": dict(statuses), "odd": dict(odd), "recovered_after": min(good, default=None)}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it."""
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        house = House(folder, stack, max(options.in_flight, options.streams) + 8)
        asyncio.run(crowd(house.url, options.in_flight, 0.0, _ANSWER))
        before, work = len(house.seconds()), house.work()
        statuses, odd, _ = asyncio.run(crowd(house.url, options.in_flight, options.seconds, _ANSWER))
        added = [1000 * (seconds - _ANSWER) for seconds in house.seconds()[before:]]
        shares = {f"p{share}": round(percentile(added, share / 100), 1) for share in (50, 99)}
        shares["computing_each"] = round(1000 * (house.work() - work) / max(1, len(added)), 2)
        about = {"in_flight": options.in_flight, "answers": len(added), "load_average": round(os.getloadavg()[0], 1)}
        results["own_milliseconds"] = {**about, **shares, "statuses": dict(statuses)}
        memory = resident(house.gateway.pid)
        statuses, more, _ = asyncio.run(crowd(house.url, options.streams, 0.0, stream=True))
        grown = round(resident(house.gateway.pid) - memory, 1)
        results["streams"] = {"at_once": options.streams, "statuses": dict(statuses), "MiB_more": grown}
        results["outage"] = asyncio.run(outage(house, 16))
        results["odd"] = dict(odd + more)
    with ExitStack() as stack:
        (folder / "full").mkdir()
        house = House(folder / "full", stack, options.in_flight // 2)
        statuses, odd, _ = asyncio.run(crowd(house.url, options.in_flight, options.seconds))
        results["overload"] = {"let_in": options.in_flight // 2, "clients": options.in_flight, "statuses": dict(statuses)}
        results["odd"] |= dict(odd)
    return results


def broken(results: dict[str, Any]) -> list[str]:
    """Promises that do not hold."""
    allowed = {"own_milliseconds": {200}, "streams": {200}, "overload": {200, 429}, "outage": {200, 429, 503}}
    found = [
        f"{name}: {results[name]['statuses']}" for name, statuses in allowed.items() if set(results[name]["statuses"]) - statuses
    ]
    if results["own_milliseconds"]["p99"] > 25:
        found.append(f"the gateway's own time: p99 {results['own_milliseconds']['p99']:.0f} ms, promised 25 on 2 free cores")
    if (after := results["outage"]["recovered_after"]) is None or after > 15:
        found.append(f"recovered after {after} s, promised within the breaker's 10 and what it takes to notice")
    return found + [f"{number} answers: {what}" for what, number in {**results["odd"], **results["outage"]["odd"]}.items()]


def main() -> int:
    """Measure, print, and say what is broken."""
    parser = arguments(__doc__, in_flight=100, seconds=10.0, streams=1000)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--serve", choices=("upstream", "scorer"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, options.port))
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    print_table(["what", "found"], [[name, json.dumps(found)] for name, found in results.items()])
    write_json(options.output, results)
    for promise in broken(results):
        print("BROKEN:", promise)
    return bool(broken(results))


async def serve(kind: str, port: int) -> None:
    """Serve until killed."""
    server: LoopbackServer = OpenAIServer() if kind == "upstream" else RewardServer(length)
    server.slow, server.port = (_ANSWER if kind == "upstream" else 0.0), port
    async with server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
