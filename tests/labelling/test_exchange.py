"""Label Studio and Argilla: what goes out comes back, and what is foreign is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bonmini_guard.errors import InputError
from bonmini_guard.labelling.exchange import FIELDS, READERS, WORDS, WRITERS, argilla_records, label_studio_tasks
from tests.labelling.helpers import judge_all, log_file, row, run, session_of

ROWS = [row(str(i)) for i in range(12)] + [row("single", ("x",))]
ANN, BOB = "ann@example.org", "bob@example.org"


@pytest.fixture
def judged(tmp_path):
    session = session_of(tmp_path, ROWS)
    order = {item.key: number for number, item in enumerate(session.items)}
    judge_all(session, ANN, lambda item: (*item.candidates, "none")[order[item.key] % (len(item.candidates) + 1)])
    judge_all(session, BOB, lambda item: "none")
    return session


def standing(session):
    return {(event["annotator"], event["item"], event["chosen"]) for event in session.ledger.judgements()}


def read_back(tmp_path, kind, session, records):
    file = tmp_path / "export.json"
    file.write_text(json.dumps(records))
    return list(READERS[kind](file, session))


@pytest.mark.parametrize("kind", ["label-studio", "argilla"])
def test_what_goes_out_comes_back(tmp_path, judged, kind):
    other = session_of(tmp_path, ROWS, name="other.jsonl")
    found = read_back(tmp_path, kind, other, WRITERS[kind](judged))
    assert other.take_in(found, kind) == 26
    assert standing(other) == standing(judged)
    assert other.take_in(found, kind) == 0  # a second import changes nothing
    assert {event["source"] for event in other.ledger.judgements()} == {kind}


@pytest.mark.parametrize("kind", ["label-studio", "argilla"])
def test_the_tools_are_shown_no_score_no_model_and_no_row(judged, kind):
    for record in WRITERS[kind](judged):
        text = json.dumps(record)
        assert "score" not in text
        assert "model-x" not in text
        assert '"row"' not in text
    shown = [record.get("fields", record.get("data")) for record in WRITERS[kind](judged)]
    firsts = {fields["a"] for fields in shown if "a" in fields}
    assert firsts == {"good", "bad"}  # A and B are shuffled


def test_label_studio_tasks_have_the_documented_shape(judged):
    task = label_studio_tasks(judged)[0]
    assert set(task) == {"data", "annotations"}
    assert set(task["data"]) == {"item", "prompt", "a", "b"}
    assert task["data"]["prompt"][0]["role"] == "user"
    annotation = task["annotations"][0]
    assert annotation["completed_by"] == {"email": ANN}
    assert annotation["result"][0]["type"] == "choices"
    assert annotation["result"][0]["value"]["choices"][0] in ("A", "B", "Neither")


def test_label_studio_exports_as_the_tool_writes_them(tmp_path, judged):
    """Its exports carry more keys, user numbers or objects, cancelled annotations and results of other tags."""
    task = next(task for task in label_studio_tasks(judged) if "a" in task["data"])
    choice = {"id": "Dx_aB91ISN", "from_name": "choice", "to_name": "prompt", "type": "choices", "value": {"choices": ["B"]}}
    note = {"from_name": "note", "to_name": "prompt", "type": "textarea", "value": {"text": ["hm"]}}
    task |= {"id": 7, "project": 83, "created_at": "2021-03-09T21:52:49.513742Z", "predictions": [], "drafts": []}
    task["annotations"] = [
        {"id": 1, "completed_by": 10, "was_cancelled": False, "lead_time": 4.2, "result": [choice, note]},
        {"id": 2, "completed_by": {"id": 11, "email": BOB}, "was_cancelled": False, "result": [choice]},
        {"id": 3, "completed_by": 12, "was_cancelled": True, "result": [choice]},
        {"id": 4, "completed_by": 13, "result": []},
    ]
    found = read_back(tmp_path, "label-studio", judged, [task])
    assert [name for name, _, _ in found] == ["label-studio user 10", BOB]
    texts = {item.row.texts[chosen] for _, item, chosen in found}
    assert texts == {task["data"]["b"]}


def comes_back_as_it_was_sent(tmp_path, judged, kind, sent):
    """It takes back no correction that was made here meanwhile; what was undone here comes back."""
    last = judged.ledger.last(ANN)
    judged.undo(ANN, "0" * 32)
    other = ("accept" if len(last["candidates"]) == 1 else "a") if last["chosen"] == "none" else "none"
    judged.label(ANN, last["item"], other, "1" * 32)
    before = standing(judged)
    assert judged.take_in(read_back(tmp_path, kind, judged, sent), kind) == 0
    assert standing(judged) == before
    judged.undo(ANN, "2" * 32)
    assert judged.take_in(read_back(tmp_path, kind, judged, sent), kind) == 1


def test_what_label_studio_knows_under_a_number_of_its_own_comes_back_under_the_name_that_was_sent(tmp_path, judged):
    """Its import keeps an annotation's id as import_id, and its export may say completed_by as a number."""
    tasks = json.loads(json.dumps(label_studio_tasks(judged)))
    for task in tasks:
        for number, annotation in enumerate(task["annotations"]):
            annotation.update(import_id=annotation["id"], id=number, completed_by=3)
    comes_back_as_it_was_sent(tmp_path, judged, "label-studio", tasks)
    task = next(task for task in tasks if task["annotations"][0]["result"][0]["value"]["choices"] == ["A"])
    task["annotations"].append(json.loads(json.dumps(task["annotations"][0])) | {"import_id": None})
    task["annotations"][0]["result"][0]["value"]["choices"] = ["B"]
    assert [name for name, _, _ in read_back(tmp_path, "label-studio", judged, [task])] == [ANN, "label-studio user 3"]


