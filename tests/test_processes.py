"""Forked processes, processes that records travel between, and copies."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

import pytest
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from bonmini_guard import BestOfMiniN, ChatBestOfMiniN, GuardProfile, ShadowBestOfMiniN
from bonmini_guard.adapters import OpenAICompatibleGenerator
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.engine.result import Candidate, GuardResult, Timings
from bonmini_guard.engine.workers import Workers
from bonmini_guard.errors import BonMiniGuardError, ForeignError, GenerationError, NoAcceptableResponse
from bonmini_guard.forks import Lock
from bonmini_guard.testing import FakeChatModel, FakeGenerator
from tests.adapters.loopback import InThread
from tests.adapters.openai_server import OpenAIServer

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*uncalibrated"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def in_a_child(work):
    """Whether ``work()`` is true in a forked process, within 20 s."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def constant(messages, candidates):
    return [-1.0] * len(candidates)


def by_text(messages, candidates):
    return [1.0 if candidate.text == "good" else -1.0 for candidate in candidates]


# Forks


@forks
def test_locks_and_threads_are_new_in_a_child_whoever_held_them():
    lock, workers, limiter, held, release = Lock(), Workers(1, "test-workers"), Limiter(2), threading.Event(), threading.Event()

    def hold():
        with lock.held, limiter._lock.held:
            held.set()
            release.wait(30)

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait(10)
    stuck = workers.submit(release.wait, 30)

    async def place():
        async with limiter.here():
            return True

    def work():
        with lock.held:
            return workers.submit(lambda: asyncio.run(place())).result(10)

    try:
        assert in_a_child(work)
    finally:
        release.set()
    holding.join()
    assert stuck.result(10)


@forks
def test_a_servers_adapter_that_was_used_asks_and_closes_in_a_child():
    with InThread(OpenAIServer()) as server:
        generator = OpenAICompatibleGenerator(server.url, model="tiny")
        guard = BestOfMiniN(generator=generator, reward_model=lambda m, c: [1.0] * len(c), schedule=[1])
        assert guard.invoke("q").text.startswith("answer")

        async def asked():
            async with generator:
                return (await guard.ainvoke("q")).text.startswith("answer")

        assert in_a_child(lambda: guard.invoke("q").text.startswith("answer") and asyncio.run(asked()))


