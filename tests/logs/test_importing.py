"""``import``: what other tools logged, as rows of a log; what is taken and what is left is told."""

import csv
import gzip
import json
import random
import zipfile
from pathlib import Path

import pyarrow as arrow
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pyarrow import parquet

from bonmini_guard.calibration.logs import load_log
from bonmini_guard.cli import main
from bonmini_guard.commands.importing import _SOURCES, _Import
from bonmini_guard.errors import InputError
from bonmini_guard.logs.odd import Odd
from bonmini_guard.logs.reading import RowFile
from bonmini_guard.logs.sources.draws import Rows
from tests.junk import paths, with_junk


def imported(folder, source, *files, more=(), code=0):
    """The rows that a command makes of some files, given as names and contents, or as paths."""
    paths = []
    for number, said in enumerate(files):
        path = said if hasattr(said, "exists") else folder / f"in{number}.jsonl"
        if path is not said:
            path.write_text(said if isinstance(said, str) else "".join(json.dumps(record) + "\n" for record in said))
        paths.append(str(path))
    out = folder / "log.jsonl"
    out.unlink(missing_ok=True)
    assert main(["import", *paths, "--from", source, "-o", str(out), *more]) == code
    return [row for _, row in RowFile(out)] if code == 0 else None


def texts(rows):
    return [[one["text"] for one in row["candidates"]] for row in rows]


USER = [{"role": "user", "content": "hi"}]
WRITTEN = Path(__file__).parents[1] / "data" / "imports"
BRIEF = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize(
    ("source", "name", "expected", "generator", "mapped"),
    [
        ("inspect", "inspect.json.gz", [["4", "5"], ["Paris", "Lyon"]], "mockllm/model temperature=0.7", "match"),
        ("inspect", "inspect.eval", [["4", "5"], ["Paris", "Lyon"]], "mockllm/model temperature=0.7", "match"),
        ("lm-eval", "lm_eval_samples.jsonl", [["lol", "lol"], ["lol", "lol"]], None, None),
        ("langfuse", "langfuse_observations.json", [["1"], [None], ["hi there"]], "gpt-x temperature=0.5", None),
        ("otel", "otel_console.json", [["4"], ["hi", "good day"], ["Rain."], [None]], "gpt-x temperature=0.5", None),
        ("otel", "otel_otlp.json", [["4"], ["hi", "good day"], ["Rain."], [None]], "gpt-x temperature=0.5", None),
    ],
)
def test_files_that_the_tools_themselves_wrote(tmp_path, source, name, expected, generator, mapped):
    """Written by inspect-ai 0.3.285, lm-eval 0.4.13, langfuse 5.0.4 (its API's classes) and opentelemetry-util-genai 1.3b0."""
    rows = imported(tmp_path, source, WRITTEN / name, more=["--map", f"{mapped}=acceptable"] if mapped else [])
    assert texts(rows) == expected
    assert {row.get("generated_by") for row in rows} == {generator}
    assert rows[0]["prompt"] == ("Q: 2 + 2?\nA:" if source == "lm-eval" else BRIEF)
    if mapped:
        assert [[one["acceptable"] for one in row["candidates"]] for row in rows] == [[True, False], [True, False]]


# LangSmith


def run(number, **changes):
    return {
        "id": f"r{number}",
        "run_type": "llm",
        "inputs": {"messages": USER},
        "outputs": {"choices": [{"message": {"role": "assistant", "content": f"a{number}"}}], "usage": {"completion_tokens": 3}},
        "extra": {"metadata": {"ls_model_name": "m", "ls_temperature": 0.5, "thread_id": "t"}},
        "start_time": "2026-01-02T00:00:00",
        "end_time": "2026-01-02T00:00:02.500000+00:00",
        "feedback_stats": {"correct": {"n": 1, "avg": 1.0}},
        **changes,
    }


def test_langsmith_runs_written_by_langchain(tmp_path):
    collector = RunCollectorCallbackHandler(_schema_format="original+chat")  # as the tracer of LangSmith
    model = FakeListChatModel(responses=["four", "five"])
    for prompt in ("2 + 2?", [SystemMessage("Be brief."), HumanMessage("2 + 3?")]):
        model.invoke(prompt, {"callbacks": [collector]})
    (model | (lambda message: message.text)).invoke("a chain", {"callbacks": [collector]})
    runs = [json.loads(run.model_dump_json(exclude={"parent_run", "child_runs"})) for run in collector.traced_runs]
    rows = imported(tmp_path, "langsmith", runs)
    assert texts(rows) == [["four"], ["five"]]
    assert rows[1]["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}]
    assert rows[0]["id"] == str(collector.traced_runs[0].id)
    assert rows[0]["candidates"][0]["finished"] >= rows[0]["candidates"][0]["started"] > 1.7e9


def test_langsmith_runs_of_chat_bodies_choices_failures_and_feedback(tmp_path, capsys):
    two = {"choices": [{"message": {"role": "assistant", "content": text}} for text in ("x", "y")]}
    runs = [
        run(0),
        run(1, run_type="tool"),
        run(2, outputs=two),
        run(3, outputs=None, error="boom"),
        run(4, inputs={"prompts": ["text"]}),
    ]
    rows = imported(tmp_path, "langsmith", runs, more=["--map", "correct=acceptable"])
    said = capsys.readouterr()
    assert texts(rows) == [["a0"], ["x", "y"], [None], ["a4"]]
    assert rows[0]["candidates"][0] == {
        "text": "a0",
        "tokens": 3,
        "started": 1767312000.0,
        "finished": 1767312002.5,
        "acceptable": True,
        "acceptable_by": "correct",
    }
    assert [set(one) for one in rows[1]["candidates"]] == [{"text", "started", "finished"}] * 2  # a word for both is for neither
    assert "left out: correct of several answers at once: 1" in said.err
    assert rows[2]["candidates"][0]["failed"] is True
    assert (rows[0]["generated_by"], rows[0]["group"], rows[3]["prompt"]) == ("m temperature=0.5", "t", "text")
    assert "generated by m temperature=0.5: 5" in said.out
    assert "left out: runs of type tool: 1" in said.err
    imported(tmp_path, "langsmith", runs)
    assert "left: correct (5 answers); --map correct=acceptable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("beside", "asked"),
    [
        ("system", {"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]}),
        ("instructions", {"input": "2 + 2?"}),
        ("instructions", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "2 + 2?"}]}]}),
    ],
)
def test_instructions_beside_the_conversation_and_texts_of_the_responses_api_are_read(tmp_path, beside, asked):
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4", "annotations": []}]}
    record = {"id": "a", "run_type": "llm", "inputs": {beside: "Be brief.", **asked}, "outputs": {"output": [said]}}
    log = imported(tmp_path, "langsmith", [record])
    assert [[turn["role"], turn["content"]] for turn in log[0]["prompt"]] == [["system", "Be brief."], ["user", "2 + 2?"]]
    assert log[0]["candidates"] == [{"text": "4"}]


