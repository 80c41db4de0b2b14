"""What the events amount to: each annotator's judgements that stand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from bonmini_guard.labelling.events import Event


class Ledger:
    """The events that stand, by annotator: those undone are gone, and of several on one item the last counts."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._known: set[str] = set()
        self._acts: dict[str, list[Event]] = {}
        for event in events:
            self.add(event)

    def __contains__(self, event: str) -> bool:
        """Whether an event of this id was ever recorded."""
        return event in self._known

    def add(self, event: Event) -> None:
        """Take in the next event of the file."""
        self._known.add(event["event"])
        if event["kind"] == "ask":
            return
        acts = self._acts.setdefault(event["annotator"], [])
        if event["kind"] == "undo":
            acts[:] = [act for act in acts if act["event"] != event["undoes"]]
        else:
            acts.append(event)

    @property
    def everyone(self) -> list[str]:
        """Everyone who ever did anything."""
        return sorted(self._acts)

    @property
    def annotators(self) -> list[str]:
        """Everyone who has a judgement that stands."""
        return sorted(name for name in self._acts if self.labels(name))

    def last(self, annotator: str) -> Event | None:
        """What an undo would undo."""
        acts = self._acts.get(annotator)
        return acts[-1] if acts else None

    def labels(self, annotator: str) -> dict[str, Event]:
        """Item key to the label that stands."""
        return {item: act for item, act in self._standing(annotator).items() if act["kind"] == "label"}

    def put_off(self, annotator: str) -> list[str]:
        """Keys of items put off and not labelled since, the first put off first."""
        return [item for item, act in self._standing(annotator).items() if act["kind"] == "skip"]

    def judgements(self) -> Iterator[Event]:
        """All labels that stand, annotator by annotator."""
        for annotator in self.annotators:
            yield from self.labels(annotator).values()

    def votes(self) -> dict[tuple[str, int], int]:
        """(row, candidate) to those who took it (accepted it, or chose it from a pair) less those who refused it."""
        votes: defaultdict[tuple[str, int], int] = defaultdict(int)
        for event in self.judgements():
            chosen = event["chosen"]
            for index in event["candidates"] if chosen == "none" else (chosen,):
                votes[event["row"], index] += -1 if chosen == "none" else 1
        return dict(votes)

    def _standing(self, annotator: str) -> dict[str, Event]:
        standing: dict[str, Event] = {}
        for act in self._acts.get(annotator, []):
            standing.pop(act["item"], None)  # so that it moves to the end
            standing[act["item"]] = act
        return standing
