"""A labelling session: a log, the items made of it, and the file that keeps what annotators say."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.labelling import events
from bonmini_guard.labelling.events import Ledger
from bonmini_guard.labelling.items import Asking, Item, Plan, build_items, item_of, sides
from bonmini_guard.labelling.rows import LabelRow, fingerprint

LONGEST_NAME = 80
#: Why a set of rows cannot grow.
NO_MORE_ROWS = "rows added after a look at labels void the promise, since whoever adds until a test passes gets there by luck"


@dataclass(frozen=True)
class Standing:
    """Where an annotator is; items that were put off come again at the end."""

    item: Item | None
    done: int
    total: int
    put_off: int
    undoable: bool


class Session:
    """A session whose file is open. Every method that records returns only when the record is on disk; threads may share it.

    Where the disk refuses, it raises the OSError, and nothing is recorded.

    Args:
        path: the file of label events; it is begun if it does not exist.
        plan: how items are made if the file is begun; a file that exists says it itself.
        question: what annotators are asked, if not the default; likewise.
        asking: what comes next, of a plan with a goal; without it nothing further is asked.
        only: ids of the rows asked about now, of a plan whose rows are picked.

    Attributes:
        items: those asked so far, in order: all of them, if the plan has no goal.
        said: of a plan with a goal: what the labels certified when it was last looked.

    Raises:
        InputError: the file belongs to another log or is no file of label events.
    """

    def __init__(
        self,
        rows: list[LabelRow],
        path: Path,
        plan: Plan,
        question: str | None = None,
        asking: Asking | None = None,
        *,
        only: Collection[str] = (),
    ) -> None:
        if unknown := set(only) - {row.id for row in rows}:
            raise InputError(f"there is no row {min(unknown)!r} in the log; give --only ids of its rows")
        if not events.is_begun(path):
            events.create(path, _header(rows, plan, question))
        self.rows, self.path = rows, path
        self._file = events.EventFile(path)
        try:
            self.plan, self.question = settings_of(path, self._file.header)
            log, has_goal = self._file.header.get("log"), self.plan.goal is not None
            if not isinstance(log, dict) or log.get("sha256") != fingerprint(rows, scored=has_goal):
                what = f"with other rows or scores; {NO_MORE_ROWS}" if has_goal else "with other rows"
                raise InputError(f"{path}: was begun on another log, or the log was changed since ({what}); give another -o")
            self.items = [] if self.plan.goal else build_items(rows, self.plan)
            self._by_id = {row.id: row for row in rows}
            self._asking, self.said = asking, ""
            self._only = frozenset(only)
            self._keys = {item.key: item for item in self.items}
            self._take_up()
            self.ledger = Ledger(self._file.events)
            self._mutex = threading.Lock()
            self._ask()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def asked(self) -> list[Item]:
        """The items asked about now: all so far, or those of the rows picked now."""
        return [item for item in self.items if item.row.id in self._only] if self.plan.picked else self.items

    def item(self, key: str) -> Item:
        """The item of a key; InputError if there is none."""
        if key not in self._keys:
            raise InputError("there is no such item in this session; reload the page")
        return self._keys[key]

    def standing(self, annotator: str) -> Standing:
        """Where an annotator is: first what was never shown, then what was put off."""
        with self._mutex:
            asked = self.asked
            keys = {item.key for item in asked}
            labels = self.ledger.labels(annotator).keys() & keys
            later = [key for key in self.ledger.put_off(annotator) if key in keys]
            seen, again = labels.union(later), self._keys[later[0]] if later else None
            item = next((item for item in asked if item.key not in seen), again)
            return Standing(item, len(labels), len(asked), len(later), self.ledger.last(annotator) is not None)

    def label(self, annotator: str, key: str, answer: str, event: str, seconds: float | None = None) -> None:
        """Record a judgement, ``a`` or ``b`` as shown, ``accept`` or ``none``; once, however often the same event is sent.

        Raises:
            InputError: no such item, or an answer that the item does not have.
        """
        item = self.item(key)
        shown = sides(item, annotator, self.plan)
        named = zip(("accept",) if len(shown) == 1 else ("a", "b"), shown, strict=True)
        possible: dict[str, int | str] = {"none": "none", **dict(named)}
        if answer not in possible:
            raise InputError(f"the answer to this item is one of {', '.join(sorted(possible))}")
        self._record(_label(event, annotator, item, possible[answer], shown=list(shown), seconds=seconds))

    def put_off(self, annotator: str, key: str, event: str) -> None:
        """Record that an item is to come again at the end; InputError if there is no such one."""
        self._record(_act("skip", event, annotator, item=self.item(key).key))

    def undo(self, annotator: str, event: str) -> Item | None:
        """Record that the annotator's last act is undone; the item that it was about, None if there was nothing to undo."""
        with self._mutex:
            last = self.ledger.last(annotator)
        if last is None or event in self.ledger:
            return None
        self._record(_act("undo", event, annotator, undoes=last["event"]))
        return self._keys[last["item"]]

    def take_in(self, judged: Iterable[tuple[str, Item, int | Literal["none"]]], source: str) -> int:
        """Record judgements (annotator, item, chosen candidate) made elsewhere; how many were new."""
        # Of several by one annotator on one item the last counts: to take in the others too would undo it the next time.
        last = {(annotator, item.key): (annotator, item, chosen) for annotator, item, chosen in judged}
        with self._mutex:
            known = {annotator: self.ledger.labels(annotator) for annotator, _ in last}
            new = [
                _label(secrets.token_hex(16), annotator, item, chosen, source=source)
                for annotator, item, chosen in last.values()
                if known[annotator].get(item.key, {}).get("chosen") != chosen
            ]
            self._keep(new)
        return len(new)

    def snapshot(self) -> Ledger:
        """What stands now, for figures that take a while."""
        with self._mutex:
            return Ledger(self._file.events)

    def _record(self, event: events.Event) -> None:
        with self._mutex:
            # Also where it is known: the disk may have refused the batch after it.
            self._keep([] if event["event"] in self.ledger else [event])

    def _keep(self, new: list[events.Event]) -> None:
        self._file.append(new)
        for event in new:
            self.ledger.add(event)
        self._ask()

    def _ask(self) -> None:
        """Go on to the next batch, if somebody has judged every item of those before."""
        if self._asking is None or {item.key for item in self.items} - {event["item"] for event in self.ledger.judgements()}:
            return
        answers, self.said = self._asking(self.ledger.votes())
        if answers:
            event = {"kind": "ask", "event": secrets.token_hex(16), "items": [list(answer) for answer in answers]}
            self._file.append([{**event, "said": self.said, "at": _now()}])
            self._extend(answers)

    def _extend(self, answers: Iterable[tuple[str, int]]) -> None:
        new = [item_of(self._by_id[row], (index,), self.plan) for row, index in answers]
        self.items += new
        self._keys |= {item.key: item for item in new}

    def _take_up(self) -> None:
        """The items that the file asks about; every other line must be about one of them."""
        for number, event in enumerate(self._file.events, start=2):
            try:
                if event["kind"] == "ask":
                    self.said = event["said"]
                    self._extend((row, index) for row, index in event["items"])
                elif event["kind"] != "undo":
                    self._keys[event["item"]]
            except (KeyError, TypeError, ValueError) as error:
                place = f"{self.path}:{number}"
                raise InputError(f"{place}: is about an item that the log does not give; give another -o") from error