@pytest.mark.parametrize("as_text", [False, True])
def test_calls_among_the_inputs_of_the_responses_api_are_turns(tmp_path, as_text):
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "look"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
        {"role": "user", "content": "And tomorrow?"},
    ]
    asked, said = {"input": items, "instructions": "Be brief."}, {"output": [{**items[4], "id": "m"}]}
    record = {"id": "g", "type": "GENERATION", "input": asked, "output": said}
    if as_text:
        record |= {"input": json.dumps(asked), "output": json.dumps(said)}
    [row] = imported(tmp_path, "langfuse", [record])
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    assert row["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "look"},
        {"role": "tool", "content": "sunny", "tool_call_id": "c"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "And tomorrow?"},
    ]
    assert texts([row]) == [["Sunny."]]


def test_what_the_responses_api_did_by_itself_is_part_of_its_answer(tmp_path):
    searched = {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "news"}}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "None."}]}
    shell = [
        {"type": "local_shell_call", "call_id": "s", "action": {}},
        {"type": "local_shell_call_output", "call_id": "s", "output": "ok"},
    ]
    items = [{"role": "user", "content": "News?"}, searched, said, {"role": "user", "content": "And now?"}, *shell]
    [row] = imported(tmp_path, "langfuse", [{"id": "g", "input": {"input": items}, "output": {"output": [searched, said]}}])
    assert [(turn["role"], turn["content"]) for turn in row["prompt"]] == [
        ("user", "News?"),
        ("assistant", [searched, {"type": "text", "text": "None."}]),
        ("user", "And now?"),
        ("assistant", [shell[0]]),
        ("tool", "ok"),
    ]
    assert row["candidates"][0]["message"]["content"] == row["prompt"][1]["content"]


def test_traces_of_which_the_observations_are_elsewhere_are_no_calls(tmp_path, capsys):
    trace = {"id": "t", "name": "support", "input": "hi", "output": "ho", "observations": ["g"], "scores": []}
    rows = imported(tmp_path, "langfuse", [{"data": [trace]}, {**observation(0), "id": "g"}])
    assert [row["id"] for row in rows] == ["g"]
    assert "left out: traces without their observations: 1" in capsys.readouterr().err


def test_blocks_and_items_are_one_answer(tmp_path):
    call = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "I look."}, call]
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    called = {"type": "function_call", "id": "fc", "call_id": "1", "name": "look", "arguments": "{}"}
    items = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, said, called]
    log = imported(tmp_path, "langfuse", [{"id": str(at), "input": "q", "output": said} for at, said in enumerate((blocks, items))])
    for row in log:
        [answer] = row["candidates"]
        assert (answer["text"], answer["message"]["reasoning_content"]) == ("I look.", "hm")
        assert [one["id"] for one in answer["message"]["tool_calls"]] == ["1"]


def test_langsmith_s_bulk_export_holds_json_in_columns(tmp_path):
    runs = [{key: json.dumps(value) if isinstance(value, dict) else value for key, value in run(n).items()} for n in range(3)]
    parquet.write_table(arrow.Table.from_pylist(runs), tmp_path / "runs.parquet")
    rows = imported(tmp_path, "langsmith", tmp_path / "runs.parquet", more=["--map", "inputs.messages=prompt"])
    assert texts(rows) == [["a0"], ["a1"], ["a2"]]
    assert rows[0]["prompt"] == USER


def test_a_run_of_something_of_its_own_is_mapped(tmp_path, capsys):
    odd = run(0, inputs={"user_says": "hi"}, outputs={"reply": {"said": "yo"}})
    imported(tmp_path, "langsmith", [odd], code=2)
    assert "no answer in its output; log outputs, or name its column with --map" in capsys.readouterr().err
    rows = imported(tmp_path, "langsmith", [odd], more=["--map", "inputs.user_says=prompt", "--map", "outputs.reply.said=text"])
    assert (rows[0]["prompt"], texts(rows)) == ("hi", [["yo"]])


# Langfuse


def observation(number, **changes):
    return {
        "id": f"o{number}",
        "traceId": "t",
        "type": "GENERATION",
        "model": "m",
        "modelParameters": {"temperature": 0.2, "max_tokens": 9},
        "input": USER,
        "output": {"role": "assistant", "content": f"a{number}"},
        "startTime": "2026-01-02T00:00:00.000Z",
        "endTime": "2026-01-02T00:00:01.000Z",
        "usageDetails": {"input": 2, "output": 4},
        "level": "DEFAULT",
        **changes,
    }


