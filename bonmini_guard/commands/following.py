"""``drift --follow``: promise, drift, reasons, draws and money saved, as the traces grow."""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonmini_guard.calibration.traces import Seen, traces_of_rows
from bonmini_guard.calibration.watch import REMEMBERED
from bonmini_guard.commands.terminal import say, width
from bonmini_guard.errors import InputError
from bonmini_guard.logs.odd import as_input
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.trace_files import trace_files

if TYPE_CHECKING:
    from rich.table import Table

    from bonmini_guard.calibration.findings import Drift, Finding
    from bonmini_guard.calibration.watch import Watch
    from bonmini_guard.policy.profile import GuardProfile

#: What a row of the view is called, what it says, and its style.
Shown = tuple[str, str, str]
GOOD, BAD, QUIET = "green", "bold red", "dim"


class Tail:
    """The rows of a file that grows: at each look, those whose lines ended since the last one.

    The file is held open, so that the last rows of one that is put aside are not missed.

    Args:
        path: JSON lines, not packed; it need not exist yet, and may be replaced by another.
    """

    def __init__(self, path: str) -> None:
        self._path, self._file, self._stream, self._line = path, RowFile(path), io.FileIO(os.devnull), 1

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(place, row) of what is new; InputError if it cannot be read, or a line is not one JSON object."""
        try:
            now = os.stat(self._path)
            yield from self._ended()
            if not os.path.samestat(now, os.fstat(self._stream.fileno())) or now.st_size < self._stream.tell():
                for path in self._next():
                    stream = io.FileIO(path)
                    self.close()
                    self._file, self._stream, self._line = RowFile(path), stream, 1
                    yield from self._ended()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read ({error.strerror}); check the path") from error

    def _next(self) -> list[Path]:
        """What was put aside after the file that was read last, and the one in its place."""
        files = trace_files(self._path)
        held = os.fstat(self._stream.fileno())
        known = [at for at, file in enumerate(files[:-1]) if os.path.samestat(file.stat(), held)]
        return files[known[0] + 1 :] if known else files[-1:]

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    def _ended(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        begin, rest = self._stream.tell(), self._stream.readall()
        data = rest[: rest.rfind(b"\n") + 1]
        self._stream.seek(begin + len(data))
        first, self._line = self._line, self._line + data.count(b"\n")
        yield from self._file.rows_of(first, io.BytesIO(data))


@dataclass
class Tally:
    """What the guarded requests came to.

    Attributes:
        prices: of a million tokens read, and written.
        reasons: (decision, reason), to requests.
    """

    prices: tuple[float, float]
    met: Seen = field(default_factory=lambda: Seen(REMEMBERED))
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    draws: int = 0
    cost: float = 0.0

    def through(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The rows, each counted on its way unless it was before or no guard wrote it."""
        for place, row in rows:
            if row.get("decision") is not None and (name := str(row.get("id"))) not in self.met:
                self.met.add(name)
                with as_input(f"{place}: is no row of a guard"):
                    self._count(row)
            yield place, row

    def _count(self, row: Mapping[str, Any]) -> None:
        self.reasons[str(row["decision"]), str(row.get("reason"))] += 1
        self.draws += int(row.get("draws") or 0)
        usage = row.get("usage") or {}
        tokens = (float(usage.get(key) or 0) for key in ("input_tokens", "output_tokens"))
        self.cost += sum(number * price / 1e6 for number, price in zip(tokens, self.prices, strict=True))


def follow(
    paths: Sequence[str],
    profile: GuardProfile,
    watch: Watch,
    also: Sequence[Finding],
    *,
    prices: tuple[float, float],
    every: float,
) -> Drift:
    """Look at files of traces again and again (``every`` so many seconds), until Ctrl-C; what the last look said.

    The watch's false-alarm rate holds for any number of looks; prices are of a million tokens read, and written.
    """
    tally = Tally(prices)

    def look() -> Drift:
        counted = tally.through(pair for tail in tails for pair in tail.rows())
        return watch.look(traces_of_rows(counted, profile, memory=watch.memory, key=watch.key), also)

    with ExitStack() as stack:
        tails = [stack.enter_context(closing(Tail(path))) for path in paths]
        drift = look()
        try:
            with _screen() as show:
                while True:
                    show(view(drift, tally, profile))
                    time.sleep(every)
                    drift = look()
        except (KeyboardInterrupt, SystemExit):  # as SIGTERM ends a command
            return drift


@contextmanager
def _screen() -> Iterator[Callable[[list[Shown]], None]]:
    """Shows a view over the last one on a terminal; in a pipe, prints each that differs."""
    if width() is None:
        said: list[str] = []

        def printed(rows: list[Shown]) -> None:
            text = "\n".join(f"{name}: {what}" if name else f"  {what}" for name, what, _ in rows)
            if [text] != said:
                said[:] = [text]
                say(f"{text}\n")

        yield printed
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield lambda rows: live.update(table(rows), refresh=True)


def table(rows: Sequence[Shown]) -> Table:
    """The view for a terminal of any width."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, what, style in rows:
        grid.add_row(name, Text(what, style=style))
    return grid


def view(drift: Drift, tally: Tally, profile: GuardProfile) -> list[Shown]:
    """The promise, what drift says, reasons, draws, money."""
    requests = sum(tally.reasons.values())
    found = f"FOUND in {drift.traces:,} requests: {drift.todo}"
    verdict = found if drift.drift else f"none found in {drift.traces:,} requests ({drift.holds_for})"
    rows: list[Shown] = [_promise(drift, profile), ("drift", verdict, BAD if drift.drift else GOOD)]
    others = sorted((each for each in drift.findings if each.test != "labels"), key=lambda each: not each.found)
    rows += [("", str(each), BAD if each.found else QUIET) for each in others]
    for (decision, reason), number in tally.reasons.most_common():
        name = "" if any(name == "requests" for name, _, _ in rows) else "requests"
        rows.append((name, f"{number / requests:.1%}: {decision}, {reason} ({number:,})", ""))
    budget = requests * sum(profile.schedule)
    if budget:
        each, saved = tally.draws / requests, max(0, budget - tally.draws)
        rows.append(("draws", f"{each:.2f} a request of {sum(profile.schedule)}; {saved:,} saved ({saved / budget:.0%})", ""))
        if tally.cost and tally.draws:
            rows.append(("money", f"{tally.cost:,.4g} spent, about {tally.cost / tally.draws * saved:,.4g} saved", ""))
    return rows


def _promise(drift: Drift, profile: GuardProfile) -> Shown:
    """The promise, and what the labels among the traces say of it."""
    tested = next((finding for finding in drift.findings if finding.test == "labels"), None)
    if profile.delta is None or (profile.alpha is None and profile.epsilon is None):
        return "promise", "none: this profile is not certified", QUIET
    if tested is None:
        return "promise", f"a quality at most {profile.epsilon:g} below best-of-{sum(profile.schedule)}; traces cannot test it", ""
    wanted = f"; {drift.labels_wanted.number:,} more labels would tell" if drift.labels_wanted else ""
    return "promise", f"{'REFUTED' if tested.found else 'not refuted'}: {tested.what}{wanted}", BAD if tested.found else GOOD
