"""Traces: calibration-ready rows, written beside the requests, and what may be taken out of them."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import threading
import time

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, NoAcceptableResponse, TraceWriter
from bonmini_guard.calibration.logs import load_log
from bonmini_guard.calibration.traces import read_traces
from bonmini_guard.engine.protocols import EndRequest
from bonmini_guard.errors import ConfigurationError, GenerationError, InputError
from bonmini_guard.logs.rows import Regime
from bonmini_guard.logs.trace_files import trace_files
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.testing import FakeGenerator, FakeRewardModel

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


def make(answers=("-1", "1"), **settings):
    scorer = settings.pop("reward_model", None) or FakeRewardModel(float)
    generator = answers if hasattr(answers, "draw") else FakeGenerator(answers)
    return BestOfMiniN(generator=generator, reward_model=scorer, **{"schedule": [2, 2, 4], **settings})


def rows(path):
    return [json.loads(line) for file in trace_files(path) for line in file.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traces.jsonl"


# Rows


async def test_a_row_holds_the_request(path):
    answers = [AIMessage("-1", usage_metadata=USAGE), AIMessage("1", usage_metadata=USAGE)]
    guard = make(answers, trace_to=path)
    result = await guard.arun([("system", "be brief"), ("user", "q")], seed=7)
    await guard.aflush()
    (row,) = rows(path)
    assert row["id"] == result.request_id
    assert row["prompt"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
    assert [(c["text"], c["score"], c["raw_score"], c["loop"], c["tokens"]) for c in row["candidates"]] == [
        ("-1", -1.0, -1.0, 0, 5),
        ("1", 1.0, 1.0, 0, 5),
    ]
    said = {"complete": False, "mode": "guardrail", "decision": "accepted", "reason": "passed"}
    said |= {"selected": 1, "seed": 7, "draws": 2, "loops": 1}
    assert {key: row[key] for key in said} == said
    assert (row["usage"]["total_tokens"], row["scored_by"], row["generated_by"]) == (10, "fake-reward-model", "fake-generator")
    assert row["timings"]["total"] > 0


async def test_a_whole_budget_spent_because_nothing_passed_is_not_complete_and_an_explored_one_is(path):
    guard = make(["-1"], trace_to=path)
    await guard.arun("q")
    await guard.afinish()
    (row,) = rows(path)
    assert (len(row["candidates"]), row["decision"], row["complete"]) == (8, "abstained", False)

    guard = make(["-1", "1"], trace_to=path, explore=1.0)
    await guard.arun("q")
    await guard.afinish()
    (_, row) = rows(path)
    assert (len(row["candidates"]), row["decision"], row["draws"], row["complete"]) == (8, "accepted", 2, True)
    assert row["explored"]["draws"] == 6
    assert (await asyncio.to_thread(load_log, path)).counts.tolist() == [8]


async def test_a_row_says_what_it_ran_under_and_is_read_as_a_row_cut_short(path):
    profile = {"mode": "accelerator", "schedule": [2, 2], "thresholds": [1.0, None], "score_transform": {"a": 2.0, "b": -1.0}}
    for answers, more in ((["-1", "1"], {}), (["-1"], {"hopeless": [-3.0, -3.0]})):
        guard = make(answers, profile=GuardProfile(**profile, **more), schedule=None, trace_to=path)
        await guard.arun("q" + answers[-1])
        await guard.aflush()
    cut, given_up = rows(path)
    assert {key: cut[key] for key in profile if key != "mode"} == {key: profile[key] for key in profile if key != "mode"}
    assert (cut["exit"], "also" in cut, "BelowFloor" in given_up["also"]) == ("loop", False, True)
    log = load_log(path, cut=True)
    assert log.extra["ran_under"] == (Regime((2, 2), (1.0, math.inf), "loop", (2.0, -1.0)),)
    assert (log.scores.tolist(), log.counts.tolist(), log.complete.tolist()) == ([[-1, 1]], [2], [False])
    assert log.left_out["incomplete"] == 1
    with pytest.raises(InputError, match="all 2 rows are incomplete"):
        load_log(path)


async def test_an_explored_request_is_written_once_also_if_it_could_not_be_completed(path):
    slow = False

    async def answer(request):
        if slow:
            await asyncio.sleep(30)
        return "1"

    guard = make(FakeGenerator(answer), trace_to=TraceWriter(path, sample=0.0), explore=1.0, timeout=1.0)
    await guard.arun("q")
    slow = True
    await guard.afinish()
    assert rows(path) == []  # not complete, and no row that the sample chose
    slow = False
    guard = make(FakeGenerator(answer), trace_to=path, explore=1.0, timeout=1.0)
    await guard.arun("q")
    slow = True
    await guard.afinish()
    assert [(row["complete"], row["explored"]) for row in rows(path)] == [(False, {"missed": "deadline"})]


async def test_a_request_that_a_draw_ended_is_neither_traced_nor_explored(path):
    async def answer(request):
        raise EndRequest("tool_call", message=AIMessage("a call"))

    generator = FakeGenerator(answer)
    guard = make(generator, trace_to=path, explore=1.0)
    assert (await guard.arun("q")).ended
    await guard.afinish()
    assert rows(path) == []
    assert len(generator.requests) <= 2  # of the first loop


def test_exploring_that_the_end_of_the_event_loop_cuts_short_leaves_the_row_of_what_was_served(path):
    async def answer(request):
        await asyncio.sleep(30 if request.index == 0 and len(generator.requests) > 2 else 0)
        return "1"

    generator = FakeGenerator(answer)
    guard = make(generator, trace_to=path, explore=1.0)
    asyncio.run(guard.arun("q"))
    guard.finish()
    assert [(row["complete"], len(row["candidates"]), row["explored"]) for row in rows(path)] == [(False, 2, {"missed": "ended"})]
    assert (guard.exploration.explored, guard.exploration.skipped) == (0, 1)


async def test_failed_draws_and_tool_calls_are_in_the_row_as_what_they_are(path):
    call = AIMessage("", tool_calls=[{"name": "search", "args": {"q": "x"}, "id": "1"}])
    guard = make([OSError("secret"), call], reward_model=lambda messages, candidates: [1.0], tool_turns="judge", trace_to=path)
    await guard.arun("q")
    await guard.aflush()
    failed, called = rows(path)[0]["candidates"]
    assert (failed["failed"], failed["error"], failed["score"], failed["text"]) == (True, "OSError", None, "")
    assert called["message"]["tool_calls"][0]["function"] == {"name": "search", "arguments": '{"q": "x"}'}
    assert "secret" not in path.read_text()


async def test_scores_that_json_cannot_hold_and_texts_that_are_no_unicode_make_a_readable_row(path):
    texts = ["nan", "inf \ud800", "line\u2028break\r\n", "1"]
    scores = {texts[0]: float("nan"), texts[1]: float("inf"), texts[2]: 0.5, texts[3]: 1.0}
    guard = make(texts, reward_model=FakeRewardModel(scores), schedule=[4], explore=1.0, trace_to=path)
    await guard.arun("q\x00\ud800")
    await guard.afinish()
    log = load_log(path)
    assert log.scores[0].tolist()[2:] == [0.5, 1.0]
    assert [c["text"] for c in rows(path)[0]["candidates"]] == texts


async def test_the_message_names_its_row_and_the_conversation_is_its_group(path):
    guard = make(trace_to=path)
    chat = ChatBestOfMiniN(generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float), trace_to=path)
    answers = [
        await guard.ainvoke("q", RunnableConfig(metadata={"group": "user 7"})),
        await guard.ainvoke("q", RunnableConfig(configurable={"thread_id": "t1"})),
        await chat.ainvoke("q", RunnableConfig(metadata={"group": 8})),
        await guard.ainvoke("q"),
    ]
    await guard.aflush()
    written = rows(path)
    assert [row.get("group") for row in written] == ["user 7", "t1", "8", None]
    assert [row["id"] for row in written] == [m.response_metadata["bonmini_guard"]["request_id"] for m in answers]
    assert "request_id" not in (await make().ainvoke("q")).response_metadata["bonmini_guard"]


async def test_drift_reads_traces_and_leaves_out_first_loops_that_were_cut_short(path):
    profile = GuardProfile(mode="guardrail", schedule=(2, 2), thresholds=(0.0, 0.0))
    late = FakeGenerator(["-1", "1"], latency=lambda index: 30.0 * index)
    for guard in (make(schedule=[2, 2], trace_to=path), make(late, schedule=[2, 2], timeout=0.5, trace_to=path)):
        await guard.arun("q")
        await guard.aflush()
    found = read_traces([path], profile)
    assert [(t.best, t.decision) for t in found.traces] == [(1.0, "accepted")]
    assert found.left_out["unfinished"] == 1


async def test_a_request_without_any_answer_leaves_no_row(path):
    guard = make([OSError()], trace_to=path)
    with pytest.raises(GenerationError):
        await guard.arun("q")
    await guard.aflush()
    assert rows(path) == []


# What is taken out


@pytest.mark.parametrize("explore", [0.0, 1.0])
async def test_redacting_takes_out_the_texts_of_rejected_candidates_or_all(path, explore):
    for redact in ("rejected", "all"):
        guard = make(["-1", "1"], trace_to=TraceWriter(path, redact=redact), explore=explore)
        await guard.arun("prompt")
        await guard.afinish()
    rejected, everything = rows(path)
    assert [c["text"] for c in rejected["candidates"] if c["text"]] == ["1"]
    assert rejected["candidates"][1].get("redacted") is None
    assert rejected["prompt"] == [{"role": "user", "content": "prompt"}]
    assert {c["text"] for c in everything["candidates"]} == {everything["prompt"]} == {""}
    assert [c["score"] for c in everything["candidates"][:2]] == [-1.0, 1.0]


async def test_after_an_abstention_every_candidate_is_a_rejected_one(path):
    guard = make(["-1"], schedule=[2], trace_to=TraceWriter(path, redact="rejected"))
    with pytest.raises(NoAcceptableResponse):
        await guard.ainvoke("q")
    await guard.aflush()
    assert {c["text"] for c in rows(path)[0]["candidates"]} == {""}


async def test_a_function_may_change_or_drop_rows_and_if_it_fails_nothing_is_written(path, caplog):
    def redact(row):
        if row["seed"] == 1:
            raise ValueError("secret")
        return None if row["seed"] == 2 else {**row, "prompt": "gone"}

    writer = TraceWriter(path, redact=redact)
    guard = make(trace_to=writer)
    for seed in (1, 2, 3):
        await guard.arun("q", seed=seed)
    counts = await writer.aflush()
    assert (counts.written, counts.dropped, counts.lost, counts.waiting) == (1, 1, 1, 0)
    assert [row["prompt"] for row in rows(path)] == ["gone"]
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_what_a_function_makes_of_a_row_is_lost_where_it_is_no_row(path, caplog):
    writer = TraceWriter(path, redact=lambda row: [row["id"]] if row["seed"] == 1 else row)
    guard = make(trace_to=writer)
    for seed in (1, 2):
        await guard.arun("q", seed=seed)
    counts = await writer.aflush()
    assert (counts.written, counts.dropped, counts.lost) == (1, 0, 1)
    assert [row["seed"] for row in rows(path)] == [2]
    assert "TypeError" in caplog.text


async def test_rows_that_nobody_awaits_are_lost(caplog):
    """As of a database's async client, which a lambda calls: they were counted as written."""

    class Insertion:
        def __await__(self):
            yield

    writer = TraceWriter(lambda row: Insertion())
    await make(trace_to=writer).arun("q")
    counts = await writer.aflush()
    assert (counts.written, counts.lost) == (0, 1)
    assert "1 rows lost so far; the last because of: the function of the row is async" in caplog.text