def check_annotator(name: Any) -> str:
    """An annotator's name without blanks around it; ConfigurationError if it is empty, too long, or cannot be printed."""
    if not isinstance(name, str) or not name.strip().isprintable() or not 1 <= len(name.strip()) <= LONGEST_NAME:
        raise ConfigurationError(f"an annotator's name is 1 to {LONGEST_NAME} printable characters")
    return name.strip()


def _act(kind: str, event: str, annotator: str, **about: Any) -> events.Event:
    return {"kind": kind, "event": event, "annotator": annotator, **about, "at": _now()}


def _label(event: str, annotator: str, item: Item, chosen: int | str, **more: Any) -> events.Event:
    about = {"item": item.key, "row": item.row.id, "candidates": list(item.candidates), "chosen": chosen}
    return _act("label", event, annotator, **about, **more)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _header(rows: list[LabelRow], plan: Plan, question: str | None) -> dict[str, Any]:
    from bonmini_guard import __version__

    log = {"rows": len(rows), "sha256": fingerprint(rows, scored=plan.goal is not None)}
    return {"plan": asdict(plan), "question": question, "log": log, "created_at": _now(), "package_version": __version__}


def settings_of(path: Path, header: Mapping[str, Any]) -> tuple[Plan, str | None]:
    """The plan and the question that the first line of a file says; InputError if they cannot be read."""
    written = header.get("plan")
    if isinstance(written, Mapping) and written.get("thresholds"):
        raise InputError(f"{path}: was begun with --first near-threshold, which is no more; give another -o")
    try:
        return TypeAdapter(Plan).validate_python(written), header.get("question")
    except ValidationError as error:
        raise InputError(f"{path}:1: the session's plan cannot be read; restore the line from a copy") from error
