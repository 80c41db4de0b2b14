"""The sub-commands of ``bonmini-guard``, one a file."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from bonmini_guard.errors import ConfigurationError
from bonmini_guard.writing import write_atomically


def settings_of(kind: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The options that are fields of a dataclass of settings, by name; fields without an option keep their defaults."""
    return {each.name: getattr(options, each.name) for each in fields(kind) if hasattr(options, each.name)}


def write(path: Path, text: str) -> None:
    """Write an output, whole or not at all.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror}); give another file") from error
