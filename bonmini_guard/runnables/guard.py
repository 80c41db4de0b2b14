"""``BestOfMiniN``: the guard as a LangChain runnable."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from itertools import chain, islice
from time import perf_counter
from typing import Any, Self, TypeVar, Unpack

from langchain_core.callbacks import AsyncCallbackManager, AsyncCallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    patch_config,
    var_child_runnable_config,
)
from pydantic import ConfigDict, PrivateAttr

from bonmini_guard.conversation import as_messages
from bonmini_guard.engine.abstentions import Caller, caller_of
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.detach import ambient
from bonmini_guard.engine.limiter import call_limit
from bonmini_guard.engine.result import GuardResult
from bonmini_guard.runnables.callbacks import group_of, observer_for
from bonmini_guard.runnables.conduct import Background, Guard, stamped
from bonmini_guard.runnables.options import DEFAULTS, GuardArguments, OptionFields, chosen
from bonmini_guard.validation import check_names

Configs = RunnableConfig | Sequence[RunnableConfig] | None
F = TypeVar("F", bound=Callable[..., Any])


class Face(OptionFields):
    """A face that LangChain wants to be a pydantic model; its options are fields, and decide nothing by themselves."""

    _guard: Guard = PrivateAttr()

    @property
    def guard(self) -> Guard:
        """What conducts the requests: for waiting on its traces (``await face.guard.afinish()``), and for its counters."""
        own: Any = self.__pydantic_private__  # pydantic finds its own attributes in a tenth of the time
        return own["_guard"]  # type: ignore[no-any-return]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy that shares all parts, whatever ``deep`` says; with ``update``, one built anew, which decides by these arguments.

        Raises:
            ConfigurationError: an argument is wrong or unknown.
        """
        if not update:
            return super().model_copy()
        own = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**own, **self._guard.shared(), **update})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()

    # A batch has one limit of concurrent draws, that of its config

    def batch(self, inputs: Any, config: Configs = None, **kwargs: Any) -> Any:
        """One answer for each input; ``max_concurrency`` of the config bounds the draws of all."""
        with call_limit(_first(config)):
            return super().batch(inputs, config, **kwargs)  # type: ignore[misc]

    async def abatch(self, inputs: Any, config: Configs = None, **kwargs: Any) -> Any:
        """One answer for each input; ``max_concurrency`` of the config bounds the draws of all."""
        with call_limit(_first(config)):
            return await super().abatch(inputs, config, **kwargs)  # type: ignore[misc]

    def batch_as_completed(self, inputs: Any, config: Configs = None, **kwargs: Any) -> Iterator[Any]:
        """``batch``, with (number of the input, answer) as each is there."""
        answers = super().batch_as_completed(inputs, config, **kwargs)  # type: ignore[misc]
        with call_limit(_first(config)):  # all of them begin before the first is there
            begun = list(islice(answers, 1))
        yield from chain(begun, answers)

    async def abatch_as_completed(self, inputs: Any, config: Configs = None, **kwargs: Any) -> AsyncIterator[Any]:
        """``abatch``, with (number of the input, answer) as each is there."""
        answers = super().abatch_as_completed(inputs, config, **kwargs)  # type: ignore[misc]
        with call_limit(_first(config)):
            first = await anext(answers, None)
        if first is not None:
            yield first
        async for answer in answers:
            yield answer


def _read_once(method: F) -> F:
    """A method with its signature at hand: LangChain asks for it twice in each call, which takes longer than all draws' copies."""
    vars(method)["__signature__"] = signature(method)
    return method


