"""The demonstration against servers instead of the bundled models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bonmini_guard.demo.models import NEW_TOKENS, model_path
from bonmini_guard.errors import InputError

#: The kinds of reward servers, as RemoteRewardModel names them.
REWARD_KINDS = ("vllm", "vllm-pooling", "sglang", "tei", "bonmini")


@dataclass(frozen=True)
class Servers:
    """Where to draw and to score; None for the bundled models.

    Attributes:
        base_url: a server that speaks OpenAI's protocol; its key is the environment's ``OPENAI_API_KEY``.
        model: the model to ask it for; None for the only one.
        reward_url: a reward server; its key is the environment's ``BONMINI_GUARD_API_KEY``.
        reward_kind: which of ``REWARD_KINDS`` it is.
        reward_tokenizer: folder or id of its model's tokenizer; None for that of the bundled reward model.

    Raises:
        InputError: a part is missing, or has nothing to belong to.
    """

    base_url: str | None = None
    model: str | None = None
    reward_url: str | None = None
    reward_kind: str | None = None
    reward_tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.model is not None and self.base_url is None:
            raise InputError("--model names a server's model: add --base-url")
        if self.reward_url is None and (self.reward_kind or self.reward_tokenizer):
            raise InputError("--reward-kind and --reward-tokenizer describe a reward server: add --reward-url")
        if self.reward_url is not None and self.reward_kind is None:
            raise InputError(f"--reward-url needs --reward-kind: one of {', '.join(REWARD_KINDS)}")

    @property
    def any(self) -> bool:
        """Whether there is a server at all: the profiles' promises then do not hold."""
        return self.base_url is not None or self.reward_url is not None

    def generator(self) -> Any:
        """What draws, or None."""
        if self.base_url is None:
            return None
        from bonmini_guard.adapters.openai import OpenAICompatibleGenerator

        # Beyond a minute the audience has left.
        return OpenAICompatibleGenerator(self.base_url, model=self.model, max_tokens=NEW_TOKENS, timeout=60.0)

    def scorer(self) -> Any:
        """What scores, or None. Asks the server for the scores of its probe, to fail now and not in the show."""
        if self.reward_url is None:
            return None
        from bonmini_guard.adapters.remote_reward import RemoteRewardModel

        tokenizer = None if self.reward_kind == "bonmini" else self.reward_tokenizer or str(model_path("reward"))
        scorer = RemoteRewardModel(self.reward_url, kind=self.reward_kind, tokenizer=tokenizer)  # type: ignore[arg-type]
        scorer.fingerprint()
        return scorer