def test_langfuse_pages_traces_and_exports(tmp_path, capsys):
    snake = {
        "id": "o3",
        "type": "GENERATION",
        "provided_model_name": "m",
        "model_parameters": '{"temperature": 0.2, "max_tokens": 9}',
        "input": json.dumps({"messages": USER}),
        "output": '{"looks": "like JSON and is the answer"}',
        "session_id": "s",
        "usage_details": {"output": 4},
    }
    trace = {
        "id": "t",
        "observations": [observation(1, scores=[]), observation(2, output=None, level="ERROR"), observation(9, type="SPAN")],
        "scores": [{"name": "helpful", "value": 1, "observationId": "o1"}],
    }
    rows = imported(
        tmp_path, "langfuse", [{"data": [observation(0)], "meta": {}}, trace, snake], more=["--map", "helpful=acceptable"]
    )
    assert texts(rows) == [["a0"], ["a1"], [None], ['{"looks": "like JSON and is the answer"}']]
    assert {row["generated_by"] for row in rows} == {"m max_tokens=9 temperature=0.2"}
    assert rows[3]["prompt"] == rows[0]["prompt"] == USER
    assert rows[3]["group"] == "s"
    assert rows[0]["candidates"][0]["tokens"] == 4
    assert "left out: observations of type SPAN: 1" in capsys.readouterr().err


def test_langfuse_scores_of_a_trace_of_several_calls_are_of_none_and_categories_are_read_by_name(tmp_path, capsys):
    named = {"name": "verdict", "value": 0, "stringValue": "good", "dataType": "CATEGORICAL"}
    thumb = {"name": "thumb", "value": 1, "stringValue": "True", "dataType": "BOOLEAN"}
    own = {**named, "observationId": "o1"}
    several = {"id": "t", "sessionId": "s", "observations": [observation(0), observation(1)], "scores": [thumb, own, named]}
    alone = {"id": "u", "observations": [observation(2), observation(3, type="SPAN")], "scores": [thumb, named]}
    for column, labels in (("verdict", [None, True, True]), ("thumb", [None, None, True])):
        rows = imported(tmp_path, "langfuse", [several, alone], more=["--map", f"{column}=acceptable"])
        assert [row["candidates"][0].get("acceptable") for row in rows] == labels
        assert [row.get("group") for row in rows] == ["s", "s", None]
        said = capsys.readouterr().err
        assert "left out: thumb of several answers at once: 2\n" in said
        assert "nothing found under" not in said
    unsaid = {**thumb, "value": None, "stringValue": None}
    imported(tmp_path, "langfuse", [{**alone, "scores": [unsaid]}])
    assert "of several answers" not in capsys.readouterr().err
    [row] = imported(tmp_path, "langfuse", [{**alone, "scores": [thumb, unsaid]}], more=["--map", "thumb=score"])
    assert row["candidates"][0]["score"] == 1
    more = ["--map", "verdict=acceptable", "--map", "thumb=acceptable"]
    assert [row["candidates"][0].get("acceptable") for row in imported(tmp_path, "langfuse", [several], more=more)] == [None, True]


# OpenTelemetry


def spans(*calls):
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    for attributes, events in calls:
        with tracer.start_as_current_span("chat m", attributes=attributes) as span:
            for name, said in events:
                span.add_event(name, said)
    return [json.loads(span.to_json()) for span in memory.get_finished_spans()]


CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.usage.output_tokens": 4,
}
ASKED = [
    {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
    {"role": "user", "parts": [{"type": "text", "content": "weather?"}]},
    {"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "look", "arguments": {"at": "Paris"}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "rain"}]},
]
SAID = [
    {"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": text}]} for text in "xy"
]
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]

DIALECTS = {
    "attributes": ({"gen_ai.input.messages": json.dumps(ASKED), "gen_ai.output.messages": json.dumps(SAID)}, []),
    "events": (
        {},
        [
            ("gen_ai.system.message", {"content": "Be brief."}),
            ("gen_ai.user.message", {"content": "hi"}),
            ("gen_ai.choice", {"index": 0, "message": json.dumps({"role": "assistant", "content": "x"}), "finish_reason": "stop"}),
        ],
    ),
    "numbered": (
        {
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": "Be brief.",
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": "hi",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": "x",
            "gen_ai.completion.0.finish_reason": "stop",
        },
        [],
    ),
    "one event a side": (
        {},
        [
            ("gen_ai.content.prompt", {"gen_ai.prompt": json.dumps(PROMPT)}),
            ("gen_ai.content.completion", {"gen_ai.completion": "x"}),
        ],
    ),
    "OpenInference": (
        {
            "openinference.span.kind": "LLM",
            "llm.model_name": "m",
            "llm.input_messages.0.message.role": "system",
            "llm.input_messages.0.message.content": "Be brief.",
            "llm.input_messages.1.message.role": "user",
            "llm.input_messages.1.message.content": "hi",
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.content": "x",
        },
        [],
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_spans_of_each_dialect_written_by_the_sdk(tmp_path, capsys, dialect):
    about, events = DIALECTS[dialect]
    found = spans((CALL | about, events), ({"http.method": "GET"}, []), (CALL | {"gen_ai.operation.name": "execute_tool"}, []))
    rows = imported(tmp_path, "otel", "\n".join(json.dumps(span, indent=4) for span in found))
    assert texts(rows) == ([["x", "y"]] if dialect == "attributes" else [["x"]])
    assert rows[0]["generated_by"] == "m temperature=0.5"
    if dialect == "attributes":
        assert [turn["role"] for turn in rows[0]["prompt"]] == ["system", "user", "assistant", "tool"]
        assert json.loads(rows[0]["prompt"][2]["tool_calls"][0]["function"]["arguments"]) == {"at": "Paris"}
        assert (rows[0]["prompt"][3]["content"], rows[0]["prompt"][3]["tool_call_id"]) == ("rain", "c")
        assert rows[0]["candidates"][0]["message"]["reasoning_content"] == "hm"
    else:
        assert rows[0]["prompt"] == PROMPT
        assert rows[0]["candidates"][0]["tokens"] == 4
    assert "left out: spans that are no call of a model: 2" in capsys.readouterr().err


def otlp(attributes, **more):
    pairs = [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"doubleValue": value}}
        for key, value in attributes.items()
    ]
    span = {"traceId": "t", "spanId": "s", "startTimeUnixNano": "1767312000000000000", "endTimeUnixNano": "1767312001000000000"}
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span | {"attributes": pairs} | more]}]}]}


