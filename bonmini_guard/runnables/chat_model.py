"""``ChatBestOfMiniN``: the guard as a LangChain chat model, a thin face on ``BestOfMiniN``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, ClassVar, Literal, Self, TypeGuard, Unpack

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseRunManager, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import Runnable, RunnableConfig, RunnableParallel, RunnableSequence
from langchain_core.runnables.config import ensure_config, patch_config, var_child_runnable_config
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr

from bonmini_guard.conversation import as_messages
from bonmini_guard.engine.abstentions import Caller, caller_of
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.detach import ambient, detached
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.result import GuardResult
from bonmini_guard.engine.wrapped import call_options, chat_model_of, identity_of, language_model_of, model_name
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.runnables.callbacks import group_of, observer_for, parent_of
from bonmini_guard.runnables.conduct import Guard, stamped
from bonmini_guard.runnables.guard import Face
from bonmini_guard.runnables.options import DEFAULTS, GuardArguments, chosen
from bonmini_guard.runnables.settings import profile_name
from bonmini_guard.runnables.structured import parses
from bonmini_guard.validation import check_names

Conduct = Callable[..., Awaitable[GuardResult]]

#: LangChain's standard parameters: those given go to the generator with every draw.
DRAW_OPTIONS = ("temperature", "max_tokens", "stop")
#: Fields that no guard reads.
_LANGCHAINS = {*BaseChatModel.model_fields, "streaming"} - {"profile"}


class ChatArguments(GuardArguments, total=False):
    """All that ``ChatBestOfMiniN`` takes; what is not described there is LangChain's own."""

    guard_profile: Any
    temperature: float | None
    max_tokens: int | None
    stop: list[str] | None
    streaming: bool
    cache: BaseCache | bool | None
    callbacks: Callbacks
    custom_get_token_ids: Callable[[str], list[int]] | None
    disable_streaming: bool | Literal["tool_calling"]
    metadata: dict[str, Any] | None
    output_version: str | None
    rate_limiter: BaseRateLimiter | None
    tags: list[str] | None
    verbose: bool


