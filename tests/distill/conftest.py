"""The tiny base model of the reward tests."""

from tests.reward.conftest import base, plain_tokenizer

__all__ = ["base", "plain_tokenizer"]