async def test_the_sample_is_the_share(path, monkeypatch):
    monkeypatch.setattr("bonmini_guard.logs.traces.random", random.Random(0))
    writer = TraceWriter(path, sample=0.25)
    guard = make(trace_to=writer)
    for _ in range(400):
        await guard.arun("q")
    counts = await writer.aflush()
    assert 60 < counts.written < 145
    assert counts.written + counts.dropped == 400


# The writer


async def test_a_full_queue_loses_rows_counts_them_and_holds_nobody_up(caplog):
    gate, taken = threading.Event(), []

    def sink(row):
        gate.wait(10)
        taken.append(row["id"])

    writer = TraceWriter(sink, queue=3)
    guard = make(trace_to=writer)
    for _ in range(50):
        assert (await guard.arun("q")).decision == "accepted"
    gate.set()
    counts = await writer.aflush()
    assert counts.written == len(taken) == len(set(taken)) < 10
    assert counts.lost == 50 - counts.written
    assert "the queue is full" in caplog.text


async def test_errors_of_a_sink_or_a_disk_harm_nobody(tmp_path, caplog):
    def sink(row):
        raise OSError("secret")

    gone = tmp_path / "gone"
    gone.mkdir()
    for target in (sink, gone / "traces.jsonl"):
        writer = TraceWriter(target)
        if target is not sink:
            gone.rmdir()
        assert (await make(trace_to=writer).arun("q")).decision == "accepted"
        assert (await writer.aflush()).lost == 1
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit])
async def test_not_even_an_exit_in_a_sink_ends_the_writing(error):
    taken = []

    def sink(row):
        taken.append(row)
        if len(taken) == 1:
            raise error

    guard = make(trace_to=sink)
    for _ in range(3):
        await guard.arun("q")
    counts = await asyncio.wait_for(guard.guard.writer.aflush(), 30)
    assert (counts.lost, counts.written, len(taken)) == (1, 2, 3)


