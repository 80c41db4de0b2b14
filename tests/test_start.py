"""``start``, as a newcomer uses it: a table, a log, scores, labels; each step prints the next command, which then runs."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shlex

import pytest

from bonmini_guard.cli import main
from bonmini_guard.policy.profile import GuardProfile
from tests.calibration.helpers import rows_of
from tests.calibration.populations import Population


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command where its files are; (what it said, the command it names next)."""
    monkeypatch.chdir(tmp_path)

    def command(line):
        assert main(shlex.split(line.removeprefix("bonmini-guard "))) == 0
        told = capsys.readouterr().out
        following = [each.removeprefix("next: ") for each in told.splitlines() if each.startswith("next: ")]
        return told, following[0] if following else ""

    return command


def lines_of(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def log_rows(prompts, labels="none"):
    for row in rows_of(Population(size=8).log(prompts, 0)):
        for at, one in enumerate(row["candidates"]):
            one["text"] = f"answer {row['id']}.{at}"
            one["acceptable"] = one["acceptable"] if labels == "all" else None
        yield row


def test_from_a_support_chat_to_the_labels_that_are_needed(run, tmp_path):
    with open(tmp_path / "support chat.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ticket", "Customer", "Reply"])
        table.writerows([n, f"Where is order {1000 + n}?", f"Order {1000 + n} is on its way."] for n in range(60))
    told, following = run("bonmini-guard start 'support chat.csv'")
    assert "a table of 60 lines" in told
    assert "labels come later" in told
    told, following = run(following)  # import
    told, following = run(following)  # start, on the log
    assert "one answer each" in told
    assert "missing: scores of 60 answers" in told
    (tmp_path / "spec.toml").write_text('kind = "check"\n[check]\ntype = "regex"\npattern = "order"\n')
    told, following = run(following.replace("SPEC", "spec.toml"))  # score
    told, following = run(following)  # start, on the scored log
    assert "60 prompts can certify at most 3.8 %" in told
    assert "missing: labels" in told
    assert "asked first: the rows support chat.csv:" in told
    assert following.startswith("bonmini-guard label scored.jsonl -o labels.jsonl --for served_and_bad --alpha 0.05")


def test_from_labels_to_a_report(run, tmp_path):
    lines_of(tmp_path / "log.jsonl", log_rows(400, "all"))
    told, following = run("bonmini-guard start log.jsonl")
    assert "400 rows, 8 answers each" in told
    assert "labels: 3,200" in told
    told, following = run(following.replace("--alpha 0.05", "--alpha 0.1"))  # calibrate
    assert GuardProfile.load("guardrail.json").alpha == 0.1
    told, following = run(following)  # report
    assert (tmp_path / "report.html").exists()
    assert following == "bonmini-guard drift guardrail.json TRACES --follow"


@pytest.mark.parametrize(("rows", "level"), [(400, "--alpha 0.05"), (30, "--alpha 0.1"), (12, "--alpha 0.2"), (5, None)])
def test_no_level_is_proposed_that_the_rows_cannot_reach(run, tmp_path, rows, level):
    lines_of(tmp_path / "log.jsonl", log_rows(rows))
    told, following = run("bonmini-guard start log.jsonl")
    if level is None:
        assert following == ""
        assert "missing: prompts" in told
    else:
        assert level in following