def test_argilla_records_as_the_tool_writes_them(tmp_path, judged):
    """Its to_json writes no status; a response that has one counts if it was submitted."""
    user = "5f3b3b2c-1111-4222-8333-444455556666"
    record = argilla_records(judged)[0] | {"_server_id": "x", "status": "completed"}
    record["metadata"] = {}
    record["responses"] = {
        "choice": [
            {"value": "Neither", "user_id": user},
            {"value": "A", "user_id": "7" + user[1:], "status": "discarded"},
        ],
        "comment": [{"value": "hm", "user_id": user}],
    }
    assert [(name, chosen) for name, _, chosen in read_back(tmp_path, "argilla", judged, [record])] == [(user, "none")]


def test_argilla_users_are_uuids_and_names_come_back(tmp_path, judged):
    records = json.loads(json.dumps(argilla_records(judged)))
    record = records[0]
    users = [response["user_id"] for response in record["responses"]["choice"]]
    assert [len(user) for user in users] == [36, 36]
    told = json.loads(record["metadata"]["annotators"])
    assert {user: name for user, (name, _) in told.items()} == dict(zip(users, [ANN, BOB], strict=True))
    comes_back_as_it_was_sent(tmp_path, judged, "argilla", records)
    record["responses"]["choice"][1]["value"] = "A"  # there, and of a file that says names alone
    assert [name for name, _, _ in read_back(tmp_path, "argilla", judged, [record])] == [BOB]
    record["metadata"]["annotators"] = json.dumps(dict(zip(users, [ANN, BOB], strict=True)))
    assert [name for name, _, _ in read_back(tmp_path, "argilla", judged, [record])] == [ANN, BOB]


def broken(kind, judged, change):
    record = next(record for record in WRITERS[kind](judged) if "a" in record.get("data", record.get("fields")))
    change(record)
    return [record]


def choose(task, *words):
    task["annotations"][0]["result"][0]["value"]["choices"] = list(words)


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("label-studio", lambda task: task["data"].update(item="0" * 16), "is no item of this session"),
        ("label-studio", lambda task: task.pop("data"), "is no item of this session"),
        ("label-studio", lambda task: task["data"].update(a="edited"), "its texts are not those of its item"),
        ("label-studio", lambda task: choose(task, "C"), "none of A, B, Neither"),
        ("label-studio", lambda task: choose(task, "A", "B"), "exactly one choice"),
        ("label-studio", lambda task: task.update(annotations="x"), "is not a list of objects"),
        ("label-studio", lambda task: task["annotations"][0].update(completed_by={"email": "a\nb"}), "printable characters"),
        ("argilla", lambda record: record.update(id="x"), "is no item of this session"),
        ("argilla", lambda record: record.update(fields=None), "its texts are not those of its item"),
        ("argilla", lambda record: record.update(responses=[1]), "its responses are not an object"),
        ("argilla", lambda record: record["responses"]["choice"][0].update(value=3), "none of A, B, Neither"),
    ],
)
def test_what_is_foreign_is_refused_in_one_line(tmp_path, judged, kind, change, problem):
    with pytest.raises(InputError, match=problem) as caught:
        read_back(tmp_path, kind, judged, broken(kind, judged, change))
    assert "export.json:1: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[1]"])
