"""What the demonstration looks like in a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bonmini_guard.demo.run import DemoRequest
from bonmini_guard.policy import Decision, State
from bonmini_guard.profile import GuardProfile
from bonmini_guard.result import sigmoid
from bonmini_guard.writing import write_atomically

#: Scores outside of this range are drawn at its ends.
LOW, HIGH, WIDTH = -6.0, 6.0, 49


class Silent(AbstractContextManager["Silent"]):
    """Shows nothing."""

    def __exit__(self, *error: object) -> None:
        return None

    def loading(self) -> None:
        """Nothing."""

    def begin(self, request: DemoRequest, profile: GuardProfile) -> None:
        """Nothing."""

    def loop(self, state: State, decision: Decision) -> None:
        """Nothing."""

    def best_of_n(self, budget: int) -> None:
        """Nothing."""

    def end(self, entry: dict[str, Any]) -> None:
        """Nothing."""

    def summary(self, entries: Mapping[str, dict[str, Any]]) -> None:
        """Nothing."""

    def save(self, path: str) -> None:
        """Nothing."""


class Stage(Silent):
    """A live view of each request: a ruler of scores for each loop, then both outcomes side by side.

    Args:
        calibrated: whether the models are those that the thresholds were calibrated for.
    """

    def __init__(self, calibrated: bool = True) -> None:
        self._calibrated = calibrated
        self.console = Console()
        self._printed: list[Any] = []
        self._live = Live(console=self.console, refresh_per_second=12, transient=True)
        self._request: DemoRequest | None = None
        self._profile: GuardProfile | None = None
        self._lines: list[Text] = []

    def __enter__(self) -> Stage:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def loading(self) -> None:
        """Say that models are being loaded."""
        what = "four small models from the package" if self._calibrated else "what is not on a server"
        self._live.update(Spinner("dots", Text(f"loading {what} ...")))

    def begin(self, request: DemoRequest, profile: GuardProfile) -> None:
        """Show the prompt and the empty ruler."""
        self._request, self._profile, self._lines = request, profile, [ruler_head(profile)]
        self._refresh("drawing ...")

    def loop(self, state: State, decision: Decision) -> None:
        """Add one line: the loop's scores on the ruler."""
        if self._profile is not None:
            self._lines.append(loop_line(state, decision, self._profile))
        self._refresh("drawing ...")

    def best_of_n(self, budget: int) -> None:
        """Say that best-of-N is being drawn."""
        self._refresh(f"now plain best-of-{budget}, for comparison ...")

    def end(self, entry: dict[str, Any]) -> None:
        """Print the whole request above the live view."""
        self._live.update(Text(), refresh=True)
        self._print(self._panel(outcome_table(entry)))

    def summary(self, entries: Mapping[str, dict[str, Any]]) -> None:
        """Print the bill of all requests."""
        ours = sum(entry["draws"] for entry in entries.values())
        plain = sum(entry["best_of_n"]["draws"] for entry in entries.values())
        bad = sum(entry["best_of_n"]["acceptable"] is False for entry in entries.values())
        served_bad = sum(entry["answer"] is not None and not entry["acceptable"] for entry in entries.values())
        self._print(
            f"[bold]{len(entries)} requests:[/] {ours} draws instead of {plain}; unacceptable answers served: "
            f"{served_bad} by the guard, {bad} by best-of-N."
        )
        self._print(
            "[dim]The truth is a separate sentiment model that the reward model knows only through simulated labels. "
            "Seconds are of an idle machine; on a busy one fewer draws are more throughput.[/]"
        )
        if not self._calibrated:
            self._print("[yellow]The thresholds were calibrated for the bundled models: with other ones they promise nothing.[/]")

    def save(self, path: str) -> None:
        """Save what was printed as an SVG picture that loads nothing from elsewhere."""
        # Printed again without the live frames, at a width that does not depend on the terminal.
        console = Console(record=True, width=132, file=io.StringIO())
        for part in self._printed:
            console.print(part)
        picture = console.export_svg(title="bonmini-guard demo")
        picture = re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", picture, flags=re.DOTALL)
        write_atomically(path, picture)

    def _print(self, part: Any) -> None:
        self._printed.append(part)
        self.console.print(part)

    def _refresh(self, doing: str) -> None:
        self._live.update(self._panel(Spinner("dots", Text(doing))), refresh=True)

    def _panel(self, last: Any) -> Panel:
        request = self._request
        title, prompt = ("", "") if request is None else (request.title, request.prompt)
        return Panel(
            Group(Text(f"{prompt} ...", style="italic"), Text(), *self._lines, Text(), last), title=f"[bold]{title}", padding=(0, 1)
        )