def test_otlp_exports_failures_and_calls_without_text(tmp_path, capsys):
    about, _ = DIALECTS["attributes"]
    failed = otlp(CALL | {"gen_ai.input.messages": about["gen_ai.input.messages"]}, status={"code": 2}, spanId="f")
    rows = imported(tmp_path, "otel", [otlp(CALL | about), failed])
    assert texts(rows) == [["x", "y"], [None]]
    assert rows[0]["candidates"][0]["finished"] - rows[0]["candidates"][0]["started"] == pytest.approx(1)
    imported(tmp_path, "otel", [otlp(CALL)], code=2)
    assert "let the instrumentation record message content" in capsys.readouterr().err


@pytest.mark.parametrize("role", ["tool", "user"])
def test_answers_of_several_tools_in_one_message_are_a_turn_each(tmp_path, role):
    parts = [{"type": "tool_call_response", "id": f"c{number}", "response": said} for number, said in enumerate(["rain", "sun"])]
    text = {"type": "text", "content": "Which is better?"}
    asked = [*ASKED[:3], {"role": role, "parts": [*parts, *([text] if role == "user" else [])]}]
    about = {"gen_ai.input.messages": json.dumps(asked), "gen_ai.output.messages": json.dumps(SAID)}
    [row] = imported(tmp_path, "otel", [otlp(CALL | about)])
    expected = [{"role": "tool", "content": said, "tool_call_id": f"c{number}"} for number, said in enumerate(["rain", "sun"])]
    assert row["prompt"][3:] == [*expected, *([{"role": "user", "content": text["content"]}] if role == "user" else [])]


def test_events_of_whole_calls_are_read_from_logs(tmp_path, capsys):
    about, _ = DIALECTS["attributes"]
    [span] = otlp(CALL | about)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    whole = span | {"eventName": "gen_ai.client.inference.operation.details"}
    single = span | {"eventName": "gen_ai.user.message"}
    rows = imported(tmp_path, "otel", [{"resourceLogs": [{"scopeLogs": [{"logRecords": [whole, single]}]}]}])
    assert texts(rows) == [["x", "y"]]
    assert "left out: log records of single messages" in capsys.readouterr().err


# lm-evaluation-harness


def sample(number, **changes):
    return {
        "doc_id": number,
        "doc": {"question": "q"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": f"Q: {number}\nA:", "arg_1": {"until": ["\n"], "do_sample": True}}},
        "resps": [["4", " 5"]],
        "filtered_resps": ["4"],
        "filter": "strict",
        "prompt_hash": f"h{number}",
        "exact_match": 1.0,
        **changes,
    }


def test_lm_eval_samples_repeats_filters_chats_and_likelihoods(tmp_path, capsys):
    chat = {"gen_args_0": {"arg_0": json.dumps(PROMPT), "arg_1": {}}}
    likelihood = {"gen_args_0": {"arg_0": "Q", "arg_1": " yes"}, "gen_args_1": {"arg_0": "Q", "arg_1": " no"}}
    samples = [sample(0), sample(0, filter="flexible"), sample(1, arguments=chat, resps=[["x"]]), sample(2, arguments=likelihood)]
    rows = imported(tmp_path, "lm-eval", samples, more=["--map", "exact_match=acceptable", "--generated-by", "m"])
    assert texts(rows) == [["4", " 5"], ["x"]]
    assert (rows[0]["id"], rows[0]["prompt"], rows[1]["prompt"]) == ("0", "Q: 0\nA:", PROMPT)
    # A metric of several answers is not one of each.
    assert "acceptable" not in rows[0]["candidates"][0]
    assert (rows[1]["candidates"][0]["acceptable"], rows[1]["generated_by"]) == (True, "m")
    said = capsys.readouterr().err
    assert "left out: the same answers under another filter: 1" in said
    assert "left out: log-likelihoods, which are no answers: 1" in said


# Inspect


def evaluated(number, epoch, text, **changes):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"q{number}"},
        {"role": "assistant", "content": text},
    ]
    return {
        "id": number,
        "epoch": epoch,
        "input": f"q{number}",
        "messages": messages,
        "output": {"model": "m", "choices": [{"message": messages[-1], "stop_reason": "stop"}], "usage": {"output_tokens": 2}},
        "scores": {"match": {"value": "C" if text == "4" else "I"}},
        **changes,
    }


