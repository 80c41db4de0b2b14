"""Items and judgements as Label Studio tasks and as Argilla records, both ways.

An item's key travels along, so that what comes back finds its item. docs/labelling.md shows the interfaces that tasks are made for.

Formats: https://labelstud.io/guide/task_format (tasks with annotations of type ``choices``) and
https://docs.argilla.io/latest/how_to_guides/import_export (what ``dataset.records.to_json`` writes).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from bonmini_guard.errors import InputError
from bonmini_guard.labelling.items import Item, sides
from bonmini_guard.labelling.session import Session, check_annotator
from bonmini_guard.logs.records import Records

Record = dict[str, Any]
#: annotator, item, chosen candidate
Judged = tuple[str, Item, int | Literal["none"]]

#: Whose order of A and B the two tools show: nobody's who labels on the page.
_ELSEWHERE = "\n"
#: What the two tools call the answers, and what is chosen, by the number of answers.
FIELDS = {1: ("answer",), 2: ("a", "b")}
WORDS = {1: ("Accept", "Reject"), 2: ("A", "B", "Neither")}


def label_studio_tasks(session: Session) -> list[Record]:
    """Tasks for Label Studio's import, with the judgements that stand as annotations.

    ``completed_by`` is the annotator's name as an email address, by which Label Studio knows its members. Its exports may give a
    number of its own there; the ``id`` comes back as ``import_id``.
    """
    return [
        {
            "data": {"item": item.key, "prompt": _turns(item), **_texts(item, session)},
            "annotations": [_annotation(name, _word(item, chosen, session)) for name, chosen in judged],
        }
        for item, judged in _sent(session)
    ]


def read_label_studio(path: Path, session: Session) -> Iterator[Judged]:
    """Judgements of tasks that Label Studio exported as JSON, none of cancelled annotations; InputError for a foreign task."""
    words = [word for some in WORDS.values() for word in some]
    sent = {str(_annotation_id(name, word)): (name, word) for name in session.ledger.everyone for word in words}
    known = _judged_here(session)
    for place, task in _records(path):
        data = task.get("data")
        item = _known(data, data.get("item") if isinstance(data, Mapping) else None, session, place)
        for annotation in _list(task.get("annotations"), place):
            if not annotation.get("was_cancelled"):
                for word in _chosen_words(annotation, place):
                    name, was = sent.get(str(annotation.get("import_id"))) or (_label_studio_name(annotation, place), None)
                    if word != was or (name, item.key) not in known:  # what comes back unchanged is older than what stands here
                        yield name, item, _chosen(item, word, session, place)


def argilla_records(session: Session) -> list[Record]:
    """Records for Argilla's ``dataset.records.from_json``, with the judgements that stand as responses.

    Argilla knows users by UUID: a name that is none is turned into one (version 5). The metadata say whose it is and what was sent.
    """
    return [_argilla_record(item, judged, session) for item, judged in _sent(session)]


def read_argilla(path: Path, session: Session) -> Iterator[Judged]:
    """The same of records that Argilla's ``to_json`` wrote, none of responses that say they are no submitted ones."""
    known = _judged_here(session)
    for place, record in _records(path):
        item = _known(record.get("fields"), record.get("id"), session, place)
        sent = _argilla_sent(record)
        responses = record.get("responses") or {}
        if not isinstance(responses, Mapping):
            raise InputError(f"{place}: its responses are not an object; export with dataset.records.to_json")
        for response in _list(responses.get("choice"), place):
            if response.get("status", "submitted") == "submitted":
                word, user = response.get("value"), str(response.get("user_id"))
                told, was = sent.get(user, (user, None))
                name = _name(told, place)
                if word != was or (name, item.key) not in known:  # as above
                    yield name, item, _chosen(item, word, session, place)


READERS: dict[str, Callable[[Path, Session], Iterator[Judged]]] = {"label-studio": read_label_studio, "argilla": read_argilla}
WRITERS: dict[str, Callable[[Session], list[Record]]] = {"label-studio": label_studio_tasks, "argilla": argilla_records}


def _annotation(name: str, word: str) -> Record:
    result = {"from_name": "choice", "to_name": "prompt", "type": "choices", "value": {"choices": [word]}}
    about = {"id": _annotation_id(name, word), "completed_by": {"email": name}}
    return {**about, "was_cancelled": False, "ground_truth": False, "result": [result]}