@forks
def test_local_models_that_were_used_compute_in_a_child(tmp_path):
    pytest.importorskip("torch")
    program = """
        import os, signal, sys, warnings
        warnings.simplefilter("ignore")
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
        from bonmini_guard import BestOfMiniN, RewardModel
        from bonmini_guard.adapters import TransformersGenerator
        from tests.reward.tiny import CHATML, make_tokenizer
        tokenizer = make_tokenizer(CHATML)
        config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                             num_attention_heads=2, max_position_embeddings=512, num_labels=1, pad_token_id=tokenizer.pad_token_id)
        LlamaForSequenceClassification(config).save_pretrained(sys.argv[1])
        tokenizer.save_pretrained(sys.argv[1])
        generator = TransformersGenerator(LlamaForCausalLM(config).eval(), tokenizer, max_new_tokens=8)
        model = RewardModel.load(sys.argv[1])
        guard = BestOfMiniN(generator=generator, reward_model=model, strict=False, mode="accelerator", schedule=[8], timeout=15)
        long = "the film was very good " * 50
        ask = lambda: guard.run(long, seed=1)
        model.score(long, ["the plot " * 20])
        before = [candidate.score for candidate in ask().candidates]
        child = os.fork()
        if child == 0:
            signal.alarm(40)
            after = ask()
            same = [candidate.score for candidate in after.candidates]
            os._exit(0 if torch.allclose(torch.tensor(before), torch.tensor(same), atol=1e-4) else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("child", code, "parent", len(ask().candidates))
        model.close()
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.stdout.splitlines()[-1:] == ["child 0 parent 8"], done.stderr[-1000:]


# Records between processes


class Quoting(Exception):  # noqa: N818 - another package's
    """As clients of servers have them: it cannot be unpickled, and it quotes."""

    def __init__(self, message, *, response):
        super().__init__(message)
        self.response, self.status_code = response, 429


def abstained(**settings):
    answers = ["secret one", Quoting("secret two", response=threading.Lock()), "secret three"]
    guard = BestOfMiniN(generator=FakeGenerator(answers), reward_model=constant, schedule=[3], **settings)
    with pytest.raises(NoAcceptableResponse) as caught:
        guard.invoke("q")
    return caught.value


def test_an_abstention_travels_without_texts_and_without_the_errors_of_others():
    error = abstained()
    packed = pickle.dumps(error)
    assert b"secret" not in packed
    there = pickle.loads(packed)
    assert (str(there), there.is_retryable) == (str(error), error.is_retryable)
    assert [candidate.score for candidate in there.result.candidates] == [-1.0, None, -1.0]
    failure = there.result.candidates[1].error
    assert isinstance(failure, ForeignError)
    assert str(failure) == "tests.test_processes.Quoting (status 429)"
    assert there.result.selected is there.result.candidates[0]
    assert there.result.metadata() == error.result.metadata()


def test_texts_travel_where_they_are_asked_for():
    assert pickle.loads(pickle.dumps(abstained(trace_candidates=True).result)).candidates[0].message.text == "secret one"


def test_a_served_answer_travels_and_those_beside_it_do_not():
    answers = [AIMessage("served"), AIMessage("secret", usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3})]
    guard = BestOfMiniN(generator=FakeGenerator(answers), reward_model=lambda m, c: [2.0, 1.0][: len(c)], schedule=[2])
    result = guard.run("q")
    there = pickle.loads(pickle.dumps(result))
    assert there.message.text == "served"
    assert there.candidates[1].usage == result.candidates[1].usage
    assert "secret" not in repr(pickle.dumps(result))


def test_a_checkpoint_of_a_graph_holds_what_a_pickle_holds():
    jsonplus = pytest.importorskip("langgraph.checkpoint.serde.jsonplus")
    serde = jsonplus.JsonPlusSerializer(allowed_msgpack_modules=[GuardResult, Candidate, Timings])
    for result in (abstained().result, BestOfMiniN(generator=FakeGenerator(["secret", "good"]), reward_model=by_text).run("q")):
        packed = serde.dumps_typed({"result": result})
        assert b"secret" not in packed[1]
        there = serde.loads_typed(packed)["result"]
        assert there.metadata() == result.metadata()
        assert there.message == result.message
    assert b"secret" in serde.dumps_typed(abstained(trace_candidates=True).result)[1]


def test_a_copy_within_the_process_keeps_the_texts():
    result = abstained().result
    other = copy.deepcopy(result)
    assert other.candidates[0] is not result.candidates[0]
    assert other.candidates[0].message.text == copy.copy(result).candidates[0].message.text == "secret one"
    assert isinstance(other.candidates[1].error, ForeignError)
    assert copy.deepcopy(abstained()).result.reason == "budget_spent"


def test_a_failed_scorer_travels_as_its_description():
    def broken(messages, candidates):
        raise Quoting("secret", response=threading.Lock())

    result = BestOfMiniN(generator=FakeGenerator(["a"]), reward_model=broken, schedule=[1]).run("q")
    there = pickle.loads(pickle.dumps(result))
    assert str(there.scorer_error) == "tests.test_processes.Quoting (status 429)"


def abstain():
    abstained_by = BestOfMiniN(
        generator=FakeGenerator(["secret", Quoting("secret", response=threading.Lock())]), reward_model=constant, schedule=[2]
    )
    return abstained_by.invoke("q")


def draw_nothing():
    generator = FakeGenerator([Quoting("down", response=threading.Lock())])
    return BestOfMiniN(generator=generator, reward_model=constant, schedule=[1]).invoke("q")


@pytest.mark.parametrize(("work", "kind"), [(abstain, NoAcceptableResponse), (draw_nothing, GenerationError)])
def test_errors_come_out_of_a_pool_of_processes(work, kind):
    import multiprocessing

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(kind) as caught:
            pool.submit(work).result(timeout=60)
        assert isinstance(caught.value, BonMiniGuardError)
        # The pool lives.
        assert pool.submit(len, "ab").result(timeout=60) == 2


class Plain:
    """A generator that pickles, as the adapters do."""

    async def draw(self, request):
        return AIMessage("a")


@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
@pytest.mark.parametrize("used", [False, True])
def test_guards_are_copied_and_moved(face, used):
    guard = face(generator=Plain(), reward_model=constant, mode="accelerator", schedule=[1], max_concurrency=2)
    if used:
        guard.invoke("q")
    for other in (copy.deepcopy(guard), pickle.loads(pickle.dumps(guard))):
        assert other.invoke("q").text == "a"


class Film(BaseModel):
    """A film."""

    title: str


def film(messages):
    return AIMessage("", tool_calls=[{"name": "Film", "args": {"title": "Alien"}, "id": "1"}])


def test_a_chat_model_with_structured_output_is_moved():
    guard = ChatBestOfMiniN(generator=FakeChatModel(film), reward_model=constant, mode="accelerator", schedule=[1])
    asking = guard.with_structured_output(Film)
    assert pickle.loads(pickle.dumps(asking)).invoke("q") == asking.invoke("q") == Film(title="Alien")


def keep(_):
    """A function for rows and results that pickles."""


@pytest.mark.parametrize("face", [BestOfMiniN, ChatBestOfMiniN])
@pytest.mark.parametrize("options", [{"trace_to": "traces.jsonl"}, {"trace_to": keep}, {"explore": 1.0, "on_explored": keep}])
def test_guards_that_write_or_explore_are_moved(tmp_path, monkeypatch, face, options):
    monkeypatch.chdir(tmp_path)
    guard = face(generator=Plain(), reward_model=constant, mode="accelerator", schedule=[1], **options)
    guard.invoke("q")
    guard.guard.finish()
    there = pickle.loads(pickle.dumps(guard))
    assert there.invoke("q").text == "a"
    there.guard.finish()
    if there.guard.writer is not None:
        assert there.guard.writer.counts().written == 1


def test_a_guard_that_follows_its_profile_is_moved_and_follows_it_there(tmp_path):
    profile = GuardProfile(mode="accelerator", schedule=[1], thresholds=[0.0])
    profile.save(tmp_path / "p.json")
    guard = BestOfMiniN(generator=Plain(), reward_model=constant, profile=tmp_path / "p.json", reload=0.01)

    def follows(one, schedule):
        profile.model_copy(update={"schedule": (schedule,), "thresholds": (0.0,)}).save(tmp_path / "p.json")
        deadline = time.monotonic() + 20
        while one.guard.engine.policy.schedule != (schedule,):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    follows(guard, 2)
    guard.guard.reloader._next = time.monotonic() + 1e6  # a clock that counts from another machine's start
    follows(pickle.loads(pickle.dumps(guard)), 3)


def test_requests_under_way_are_not_moved():
    guard = BestOfMiniN(generator=Plain(), reward_model=constant, mode="accelerator", max_draws=8)
    load = guard.guard.engine.load
    load.begin([1])
    assert pickle.loads(pickle.dumps(load)).requests == 0


def test_a_guard_on_trial_is_copied_and_moved():
    shadow = ShadowBestOfMiniN(BestOfMiniN(generator=Plain(), reward_model=constant, schedule=[1]))
    assert shadow.invoke("q").text == "a"
    for other in (copy.deepcopy(shadow), pickle.loads(pickle.dumps(shadow))):
        assert other.invoke("q").text == "a"
        other.finish()
        assert other.summary.requests == 1
    shadow.finish()


@pytest.fixture
def no_threads(monkeypatch):
    """What a process meets that has as many threads as it may."""

    def start(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        yield patched


def test_calls_that_found_no_thread_take_none_away(no_threads):
    workers = Workers(2, "test")
    made = []
    for _ in range(5):
        with pytest.raises(RuntimeError, match="can't start"):
            workers.submit(made.append, "refused")
    no_threads.undo()
    workers.submit(made.append, "called").result(timeout=10)
    assert made == ["called"]


async def test_without_a_thread_to_spare_a_request_goes_on(no_threads, tmp_path):
    profile = GuardProfile(mode="guardrail", schedule=(1,), thresholds=(0.0,))
    profile.save(tmp_path / "guardrail.json")

    async def likes(messages, candidates):
        return [1.0] * len(candidates)

    guard = BestOfMiniN(generator=FakeGenerator(["answer"]), reward_model=likes, profile=tmp_path / "guardrail.json", reload=1e-9)
    profile.model_copy(update={"thresholds": (0.5,)}).save(tmp_path / "guardrail.json")
    assert (await guard.ainvoke("q")).content == "answer"