def test_a_file_that_is_no_export_is_refused(tmp_path, judged, text):
    file = tmp_path / "export.json"
    file.write_text(text)
    for kind in READERS:
        with pytest.raises(InputError, match=r"holds nothing|must be a JSON object|is no item of this session"):
            list(READERS[kind](file, judged))


def test_a_refused_import_takes_nothing_in_and_begins_no_file(tmp_path, judged, capsys):
    good, bad, out = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "new.jsonl"
    good.write_text(json.dumps(label_studio_tasks(judged)))
    bad.write_text("[1]")
    log = log_file(tmp_path / "log.jsonl", ROWS)
    assert run(log, "-o", out, "--import", f"label-studio={good}", "--import", f"argilla={bad}") == 2
    assert not out.exists()
    capsys.readouterr()
    assert run(log, "-o", out, "--import", f"label-studio={good}", "--export", f"argilla={tmp_path / 'a.json'}") == 0
    assert "26 new labels of 26" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "a.json").read_text())) == 13


def interfaces():
    """Those of the guide, by the number of answers."""
    guide = (Path(__file__).parents[2] / "docs" / "labelling.md").read_text()
    return {2 if 'name="b"' in found else 1: found for found in re.findall("<View>.*?</View>", guide, re.DOTALL)}


def test_the_guide_shows_interfaces_for_the_fields_and_words_of_the_tasks():
    shown = interfaces()
    assert shown.keys() == {1, 2}
    for size, interface in shown.items():
        assert re.findall(r'<Text name="(\w+)" value="\$\1"/>', interface) == list(FIELDS[size])
        assert re.findall(r'<Choice value="(\w+)"/>', interface) == list(WORDS[size])


def test_label_studios_own_library_accepts_the_tasks(judged):
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    for size, config in interfaces().items():
        interface = sdk.LabelInterface(config)
        interface.validate()
        tasks = [task for task in label_studio_tasks(judged) if ("a" in task["data"]) == (size == 2)]
        assert tasks
        for task in tasks:
            assert interface.validate_task({"data": task["data"]})
            assert all(interface.validate_annotation(annotation) for annotation in task["annotations"])


def test_argillas_own_library_reads_the_records_and_writes_what_is_read(tmp_path, judged):
    argilla = pytest.importorskip("argilla", reason="argilla is not installed")
    records = [argilla.Record.from_dict(record) for record in argilla_records(judged)]
    assert {response.status.value for record in records for response in record.responses} == {"submitted"}
    other = session_of(tmp_path, ROWS, name="other.jsonl")
    other.take_in(read_back(tmp_path, "argilla", other, [record.to_dict() for record in records]), "argilla")
    assert standing(other) == standing(judged)


def test_of_rows_picked_by_hand_these_and_what_is_judged_are_sent(tmp_path):
    log, tasks = log_file(tmp_path / "log.jsonl", [row(name) for name in "abc"]), tmp_path / "tasks.json"
    arguments = (log, "-o", tmp_path / "out.jsonl", "--export", f"label-studio={tasks}")
    assert run(*arguments, "--only", "b") == 0
    sent = json.loads(tasks.read_text())
    assert [task["data"]["prompt"][0]["content"] for task in sent] == ["question b"]
    result = {"from_name": "choice", "to_name": "prompt", "type": "choices", "value": {"choices": ["A"]}}
    tasks.write_text(json.dumps([{**sent[0], "annotations": [{"completed_by": "ann", "result": [result]}]}]))
    assert run(log, "-o", tmp_path / "out.jsonl", "--import", f"label-studio={tasks}") == 0
    assert run(*arguments, "--only", "c") == 0
    assert sorted(task["data"]["prompt"][0]["content"] for task in json.loads(tasks.read_text())) == ["question b", "question c"]
