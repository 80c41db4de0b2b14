"""``guards.toml``: what the gateway serves. Whatever a guard or a generator takes as an argument may stand in its table."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from bonmini_guard.adapters.circuit import CircuitBreaker
from bonmini_guard.adapters.http import Endpoint
from bonmini_guard.adapters.openai import OpenAICompatibleGenerator
from bonmini_guard.conduct import Guard
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError
from bonmini_guard.gateway.models import Guarded, OnAbstain, Upstream
from bonmini_guard.server.schemas import printable
from bonmini_guard.validation import check_names

#: Of a guard's table: what is a path, seen from the file.
_PATHS = ("profile", "trace_to")


class UpstreamTable(BaseModel):
    """Where draws come from; further keys are arguments of ``OpenAICompatibleGenerator`` (of ``TransformersGenerator``)."""

    model_config = ConfigDict(extra="allow")
    base_url: str | None = None
    folder: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    unguarded: bool = False


class GuardTable(BaseModel):
    """A guard; further keys are its options."""

    model_config = ConfigDict(extra="allow")
    upstream: str
    reward_model: str | dict[str, Any]
    on_abstain: OnAbstain = "refusal"
    shadow: float = Field(0.0, ge=0, le=1)
    client_sampling: bool = False


class File(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")
    keys_env: list[str] = []
    upstreams: dict[str, UpstreamTable] = Field(min_length=1)
    guards: dict[str, GuardTable] = {}


class Configuration:
    """A file, and the parts that were built from it; parts whose tables have not changed outlive a reload.

    Args:
        path: of the file.

    Attributes:
        models: what clients may ask for, by name.
        breakers: of each upstream.

    Raises:
        ConfigurationError: the file, or a part that it names, is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: dict[str, Any] = {}
        self.models: dict[str, Guarded | Upstream] = {}
        self.breakers: dict[str, CircuitBreaker] = {}
        self.load()

    def keys(self) -> list[str]:
        """The keys of which clients must show one."""
        return [self._secret(name) for name in self._read().keys_env]

    def load(self) -> None:
        """Build what the file says now; if that fails, everything stays as it was."""
        file, before, self._parts = self._read(), self._parts, {}
        try:
            generators = {name: self._part(before, name, table, self._generator) for name, table in file.upstreams.items()}
            guards = {name: self._guarded(before, name, table, generators) for name, table in file.guards.items()}
            open_ones = {
                name: self._unguarded(name, table, generators[name]) for name, table in file.upstreams.items() if table.unguarded
            }
        except BaseException:
            self._parts = before
            raise
        if twice := guards.keys() & open_ones.keys():
            raise ConfigurationError(f"{self.path}: {min(twice)!r} is both a guard and an unguarded upstream: rename one")
        self.models = guards | open_ones
        self.breakers = {name: part.circuit for name, part in generators.items() if isinstance(part, Endpoint)}

    def _read(self) -> File:
        try:
            return File.model_validate(tomllib.loads(self.path.read_text("utf-8")))
        except OSError as error:
            raise ConfigurationError(f"{self.path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.path}: {error}") from None
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigurationError(f"{self.path}: {place}: {printable(first['msg'])}") from None

    # Parts

    def _part(self, before: Mapping[str, Any], name: str, table: BaseModel, build: Any) -> Any:
        key = f"{build.__name__} {name} {table.model_dump_json()}"
        try:
            part = self._parts[key] = before[key] if key in before else build(table)
        except BonMiniGuardError as error:
            raise ConfigurationError(f"{self.path}: {name}: {error}") from error
        except TypeError as error:  # an argument that the part does not take
            raise ConfigurationError(f"{self.path}: {name}: {str(error).partition('() ')[2] or error}") from error
        return part

    def _generator(self, table: UpstreamTable) -> Any:
        more = dict(table.model_extra or {})
        if (table.base_url is None) == (table.folder is None):
            raise ConfigurationError("give base_url or folder")
        if table.folder is not None:
            from bonmini_guard.adapters.local import TransformersGenerator

            return TransformersGenerator.load(self._beside(table.folder), **more)
        key = SecretStr(self._secret(table.api_key_env))
        # Streamed, so that proxies in between pass a cancellation on.
        return OpenAICompatibleGenerator(str(table.base_url), model=table.model, api_key=key, **{"stream": True, **more})

    def _unguarded(self, name: str, table: UpstreamTable, generator: Any) -> Upstream:
        if not isinstance(generator, Endpoint):
            raise ConfigurationError(f"{self.path}: {name}: a folder cannot be served unguarded; give base_url")
        return Upstream(generator, table.model, self._secret(table.api_key_env))

    def _guarded(self, before: Mapping[str, Any], name: str, table: GuardTable, generators: Mapping[str, Any]) -> Guarded:
        try:
            check_names([table.upstream], list(generators))
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.path}: {name}: upstream: {str(error).removeprefix('unknown argument ')}") from None

        def guarded(table: GuardTable) -> Guarded:
            given = table.model_extra or {}
            options = given | {key: self._beside(given[key]) for key in _PATHS if isinstance(given.get(key), str)}
            guard = Guard(generators[table.upstream], self._scorer(before, table), **options)
            return Guarded(guard, table.on_abstain, table.shadow, table.client_sampling)

        known: Guarded = self._part(before, name, table, guarded)
        # A guard goes with its upstream.
        return known if known.guard.generator is generators[table.upstream] else self._part({}, name, table, guarded)

    def _scorer(self, before: Mapping[str, Any], table: GuardTable) -> Any:
        key = f"scorer {json.dumps(table.reward_model, sort_keys=True)}"
        self._parts[key] = self._parts.get(key) or before.get(key) or self._load_scorer(table.reward_model)
        return self._parts[key]

    def _load_scorer(self, spec: str | dict[str, Any]) -> Any:
        if isinstance(spec, str):
            from bonmini_guard import RewardModel

            return RewardModel.load(self._beside(spec))
        from bonmini_guard.adapters import RemoteRewardModel

        more = {**spec}
        key = self._secret(more.pop("api_key_env", None))
        return RemoteRewardModel(more.pop("endpoint", ""), api_key=key, **more)

    def _beside(self, name: str) -> str:
        """A path as seen from the file; what is none there is a name."""
        path = self.path.parent / name
        return str(path) if path.exists() or path.suffix else name

    def _secret(self, variable: str | None) -> str:
        if variable is None:
            return ""
        value = os.environ.get(variable, "").strip()
        if not value:
            raise ConfigurationError(f"{self.path}: the environment has no {variable}: set it, or take its name out of the file")
        return value
