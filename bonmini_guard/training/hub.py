"""A trained checkpoint on the hub, by huggingface_hub's own client: endpoint, token and proxies are what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that this version of it has

from bonmini_guard.errors import ConfigurationError, first_line


def make_repository(name: str) -> None:
    """Make a private repository, unless it is there, or raise ConfigurationError: told after the training it would cost that."""
    with _told(name, "log in with 'hf auth login' or set HF_TOKEN, and look at the name"):
        HfApi().create_repo(name, private=True, exist_ok=True)


def push(folder: Path, name: str) -> None:
    """Write a folder's files into a repository; ConfigurationError if they did not get there."""
    with _told(name, f"the model is in {folder}; 'hf upload {name} {folder}' tries again"):
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Reward model and its card")


@contextmanager
def _told(name: str, cure: str) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError, ValueError) as error:  # no connection, no token, a refusal, a name or an answer without sense
        raise ConfigurationError(f"--push-to-hub {name}: {first_line(error)}; {cure}") from error
