"""A labelling session: a log, the items made of it, and the file that keeps what annotators say."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.labelling import events
from bonmini_guard.labelling.items import Item, Plan, build_items, sides
from bonmini_guard.labelling.ledger import Ledger
from bonmini_guard.labelling.rows import LabelRow, fingerprint

LONGEST_NAME = 80


@dataclass(frozen=True)
class Standing:
    """Where an annotator is.

    Attributes:
        item: the next one to judge; None when all are judged.
        done: items judged.
        total: items of the session.
        put_off: items put off, which come again at the end.
        undoable: whether there is something to undo.
    """

    item: Item | None
    done: int
    total: int
    put_off: int
    undoable: bool


class Session:
    """A session whose file is open. Every method that records returns only when the record is on disk; threads may share it.

    Args:
        rows: of the log.
        path: the file of label events; it is begun if it does not exist.
        plan: how items are made if the file is begun; a file that exists says it itself.
        question: what annotators are asked, if not the default; likewise.

    Raises:
        InputError: the file belongs to another log or is no file of label events.
    """

    def __init__(self, rows: list[LabelRow], path: Path, plan: Plan, question: str | None = None) -> None:
        begin = not path.exists()
        if begin:
            self.items = build_items(rows, plan)  # refuses what it must before a file is begun
            begin = events.create(path, _header(rows, plan, question))  # else another session has begun it meanwhile
        self.rows = rows
        self._file = events.EventFile(path)
        try:
            self.plan, self.question = _settings(self._file, rows)
            if not begin:
                self.items = build_items(rows, self.plan)
            self._keys = {item.key: item for item in self.items}
            _check_items(self._file, self._keys)
        except BaseException:
            self._file.close()
            raise
        self.ledger = Ledger(self._file.events)
        self._mutex = threading.Lock()

    @property
    def path(self) -> Path:
        """Of the file of label events."""
        return self._file.path

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def item(self, key: str) -> Item:
        """The item of a key.

        Raises:
            InputError: there is none.
        """
        if key not in self._keys:
            raise InputError("there is no such item in this session; reload the page")
        return self._keys[key]

    def standing(self, annotator: str) -> Standing:
        """Where an annotator is: first what was never shown, then what was put off."""
        with self._mutex:
            labels, later = self.ledger.labels(annotator), self.ledger.put_off(annotator)
            seen = labels.keys() | set(later)
            item = next((item for item in self.items if item.key not in seen), self._keys[later[0]] if later else None)
            return Standing(item, len(labels), len(self.items), len(later), self.ledger.last(annotator) is not None)

    def shown(self, item: Item, annotator: str) -> tuple[int, ...]:
        """The item's candidates as this annotator sees them: A first."""
        return sides(item, annotator, self.plan)

    def label(self, annotator: str, key: str, answer: str, event: str, seconds: float | None = None) -> None:
        """Record a judgement; once, however often the same event is sent.

        Args:
            annotator: who judges.
            key: of the item.
            answer: ``a`` or ``b`` as shown, ``accept``, or ``none`` for neither and for rejected.
            event: an id, 32 hexadecimal digits.
            seconds: how long it took.

        Raises:
            InputError: no such item, or an answer that the item does not have.
            OSError: the disk refused; nothing is recorded.
        """
        item = self.item(key)
        shown = self.shown(item, annotator)
        possible: dict[str, int | str] = {"none": "none", **_choices(shown)}
        if answer not in possible:
            raise InputError(f"the answer to this item is one of {', '.join(sorted(possible))}")
        more = {"shown": list(shown), "seconds": seconds}
        self._record({**_label(event, annotator, item, possible[answer]), **more})

    def put_off(self, annotator: str, key: str, event: str) -> None:
        """Record that an item is to come again at the end.

        Raises:
            InputError: no such item.
            OSError: the disk refused; nothing is recorded.
        """
        self._record({"kind": "skip", "event": event, "annotator": annotator, "item": self.item(key).key, "at": _now()})

    def undo(self, annotator: str, event: str) -> Item | None:
        """Record that the annotator's last act is undone; the item that it was about, None if there was nothing to undo.

        Raises:
            OSError: the disk refused; nothing is recorded.
        """
        with self._mutex:
            last = self.ledger.last(annotator)
        if last is None or event in self.ledger:
            return None
        self._record({"kind": "undo", "event": event, "annotator": annotator, "undoes": last["event"], "at": _now()})
        return self._keys[last["item"]]

    def take_in(self, judged: Iterable[tuple[str, Item, int | Literal["none"]]], source: str) -> int:
        """Record judgements (annotator, item, chosen candidate) made elsewhere; how many were new."""
        # Of several by one annotator on one item the last counts: to take in the others too would undo it the next time.
        last = {(annotator, item.key): (annotator, item, chosen) for annotator, item, chosen in judged}
        with self._mutex:
            known = {annotator: self.ledger.labels(annotator) for annotator, _ in last}
            new = [
                {**_label(secrets.token_hex(16), annotator, item, chosen), "source": source}
                for annotator, item, chosen in last.values()
                if known[annotator].get(item.key, {}).get("chosen") != chosen
            ]
            self._file.append(new)
            for event in new:
                self.ledger.add(event)
        return len(new)

    def snapshot(self) -> Ledger:
        """What stands now, for figures that take a while."""
        with self._mutex:
            return self.ledger.copy()

    def _record(self, event: events.Event) -> None:
        with self._mutex:
            if event["event"] in self.ledger:
                return
            self._file.append([event])
            self.ledger.add(event)


