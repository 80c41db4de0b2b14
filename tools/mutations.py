"""What ``tools.mutants`` changes, which tests ought to notice, and which changes are none."""

from __future__ import annotations

from typing import NamedTuple


class Room(NamedTuple):
    """Files that are mutated, by patterns, and the tests that answer for them."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


#: The first room that has a file answers for it.
ROOMS = (
    Room(
        ("bonmini_guard/policy/policy.py", "bonmini_guard/policy/budget.py", "bonmini_guard/policy/profile.py"),
        ("tests/test_policy.py", "tests/test_budget.py", "tests/test_profile.py", "tests/test_procedure.py"),
    ),
    Room(
        (
            "bonmini_guard/engine/engine.py",
            "bonmini_guard/engine/drawing.py",
            "bonmini_guard/engine/scoring.py",
            "bonmini_guard/engine/concluding.py",
            "bonmini_guard/engine/limiter.py",
            "bonmini_guard/runnables/conduct.py",
        ),
        (
            "tests/test_engine.py",
            "tests/test_engine_endings.py",
            "tests/adapters/test_outages.py",
            "tests/test_budget.py",
            "tests/test_chat_model.py",
            "tests/test_containment.py",
            "tests/test_fingerprints.py",
            "tests/test_resumption.py",
            "tests/test_tool_turns.py",
            "tests/test_what_a_config_says.py",
            "tests/test_guard.py",
            "tests/test_limiter.py",
            "tests/test_no_leak.py",
            "tests/test_rolling.py",
            "tests/test_reload.py",
            "tests/test_traces.py",
        ),
    ),
    Room(
        ("adapters/sampling.py", "adapters/attention.py", "adapters/decoding.py", "adapters/local.py"),
        ("tests/adapters/test_local.py",),
    ),
    Room(
        ("adapters/rewards/*.py",),
        (
            "tests/adapters/test_remote_reward.py",
            "tests/adapters/test_routes.py",
            "tests/adapters/test_judge.py",
            "tests/adapters/test_decisions.py",
            "tests/adapters/test_verdicts.py",
        ),
    ),
    Room(
        ("adapters/langchain.py", "adapters/describing.py"),
        ("tests/adapters/test_langchain.py", "tests/test_leak_table.py", "tests/test_fingerprints.py"),
    ),
    Room(("adapters/agents.py", "adapters/agent_calls.py"), ("tests/adapters/test_agents.py",)),
    # On a real cluster by the live tests alone.
    Room(("adapters/ray_data.py",), ("tests/calibration/test_scoring_logs.py",)),
    Room(
        ("adapters/*.py",),
        ("tests/adapters/test_openai.py", "tests/adapters/test_tgi.py", "tests/adapters/test_retries.py", "tests/adapters"),
    ),
    Room(("calibration/*.py",), ("tests/calibration",)),
)

#: Faults that are tried each time: file, what it holds, what it holds then. Each breaks a promise that someone relies on.
LISTED = (
    # Fit and certify splits overlap: the certificate has seen its own choice.
    ("calibration/choose.py", "priced(asked, log.costs_are)}, units.take(rest)", "priced(asked, log.costs_are)}, units"),
    ("calibration/sequence.py", "other, rest = (part.take(rows) for rows in aside(part, asked))", "other = rest = part"),
    # Each of several tests at the whole false-alarm rate.
    ("calibration/drift.py", "false_alarm_rate / looks / len(tests)", "false_alarm_rate / looks"),
    ("calibration/watch.py", "self._half = level / 2", "self._half = level"),
    # The sampler prefers unlikely tokens.
    ("adapters/sampling.py", "logits.float() / self.temperature", "-logits.float() / self.temperature"),
    # Among equal scores the latest wins where a deadline ends the request.
    ("bonmini_guard/engine/concluding.py", "(candidate.score, -candidate.index)", "(candidate.score, candidate.index)"),
    # Draws see each other's context variables.
    ("bonmini_guard/engine/drawing.py", "context=request.context.copy()", "context=request.context"),
    # The wrapped model streams to whoever listens.
    ("adapters/langchain.py", ', "disable_streaming": True', ""),
    # A server that answers probabilities of exactly 0 and 1 is taken for one that answers logits.
    ("adapters/rewards/probe.py", "all(0 <= score <= 1 for", "all(0 < score < 1 for"),
    # A stop string at the end of an answer that was cut at its length is no end.
    ("adapters/answers.py", "() if cut or self.finish_reason", "() if self.finish_reason"),
    # The call's own options come last.
    (
        "adapters/requests.py",
        "merged |= call_options(self.generator, options, self.known, self.renamed, self.refused)",
        "merged = call_options(self.generator, options, self.known, self.renamed, self.refused) | merged",
    ),
    ("adapters/langchain.py", "{**self._options, **request.options}", "{**request.options, **self._options}"),
)

#: Changes that change nothing: "file: before  ->  after", and why.
EQUIVALENT = {
    "calibration/martingale.py: units > ones  ->  units >= ones": "nothing times a logarithm that is finite is nothing",
    "bonmini_guard/engine/engine.py: self.places.admit()  ->  None": "each of the draws would be refused then, and so the request",
    "adapters/attention.py: 32  ->  33": "room that is kept for tokens: any number serves",
    "calibration/certify.py: other.served * rows >= least  ->  other.served * rows > least": "least is a quotient of logarithms",
    "bonmini_guard/engine/scoring.py: return []  ->  return None": "who collects looks for a turn of tools and a winner first",
    "calibration/findings.py: 20000  ->  20001": "the numbers that may be asked for grow by 5 %, and none lies between",
}
