"""Watching traffic week after week: the questions of drift as e-processes, whose state lies in a small file between looks.

Each of up to four raises a false alarm at any time at all with probability at most its share of the rate (Ville's inequality). (The
mean of the four would need no shares, but only if one history could hold them all: ranks among scores form a martingale as long as
nothing but ranks is looked at, and a decision tells more than the rank.)
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bonmini_guard.calibration.drift import QUESTION, check_reference, conclusion, dated, same_marks
from bonmini_guard.calibration.evidence import check_share, percent
from bonmini_guard.calibration.findings import FALSE_ALARM_RATE, Drift, Finding, refuted_by_bets
from bonmini_guard.calibration.martingale import Count, Finite, ProcessState, Ranks, Refutation, Shares, lower_sequence
from bonmini_guard.calibration.promise import Tested, against, labels_wanted, reference_share, said
from bonmini_guard.calibration.slices import Slices
from bonmini_guard.calibration.traces import Memory, Seen, Trace, Traces
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.appending import lock
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.writing import contents, write_atomically

#: So many of the latest requests (and their groups), and of the labels, are remembered one by one.
REMEMBERED = 10_000
Marks = dict[str, dict[str, Count]]
Digests = dict[Annotated[str, Field(pattern="^[0-9a-f]{12}$")], Finite | None]


class WatchState(BaseModel):
    """What is kept between two looks."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Literal[1] = 1
    profile: str
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    key: str | None
    traces: Count
    served: tuple[Count, Count]
    scores: ProcessState
    decisions: ProcessState | None
    labels: ProcessState | None
    slices: dict[str, tuple[ProcessState, ProcessState]] | None
    marks: Marks
    requests: Digests
    mark: Finite | None
    labelled: Digests


class Watch:
    """The processes of one profile, and what was counted.

    Args:
        profile: with a reference, as ``calibrate`` writes it, else ProfileError.
        false_alarm_rate: the chance of ever saying drift when there is none, in (0, 1), else ConfigurationError.
        key: a row key whose slices are watched, too.
        state: of an earlier look with the same arguments, to go on from; ValueError if it does not fit the profile.

    Attributes:
        memory: which rows were counted; ``read_traces`` takes it.
    """

    def __init__(
        self,
        profile: GuardProfile,
        *,
        false_alarm_rate: float = FALSE_ALARM_RATE,
        key: str | None = None,
        state: WatchState | None = None,
    ) -> None:
        check_share("false_alarm_rate", false_alarm_rate)
        check_reference(profile)
        self._profile, self._rate, self.key = profile, false_alarm_rate, key
        self._seed, self._share = digest_of(profile), reference_share(profile)
        self._traces = state.traces if state else 0
        self._marks = {name: Counter(met) for name, met in (state.marks if state else {}).items()}
        seen = ((state.requests, state.mark), (state.labelled,)) if state else ((), ())
        self.memory = Memory(*(Seen(REMEMBERED, *each) for each in seen))
        # Served is what is not abstained: the certify split's share is where the count of the served begins.
        decision, count, units = self._share or ("", 0, 0)
        known = (units - count, units) if decision == "abstained" else (0, 0)
        self._served = list(state.served if state else known)
        asked = [each is not None for each in (self._share, profile.alpha, key)]
        if state is not None and asked != [each is not None for each in (state.decisions, state.labels, state.slices)]:
            raise ValueError("its questions are not those of this profile")
        level = self._rate / (1 + sum(asked))
        self._scores = Ranks(level, profile.reference, self._seed, state=state.scores if state else None)
        self._decisions = None if self._share is None else Shares(level, *self._share[1:], state.decisions if state else None)
        # Bad and served is bad among served times served: half the level is for the share served.
        self._half = level / 2
        level_of_labels = self._half if profile.risk == "served_and_bad" else level
        self._labels = None if profile.alpha is None else Refutation(level_of_labels, state.labels if state else None)
        slices = state.slices if state else None
        self._slices = None if key is None else Slices(level, key, profile.reference, self._seed, slices)

    def look(self, traces: Traces, also: Sequence[Finding] = ()) -> Drift:
        """Count new traces, in the order they came, read with this watch's memory, and say what all so far and ``also`` say."""
        for trace in traces.events:
            if trace.counted:
                self._count(trace)
            bad = against(trace, str(self._profile.risk)) if trace.judged else None
            if self._labels is not None and bad is not None:
                self._labels.add(bad, self._promised())
        for name, met in traces.fingerprints.items():
            self._marks[name] = self._marks.get(name, Counter()) + met
        findings = (*also, *same_marks(self._profile, self._marks), *self._findings())
        holds = "for any number of looks that go on from this state; an alarm stays until the state is removed"
        tested = None if self._labels is None else self._tested(self._labels)
        wanted = None if tested is None else partial(labels_wanted, self._profile, traces.events, tested, self._seed)
        return conclusion(findings, (self._rate, holds, self._traces), traces.left_out, wanted)

    def state(self) -> WatchState:
        """What to go on from."""
        return WatchState(
            profile=self._seed,
            false_alarm_rate=self._rate,
            key=self.key,
            traces=self._traces,
            served=(self._served[0], self._served[1]),
            scores=self._scores.state(),
            decisions=None if self._decisions is None else self._decisions.state(),
            labels=None if self._labels is None else self._labels.state(),
            slices=None if self._slices is None else self._slices.states(),
            marks={name: dict(met) for name, met in self._marks.items()},
            requests=self.memory.requests.digests,
            mark=self.memory.requests.mark,
            labelled=self.memory.labels.digests,
        )

    def _count(self, trace: Trace) -> None:
        self._traces += 1
        if np.isfinite(trace.best):
            self._scores.add(trace.best, trace.id)
        if trace.decision is not None:
            self._served[0] += trace.decision == "accepted"
            self._served[1] += 1
        if self._decisions is not None and self._share is not None and trace.decision is not None:
            self._decisions.add(trace.decision == self._share[0])
        if self._slices is not None:
            self._slices.add(trace, None if self._share is None else self._share[0])

    def _promised(self) -> float:
        """Of the labelled, the share that may be bad; what it rests on are other requests' decisions, never labels."""
        alpha = float(self._profile.alpha or 0.0)
        if self._profile.risk != "served_and_bad":
            return alpha
        served = lower_sequence(self._served[0], self._served[1], self._half)
        return alpha / served if served > alpha else 1.0

    def _findings(self) -> Iterator[Finding]:
        yield dated(self._scores)
        if self._decisions is not None and self._share is not None:
            yield _decisions(self._decisions, self._share)
        if self._labels is not None:
            process = self._labels
            yield Finding(
                "labels", process.crossed is not None, process.p_value, process.level, said(self._profile, self._tested(process))
            )
        if self._slices is not None:
            yield self._slices.finding()

    def _tested(self, process: Refutation) -> Tested:
        bad, known = map(int, process.counts)
        promised, (served, units) = self._promised(), self._served
        refuted = refuted_by_bets(promised, process.level) if promised < 1 else lambda bad, units: units < 0
        return Tested(bad, known, promised, served / units if served else 1.0, refuted)