class ChatBestOfMiniN(Face, BaseChatModel):
    """A drop-in chat model whose every answer is the winner of a guarded request.

    Takes the arguments of :class:`~bonmini_guard.BestOfMiniN`, and LangChain's own of a chat model. Callbacks see one chat
    model run with the served text, and under it one run for each draw, without text. Streams give the winner, whole, as one
    chunk, for nothing is known to be good enough before it is complete.

    Example::

        llm = ChatBestOfMiniN(generator=ChatOpenAI(), reward_model=RewardModel.load("my-reward-model"), profile="guardrail.json")
        llm.bind_tools([search]).invoke("Who won?")

    Args:
        profile: a path or ``GuardProfile``; the model then keeps it as ``guard_profile``. A dict is LangChain's model profile (what
            a model can do), which is otherwise that of the wrapped model.
        temperature: sent with every draw, like the two that follow; None leaves it to the generator.
        max_tokens: most tokens of a draw.
        stop: stop sequences of a draw; a call's own replace them.
        streaming: False sends no token event; the answer still ends every stream.
        cache: off by default, even where a global cache is set: a cached answer is an earlier decision served again. True or a
            ``BaseCache`` turns it on; abstentions that raise are never cached.

    Raises:
        NoAcceptableResponse: from calls, when the guard abstains and ``on_abstain`` is "error"; ``.result.usage`` has the tokens.
        ConfigurationError: an argument is wrong or unknown.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    #: Its own connections belong to no event loop.
    any_loop: ClassVar[bool] = True

    # No reprs of the parts: LangChain hands repr(model) to every callback.
    generator: Any = Field(frozen=True, repr=False)
    reward_model: Any = Field(frozen=True, repr=False)
    guard_profile: Any = Field(default=None, frozen=True, repr=False)

    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    streaming: bool = True
    cache: BaseCache | bool | None = Field(default=False, exclude=True)

    _conduct: Conduct = PrivateAttr()
    _asked: Mapping[str, Any] = PrivateAttr(default_factory=dict)
    _config: RunnableConfig | None = PrivateAttr(default=None)
    _about: tuple[Engine, bool, dict[str, Any]] | None = PrivateAttr(default=None)

    def __init__(self, **arguments: Unpack[ChatArguments]) -> None:
        known = {*DEFAULTS, *type(self).model_fields, *(field.alias for field in type(self).model_fields.values() if field.alias)}
        check_names(arguments, known, ("generator", "reward_model"))
        given: dict[str, Any] = {**arguments}
        if isinstance(given.get("profile"), str | os.PathLike | GuardProfile):
            given["guard_profile"] = given.pop("profile")
        options = chosen({**given, "profile": given.get("guard_profile")})
        super().__init__(**given)
        self._guard = Guard(self.generator, self.reward_model, self._draw_options(), **options)
        self._conduct = self._guard.conduct
        vars(self).update(self._guard.shared())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As of any guard. Where only LangChain's own fields change, it is the same guard that decides."""
        if update and _LANGCHAINS.issuperset(update):
            return BaseChatModel.model_copy(self, update=update)
        if update and update.get("profile", update) is None:  # the guard's, as of any
            update = {"guard_profile": None, **update}
        other = super().model_copy(update=update)
        if update:
            # What was bound to it: tools that hold answers, what parses structured output.
            other._conduct = partial(other._conduct, **getattr(self._conduct, "keywords", {}))
        return other

    def conducted_by(self, conduct: Conduct, generator: Any = None, asked: Mapping[str, Any] | None = None) -> Self:
        """The same model, whose requests another function conducts, as :meth:`~bonmini_guard.runnables.conduct.Guard.conduct` does.

        Another ``generator`` names the model in traces and counters; ``asked`` makes requests with equal messages different ones,
        beside their options.
        """
        other = super().model_copy()
        other._conduct, other._asked, other._about = conduct, dict(asked or {}), None
        if generator is not None:
            other.__dict__["generator"] = generator  # a frozen field, in a copy that nobody else has yet
        return other

    # Answers. LangChain drops a call's config, all but callbacks, before a model is asked: it is kept, for the draws.

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """The served answer, or what ``on_abstain`` says."""
        with ambient(ensure_config(config) if config else var_child_runnable_config.get()):
            return super().invoke(input, config, stop=stop, **kwargs)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """The served answer, or what ``on_abstain`` says."""
        with ambient(ensure_config(config) if config else var_child_runnable_config.get()):
            return await super().ainvoke(input, config, stop=stop, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        caller = self._caller()
        begun = perf_counter()
        message = run_sync(lambda: self._answer(messages, stop, run_manager, kwargs, caller))
        if self._heard(run_manager, kwargs):
            told = partial(run_manager.on_llm_new_token, str(message.text), chunk=self._token(message))
            self.guard.tell_now(told, begun)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        begun = perf_counter()
        message = await self._answer(messages, stop, run_manager, kwargs)
        if self._heard(run_manager, kwargs):
            told = run_manager.on_llm_new_token(str(message.text), chunk=self._token(message))
            await self.guard.tell(told, begun)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _caller(self) -> Caller:
        return caller_of(self._config or var_child_runnable_config.get(), sync=True)

    async def _answer(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: BaseRunManager | None,
        kwargs: dict[str, Any],
        caller: Caller | None = None,
    ) -> AIMessage:
        options = {**self._draw_options(), **kwargs}
        if stop is not None:
            options["stop"] = stop
        run, around = parent_of(run_manager), self._config or var_child_runnable_config.get()
        with ambient(around and patch_config(around, callbacks=run.get_child())):
            observer, group = partial(observer_for, run, around, self.guard.options), group_of(run, around)
            request = partial(self._conduct, as_messages(messages), options, observer=observer, group=group, final=True)
            result = await self.guard.once(request, messages, {**options, **self._asked}, caller or caller_of(around))
            if result.message is not None:
                message = stamped(result.message, result)
            else:
                message = await asyncio.create_task(self.guard.abstain(result, messages), context=detached())
        # Usage counters count only messages that name their model.
        metadata = {"model_name": model_name(self.generator), **message.response_metadata}
        name = message.id or (None if run_manager is None else f"lc_run--{run_manager.run_id}-0")
        return message.model_copy(update={"response_metadata": metadata, "id": name})

    def _draw_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in DRAW_OPTIONS if getattr(self, name) is not None}

    def _within(self, config: RunnableConfig | None) -> Self:
        """The same model for calls under a config, where LangChain hands none down."""
        other = super().model_copy()
        other._config = ensure_config(config)
        return other

    # Streams. There is no _stream: the base class calls it without a run manager, and the draws' runs would be lost.

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """The served answer as one chunk, once it is decided."""
        yield as_chunk(self.invoke(input, config, stop=stop, **kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """The served answer as one chunk, once it is decided."""
        yield as_chunk(await self.ainvoke(input, config, stop=stop, **kwargs))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """LangChain's events; nobody hears of a draw that is not served."""
        return super(ChatBestOfMiniN, self._within(config)).stream_events(input, config, **kwargs)

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """LangChain's events; nobody hears of a draw that is not served."""
        return super(ChatBestOfMiniN, self._within(config)).astream_events(input, config, **kwargs)

    def _stream_chat_model_events(
        self, messages: list[BaseMessage], *, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[Any]:
        """LangChain's hook for events of version 3: those of the winner, whole."""
        from langchain_core.language_models._compat_bridge import message_to_events

        caller = self._caller()
        yield from message_to_events(run_sync(lambda: self._answer(messages, stop, run_manager, kwargs, caller)))

    async def _astream_chat_model_events(
        self, messages: list[BaseMessage], *, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        from langchain_core.language_models._compat_bridge import message_to_events

        for event in message_to_events(await self._answer(messages, stop, run_manager, kwargs)):
            yield event

    def _heard(self, run_manager: BaseRunManager | None, kwargs: dict[str, Any]) -> TypeGuard[Any]:
        """Whether anybody listens for tokens: the served message is then one."""
        return run_manager is not None and bool(run_manager.handlers) and not self._streaming_disabled(**kwargs)

    def _token(self, message: AIMessage) -> ChatGenerationChunk:
        if self.output_version != "v1":
            return ChatGenerationChunk(message=as_chunk(message))
        metadata = {**message.response_metadata, "output_version": "v1"}
        blocks = message.model_copy(update={"content": message.content_blocks, "response_metadata": metadata})
        return ChatGenerationChunk(message=as_chunk(blocks))

    # Tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to every draw; what becomes of their calls ``tool_turns`` says.

        A wrapped chat model translates the tools itself. Another generator gets call options: ``tools`` in the OpenAI form,
        and ``tool_choice``.

        Raises:
            NotImplementedError: the wrapped chat model takes no tools.
        """
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        # What nobody can call holds an answer: so agents ask for their response_format.
        holding = {each.name for each in tools if isinstance(each, StructuredTool) and not (each.func or each.coroutine)}
        guarded = self.conducted_by(partial(self._conduct, answers=frozenset(holding))) if holding else self
        model = chat_model_of(self.generator)
        if model is None:
            answers = language_model_of(self.generator)
            if isinstance(answers, BaseChatModel) and type(answers).bind_tools is BaseChatModel.bind_tools:
                raise NotImplementedError(f"{type(answers).__name__} takes no tools")
            return guarded.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **chosen, **kwargs)
        return guarded.bind(**call_options(model.bind_tools(tools, **chosen, **kwargs), model))

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """Parse every draw; one that cannot be parsed did not pass, and is not scored. The served one comes parsed.

        Arguments are those of the wrapped chat model's ``with_structured_output`` (of LangChain's default for other generators).
        Validity is what its parser says: a Pydantic class is validated, a JSON schema or ``TypedDict`` only has to parse.

        Raises:
            NotImplementedError: the wrapped chat model takes no tools, or builds its structured output in an unknown way.
        """
        model, parser = self._structured_steps(schema, **kwargs)
        guarded = self.conducted_by(partial(self._conduct, valid=partial(parses, _joined(parser)), tool_turns="answer"))
        answer = guarded.bind(**call_options(model, chat_model_of(self.generator) or self))
        if not include_raw:
            return answer | _joined(parser)
        _, tail = self._structured_steps(schema, include_raw=True, **kwargs)
        return RunnableParallel(raw=answer) | _joined(tail)

    def _structured_steps(self, schema: Any, **kwargs: Any) -> tuple[Runnable[Any, Any], list[Runnable[Any, Any]]]:
        wrapped = chat_model_of(self.generator)
        build = super().with_structured_output if wrapped is None else wrapped.with_structured_output
        chain = build(schema, **kwargs)
        if not isinstance(chain, RunnableSequence):
            raise NotImplementedError(f"the wrapped model's structured output is a {type(chain).__name__}, not model | parser")
        return chain.steps[0], chain.steps[1:]

    # Tokens, as the wrapped model counts them

    def get_token_ids(self, text: str) -> list[int]:
        """The wrapped model's tokens of a text; without one, those of ``custom_get_token_ids``, or LangChain's guess."""
        model = self._counter()
        return super().get_token_ids(text) if model is None else model.get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """How many tokens a text has for the wrapped model."""
        model = self._counter()
        return super().get_num_tokens(text) if model is None else model.get_num_tokens(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """How many tokens messages have for the wrapped model: what ``trim_messages(token_counter=...)`` asks for."""
        model = self._counter()
        if model is None:
            return super().get_num_tokens_from_messages(messages, tools)
        # Integrations older than the argument lack it.
        return int(model.get_num_tokens_from_messages(messages, **({} if tools is None else {"tools": tools})))

    def _counter(self) -> Any:
        return language_model_of(self.generator) if self.custom_get_token_ids is None else None

    # Identity

    @property
    def _llm_type(self) -> str:
        return "bonmini-guard"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        engine, exact, known = self.guard.engine, self.cache is not False, self._about
        # A reloaded profile is another model, and so may be each call of a configurable one.
        if known is None or known[0] is not engine or known[1] != exact or getattr(engine.generator, "configurable", False):
            known = self._about = engine, exact, self._identity(engine, exact)
        return {**known[2], **self._draw_options()}

    def _identity(self, engine: Engine, exact: bool) -> dict[str, Any]:
        policy, options = engine.policy, self.guard.options
        say, how = options["on_abstain"], getattr(self._conduct, "keywords", {})
        return {
            "generator": identity_of(engine.generator, exact),
            "reward_model": identity_of(engine.scorer, exact),
            "profile": profile_name(self.guard_profile),
            "mode": policy.mode,
            "schedule": list(policy.schedule),
            "thresholds": [*policy.thresholds, *policy.ladder],
            "exit": policy.exit,
            "also": repr(policy.stop),
            "tool_turns": [how.get("tool_turns") or engine.tool_turns, *sorted(how.get("answers") or ())],
            "on_abstain": [say if isinstance(say, str) else identity_of(say, exact), options["abstain_message"]],
            "score_transform": None if engine.transform is None else repr(engine.transform),
            "select": None if engine.select is None else repr(engine.select),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """The wrapped model's own, so that traces put the tokens down to the right provider and model."""
        wrapped = chat_model_of(self.generator)
        given = {**self._draw_options(), **kwargs}
        own = given.pop("stop", None)
        build = super()._get_ls_params if wrapped is None else wrapped._get_ls_params
        params = build(own if stop is None else stop, **given)
        params.setdefault("ls_model_name", model_name(self.generator))
        return params

    def _resolve_model_profile(self) -> Any:
        wrapped = chat_model_of(self.generator)
        return None if wrapped is None else wrapped.profile


def as_chunk(message: AIMessage) -> AIMessageChunk:
    """A whole message as the first and last chunk of a stream."""
    fields = {name: value for name, value in message.__dict__.items() if name in AIMessageChunk.model_fields and name != "type"}
    return AIMessageChunk(**{**fields, "chunk_position": "last"})


def _joined(steps: Sequence[Runnable[Any, Any]]) -> Runnable[Any, Any]:
    return steps[0] if len(steps) == 1 else RunnableSequence(*steps)
