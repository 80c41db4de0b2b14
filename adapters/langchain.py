"""Draw candidates through any LangChain chat model, LLM or runnable."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import or_
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs, var_child_runnable_config
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.runnables.history import RunnableWithMessageHistory

from bonmini_guard.adapters.answers import counts, shared
from bonmini_guard.adapters.describing import described
from bonmini_guard.adapters.elsewhere import answering_step, apart, has_model, in_threads, with_models, with_parts, within
from bonmini_guard.adapters.groups import Outcomes, in_one_call
from bonmini_guard.adapters.reasoning import Tags, checked_tags, without_thoughts
from bonmini_guard.adapters.requests import refuse_spoiling
from bonmini_guard.engine.bridge import ByLoop, is_bridge
from bonmini_guard.engine.detach import langsmith_set, silent
from bonmini_guard.engine.fingerprints import sampling, text_of
from bonmini_guard.engine.protocols import NO_OPTIONS, DrawRequest
from bonmini_guard.engine.wrapped import chat_model_of, unbound
from bonmini_guard.errors import BonMiniGuardError, ConfigurationError


class LangChainGenerator:
    """Draws by calling a LangChain model once for each candidate, or once for each loop where the model takes an ``n``.

    The model runs on a copy without callbacks, cache and streaming: a callback or a stream would show rejected candidates,
    and a cache would return the same candidate every time. What a sync-only model draws in its thread cannot be stopped.

    Args:
        model: a chat model, an LLM, or any runnable that takes messages and gives a message or a string.
        seed_argument: name of the call option that takes the draw's seed (often ``"seed"``); None sends none.
        n_argument: name of the call option that asks for several answers (often ``"n"``), for a chat model or LLM: a loop is then
            one call, and what is missing is drawn separately. None draws one by one: an early exit cancels those that still run.
        options: call options for every draw.
        split_reasoning: move thoughts in the text (``<think>...</think>``, or the two tags given) to where other reasoning is.

    Raises:
        ConfigurationError: the model is no runnable, or has no generations to take ``n_argument`` for.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        *,
        seed_argument: str | None = None,
        n_argument: str | None = None,
        options: Mapping[str, Any] | None = None,
        split_reasoning: Tags = False,
    ) -> None:
        if not isinstance(model, Runnable):
            raise ConfigurationError(f"LangChainGenerator needs a LangChain model or runnable, not a {type(model).__name__}")
        if n_argument is not None and not isinstance(unbound(model)[0], BaseLanguageModel):
            # Retries, fallbacks and chains give one answer, and would drop the others.
            raise ConfigurationError(f"n_argument needs a chat model or an LLM itself, not a {type(model).__name__}")
        if any(isinstance(part, RunnableWithMessageHistory) for part in within(model)):
            warnings.warn(_HISTORY, UserWarning, stacklevel=2)
        self._model = without_callbacks(model)
        self._by_loop = ByLoop()
        # The config of a call chooses what it is.
        self._as_given = model if any(map(_is_configurable, within(model))) else None
        self._seed_argument = seed_argument
        self._n_argument = n_argument
        self._options = of_one(options or {})
        self._tags = checked_tags(split_reasoning)
        self._description: dict[str, Any] | None = None

    @property
    def deterministic(self) -> bool:
        """Whether the model is set to temperature 0, or to a seed, so that all candidates would be the same."""
        model, bound = _answering(self._model)
        # Classes have seeds that stand for none.
        own = {name: getattr(model, name) for name in getattr(model, "model_fields_set", ()) if name in _SEEDS}
        given: dict[str, Any] = {}
        for said in ({name: getattr(model, name, None) for name in ("temperature", *_BODIES)} | own, bound, self._options):
            bodies = [body for name in _BODIES if isinstance(body := said.get(name), Mapping)]
            given = reduce(or_, map(dict, bodies), {**given, **said})
        seeds = [given.get(name) for name in _SEEDS if name != self._seed_argument]
        return given["temperature"] == 0 or any(seed not in (None, -1) for seed in seeds)

    @property
    def chat_model(self) -> Runnable[Any, Any]:
        """The copy without callbacks that draws; of a configurable model, what the ambient config makes of it."""
        return self._model if self._as_given is None else without_callbacks(self._as_given, var_child_runnable_config.get())

    @property
    def draw_group(self) -> Callable[[Sequence[DrawRequest]], Outcomes] | None:
        """Draws a whole loop in one call; None without ``n_argument``."""
        return None if self._n_argument is None else partial(in_one_call, self.draw, self._together)

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer.

        Raises:
            ConfigurationError: a call option makes every draw the same, or the runnable gave neither a message nor a string.
            MalformedGenerations: the model gave no answer.
        """
        return (await self._answers(request, self._call_options(request)))[0]

    async def _together(self, requests: Sequence[DrawRequest]) -> list[AIMessage]:
        options = self._call_options(requests[0])
        if len(requests) > 1:
            options[str(self._n_argument)] = len(requests)
        return (await self._answers(requests[0], options))[: len(requests)]

    def _call_options(self, request: DrawRequest) -> dict[str, Any]:
        refuse_spoiling(request.options, "the call")
        for name in _BODIES:
            refuse_spoiling(request.options.get(name) or {}, name)
        if self._n_argument in request.options:
            raise ConfigurationError(f"the guard decides how many answers are drawn: drop the call option {self._n_argument!r}")
        options = {**self._options, **request.options}
        if self._seed_argument is not None:
            options[self._seed_argument] = request.seed
        return options

    def here(self) -> Runnable[Any, Any]:
        """``chat_model`` for the running loop: connections that another loop has are not used."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self.chat_model
        if not self.configurable:
            return self._by_loop.of(loop, lambda: with_models(self._model, partial(apart, loop=loop)))
        # It is made anew for each call: what each had to open for sync calls would pile up.
        return with_models(self.chat_model, in_threads if is_bridge(loop) else partial(apart, loop=loop))

    async def _answers(self, request: DrawRequest, options: dict[str, Any]) -> list[AIMessage]:
        """At least one answer."""
        whole = self.here()
        bare, bound = unbound(whole)
        # Silent already in a guard's draw; called by others, too, a draw is heard by nobody.
        config: RunnableConfig = {**silent(var_child_runnable_config.get() or {}), "run_name": "bonmini_guard_draw"}
        with langsmith_set(False):
            if not isinstance(bare, BaseLanguageModel):
                if (options or bound) and chat_model_of(whole) is None and has_model(whole):
                    # Fallbacks of several vendors, with tools in a form of their own, or a chain, whose first step would take all.
                    offer = {name: options.pop(name) for name in _OFFER if name in options} if "tools" in options else {}
                    whole, options = _called_with(whole, options, offer), {}
                answers = [as_message(await whole.ainvoke(list(request.messages), config=config, **options))]
            else:
                model, options = with_settings(bare, {**bound, **options})
                prompt = ChatPromptValue(messages=list(request.messages))
                stop = options.pop("stop", None)
                about: dict[str, Any] = {name: config.get(name) for name in ("callbacks", "tags", "metadata", "run_name")}
                # Not ainvoke: it drops all generations but the first, and what an LLM says about its own.
                answers = billed_once(await model.agenerate_prompt([prompt], stop=stop, **about, **options))
        return [without_thoughts(answer, self._tags) for answer in answers]

    @property
    def configurable(self) -> bool:
        """Whether the config of a call chooses the model."""
        return self._as_given is not None

    def describe(self, options: Mapping[str, Any] = NO_OPTIONS) -> dict[str, Any]:
        """What draws: the model with its settings, bindings and steps, called with options; no secrets."""
        given = {key: value for key, value in sampling({**self._options, **options}).items() if key != self._seed_argument}
        usual = given == sampling(self._options) and not self.configurable
        if usual and self._description is not None:
            return self._description
        thoughts = {} if self._tags is None else {"split_reasoning": list(self._tags)}
        said = {"generator": described(self.chat_model, given), **thoughts}
        if usual:
            self._description = said
        return said

    def fingerprint(self) -> str:
        """The description as text."""
        return text_of(self.describe())

    def earlier_fingerprint(self) -> str:
        """As profiles of schema 1 have it: the model's class and its identifying parameters."""
        model, _ = unbound(self._model, RunnableBindingBase)
        identity = getattr(model, "_identifying_params", {})
        named = {key: value for key, value in sorted(identity.items()) if isinstance(value, str | int | float | bool)}
        return f"langchain:{type(model).__name__}:{named}"


