"""What a scorer spec says: a TOML or JSON file, or the same in Python, that declares any reward model."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bonmini_guard.conversation import NOT_SHOWN
from bonmini_guard.errors import ConfigurationError
from bonmini_guard.validation import check_names
from bonmini_guard.writing import contents

Kind = Literal["template", "pair", "labels", "token", "route", "judge", "decision", "check", "all", "sum"]

KINDS = get_args(Kind)
#: Kinds whose model runs in this process, those that ask a server, and those made of other specs.
LOCAL, REMOTE, COMBINED = ("template", "pair", "labels", "token"), ("route", "judge", "decision"), ("all", "sum")
#: Kinds whose scores are log-odds already.
LOG_ODDS = ("labels", "token", "judge", "decision", "check")
SUFFIXES = (".toml", ".json")


class Table(BaseModel):
    """A table of a spec; what it does not know is refused with the name that was meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            problem = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"{place}: {problem}" if place else problem) from None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and cls.model_config.get("extra") == "forbid":
            check_names(values, cls.model_fields)
        return values


class Anchor(Table):
    """A fixed answer, whose own score is taken off with a weight."""

    text: str = Field(min_length=1)
    weight: float = Field(allow_inf_nan=False)


class Zero(Table):
    """Where "acceptable" begins: R = factor * raw + shift - sum of weight * (score of a fixed answer to the same prompt)."""

    shift: float = Field(default=0.0, allow_inf_nan=False)
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    anchors: tuple[Anchor, ...] = ()


class Labels(Table):
    """Which labels of a classifier are wanted: those named, or all that are not unwanted."""

    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    inputs: Literal["template", "pair", "answer"] | None = None


class Token(Table):
    """Which tokens of a language model's answer are verdicts, and how it is asked: see docs/bring-your-reward-model.md.

    Without ``ask`` the conversation is given to the model's own template, the answer last.
    """

    wanted: tuple[str, ...] = Field(min_length=1)
    unwanted: tuple[str, ...] = Field(min_length=1)
    ask: str | None = None
    system: str | None = None
    after: str = ""
    options: dict[str, Any] = {}

    def asked(self, prompt: str, answer: str) -> str:
        """The user's turn; what prompt and answer hold in braces is not filled in."""
        said = {"prompt": prompt, "answer": answer}
        return re.sub(r"\{(prompt|answer)\}", lambda found: said[found[1]], self.ask or "{prompt}\n\n{answer}")


def _further(options: dict[str, Any]) -> dict[str, Any]:
    if said := options.keys() & {"kind", "wire", "base_url", "model", "api_key", "tokenizer", "inputs", "scores", "has_zero"}:
        raise ConfigurationError(f"http: {min(said)} is no further option, since another key of a spec says it: leave it out")
    return options


#: Options of an adapter that no key of a spec says.
Further = Annotated[dict[str, Any], AfterValidator(_further)]


class Route(Table):
    """Which route (None: the usual one) of which server, with options of :class:`bonmini_guard.adapters.RemoteRewardModel`."""

    server: Literal["vllm", "tei", "sglang", "infinity", "jina", "cohere", "bonmini"]
    name: Literal["rerank", "score", "classify", "pooling"] | None = None
    tokenizer: str | None = None
    inputs: Literal["ids", "text", "pair"] | None = None
    http: Further = {}


class Judge(Table):
    """What a model is asked about an answer, and how often; the log-odds of its verdicts are the score."""

    rubric: str = Field(min_length=1)
    votes: int = Field(default=1, ge=1, le=64)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_tokens: int = Field(default=512, ge=1)


class Asked(Table):
    """A question of several to a decision model, about the last answer; what counts as yes and no, where that is open."""

    question: str = Field(min_length=1)
    name: str | None = None
    yes: str | None = None
    no: str | None = None


class Decision(Table):
    """What a decision model is asked: one question, or several of which all must hold; see docs/questions.md."""

    wire: Literal["systemone", "decisions"] = "systemone"
    question: str | None = None
    questions: tuple[Asked, ...] = ()
    ask: Literal["each", "together", "choice"] = "each"
    rotations: int = Field(default=2, ge=1, le=16)
    http: Further = {}

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if bool(self.question) == bool(self.questions):
            raise ConfigurationError("decision: give a question, or several as [[decision.questions]]")
        if len(self.named) < len(self.questions):
            raise ConfigurationError("decision: two questions have one name: give each a name of its own, or none")
        return self

    @property
    def named(self) -> dict[str, Asked]:
        """Several questions by name; one without is called by its number."""
        return {question.name or f"question {number}": question for number, question in enumerate(self.questions, 1)}