def open_existing(rows: list[LabelRow], path: Path) -> Session:
    """A session that was begun before, for exports.

    Raises:
        InputError: there is none, or it belongs to another log.
    """
    if not path.exists():
        raise InputError(f"{path}: does not exist; label first: 'bonmini-guard label LOGS -o {path}'")
    return Session(rows, path, Plan())


def settings_of(path: Path) -> tuple[Plan, str | None]:
    """The plan and the question of a file that exists.

    Raises:
        InputError: it is no file of label events.
    """
    header, _ = events.read(path)
    return _plan(header, path), header.get("question")


def check_annotator(name: Any) -> str:
    """An annotator's name without blanks around it.

    Raises:
        ConfigurationError: it is empty, too long, or holds what cannot be printed.
    """
    if not isinstance(name, str) or not name.strip().isprintable() or not 1 <= len(name.strip()) <= LONGEST_NAME:
        raise ConfigurationError(f"an annotator's name is 1 to {LONGEST_NAME} printable characters")
    return name.strip()


def _choices(shown: tuple[int, ...]) -> dict[str, int]:
    return {"accept": shown[0]} if len(shown) == 1 else {"a": shown[0], "b": shown[1]}


def _label(event: str, annotator: str, item: Item, chosen: int | str) -> events.Event:
    return {
        "kind": "label",
        "event": event,
        "annotator": annotator,
        "item": item.key,
        "row": item.row.id,
        "candidates": list(item.candidates),
        "chosen": chosen,
        "sampling": item.sampling,
        "at": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _header(rows: list[LabelRow], plan: Plan, question: str | None) -> dict[str, Any]:
    from bonmini_guard import __version__

    log = {"rows": len(rows), "sha256": fingerprint(rows, scored=bool(plan.thresholds))}
    return {"plan": asdict(plan), "question": question, "log": log, "created_at": _now(), "package_version": __version__}


def _settings(file: events.EventFile, rows: list[LabelRow]) -> tuple[Plan, str | None]:
    plan = _plan(file.header, file.path)
    log = file.header.get("log")
    if not isinstance(log, dict) or log.get("sha256") != fingerprint(rows, scored=bool(plan.thresholds)):
        what = "with other rows or scores" if plan.thresholds else "with other rows"
        raise InputError(f"{file.path}: was begun on another log, or the log was changed since ({what}); give another -o")
    return plan, file.header.get("question")


def _plan(header: Mapping[str, Any], path: Path) -> Plan:
    try:
        plan = Plan(**header["plan"])
        return replace(plan, thresholds=tuple(plan.thresholds), transform=(plan.transform[0], plan.transform[1]))
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}:1: the session's plan cannot be read; restore the line from a copy") from error


def _check_items(file: events.EventFile, keys: Mapping[str, Item]) -> None:
    for number, event in enumerate(file.events, start=2):
        if event["kind"] != "undo" and event["item"] not in keys:
            raise InputError(f"{file.path}:{number}: is about an item that the log does not give; give another -o")