#: A draw is one answer: further ones would be billed and dropped, the likeliest of several is no fair draw, and a stream is none.
_ONE = ("n", "best_of", "stream")
#: Settings that hold others, which go out beside a model's own.
_BODIES = ("model_kwargs", "extra_body")
#: Call options that go with tools, which each model takes in a form of its own.
_OFFER = ("tools", "tool_choice", "strict")
#: What integrations call a model's own seed.
_SEEDS = ("seed", "random_seed")
_HISTORY = (
    "the model keeps a message history, and every draw is written to it, those too that are never served: put "
    "RunnableWithMessageHistory around the guard, so that it keeps what is served"
)


def of_one(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, and bodies in them, without what would make several answers, or a stream, of one call."""
    kept = {name: value for name, value in options.items() if name not in _ONE}
    return kept | {name: of_one(body) for name in _BODIES if isinstance(body := kept.get(name), Mapping)}


def _answering(model: Any) -> tuple[Any, dict[str, Any]]:
    """The model that answers first, and what is bound to it: in retries and fallbacks, and between prompts and parsers."""
    inner, bound = unbound(model, RunnableBindingBase)
    if isinstance(inner, RunnableWithFallbacks):
        inner, own = _answering(inner.runnable)
        return inner, {**own, **bound}
    steps = inner.steps if isinstance(inner, RunnableSequence) else []
    several = [step for step in steps if not isinstance(step, BasePromptTemplate | BaseOutputParser)]
    return _answering(several[0]) if len(several) == 1 else (inner, bound)


def _called_with(runnable: Any, options: Mapping[str, Any], offer: Mapping[str, Any]) -> Any:
    """A copy whose models are called with options, and offered tools: in a chain that of the step which answers."""
    if isinstance(runnable, BaseLanguageModel):
        model, given = with_settings(runnable, {**options})
        return (model.bind_tools(**offer) if offer and hasattr(model, "bind_tools") else model).bind(**given)
    if isinstance(runnable, RunnableBindingBase):
        options, runnable = {**runnable.kwargs, **options}, runnable.model_copy(update={"kwargs": {}})
    if isinstance(runnable, RunnableSequence):
        at = answering_step(runnable)
        steps = [_called_with(step, options, offer) if number == at else step for number, step in enumerate(runnable.steps)]
        return RunnableSequence(*steps)
    if has_model(runnable):
        return with_parts(runnable, partial(_called_with, options=options, offer=offer))
    # A part of another kind, such as a fallback on another server; a function takes none.
    return runnable if isinstance(runnable, RunnableLambda) else runnable.bind(**options)


def _is_configurable(model: Any) -> bool:
    # The second is of langchain's init_chat_model, and private to it.
    return isinstance(model, DynamicRunnable) or type(model).__name__ == "_ConfigurableModel"


def without_callbacks(model: Runnable[Any, Any], config: RunnableConfig | None = None) -> Runnable[Any, Any]:
    """A copy of a model that calls back to nobody, caches nothing and never streams, also within retries, fallbacks and branches.

    A configurable model becomes what the config, which it is bound to, says now. Other runnables are left as they are.
    """
    if _is_configurable(model):
        model = model.prepare(config)[0] if isinstance(model, DynamicRunnable) else model._model(config)  # type: ignore[attr-defined]
    if isinstance(model, BaseLanguageModel):
        silent: dict[str, Any] = {"callbacks": None, "cache": False, "disable_streaming": True, "streaming": False}
        fields = type(model).model_fields
        silent |= {name: 1 for name in _ONE if name in fields and (getattr(model, name) or 1) > 1}
        silent |= of_one({name: body for name in _BODIES if (body := getattr(model, name, None))})
        # Integrations that stream by a field of their own would give a stream where an answer is asked for.
        return model.model_copy(update={name: value for name, value in silent.items() if name in fields})
    if isinstance(model, RunnableBindingBase):
        own: RunnableConfig = {key: value for key, value in model.config.items() if key != "callbacks"}  # type: ignore[assignment]
        # Functions may call an argument of theirs so.
        kwargs = model.kwargs if isinstance(unbound(model, RunnableBindingBase)[0], RunnableLambda) else of_one(model.kwargs)
        update = {"config": own, "config_factories": [], "kwargs": kwargs}
        model, config = model.model_copy(update=update), merge_configs(own, config)
    return with_parts(model, partial(without_callbacks, config=config))


def billed_once(result: LLMResult) -> list[AIMessage]:
    """The answers of one call; their usage adds up to what the call used.

    Where the model tells the call's own usage (``llm_output["token_usage"]``), some integrations copy that to every answer:
    the first answer then bears the prompt, and what was generated is shared in proportion to the answers' lengths. Otherwise
    each answer keeps its own. MalformedGenerations if there is none.
    """
    answers = [_generation(each) for each in (result.generations or [[]])[0]]
    if not answers:
        raise MalformedGenerations("the model gave no generation")
    told = (result.llm_output or {}).get("token_usage")
    bill = counts(told) if isinstance(told, Mapping) else {}
    # An answer's own usage says the same, with more detail.
    if not {"prompt_tokens", "completion_tokens"} <= bill.keys() or (len(answers) == 1 and answers[0].usage_metadata is not None):
        return answers
    shares = shared(bill["prompt_tokens"], bill["completion_tokens"], [len(answer.text) + 1 for answer in answers])
    return [answer.model_copy(update={"usage_metadata": share}) for answer, share in zip(answers, shares, strict=True)]


class MalformedGenerations(BonMiniGuardError):  # noqa: N818 - says it all
    """A LangChain model answered without a generation."""


def _generation(generation: Any) -> AIMessage:
    message = getattr(generation, "message", None)
    if message is not None:
        return as_message(message)
    return AIMessage(generation.text, response_metadata=dict(generation.generation_info or {}))


def as_message(answer: Any) -> AIMessage:
    """A model's answer as an AIMessage; ConfigurationError if it is neither a message nor a string."""
    if isinstance(answer, AIMessageChunk):
        answer = message_chunk_to_message(answer)
    if isinstance(answer, AIMessage):
        return answer
    if isinstance(answer, str):
        return AIMessage(answer)
    cure = "for structured output guard the model itself, by ChatBestOfMiniN(...).with_structured_output(...)"
    raise ConfigurationError(f"a draw gave a {type(answer).__name__}: an AIMessage or a string is needed; {cure}")


#: Integrations that know their settings as fields alone, and end in a TypeError where a call names one; and what they call them.
_BY_FIELDS = frozenset({"ChatOllama", "OllamaLLM"})
_NAMES = {"max_tokens": "num_predict"}


def with_settings(model: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model and what it is called with: itself and all options, or a copy with those among its fields and the others."""
    if type(model).__name__ not in _BY_FIELDS:
        return model, options
    named = {_NAMES.get(name, name): value for name, value in options.items()}
    fields = {name: value for name, value in named.items() if name in type(model).model_fields}
    copied = model.model_copy(update=fields)
    if vars(copied).pop("_agenerate", None) is not None:  # that of the model itself
        copied = in_threads(copied)
    return copied, {name: value for name, value in named.items() if name not in fields}