ERROR = {"output": {"choices": []}, "error": {"message": "boom"}, "messages": []}
EVALUATION = {
    "version": 2,
    "status": "success",
    "eval": {"task": "t", "model": "openai/m", "model_generate_config": {"temperature": 0.5}},
    "samples": [evaluated(1, 1, "4"), evaluated(1, 2, "5"), evaluated(2, 1, "4"), evaluated(2, 2, "x", **ERROR)],
}


@pytest.mark.parametrize("form", ["json", "eval"])
def test_inspect_s_epochs_are_one_row(tmp_path, form):
    path = tmp_path / f"log.{form}"
    if form == "json":
        path.write_text(json.dumps(EVALUATION, indent=2))
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("header.json", json.dumps({key: value for key, value in EVALUATION.items() if key != "samples"}))
            for one in EVALUATION["samples"]:
                file.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
    rows = imported(tmp_path, "inspect", path, more=["--map", "match=acceptable"])
    assert [row["id"] for row in rows] == ["1", "2#1", "2#2"]
    assert texts(rows) == [["4", "5"], ["4"], [None]]
    assert [one["acceptable"] for one in rows[0]["candidates"]] == [True, False]
    assert rows[0]["generated_by"] == "openai/m temperature=0.5"
    assert [turn["role"] for turn in rows[0]["prompt"]] == ["system", "user"]


def test_what_is_no_inspect_log_is_told(tmp_path, capsys):
    (tmp_path / "log.eval").write_bytes(b"PK\x03\x04 no archive")
    imported(tmp_path, "inspect", tmp_path / "log.eval", code=2)
    assert "no whole archive of Inspect" in capsys.readouterr().err
    imported(tmp_path, "inspect", [{"status": "started"}], code=2)
    assert "give whole logs of Inspect" in capsys.readouterr().err


@pytest.mark.parametrize("packed", ["deflate", "zstandard"])
def test_an_archive_of_inspect_whose_members_are_damaged_is_told_in_one_line(tmp_path, capsys, packed):
    path = tmp_path / "log.eval"
    if packed == "deflate":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("header.json", json.dumps(EVALUATION))
        data, begin = path.read_bytes(), 30 + len("header.json")
        path.write_bytes(data[:begin] + b"\xff" * 4 + data[begin + 4 :])
    else:
        path.write_bytes((WRITTEN / "inspect.eval").read_bytes().replace(b"\x28\xb5\x2f\xfd", b"\xff" * 4))
    imported(tmp_path, "inspect", path, code=2)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no whole archive of Inspect" in told


# Columns that are mapped

SPOKEN = {"gen_ai.prompt": "p", "gen_ai.completion": "c", "app.user": "u", "app.ok": "yes"}


@pytest.mark.parametrize(
    ("source", "record", "maps", "row", "answer"),
    [
        (
            "langsmith",
            run(0, inputs={"messages": USER, "score": "0.5", "user": 7}, outputs={"text": "a0", "n": "12", "good": "yes"}),
            ["inputs.score=score", "inputs.user=group", "outputs.n=tokens", "outputs.good=acceptable", "start_time=id"],
            {"id": "2026-01-02T00:00:00", "group": "7", "generated_by": "m temperature=0.5"},
            {"text": "a0", "score": 0.5, "tokens": 12, "acceptable": True, "acceptable_by": "outputs.good"},
        ),
        (
            "langfuse",
            {"id": "o", "input": "hi", "output": "ho", "userId": "u", "metadata": '{"score": 2, "broken": 1, "as": 7}'},
            ["userId=group", "metadata.score=score", "metadata.broken=failed", "metadata.as=model"],
            {"id": "o", "group": "u", "generated_by": "7"},
            {"text": None, "score": 2, "failed": True},
        ),
        (
            "otel",
            {"attributes": CALL | {"gen_ai.prompt": "p", "gen_ai.completion": "c"}, "said": {"q": "hi", "a": "ho", "by": "k"}},
            ["said.q=prompt", "said.a=text", "said.by=model"],
            {"prompt": "hi", "generated_by": "k temperature=0.5"},
            {"text": "ho", "tokens": 4},
        ),
        *(
            (
                "otel",
                {"attributes": attributes},
                ["attributes.app.user=group", "attributes.app.ok=acceptable"],
                {"prompt": "p", "group": "u"},
                {"text": "c", "acceptable": True, "acceptable_by": "attributes.app.ok"},
            )
            for attributes in (SPOKEN, [{"key": key, "value": {"stringValue": value}} for key, value in SPOKEN.items()])
        ),
        (
            "lm-eval",
            sample(0, resps=[["4"]]),
            ["doc.question=prompt", "target=model", "exact_match=score"],
            {"prompt": "q", "generated_by": "4"},
            {"text": "4", "score": 1.0},
        ),
        (
            "json",
            {"prompt": "p", "text": "a", "checks": {"units": "no"}},
            ["checks.units=acceptable"],
            {"prompt": "p"},
            {"text": "a", "acceptable": False, "acceptable_by": "checks.units"},
        ),
    ],
)
def test_a_mapped_field_of_a_record_is_taken_whatever_wrote_it(tmp_path, capsys, source, record, maps, row, answer):
    [found] = imported(tmp_path, source, [record], more=[word for each in maps for word in ("--map", each)])
    assert {key: found[key] for key in row} == row
    [said] = found["candidates"]
    assert {key: said.get(key) for key in answer} == answer
    assert "nothing found" not in capsys.readouterr().err


