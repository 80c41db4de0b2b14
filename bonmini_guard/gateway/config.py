"""``guards.toml``: what the gateway serves. Whatever a guard or a generator takes as an argument may stand in its table."""

from __future__ import annotations

import json
import os
import threading
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, SecretStr

from bonmini_guard.adapters import RemoteRewardModel
from bonmini_guard.adapters.http import Endpoint
from bonmini_guard.adapters.openai import OpenAICompatibleGenerator
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError
from bonmini_guard.gateway.models import Guarded, OnAbstain, Upstream
from bonmini_guard.reward.declared import load_scorer
from bonmini_guard.reward.spec import KINDS, ScorerSpec, Table, key_in
from bonmini_guard.runnables.conduct import Guard
from bonmini_guard.runnables.options import GuardOptions
from bonmini_guard.server.schemas import printable
from bonmini_guard.validation import check_names
from bonmini_guard.writing import contents


class UpstreamTable(Table):
    """Where draws come from; further keys are arguments of ``OpenAICompatibleGenerator`` (of ``TransformersGenerator``)."""

    model_config = ConfigDict(extra="allow")
    base_url: str | None = None
    folder: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    unguarded: bool = False


class GuardTable(Table):
    """A guard; further keys are its options."""

    model_config = ConfigDict(extra="allow")
    upstream: str
    reward_model: str | dict[str, Any]
    on_abstain: OnAbstain = "refusal"
    shadow: float = Field(0.0, ge=0, le=1)
    client_sampling: bool = False


class File(Table):
    """The whole file."""

    keys_env: tuple[str, ...] = ()
    upstreams: dict[str, UpstreamTable] = Field(min_length=1)
    guards: dict[str, GuardTable] = Field(default_factory=dict)


class Configuration:
    """A file, and the parts that were built from it; parts whose tables have not changed outlive a reload.

    Attributes:
        keys: of which clients must show one.
        models: what clients may ask for, by name; of a guard and an upstream with one name, the guard.

    Raises:
        ConfigurationError: the file, or a part that it names, is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._parts: dict[str, Any] = {}
        self.guards: dict[str, Guarded] = {}
        self.load()

    def load(self) -> list[Guarded]:
        """Build what the file says now; if that fails, everything stays as it was. The guards that are in force no more."""
        with self._lock:
            before = self.guards
            self._load(self._read())
            return [guarded for guarded in before.values() if guarded not in self.guards.values()]

    def _load(self, file: File) -> None:
        parts: dict[str, Any] = {}
        generators = {
            name: self._part(parts, f"upstreams.{name}", [name, table.model_dump()], partial(self._generator, table))
            for name, table in file.upstreams.items()
        }
        self.guards = {name: self._guarded(parts, f"guards.{name}", table, generators) for name, table in file.guards.items()}
        self._parts = parts
        endpoints = {name: generator for name, generator in generators.items() if isinstance(generator, Endpoint)}
        passed = {
            name: Upstream(endpoint, table.model)
            for name, endpoint in endpoints.items()
            if (table := file.upstreams[name]).unguarded and name not in self.guards
        }
        self.models: dict[str, Guarded | Upstream] = {**self.guards, **passed}
        self.breakers = {name: endpoint.circuit for name, endpoint in endpoints.items()}

    def _read(self) -> File:
        try:
            file = File(**tomllib.loads(contents(self.path).decode("utf-8-sig")))
            self.keys = [key_in(variable) for variable in file.keys_env]
            return file
        except OSError as error:
            raise ConfigurationError(f"{self.path}: {error.strerror}") from None
        except (ConfigurationError, ValueError, RecursionError) as error:  # or no TOML, no text, or nested too deeply
            raise ConfigurationError(f"{self.path}: {printable(str(error))}") from None

    def _part(self, parts: dict[str, Any], place: str, about: Any, build: Callable[[], Any]) -> Any:
        """What was built before from the same words, or is built now."""
        key = json.dumps(about, sort_keys=True, default=str)
        try:
            if key not in parts:
                parts[key] = self._parts[key] if key in self._parts else build()
        except (BonMiniGuardError, OSError) as error:  # such as a name that is too long
            raise ConfigurationError(f"{self.path}: {place}: {error}") from error
        except TypeError as error:  # an argument that the part does not take
            raise ConfigurationError(f"{self.path}: {place}: {str(error).partition('() ')[2] or error}") from error
        return parts[key]

    def _generator(self, table: UpstreamTable) -> Any:
        more = table.model_extra or {}
        if (table.base_url is None) == (table.folder is None):
            raise ConfigurationError("give base_url or folder")
        _refuse_key(more)
        if table.folder is not None:
            if table.model is not None or table.api_key_env is not None or table.unguarded:
                raise ConfigurationError("model, api_key_env and unguarded go with base_url, not with folder")
            from bonmini_guard.adapters.local import TransformersGenerator

            return TransformersGenerator.load(self._named(table.folder), **more)
        key = SecretStr(key_in(table.api_key_env))
        # Streamed, so that proxies in between pass a cancellation on.
        return OpenAICompatibleGenerator(str(table.base_url), model=table.model, api_key=key, **{"stream": True, **more})

    def _guarded(self, parts: dict[str, Any], place: str, table: GuardTable, generators: Mapping[str, Any]) -> Guarded:
        given = table.model_extra or {}
        paths = [key for key in ("profile", "trace_to") if isinstance(given.get(key), str)]
        options = given | {key: str(self.path.parent / given[key]) for key in paths}
        spec = table.reward_model
        named = spec if isinstance(spec, str) else spec.get("model")
        about = [spec, _written(self.path.parent / str(named))]
        scorer = self._part(parts, f"{place}.reward_model", about, partial(self._scorer, spec))

        def build() -> Guarded:
            check_names([table.upstream], list(generators))
            check_names(options, GuardOptions.__annotations__)
            if objects := options.keys() & {"telemetry", "on_explored"}:
                raise ConfigurationError(f"no file can hold {min(objects)}; leave it out")
            guard = Guard(generators[table.upstream], scorer, **options)
            return Guarded(guard, table.on_abstain, table.shadow, table.client_sampling)

        # Rebuilt with its parts, and for a profile that was written anew.
        made_of = [id(generators.get(table.upstream)), id(scorer), _written(Path(str(options.get("profile") or os.devnull)))]
        guarded: Guarded = self._part(parts, place, [place, table.model_dump(), made_of], build)
        return guarded

    def _scorer(self, spec: str | dict[str, Any]) -> Any:
        more = {"model": spec} if isinstance(spec, str) else {**spec}
        _refuse_key(more)
        if more.get("kind") in KINDS:
            return load_scorer(ScorerSpec.beside(more, self.path.parent))
        if "endpoint" in more:
            key = key_in(more.pop("api_key_env", None))
            return RemoteRewardModel(more.pop("endpoint"), api_key=key, **more)
        return load_scorer(self._named(more.pop("model", "")), **more)

    def _named(self, name: str) -> str:
        """A folder beside the file, or else the name of a model."""
        path = self.path.parent / name
        return str(path) if name and path.exists() else name


def _written(path: Path) -> int | None:
    """When a file was written; None where there is none."""
    return path.stat().st_mtime_ns if os.path.isfile(path) else None


def _refuse_key(table: Mapping[str, Any]) -> None:
    if "api_key" in table:
        raise ConfigurationError("api_key: a file holds no key; name the environment's variable that does, as api_key_env")