def test_a_guards_cut_traces_can_only_relax_it(run, tmp_path):
    rows = [{**row, "decision": "accepted", "complete": False} for row in log_rows(20)]
    lines_of(tmp_path / "traces.jsonl", rows)
    told, following = run("bonmini-guard start traces.jsonl")
    assert "20 of them a guard's traces" in told
    assert "--relax" in following


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"run_type": "llm", "inputs": {}, "outputs": {}}, "import file.jsonl --from langsmith"),
        ({"resourceSpans": []}, "import file.jsonl --from otel"),
        ({"name": "chat", "context": {"trace_id": "0x1"}, "attributes": {}}, "import file.jsonl --from otel"),
        ({"id": "g", "traceId": "t", "type": "GENERATION", "input": "hi", "output": "ho"}, "import file.jsonl --from langfuse"),
        ([{"id": "g", "trace_id": "t", "input": "hi", "output": "ho"}], "import file.jsonl --from langfuse"),
        ({"data": [{"id": "g", "traceId": "t"}], "meta": {"page": 1}}, "import file.jsonl --from langfuse"),
        ({"eval": {"model": "m"}, "plan": {}, "samples": []}, "import file.jsonl --from inspect"),
        ({"prompt": "p", "responses": ["a", "b"], "choice": 0}, "train file.jsonl --base MODEL"),
        ({"mode": "guardrail", "schedule": [1], "thresholds": [0.0]}, "report LOG --profile file.jsonl"),
        ({"what": "x", "said": "y"}, "--map COLUMN=prompt --map COLUMN=text"),
        ({"kind": "bonmini-guard labels", "format": 1}, "label LOG -o file.jsonl --export log=labelled.jsonl"),
    ],
)
def test_other_files_are_known_by_what_is_in_them(run, tmp_path, record, expected):
    lines_of(tmp_path / "file.jsonl", [record])
    assert expected in run("bonmini-guard start file.jsonl")[1]


def test_a_pipe_is_refused_where_it_is_read_again_and_never_named_in_a_command_to_come(run, tmp_path, capsys):
    lines_of(tmp_path / "log.jsonl", log_rows(400, "all"))
    shape = "--alpha 0.1 --schedule 4,4"
    for command in ("start -", f"label - -o labels.jsonl --for served_and_bad {shape}", "drift profile.json - --follow"):
        with open("log.jsonl") as log, stdin_from(log):
            assert main(shlex.split(command)) == 2
        assert "-: a pipe can be read only once; write it to a file first" in capsys.readouterr().err
    with open("log.jsonl") as log, stdin_from(log):
        _, following = run(f"bonmini-guard calibrate - --mode guardrail {shape} -o guardrail.json")
    assert following == "bonmini-guard report LOG --profile guardrail.json -o report.html"


