"""The tiny base model of the reward tests."""

from tests.reward.conftest import base, chat_tokenizer, plain_tokenizer

__all__ = ["base", "chat_tokenizer", "plain_tokenizer"]