def test_what_is_mapped_and_is_none_of_each_answer_or_cannot_be_read_is_told(tmp_path, capsys):
    two = {"choices": [{"message": {"role": "assistant", "content": text}} for text in ("x", "y")], "score": 1}
    said = {"outputs": {"text": "a", "n": "a dozen", "at": "at noon"}}
    maps = ["--map", "outputs.score=score", "--map", "outputs.n=tokens", "--map", "outputs.at=finished"]
    rows = imported(tmp_path, "langsmith", [run(0, outputs=two), run(1, **said)], more=maps)
    assert [[one.get("score") for one in row["candidates"]] for row in rows] == [[None, None], [None]]
    assert "tokens" not in rows[1]["candidates"][0]
    told = capsys.readouterr().err
    assert "left out: outputs.score of several answers at once: 1\n" in told
    assert 'left out: "tokens" that cannot be read: 1\n' in told
    assert 'left out: "finished" that cannot be read: 1\n' in told


# Tables


def flat(**changes):
    return [
        {
            "request": 7 + number // 3,
            "question": f"q{number // 3}",
            "reply": f"a{number}, é",
            "reward": f"{number / 4}",
            "ok": str(number % 3 == 0),
        }
        | changes
        for number in range(12)
    ]


MAPS = [option for pair in ("request=id", "reply=text", "reward=score", "ok=acceptable") for option in ("--map", pair)]


@pytest.mark.parametrize("form", ["csv", "parquet", "json"])
def test_flat_tables_are_gathered_by_id(tmp_path, capsys, form):
    path = tmp_path / f"flat.{form}"
    if form == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(flat()[0]))
            writer.writeheader()
            writer.writerows(flat())
    elif form == "json":
        path.write_text(json.dumps(flat()))
    else:
        parquet.write_table(arrow.Table.from_pylist(flat()), path)
    rows = imported(tmp_path, form, path, more=MAPS)
    assert [row["id"] for row in rows] == ["7", "8", "9", "10"]
    assert texts(rows)[1] == ["a3, é", "a4, é", "a5, é"]
    log = load_log(tmp_path / "log.jsonl")
    assert log.scores[1].tolist() == [0.75, 1.0, 1.25]
    assert log.labels[1].tolist() == [1.0, 0.0, 0.0]
    capsys.readouterr()
    imported(tmp_path, form, path, more=MAPS[2:6])
    said = capsys.readouterr()
    # No id: equal prompts are one row.
    assert "4 rows, 12 candidates" in said.out
    assert "left: request (12 answers)" in said.err
    assert "left: ok (12 answers)" in said.err


def test_rows_that_only_want_mending_are_mended(tmp_path):
    rows = [
        {"id": 3, "prompt": "p", "candidates": [{"text": "[1, 2]", "score": "0.5", "acceptable": 1}, {"failed": True}]},
        {"id": 4.0, "prompt": USER, "group": 1, "candidates": [{"text": "", "score": 1, "acceptable": False}], "generated_by": "g"},
    ]
    first, second = imported(tmp_path, "json", json.dumps(rows))
    assert first == {
        "id": "3",
        "prompt": "p",
        "candidates": [{"text": "[1, 2]", "score": 0.5, "acceptable": True}, {"text": None, "failed": True}],
    }
    assert (second["id"], second["group"], second["generated_by"]) == ("4", "1", "g")
    assert main(["import", str(tmp_path / "in0.jsonl"), "--from", "json", "-o", str(tmp_path / "in0.jsonl")]) == 2


def test_a_table_may_begin_with_empty_lines_and_its_places_are_those_of_the_file(tmp_path, capsys):
    path = tmp_path / "t.csv"
    for comma in ",\t":
        table = ["", "", ",prompt,text", *(f"{number},p{number},t" for number in range(30)), "z,p,"]
        path.write_text("\n".join(table).replace(",", comma))
        assert len(imported(tmp_path, "csv", path)) == 30
        assert f"{path}:34: no answer" in capsys.readouterr().err


def test_numbers_of_a_table_are_numbers_however_they_are_written(tmp_path):
    table = """id,prompt,text,tokens,started,finished
a,p,t,57.0,0.123,1700000000.5
b,p,t,57,0,2023-11-14T22:13:20.5Z
c,p,t,5e1,1700000000500,2023-11-14
d,p,t,nan,nan,5.5.5
"""
    (tmp_path / "t.csv").write_text(table)
    rows = imported(tmp_path, "csv", tmp_path / "t.csv")
    found = [[row["candidates"][0].get(key) for key in ("tokens", "started", "finished")] for row in rows]
    assert found == [
        [57, 0.123, 1700000000.5],
        [57, 0.0, 1700000000.5],
        [50, 1700000000.5, 1699920000.0],
        [None, None, None],
    ]