class BestOfMiniN(Face, Background, RunnableSerializable[LanguageModelInput, AIMessage]):
    """Best of mini-N in loops around a language model (arXiv 2510.04087).

    Draws candidates in small loops, scores them with a reward model whose zero means "acceptable", and stops as soon as the
    best one passes the threshold. A guardrail abstains when nothing passes; an accelerator serves the best so far.

    Example::

        guard = BestOfMiniN(generator=llm, reward_model=RewardModel.load("my-reward-model"), profile="guardrail.json")
        chain = prompt | guard | StrOutputParser()

    Args:
        arguments: see :class:`~bonmini_guard.runnables.options.GuardArguments` and
            :class:`~bonmini_guard.runnables.options.GuardOptions`.

    Raises:
        ConfigurationError: an argument is wrong or unknown, or arguments contradict each other.
        ProfileError: the profile is malformed, or was calibrated for other parts.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True)

    generator: Any
    reward_model: Any
    profile: Any = None

    def __init__(self, **arguments: Unpack[GuardArguments]) -> None:
        check_names(arguments, {*DEFAULTS, "generator", "reward_model", "name"}, ("generator", "reward_model"))
        guard = Guard(arguments["generator"], arguments["reward_model"], **chosen(arguments))
        super().__init__(**arguments)
        self._guard = guard
        vars(self).update(guard.shared())

    # Results

    async def arun(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, seed: int | None = None, **options: Any
    ) -> GuardResult:
        """Conduct one request and give its whole record; an abstention is a result, not an error.

        Args:
            input: a string (one user turn), messages or a prompt value.
            config: its callbacks see one run, without candidate texts.
            seed: overrides the guard's seed for this request.
            options: call options for the generator (``stop``, ``tools``, ...).

        Raises:
            InputError: the prompt is empty or unreadable.
            GenerationError: not one draw arrived.
        """
        messages = as_messages(input)
        if not config and not var_child_runnable_config.get():
            return await self.guard.conduct(messages, options, seed=seed)
        config = ensure_config(config)
        manager: AsyncCallbackManager = get_async_callback_manager_for_config(config)
        about: dict[str, Any] = {"name": config.get("run_name") or "BestOfMiniN.run", "run_id": config.get("run_id")}
        begun = perf_counter()
        heard = await self.guard.tell(manager.on_chain_start({}, {"messages": len(messages)}, **about), begun)
        # Who has not heard of the beginning in time hears nothing more.
        run = heard or AsyncCallbackManagerForChainRun.get_noop_manager()
        try:
            with ambient(patch_config(config, callbacks=run.get_child())):
                result = await self._conduct(messages, run, config, {**options, "seed": seed}, spent=perf_counter() - begun)
        except BaseException as error:
            await self.guard.tell(run.on_chain_error(error), begun)
            raise
        await self.guard.tell(run.on_chain_end(result.metadata()), begun)
        return result

    def run(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, seed: int | None = None, **options: Any
    ) -> GuardResult:
        """``arun`` for sync code; it works inside a running event loop too."""
        return run_sync(lambda: self.arun(input, config, seed=seed, **options))

    # Messages

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """The served answer, or what ``on_abstain`` says."""
        return await self._acall_with_config(self._answer, input, config, run_type="chain", **kwargs)

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """``ainvoke`` for sync code; it works inside a running event loop too."""
        return self._call_with_config(self._answer_sync, input, config, run_type="chain", **kwargs)

    # What a call is given as options may have any name: further down it is one argument.

    @_read_once
    def _answer_sync(self, input: LanguageModelInput, run_manager: Any, config: RunnableConfig, **options: Any) -> AIMessage:
        caller = caller_of(config, sync=True)
        return run_sync(lambda: self._answer_to(caller, input, run_manager, config, options))

    @_read_once
    async def _answer(self, input: LanguageModelInput, run_manager: Any, config: RunnableConfig, **options: Any) -> AIMessage:
        return await self._answer_to(caller_of(config), input, run_manager, config, options)

    async def _answer_to(
        self, caller: Caller, input: LanguageModelInput, run_manager: Any, config: RunnableConfig, options: dict[str, Any]
    ) -> AIMessage:
        messages = as_messages(input)
        conduct = partial(self._conduct, messages, run_manager, config, options, final=True)
        result = await self.guard.once(conduct, messages, options, caller)
        if (message := result.message) is not None:
            return stamped(message, result)
        return await self.guard.abstain(result, input, patch_config(config, callbacks=run_manager.get_child()))

    async def _conduct(
        self, messages: Sequence[BaseMessage], run_manager: Any, config: RunnableConfig, options: dict[str, Any], **about: Any
    ) -> GuardResult:
        observer = partial(observer_for, run_manager, config, self.guard.options)
        about |= {"observer": observer, "group": group_of(run_manager, config)}
        return await self.guard.conduct(messages, options, **about)


def _first(config: Configs) -> RunnableConfig | None:
    """The config that LangChain takes a batch's ``max_concurrency`` from."""
    return next(iter(config), None) if isinstance(config, Sequence) else config