def ruler_head(profile: GuardProfile) -> Text:
    """The ruler's legend: where zero lies and what the marks mean."""
    line = Text("loop  draws  ", style="dim")
    line.append(_ruler([], profile.thresholds[0]))
    line.append("   | threshold   o below   * passed", style="dim")
    return line


def loop_line(state: State, decision: Decision, profile: GuardProfile) -> Text:
    """One loop: its scores as marks, the best so far, and what the policy decided."""
    threshold = profile.thresholds[state.loops - 1]
    fresh = [score for score in state.scores[-profile.schedule[state.loops - 1] :] if score is not None]
    line = Text(f"{state.loops:>4}  {state.drawn:>5}  ")
    line.append(_ruler(fresh, threshold))
    line.append(f"   best {state.best:+.2f}  P(acceptable) {sigmoid(state.best):.2f}  ")
    said = {"passed": ("passed: stop", "bold green"), "more": ("draw more", "dim")}
    line.append(*said.get(decision.reason, (decision.reason.replace("_", " "), "bold yellow")))
    return line


def _ruler(scores: list[float], threshold: float) -> Text:
    cells: list[tuple[str, str]] = [("·", "dim")] * WIDTH
    cells[_column(threshold)] = ("|", "bold cyan")
    for score in sorted(scores):
        cells[_column(score)] = ("*", "bold green") if score >= threshold else ("o", "red")
    return Text.assemble(*cells)


def _column(score: float) -> int:
    share = (min(max(score, LOW), HIGH) - LOW) / (HIGH - LOW)
    return round(share * (WIDTH - 1))


def outcome_table(entry: dict[str, Any]) -> Table:
    """The guard and best-of-N side by side."""
    plain = entry["best_of_n"]
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for name, justify in (
        ("", "left"),
        ("answer", "left"),
        ("truth", "left"),
        ("draws", "right"),
        ("tokens", "right"),
        ("seconds", "right"),
        ("score", "right"),
        ("P(accept.)", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_row(Text(entry["mode"], style="bold"), _answer(entry["answer"]), _truth(entry), *_numbers(entry))
    table.add_row(Text(f"best-of-{plain['draws']}", style="bold"), _answer(plain["answer"]), _truth(plain), *_numbers(plain))
    return table


def _answer(answer: str | None) -> Text:
    return Text("abstained: nothing was good enough", style="bold yellow") if answer is None else Text(answer.strip())


def _truth(facts: dict[str, Any]) -> Text:
    if facts["answer"] is None:
        return Text("rightly" if not facts["acceptable"] else "too strict", style="green" if not facts["acceptable"] else "yellow")
    return Text("acceptable", style="green") if facts["acceptable"] else Text("NOT acceptable", style="bold red")


def _numbers(facts: dict[str, Any]) -> list[str]:
    score, chance = facts["score"], facts["acceptance_probability"]
    shown = ["-" if score is None else f"{score:+.2f}", "-" if chance is None else f"{chance:.2f}"]
    return [str(facts["draws"]), str(facts["tokens"]), f"{facts['seconds']:.2f}", *shown]