def test_a_line_with_more_cells_than_columns_is_odd_and_never_cut(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("prompt,text,score\nq,Hello, world,1\nr,b,1,\n")  # a comma at the end adds nothing
    assert texts(imported(tmp_path, "csv", tmp_path / "t.csv", more=["--max-bad", "0.5"])) == [["b"]]
    assert "t.csv:2: more cells than columns; quote those that hold ','" in capsys.readouterr().err


def test_a_score_that_is_not_finite_is_none_or_odd(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("id,prompt,text,score\n1,q,a,nan\n1,q,b,-inf\n1,q,c,0.5\n")
    rows = imported(tmp_path, "csv", tmp_path / "t.csv", more=["--max-bad", "0.5"])
    assert rows[0]["candidates"] == [{"text": "a"}, {"text": "c", "score": 0.5}]
    assert "t.csv:3: the score '-inf' is no number" in capsys.readouterr().err


def test_the_input_beside_an_instruction_is_part_of_the_question(tmp_path):
    (tmp_path / "t.csv").write_text("instruction,input,output\nTranslate.,Hund,dog\nTranslate.,Katze,cat\nSing.,,la\n")
    for more in ([], ["--map", "instruction=prompt"]):
        rows = imported(tmp_path, "csv", tmp_path / "t.csv", more=more)
        assert [row["prompt"] for row in rows] == ["Translate.\nHund", "Translate.\nKatze", "Sing."]


def test_nan_in_a_table_is_nothing(tmp_path, capsys):
    nan = float("nan")  # as json.dumps writes what pandas gives it
    table = [{"id": str(at), "prompt": "p", "text": "a", "group": nan, "acceptable": nan, "tokens": nan} for at in range(2)]
    rows = imported(tmp_path, "json", [*table, {"prompt": "p", "text": nan, "acceptable": True}], more=["--max-bad", "0.5"])
    assert [[row.get("group"), *row["candidates"]] for row in rows] == [[None, {"text": "a"}]] * 2
    assert "in0.jsonl:3: no answer" in capsys.readouterr().err


@pytest.mark.parametrize("answers", [["a", "b"], {"choices": [{"message": {"content": one}} for one in "ab"]}])
def test_several_answers_in_one_row_of_a_table_are_never_cut_to_the_first(tmp_path, capsys, answers):
    imported(tmp_path, "json", [{"prompt": "p", "response": answers}], code=2)
    assert "in0.jsonl:1: 2 answers in one row; give each a row" in capsys.readouterr().err


def test_what_a_mended_row_says_of_itself_is_kept(tmp_path):
    said = {"complete": "false", "decision": "accepted", "selected": 1, "label_sampling": "choices", "own": [1]}
    candidates = [{"text": text, "score": "0.5", "loop": 0} for text in "ab"]
    rows = [{"id": number, "prompt": "p", "candidates": candidates, **said} for number in (1, 2)]
    found = imported(tmp_path, "json", rows)
    mended = {**said, "complete": False, "prompt": "p", "candidates": [{**one, "score": 0.5} for one in candidates]}
    assert found == [{**mended, "id": "1"}, {**mended, "id": "2"}]
    with pytest.raises(InputError, match="complete"):
        load_log(tmp_path / "log.jsonl")
    # Rows that say different things of themselves are two rows, whatever else makes several answers one.
    rows[1]["selected"] = 0
    assert len(imported(tmp_path, "json", rows, more=["--gather", "prompt"])) == 2


def test_odd_records_are_left_out_counted_and_named(tmp_path, capsys):
    good = [{"id": str(n), "prompt": "p", "text": "a", "score": n} for n in range(30)]
    rows = imported(tmp_path, "json", [*good[:9], {"id": "x", "prompt": "p"}, *good[9:]])
    assert len(rows) == 30
    assert "left out: 1 odd, the first: " in capsys.readouterr().err
    # One id with two prompts is two rows.
    again = imported(tmp_path, "json", [*good[:4], {"id": "3", "prompt": "another", "text": "b"}])
    assert [row["id"] for row in again] == ["0", "1", "2", "3#1", "3#2"]
    imported(tmp_path, "json", [{"id": "1", "prompt": "p", "text": "a", "score": "high"}], code=2)
    assert "the score 'high' is no number" in capsys.readouterr().err
    imported(tmp_path, "json", [], code=2)
    assert "nothing to import from 0 records" in capsys.readouterr().err


def test_generators_are_kept_apart_and_several_are_warned_of(tmp_path, capsys):
    runs = [run(n, extra={"metadata": {"ls_model_name": "m" if n % 2 else "k"}}) for n in range(4)]
    rows = imported(tmp_path, "langsmith", runs, more=["--gather", "prompt"])
    assert sorted((row["generated_by"], len(row["candidates"])) for row in rows) == [("k", 2), ("m", 2)]
    assert "warning: 2 generators: a certificate holds for one" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [["--map", "x"], ["--map", "x=colour"], ["--max-bad", "7"], ["--map", "x=id", "--map", "x=group"]])
def test_wrong_options_name_the_cure(tmp_path, capsys, bad):
    imported(tmp_path, "json", [{"id": "1", "prompt": "p", "text": "a"}], more=bad, code=2)
    error = capsys.readouterr().err
    assert bad[0] in error
    assert error.count("\n") == 1


# Whatever a record holds


JUNK = (None, 3, "x", "", [], {}, [1], [[]], {"a": 1}, True, ["x"], [None], "[1", '{"a": 1}', 1e400)
READERS = {
    "langsmith": [run(0), run(1, inputs={"prompts": ["q"]})],
    "langfuse": [
        observation(0),
        {"data": [observation(0)]},
        {"observations": [observation(1)], "scores": [{"name": "n", "value": 1}]},
    ],
    "otel": [otlp(CALL | DIALECTS[name][0]) for name in DIALECTS if DIALECTS[name][0]]
    + [{"attributes": dict(CALL), "events": [{"name": name, "attributes": said} for name, said in DIALECTS["events"][1]]}],
    "lm-eval": [sample(0)],
    "inspect": [EVALUATION],
    "json": [flat()[0], {"id": "1", "prompt": USER, "candidates": [{"text": "a", "score": 1.0}]}],
}


@pytest.mark.parametrize("source", READERS)
def test_nothing_that_a_record_holds_ends_in_a_traceback(source):
    for record in READERS[source]:
        for path in paths(record):
            for junk in JUNK:
                changed = with_junk(record, path, junk)
                if isinstance(changed, dict):
                    job = _Import(_SOURCES[source](), {"exact_match": "acceptable", "a.b": "score"}, None, Odd(1.0))
                    job.read([("f:1", changed)])
                    rows = Rows("id")
                    for draw, place in job.draws:
                        rows.add(draw, place)
                    json.dumps(rows.finished())


def test_ids_that_come_again_are_numbered_past_those_that_there_are(tmp_path):
    rows = [{"id": name, "prompt": f"p{number}", "text": "x"} for number, name in enumerate(["a", "a", "a#1"])]
    assert [row["id"] for row in imported(tmp_path, "json", rows)] == ["a#2", "a#3", "a#1"]


def test_a_table_of_excel_may_name_its_separator(tmp_path):
    rows = imported(tmp_path, "csv", "sep=;\nid;prompt;text\n1;a, b;x\n2;c;y, z;\n", more=["--max-bad", "1"])
    assert [(row["prompt"], texts([row])) for row in rows] == [("a, b", [["x"]]), ("c", [["y, z"]])]


def test_a_column_that_no_record_has_is_told(tmp_path, capsys):
    path = tmp_path / "answers.csv"
    path.write_text("prompt,text,ok,note\nq,a,,\nq,b,yes,\n")
    output = str(tmp_path / "log.jsonl")
    maps = [f"--map={column}" for column in ("okay=acceptable", "note=score", "ok=acceptable")]
    assert main(["import", str(path), "--from", "csv", *maps, "-o", output]) == 0
    told = capsys.readouterr().err
    assert "nothing found under okay, in any record: check --map okay=acceptable\n" in told
    assert "nothing found under note" in told  # it is there, and empty throughout
    assert "under ok," not in told


def test_what_is_left_is_told_as_a_shell_takes_it(tmp_path, capsys):
    imported(tmp_path, "csv", ",prompt,text,who said ok\n0,q,a,yes\n")  # an index, as pandas writes it
    told = capsys.readouterr().err
    assert "left: a column without a name (1 answers)\n" in told
    assert "left: who said ok (1 answers); --map 'who said ok=acceptable' (or" in told


def test_a_packed_file_that_ends_early_is_told_and_no_half_line_is_an_answer(tmp_path, capsys):
    table = "id,prompt,text\n" + "".join(f"{number},p,{random.Random(number).random()} and so on\n" for number in range(2000))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(table.encode())[:-2000])
    rows = imported(tmp_path, "csv", tmp_path / "t.csv.gz")
    assert 100 < len(rows) < 2000
    assert all(text.endswith(" and so on") for [text] in texts(rows))
    assert "left out: torn last lines: 1\n" in capsys.readouterr().err


