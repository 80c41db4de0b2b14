"""The sub-commands of ``bonmini-guard``, one a file."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any


def settings_of(kind: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The options that are fields of a dataclass of settings, by name; fields without an option keep their defaults."""
    return {each.name: getattr(options, each.name) for each in fields(kind) if hasattr(options, each.name)}