class Check(Table):
    """A function of :mod:`bonmini_guard.checks` and its arguments."""

    model_config = ConfigDict(frozen=True, extra="allow")
    type: Literal["exact", "number", "regex", "json_schema", "python"]


class ScorerSpec(Table):
    """A reward model, declared; see docs/bring-your-reward-model.md.

    Attributes:
        kind: how scores are made.
        model: folder or id; for remote kinds the server's name for it. Of a judge or a decision, in Python, also LangChain's.
        endpoint: where the server is, for remote kinds.
        api_key_env: name of the environment variable that holds its key.
        scale: what the model gives: "logit", "probability" (its log-odds are the score) or "points".
        has_zero: whether a score of 0 means "acceptable"; None takes what the kind or the checkpoint says.
        zero: puts it there.
        not_shown: kinds of parts of answers that this scorer does not see; they are not served. None takes the kind's own.
        weight: in a sum.
        intercept: of a sum.

    Raises:
        ConfigurationError: a key is unknown, missing, or another kind's.
    """

    kind: Kind
    model: Any = None
    endpoint: str | None = None
    api_key_env: str | None = None
    scale: Literal["logit", "probability", "points"] = "logit"
    has_zero: bool | None = None
    zero: Zero | None = None
    not_shown: tuple[str, ...] | None = None
    labels: Labels | None = None
    token: Token | None = None
    route: Route | None = None
    judge: Judge | None = None
    decision: Decision | None = None
    check: Check | None = None
    all: tuple[ScorerSpec, ...] | None = None
    sum: tuple[ScorerSpec, ...] | None = None
    weight: float = Field(default=1.0, allow_inf_nan=False)
    intercept: float = Field(default=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        kind, tables = self.kind, ("labels", "token", "route", "judge", "decision", "check", *COMBINED)
        for name in tables:
            if name != kind and getattr(self, name) is not None:
                raise ConfigurationError(f"[{name}] belongs to kind = {name!r}, and the kind is {kind!r}: leave one out")
        if kind in tables and not getattr(self, kind):
            raise ConfigurationError(f"kind = {kind!r} needs a table [{kind}]: see docs/bring-your-reward-model.md")
        if kind in LOCAL and not self.model:
            raise ConfigurationError(f"kind = {kind!r} needs model = a folder or an id")
        served = (*REMOTE, "token")
        for name, kinds in (("endpoint", served), ("api_key_env", served), ("model", (*LOCAL, *REMOTE))):
            if getattr(self, name) is not None and kind not in kinds:
                raise ConfigurationError(f"{name} is for the kinds {', '.join(kinds)}, and the kind is {kind!r}: leave it out")
        # In Python a judge or a decision may be LangChain's.
        if kind in REMOTE and not self.endpoint and (kind == "route" or isinstance(self.model, str | None)):
            raise ConfigurationError(f"kind = {kind!r} needs endpoint = the server's address")
        table = self.judge or self.decision
        said = {"temperature", "max_tokens", "wire", "http"} & (table.model_fields_set if table else set())
        if not self.endpoint and (said or self.api_key_env is not None):
            key = min(said, default="api_key_env")
            raise ConfigurationError(f"{key} goes with an endpoint, and the model brings settings of its own: leave it out")
        if self.labels is not None and not (self.labels.wanted or self.labels.unwanted):
            raise ConfigurationError("labels: name those that are wanted, or unwanted")
        return self

    @model_validator(mode="after")
    def _of_its_scale(self) -> Self:
        if self.scale == "probability" and self.kind in LOG_ODDS:
            raise ConfigurationError(f"scores of kind = {self.kind!r} are log-odds, and no probabilities: leave scale out")
        if self.intercept and self.kind != "sum":
            raise ConfigurationError(f"intercept is of kind = 'sum', and the kind is {self.kind!r}: leave it out")
        if any(part.weight != 1 for part in self.all or ()):
            raise ConfigurationError("weight is of a part of kind = 'sum', and 'all' takes the least: leave it out")
        if self.kind in ("route", *COMBINED) and set(self.hidden) != set(NOT_SHOWN):
            said = "what its server is sent" if self.kind == "route" else "said by each part"
            raise ConfigurationError(f"not_shown of kind = {self.kind!r} is {said}: leave it out")
        if self.scale == "points" and self.has_zero and self.zero is None:
            raise ConfigurationError("scale = 'points' has no zero of its own: give zero = { shift = ..., factor = ... }")
        return self

    @classmethod
    def of(cls, source: Any) -> ScorerSpec | None:
        """The spec that something is, or is the path of; None for a checkpoint."""
        if isinstance(source, ScorerSpec):
            return source
        return cls.load(source) if is_spec(source) else None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScorerSpec:
        """Read a file; see :meth:`beside`.

        Raises:
            ConfigurationError: it is missing, or is no spec; the message names the file and the key.
        """
        place = Path(path)
        try:
            text = contents(place).decode("utf-8-sig")
            return cls.beside(json.loads(text) if place.suffix == ".json" else tomllib.loads(text), place.parent)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise ConfigurationError(f"{place}: cannot be read ({why}); name a scorer spec") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{place}: {error}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{place}: is no {place.suffix[1:].upper()} of a scorer spec ({error})") from None

    @classmethod
    def beside(cls, values: Mapping[str, Any], folder: Path) -> ScorerSpec:
        """The spec of a whole file in a folder: a model that lies there may be named from there."""
        spec = cls(**_placed(values, lambda name: str(folder / name) if (folder / name).is_dir() else name))
        if spec.weight != 1:
            raise ConfigurationError("weight is of a part of kind = 'sum', and this is the whole: leave it out")
        return spec

    @property
    def parts(self) -> tuple[ScorerSpec, ...]:
        """The specs that it is made of."""
        return self.all or self.sum or ()

    @property
    def runs_here(self) -> bool:
        """Whether nothing elsewhere is asked, of none of its parts."""
        return all(part.runs_here for part in self.parts) if self.parts else self.loads or self.kind == "check"

    @property
    def loads(self) -> bool:
        """Whether its model is loaded into this process, or that of a part is."""
        return any(part.loads for part in self.parts) or (self.kind in LOCAL and self.endpoint is None)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Parts of answers that a scorer of texts does not see."""
        return NOT_SHOWN if self.not_shown is None else self.not_shown

    def canonical(self) -> str:
        """What it says, as a text that is equal for equal specs, in another process, too: objects without their addresses."""
        said = self.model_dump(mode="json", exclude_defaults=True, fallback=lambda value: re.sub(r" at 0x\w+", "", repr(value)))
        return json.dumps(said, sort_keys=True)


def key_in(variable: str | None) -> str:
    """The key in an environment variable; "" where none is named, ConfigurationError where it is not set."""
    if variable == "":
        raise ConfigurationError("api_key_env is empty: name the environment's variable that holds the key, or leave it out")
    key = "" if variable is None else os.environ.get(variable, "").strip()
    if variable is not None and not key:
        raise ConfigurationError(f"the environment has no {variable}, which is to hold a key: export {variable}=...")
    return key


def judges_of(source: Any) -> list[Judge]:
    """The judges that a spec, or the file of one, asks; none for a checkpoint."""
    spec = ScorerSpec.of(source)
    if spec is None:
        return []
    return [judge for part in spec.parts for judge in judges_of(part)] + ([spec.judge] if spec.judge else [])


def is_spec(value: Any) -> bool:
    """Whether it is a spec, or looks like the path of one."""
    return isinstance(value, ScorerSpec) or (isinstance(value, str | os.PathLike) and Path(value).suffix in SUFFIXES)


def seen_from(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """With the folders of models as a file in ``folder`` names them."""
    return _placed(values, lambda name: os.path.relpath(name, folder) if Path(name).is_dir() else name)


def _placed(values: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    found = dict(values)
    # An empty name is none, and no folder's.
    if found.get("kind") in LOCAL and found.get("endpoint") is None and isinstance(model := found.get("model"), str) and model:
        found["model"] = place(model)
    if isinstance(route := found.get("route"), dict) and isinstance(model := route.get("tokenizer"), str) and model:
        found["route"] = route | {"tokenizer": place(model)}
    for name in COMBINED:
        if isinstance(found.get(name), list):
            found[name] = [_placed(part, place) if isinstance(part, dict) else part for part in found[name]]
    return found
