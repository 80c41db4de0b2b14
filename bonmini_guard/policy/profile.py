"""The calibrated configuration of a guard: a small JSON file that a person can review."""

from __future__ import annotations

import json
import math
import os
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, PlainSerializer, ValidationError, model_validator

from bonmini_guard.errors import ProfileError
from bonmini_guard.policy.policy import BelowFloor, Exit, Mode, Policy, check_thresholds
from bonmini_guard.writing import contents, write_atomically

SCHEMA_VERSION = 2


def _number(value: Any) -> Any:
    """A number; a text or a truth value that spells one is a mistake of whoever wrote the file."""
    if isinstance(value, str | bool):
        raise ValueError(f"{value!r} is no number")
    return value


#: JSON has no infinity.
_AS_NULL = PlainSerializer(lambda value: None if math.isinf(value) else value, return_type=float | None, when_used="json")
#: null stands for "never exit at this loop", and for "never give up at this loop".
Threshold = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else _number(value)), _AS_NULL]
Floor = Annotated[float, BeforeValidator(lambda value: -math.inf if value is None else _number(value)), _AS_NULL]

Share = Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)]


class ScoreTransform(BaseModel):
    """score = a * raw_score + b, with a > 0; the identity for models trained with an outside option."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    a: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    b: float = Field(default=0.0, allow_inf_nan=False)

    def __call__(self, raw_score: float) -> float:
        """The score of a raw score."""
        return self.a * raw_score + self.b


class GuardProfile(BaseModel):
    """A guard's configuration with its evidence. Only mode, schedule and thresholds are required.

    Attributes:
        mode: guardrail or accelerator.
        schedule: draws of each loop.
        thresholds: one for each loop, on the transformed score; null (infinity) never exits at that loop.
        exit: the stopping procedure the promise was made for.
        in_flight: for a rolling exit, the draws in flight that the promise holds for, ascending; a request takes any of them.
        in_flight_thresholds: the threshold with each of ``in_flight``; None where ``thresholds`` holds for all of them.
        max_draws: for a rolling exit, the draws of a request; its schedule lists so many ones.
        hopeless: one floor for each loop; a best score below it gives the request up. null never does.
        score_transform: from raw to calibrated score.
        risk, alpha, delta, epsilon: what was promised, at which level, with which confidence.
        evidence: rows, labels, split sizes and seed, expected draws, rates and bounds.
        reference: up to 1,000 first-loop best scores, for drift.
        fingerprints: of the reward model and the generator that the log came from; since schema 2 a generator's is the JSON of its
            description. Those of schema 1 are compared as they were written.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, strict=True)
    mode: Mode
    schedule: tuple[Annotated[int, BeforeValidator(_number)], ...]
    thresholds: tuple[Threshold, ...]
    exit: Exit = "loop"
    in_flight: tuple[Annotated[int, BeforeValidator(_number), Field(ge=1)], ...] | None = None
    in_flight_thresholds: tuple[Threshold, ...] | None = None
    max_draws: int | None = None
    hopeless: tuple[Floor, ...] | None = None
    score_transform: ScoreTransform = ScoreTransform()
    risk: Literal["served_and_bad", "bad_among_served", "false_acceptance"] | None = None
    alpha: Share | None = None
    delta: Share | None = None
    epsilon: Share | None = None
    evidence: dict[str, Any] = Field(default_factory=dict)
    reference: tuple[FiniteFloat, ...] = Field(default=(), max_length=1000)
    fingerprints: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime | None = None
    package_version: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> GuardProfile:
        self._check_rolling()
        self.policy()  # which refuses a schedule and thresholds that do not go together
        # null is the one infinity that JSON can hold here; the other one would come back as its opposite.
        if -math.inf in self.thresholds or math.inf in (self.hopeless or ()):
            raise ValueError("a threshold of -infinity or a floor of +infinity cannot be written: use a finite number")
        if self.hopeless is not None and len(self.hopeless) != len(self.schedule):
            raise ValueError(f"{len(self.hopeless)} hopeless floors for {len(self.schedule)} loops: give one for each loop")
        if self.schema_version > SCHEMA_VERSION:
            raise ValueError(f"schema_version {self.schema_version} is newer than this package ({SCHEMA_VERSION}): upgrade it")
        return self

    def _check_rolling(self) -> None:
        if self.exit != "rolling":
            if (self.in_flight, self.in_flight_thresholds, self.max_draws) != (None, None, None):
                raise ValueError(f"in_flight and max_draws are a rolling exit's, and this exit is {self.exit!r}")
            return
        if set(self.schedule) != {1} or self.max_draws not in (None, len(self.schedule)):
            raise ValueError("a rolling exit decides after each draw: the schedule must list max_draws ones")
        if self.in_flight is not None and (not self.in_flight or list(self.in_flight) != sorted(set(self.in_flight))):
            raise ValueError(f"in_flight {list(self.in_flight)} must list numbers of draws, ascending")
        if (levels := self.in_flight_thresholds) is not None:
            check_thresholds(levels, len(self.in_flight or ()))
            if -math.inf in levels:
                raise ValueError("a threshold of -infinity cannot be written: use a finite number")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GuardProfile:
        """Read a profile.

        Raises:
            ProfileError: the file is missing or malformed; the message names the file, the key and the cure.
        """
        try:
            return cls.model_validate(json.loads(contents(path), object_pairs_hook=_once))
        except OSError as error:
            problem = f"{path}: cannot read the profile ({error.strerror}); write one with 'bonmini-guard calibrate'"
            raise ProfileError(problem) from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "profile"
            raise ProfileError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from error
        except (ValueError, RecursionError) as error:  # no JSON, too deep, or a number of thousands of digits
            problem = f"{path}: not JSON ({error}); give a profile, as 'bonmini-guard calibrate' writes it"
            raise ProfileError(problem) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile atomically: the file is either the old one or the whole new one."""
        write_atomically(path, self.model_dump_json(indent=2) + "\n")

    @property
    def serial_thresholds(self) -> tuple[float, ...]:
        """Those with one draw in flight, of a rolling exit: what is shown of it where a log is replayed in every order."""
        return self.policy().at(1).thresholds

    def policy(self) -> Policy:
        """The policy that this profile configures."""
        arguments: dict[str, Any] = {} if self.hopeless is None else {"stop": BelowFloor(self.hopeless)}
        ladder = tuple(zip(self.in_flight or (), self.in_flight_thresholds or (), strict=False))
        return Policy(self.mode, self.schedule, self.thresholds, self.exit, ladder=ladder, **arguments)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of whose keys is there once: of two thresholds no one could say which holds."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {next(key for key in found if [name for name, _ in pairs].count(key) > 1)!r} is there twice")
    return found