async def test_half_a_row_on_a_full_disk_is_cut_off_again(path, monkeypatch):
    guard = make(trace_to=path)
    await guard.arun("q")
    await guard.aflush()
    write = os.write

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:40]) if len(data) > 200 else full())
    await guard.arun("q")
    await guard.aflush()
    monkeypatch.undo()
    await guard.arun("q")
    await guard.aflush()
    assert len(rows(path)) == 2
    assert len(trace_files(path)) == 1
    assert guard.guard.writer.counts().lost == 1


def test_one_path_has_one_writer_whatever_it_is_called(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    assert make(trace_to=path).guard.writer is make(trace_to="traces.jsonl").guard.writer
    chat = ChatBestOfMiniN(generator=FakeGenerator(["1"]), reward_model=FakeRewardModel(float), trace_to="traces.jsonl")
    assert chat.guard.writer is make(trace_to=str(path)).guard.writer


def test_threads_loops_and_sync_calls_share_a_file(path):
    guard = make(trace_to=path, explore=0.5)

    def work():
        asyncio.run(several())
        guard.run("q")

    async def several():
        await asyncio.gather(*(guard.arun("q") for _ in range(10)))
        await guard.afinish()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guard.finish()
    assert len({row["id"] for row in rows(path)}) == len(rows(path)) == 44


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_after_a_fork_writes_its_own_rows_and_not_its_parents(path):
    guard = make(trace_to=TraceWriter(path, max_bytes=2000), explore=0.5)
    guard.run("parent")
    child = os.fork()
    if child == 0:
        for _ in range(5):
            guard.run("child")
        guard.finish()
        os._exit(0)
    for _ in range(5):
        guard.run("parent")
    guard.finish()
    assert os.waitpid(child, 0)[1] == 0
    prompts = [row["prompt"][0]["content"] for row in rows(path)]
    assert (prompts.count("parent"), prompts.count("child")) == (6, 5)


async def test_nothing_of_a_row_is_made_on_the_event_loop(path, monkeypatch):
    threads = set()
    scorer = FakeRewardModel(float)
    scorer.fingerprint = lambda: threads.add(threading.current_thread().name) or time.sleep(0.01) or "slow"
    guard = make(reward_model=scorer, trace_to=path)
    await guard.arun("q")
    await guard.aflush()
    assert threads == {"bonmini-traces"}


@pytest.mark.parametrize(
    ("to", "settings", "problem"),
    [
        ("traces.jsonl.gz", {}, "plain JSON lines"),
        ("missing/traces.jsonl", {}, "cannot write there"),
        (".", {}, "cannot write there"),
        (7, {}, "a path or to a function"),
        (asyncio.sleep, {}, "must not be async"),
        ("t.jsonl", {"sample": 1.5}, "between 0 and 1"),
        ("t.jsonl", {"redact": "some"}, "'rejected', 'all'"),
        ("t.jsonl", {"redact": asyncio.sleep}, "'rejected', 'all' or a function of the row, not async"),
        ("t.jsonl", {"queue": 0}, "queue must be a positive integer"),
        ("t.jsonl", {"keep_days": 0}, "keep_days must be a number above 0"),
    ],
)
def test_what_cannot_be_is_refused_at_once(to, settings, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=problem):
        TraceWriter(to, **settings)
    assert list(tmp_path.iterdir()) == []


async def test_a_chat_models_variants_explore_and_trace_through_its_guard(path):
    llm = ChatBestOfMiniN(
        generator=FakeGenerator(['{"n": 1}']),
        reward_model=lambda messages, candidates: [1.0 for _ in candidates],
        schedule=[1, 2],
        explore=1.0,
        trace_to=path,
    )
    await llm.bind(stop=["x"]).ainvoke("q")
    await llm.guard.afinish()
    assert llm.guard.exploration.draws == 2
    assert [row["complete"] for row in rows(path)] == [True]


async def test_a_row_holds_what_was_asked_though_the_caller_goes_on_with_his_messages(path):
    scorer = FakeRewardModel(float)
    scorer.only_reads = True
    guard = BestOfMiniN(generator=FakeGenerator(["1"]), reward_model=scorer, schedule=[1], trace_to=path)
    for beside in ({}, {"odd": threading.Lock()}):  # what cannot be copied is traced, too
        message = HumanMessage("the question", additional_kwargs=beside)
        await guard.ainvoke([message])
        message.content = "another one"
    await guard.aflush()
    first, _ = rows(path)
    assert first["prompt"] == [{"role": "user", "content": "the question"}]


def test_a_file_that_may_not_be_written_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "traces.jsonl").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.isdir(path))  # as root all files may be written
    with pytest.raises(ConfigurationError, match="not yours to write"):
        TraceWriter(tmp_path / "traces.jsonl")
    TraceWriter(tmp_path / "others.jsonl")
