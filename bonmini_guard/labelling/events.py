"""The file of label events: JSON lines that are only ever appended to, each on disk before it is acknowledged.

Its first line says what the session is. Every further line is a label, an item put off, the undoing of one of these, or, where
labels are asked for on demand, the items of the next batch. A ledger holds what they amount to: the judgements that stand.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from bonmini_guard.errors import InputError
from bonmini_guard.logs.appending import Appender, encoded, lock
from bonmini_guard.logs.reading import RowFile

Event = dict[str, Any]

#: What the first line of every such file says.
KIND, FORMAT = "bonmini-guard labels", 1

_NEEDED: dict[str, dict[str, Any]] = {
    "label": {"event": str, "annotator": str, "item": str, "row": str, "candidates": list, "chosen": int | str},
    "skip": {"event": str, "annotator": str, "item": str},
    "undo": {"event": str, "annotator": str, "undoes": str},
    "ask": {"event": str, "items": list, "said": str},
}


def is_begun(path: Path) -> bool:
    """Whether a file has something in it: who was killed as they began it may have left an empty one."""
    return path.exists() and path.stat().st_size > 0


def create(path: Path, header: Mapping[str, Any]) -> None:
    """Begin a file with its first line; one that is begun, if since a moment ago, stays. InputError if it cannot be written."""
    try:
        with closing(Appender(path, fsync=True)) as file:
            if not lock(file.descriptor, wait=False) or not file.refresh() or file.size:
                return
            try:
                file.append(json.dumps({"kind": KIND, "format": FORMAT, **header}).encode() + b"\n")
            except BaseException:
                path.unlink()
                raise
        if os.name == "posix":  # the new name on disk too; systems that cannot open folders do it by themselves
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another -o") from error


class EventFile:
    """A file of label events that is open for appending, by this process alone; a torn last line is cut off.

    Raises:
        InputError: it cannot be read, is no file of label events, or another session has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Appender(path, fsync=True)
        try:
            if not lock(self._file.descriptor, wait=False):
                raise InputError(f"{path}: is open in another 'bonmini-guard label'; use its page or stop it")
            self.header, self.events = read(path)  # a foreign file is refused before anything in it could be cut off
            self._file.refresh()
            self._file.cut()
        except BaseException:
            self._file.close()
            raise

    def append(self, events: Iterable[Event]) -> None:
        """Write events through to the disk; when this returns they survive a crash. Where it refuses, the file is as before."""
        new = list(events)
        self._file.append(b"".join(map(encoded, new)))
        self.events.extend(new)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read(path: Path) -> tuple[Event, list[Event]]:
    """The first line and the events. A torn last line, which was never acknowledged, is passed over.

    Raises:
        InputError: the file cannot be read or is no file of label events.
    """
    rows = iter(RowFile(path, whole=True))
    try:
        _, header = next(rows, ("", {}))
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise
        header = {}
    if header.get("kind") != KIND:
        raise InputError(f"{path}: is not a file of label events; give -o a new name, or one that 'bonmini-guard label' wrote")
    if header.get("format") != FORMAT:
        raise InputError(f"{path}: format {header.get('format')!r} is not {FORMAT}; use the version of this package that wrote it")
    return header, [_event(event, place) for place, event in rows]


def _event(event: Event, place: str) -> Event:
    needed = _NEEDED.get(str(event.get("kind")), {"": str})
    sound = all(isinstance(event.get(key), kind) for key, kind in needed.items())
    if sound and event["kind"] == "label":
        candidates = event["candidates"]
        sound = all(isinstance(one, int) for one in candidates) and event["chosen"] in ("none", *candidates)
    if not sound:
        raise InputError(f"{place}: not a label event; restore the file from a copy, or remove the line")
    return event


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