@contextlib.contextmanager
def stdin_from(file):
    """Standard input, as a process has it, from a file."""
    before = os.dup(0)
    os.dup2(file.fileno(), 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_a_folder_is_no_pipe(tmp_path, capsys):
    assert main(["start", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be read (Is a directory)" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "units"), [("prompt", "prompts"), ("group", "groups")])
def test_rows_of_one_prompt_or_group_count_once_and_are_called_so(run, tmp_path, key, units):
    lines_of(tmp_path / "log.jsonl", [{**row, key: f"{key} {number % 5}"} for number, row in enumerate(log_rows(100))])
    told, following = run("bonmini-guard start log.jsonl")
    assert f"5 {units} can certify at most" in told
    assert f"missing: {units}" in told
    assert following == ""


@pytest.mark.parametrize("more", ["-o p.json", "--plan"])
def test_of_two_prompts_nothing_is_said_about_what_thousands_would_do(run, tmp_path, capsys, more):
    lines_of(tmp_path / "log.jsonl", [{**row, "prompt": f"p{number % 2}"} for number, row in enumerate(log_rows(40, "all"))])
    assert main(shlex.split(f"calibrate log.jsonl --mode guardrail {more}")) == 3
    told = capsys.readouterr()
    assert "32,768" not in told.out + told.err
    assert "too few to say what others would be like" in told.out + told.err


@pytest.mark.parametrize(("prompts", "few"), [(4, True), (5, False)])
def test_of_as_few_prompts_as_a_certificate_serves_it_is_said_what_others_would_do(run, tmp_path, capsys, prompts, few):
    lines_of(tmp_path / "log.jsonl", [{**row, "prompt": f"p{number % prompts}"} for number, row in enumerate(log_rows(40, "all"))])
    assert main(shlex.split("calibrate log.jsonl --mode guardrail -o p.json")) == 3
    assert ("too few to say what others would be like" in capsys.readouterr().err) == few


def test_labels_that_are_not_calibrated_on_are_none(run, tmp_path):
    lines_of(tmp_path / "log.jsonl", [{**row, "label_sampling": "choices"} for row in log_rows(60, "all")])
    told, following = run("bonmini-guard start log.jsonl")
    assert "missing: labels" in told
    assert following.startswith("bonmini-guard label log.jsonl")


def test_generators_are_told_apart_by_all_of_what_is_said_of_them(run, tmp_path):
    said = [f"a model with a long name and many settings, of which the last one is the temperature: {heat}" for heat in (0, 1)]
    lines_of(tmp_path / "log.jsonl", [{**row, "generated_by": said[n % 2]} for n, row in enumerate(log_rows(40))])
    told, following = run("bonmini-guard start log.jsonl")
    assert "several generators" in told
    assert following == ""


def test_the_first_line_of_a_table_may_have_empty_cells(run, tmp_path):
    (tmp_path / "answers.csv").write_text("Customer,Reply,OK\nq,a,\nq,b,yes\n")
    told, following = run("bonmini-guard start answers.csv")
    assert "columns: Customer, Reply, OK" in told
    assert "--map OK=acceptable" in following


def test_the_next_command_writes_over_nothing_that_it_reads(run, tmp_path):
    lines_of(tmp_path / "app.log.jsonl", [{"prompt": "q", "text": "a"}])
    _, following = run("bonmini-guard start app.log.jsonl")
    assert following == "bonmini-guard import app.log.jsonl --from csv -o app.rows.jsonl"
    run(following)


def test_raw_scores_alone_are_none(run, tmp_path):
    rows = [
        {**row, "candidates": [{"text": one["text"], "raw_score": one["score"]} for one in row["candidates"]]}
        for row in log_rows(9)
    ]
    lines_of(tmp_path / "log.jsonl", rows)
    assert "missing: scores of 72 answers" in run("bonmini-guard start log.jsonl")[0]


def test_words_for_yes_and_no_are_labels_and_odd_lines_are_borne_as_import_bears_them(run, tmp_path, capsys):
    words = ["good", "bad", "Thumbs up", "thumbs-down", "Y", "n"] * 5
    lines = [f"q{number},a,{word}\n" for number, word in enumerate(words)]
    (tmp_path / "answers.csv").write_text("prompt,text,label\n" + "".join(lines) + "q,a,b,c\n")
    assert main(["start", "answers.csv"]) == 0
    told = capsys.readouterr()
    assert "a table of 30 lines" in told.out
    assert "left out: 1 odd, the first: answers.csv:32: more cells than columns" in told.err
    _, following = run("bonmini-guard start answers.csv")
    assert "--map label=acceptable" in following
    run(following)
    rows = map(json.loads, (tmp_path / "answers.log.jsonl").read_text().splitlines())
    assert [row["candidates"][0]["acceptable"] for row in rows] == [True, False, True, False, True, False] * 5


def test_a_table_that_import_would_not_bear_is_refused(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("prompt,text\nq,a\nq,a,b\n")
    assert main(["start", str(tmp_path / "t.csv")]) == 2
    assert "1 of 2 records are odd, more than --max-bad 0.05" in capsys.readouterr().err


def test_candidates_that_are_a_text_are_told_as_that(tmp_path, capsys):
    lines_of(tmp_path / "log.jsonl", [{**row, "candidates": json.dumps(row["candidates"])} for row in log_rows(3)])
    assert main(["start", str(tmp_path / "log.jsonl")]) == 2
    assert 'log.jsonl:1: "candidates" is \'[{"text": "answer 0.\', and no list;' in capsys.readouterr().err