def _annotation_id(name: str, word: str) -> int:
    return uuid.uuid5(uuid.UUID(_user_id(name)), word).int % 2**53  # a number that JavaScript keeps


def _argilla_record(item: Item, judged: list[tuple[str, Any]], session: Session) -> Record:
    told = {_user_id(name): (name, _word(item, chosen, session)) for name, chosen in judged}
    responses = [{"value": word, "user_id": user, "status": "submitted"} for user, (_, word) in told.items()]
    return {
        "id": item.key,
        "fields": {"prompt": _turns(item), **_texts(item, session)},
        "metadata": {"annotators": json.dumps(told)} if told else {},
        "suggestions": {},
        "responses": {"choice": responses} if responses else {},
        "vectors": {},
    }


def _user_id(name: str) -> str:
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"bonmini-guard/annotator/{name}"))


def _argilla_sent(record: Record) -> dict[str, tuple[Any, Any]]:
    """By user: the name, and the word that was sent; files of earlier versions tell the name alone."""
    try:
        told = json.loads(record["metadata"]["annotators"])
        return {user: (said, None) if isinstance(said, str) else (said[0], said[1]) for user, said in told.items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        return {}


def _judged_here(session: Session) -> set[tuple[str, str]]:
    return {(event["annotator"], event["item"]) for event in session.ledger.judgements()}


def _sent(session: Session) -> list[tuple[Item, list[tuple[str, Any]]]]:
    """What is asked about now, and what is judged: by whom, and how."""
    judged: dict[str, list[tuple[str, Any]]] = {item.key: [] for item in session.asked}
    for event in session.ledger.judgements():
        judged.setdefault(event["item"], []).append((event["annotator"], event["chosen"]))
    return [(item, judged[item.key]) for item in session.items if item.key in judged]


def _turns(item: Item) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in item.row.turns]


def _texts(item: Item, session: Session) -> dict[str, str]:
    order = sides(item, _ELSEWHERE, session.plan)
    return {field: item.row.texts[index] or "" for field, index in zip(FIELDS[len(order)], order, strict=True)}


def _meant(item: Item, session: Session) -> dict[str, int | Literal["none"]]:
    """What each word of the two tools says of an item."""
    order = sides(item, _ELSEWHERE, session.plan)
    return dict(zip(WORDS[len(order)], (*order, "none"), strict=True))


def _word(item: Item, chosen: int | str, session: Session) -> str:
    return next(word for word, meant in _meant(item, session).items() if meant == chosen)


def _chosen(item: Item, word: Any, session: Session, place: str) -> int | Literal["none"]:
    words = _meant(item, session)
    if not isinstance(word, str) or word not in words:
        raise InputError(f"{place}: an answer is none of {', '.join(words)}; use the labelling interface of docs/labelling.md")
    return words[word]


def _records(path: Path) -> list[tuple[str, Record]]:
    if not (records := list(Records(path))):
        raise InputError(f"{path}: holds nothing; give the export as the tool wrote it")
    return records


def _list(value: Any, place: str) -> list[Record]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputError(f"{place}: is not a list of objects; give the export as the tool wrote it")
    return value


def _known(fields: Any, key: Any, session: Session, place: str) -> Item:
    try:
        item = session.item(key) if isinstance(key, str) else None
    except InputError:
        item = None
    if item is None:
        raise InputError(f"{place}: is no item of this session; import what was exported from the same log and -o")
    if not isinstance(fields, Mapping) or any(fields.get(field) != text for field, text in _texts(item, session).items()):
        raise InputError(f"{place}: its texts are not those of its item; import what was exported from the same log and -o")
    return item


def _chosen_words(annotation: Record, place: str) -> Iterator[Any]:
    for result in _list(annotation.get("result"), place):
        if result.get("type") == "choices" and result.get("from_name") == "choice":
            value = result.get("value")
            words = value.get("choices") if isinstance(value, Mapping) else None
            if not isinstance(words, list) or len(words) != 1:
                raise InputError(f"{place}: an annotation has not exactly one choice; correct it in Label Studio")
            yield words[0]


def _label_studio_name(annotation: Record, place: str) -> str:
    by = annotation.get("completed_by")
    by = (by.get("email") or by.get("id")) if isinstance(by, Mapping) else by
    return _name(by if isinstance(by, str) else f"label-studio user {by}", place)


def _name(name: str, place: str) -> str:
    try:
        return check_annotator(name)
    except ValueError as error:
        raise InputError(f"{place}: {error}; correct the annotator's name") from error