def test_a_second_column_for_prompts_or_answers_is_told_as_left(tmp_path, capsys):
    rows = imported(tmp_path, "csv", "question,context,response,answer\nq,c,r,a\n")
    assert (rows[0]["prompt"], texts(rows)) == ("q", [["r"]])
    told = capsys.readouterr().err
    assert "left: context (1 answers)" in told
    assert "left: answer (1 answers)" in told
    twice = ["--map", "answer=text", "--map", "response=text", "--map", "context=text"]
    rows = imported(tmp_path, "csv", "question,context,response,answer\nq,c,r,a\nq,,,b\n", more=twice)
    assert texts(rows) == [["c", "b"]]
    told = capsys.readouterr().err
    assert "left out: answer, beside context for the same field: 1\nleft out: response, beside context" in told
    imported(tmp_path, "csv", "instruction,input,output\nTranslate.,Hund,dog\n")
    assert "left:" not in capsys.readouterr().err


OPEN = 'prompt,text\nq,5" wide\nr,"b\ns,c\nt,d'


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("sep=;\n", "neither JSON nor a header of columns"),
        ("prompt,text,text,,\nq,a,b,,\n", "t.csv:1: two columns are called 'text'; rename one"),  # nameless ones are nobody's
        (OPEN, "t.csv:5: not CSV (unexpected end of data)"),
        (f"{OPEN}\n", "t.csv:5: not CSV (unexpected end of data)"),
        ('prompt,text\nq,a,"b\ns,c\nt,d', "t.csv:4: not CSV (unexpected end of data)"),
        ('prompt,"text\nq,a\n', "t.csv:2: not CSV (unexpected end of data)"),
        ('{"prompt": {"0": "q"}, "text": {"0": "a"}}', "t.csv: a table by columns, as pandas' to_json writes it; write it with"),
        ('{"7": {"prompt": "q", "text": "a"}}', "t.csv: a table by columns"),
        ('{\n  "prompt": {\n    "0": "q"\n  },\n  "text": {\n    "0": "a"\n  }\n}', "t.csv: a table by columns"),
        ('prompt,"text\nq,"a"\nr,b\n', "t.csv:1: a quote is not closed where its cell ends"),
    ],
)
def test_a_table_that_cannot_be_read_is_told(tmp_path, capsys, table, said):
    (tmp_path / "t.csv").write_text(table)
    imported(tmp_path, "csv", tmp_path / "t.csv", code=2)
    assert said in capsys.readouterr().err


def test_a_quote_that_is_closed_may_hold_lines_and_others_are_let_be(tmp_path):
    (tmp_path / "t.csv").write_text('prompt,text\nq,"b\nc" \n\nr,"so" it is 5" wide')
    assert texts(imported(tmp_path, "csv", tmp_path / "t.csv")) == [["b\nc "], ['so it is 5" wide']]


def test_lines_that_an_open_quote_takes_in_are_no_answer(tmp_path, capsys):
    """Another cell's quote closes it: three rows were one, whose answer held them."""
    (tmp_path / "t.csv").write_text('prompt,text\nq,"b\nr,c\ns,"d"\nt,e\n')
    assert texts(imported(tmp_path, "csv", tmp_path / "t.csv", more=["--max-bad", "0.5"])) == [["e"]]
    assert "t.csv:2: a quote is not closed where its cell ends" in capsys.readouterr().err
