"""Draw candidates through any LangChain chat model, LLM or runnable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langsmith.run_helpers import tracing_context

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.protocols import DrawRequest


class LangChainGenerator:
    """Draws by calling a LangChain model once for each candidate.

    The model runs on a copy without callbacks, cache and streaming: a callback or a stream would show rejected candidates,
    and a cache would return the same candidate every time. Sync-only models run in a thread, as LangChain does it.

    Args:
        model: a chat model, an LLM, or any runnable that takes messages and gives a message or a string.
        seed_argument: name of the call option that takes the draw's seed (often ``"seed"``); None sends no seed, and draws
            are then not repeatable.
        options: call options for every draw.
    """

    def __init__(
        self, model: Runnable[Any, Any], *, seed_argument: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        if not isinstance(model, Runnable):
            raise ConfigurationError(f"LangChainGenerator needs a LangChain model or runnable, not a {type(model).__name__}")
        self._model = quiet(model)
        self._seed_argument = seed_argument
        self._options = dict(options or {})
        # A manager of nobody, not an empty list: completion LLMs read the list's first item (langchain-core 1.7.2).
        self._config: RunnableConfig = {
            "callbacks": AsyncCallbackManager([]),
            "tags": ["nostream"],
            "run_name": "bonmini_guard_draw",
        }

    @property
    def chat_model(self) -> Runnable[Any, Any]:
        """The quiet copy that draws."""
        return self._model

    @property
    def deterministic(self) -> bool:
        """Whether the model is set to temperature 0, so that all candidates would be the same."""
        return bool(_temperature(self._model, self._options) == 0)

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer.

        Raises:
            TypeError: the runnable gave neither a message nor a string.
        """
        options = {**self._options, **request.options}
        if self._seed_argument is not None:
            options[self._seed_argument] = request.seed
        with tracing_context(enabled=False):
            answer = await self._model.ainvoke(list(request.messages), config=self._config, **options)
        return as_message(answer)

    def fingerprint(self) -> str:
        """The model's class and its identifying parameters, without secrets."""
        identity = getattr(_bare(self._model), "_identifying_params", {})
        named = {key: value for key, value in sorted(identity.items()) if isinstance(value, str | int | float | bool)}
        return f"langchain:{type(_bare(self._model)).__name__}:{named}"


def quiet(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """A copy of a model that calls back to nobody, caches nothing and never streams; other runnables as they are."""
    if isinstance(model, RunnableBinding):
        config = {key: value for key, value in model.config.items() if key != "callbacks"}
        return model.model_copy(update={"bound": quiet(model.bound), "config": config, "config_factories": []})
    if isinstance(model, BaseChatModel):
        return model.model_copy(update={"callbacks": None, "cache": False, "disable_streaming": True})
    if isinstance(model, BaseLanguageModel):
        return model.model_copy(update={"callbacks": None, "cache": False})
    return model


def as_message(answer: Any) -> AIMessage:
    """A model's answer as an AIMessage.

    Raises:
        TypeError: it is neither a message nor a string.
    """
    if isinstance(answer, AIMessageChunk):
        answer = message_chunk_to_message(answer)
    if isinstance(answer, AIMessage):
        return answer
    if isinstance(answer, str):
        return AIMessage(answer)
    raise TypeError(f"a draw gave a {type(answer).__name__}: an AIMessage or a string is needed")


def _bare(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    return _bare(model.bound) if isinstance(model, RunnableBinding) else model


def _temperature(model: Runnable[Any, Any], options: Mapping[str, Any]) -> Any:
    if "temperature" in options:
        return options["temperature"]
    if isinstance(model, RunnableBinding):
        return _temperature(model.bound, model.kwargs)
    return getattr(model, "temperature", None)