def _decisions(process: Shares, share: tuple[str, int, int]) -> Finding:
    decision, count, units = share
    ones, number = int(process.counts[0]) - count, int(process.counts[1]) - units
    now = percent(ones / number) if number else "none seen"
    what = f"{decision}, calibration -> all traces so far: {percent(count / units)} -> {now} of requests"
    if process.crossed is not None:
        what += f"; changed at the latest at trace {process.crossed:,} of {process.steps:,}"
    return Finding(QUESTION[decision], process.crossed is not None, process.p_value, process.level, what)


def digest_of(profile: GuardProfile) -> str:
    """The profile that a state belongs to; defaults are left out, so that a new key with one changes nothing."""
    return hashlib.sha256(profile.model_dump_json(exclude_defaults=True).encode()).hexdigest()


@contextmanager
def watching(
    path: str | os.PathLike[str] | None, profile: GuardProfile, *, false_alarm_rate: float | None = None, key: str | None = None
) -> Iterator[Watch]:
    """The watch whose state a file holds; a new one where there is no file. It is written when the block ends without an error.

    Without a path the watch is of this run alone. Beside the file lies a lock; it is either the old one or the whole new one. Its
    false-alarm rate (else 0.01) and key need not be said again.

    Raises:
        InputError: the file is damaged, belongs to another profile, was begun with other options, or is in use.
    """
    if path is None:
        yield Watch(profile, false_alarm_rate=false_alarm_rate or FALSE_ALARM_RATE, key=key)
        return
    path = Path(path)
    with _locked(path):
        state = _read(path, digest_of(profile))
        rate = FALSE_ALARM_RATE if state is None else state.false_alarm_rate
        for name, given, kept in (("--false-alarm-rate", false_alarm_rate, rate), ("--slice", key, state and state.key)):
            if state is not None and given not in (None, kept):
                raise InputError(
                    f"{path}: was begun with {name} {kept or '(none)'}; leave {name} out to go on, or give another file"
                )
        try:
            key = key if state is None else state.key
            watch = Watch(profile, false_alarm_rate=false_alarm_rate or rate, key=key, state=state)
        except ConfigurationError:
            raise
        except (ValueError, TypeError) as error:
            raise _damaged(path, str(error)) from error
        yield watch
        write_atomically(path, watch.state().model_dump_json() + "\n")


def _read(path: Path, profile: str) -> WatchState | None:
    try:
        state = WatchState.model_validate_json(contents(path).decode("utf-8-sig"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot read the state ({error.strerror}); check the path") from error
    except (ValidationError, UnicodeDecodeError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not text"
        raise _damaged(path, problem) from error
    if state.profile != profile:
        raise InputError(
            f"{path}: is the state of another profile; give each profile a file of its own, or remove it to begin anew"
        )
    return state


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(f"{path}: is no state that 'bonmini-guard drift' wrote ({problem}); remove it to begin anew")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock beside the file, which itself is replaced at each look; the system lets go of it if the process dies."""
    try:
        file = path.with_name(f".{path.name}.lock").open("a")
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror}); give a file in a folder that is writable") from error
    with file:
        if not lock(file.fileno(), wait=False):
            raise InputError(f"{path}: another 'bonmini-guard drift' is at work on it; wait for it to end")
        yield
