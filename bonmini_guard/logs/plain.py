"""Rows of Parquet as JSON would have them, so that the same log says the same in both."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the nulls with which Arrow fills up keys that other rows have, and with JSON's types alone.

    The content of a turn stays null where the turn has no other: there it says that the turn holds calls alone.
    """
    found: dict[str, Any] = _plain(row)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        kept = {key: _plain(each) for key, each in value.items() if each is not None}
        return kept | {"content": None} if "role" in kept and value.get("content", 0) is None else kept
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """Numbers as numbers, times as ISO 8601 has them, bytes as their text (in base64 if they are none), all else as its text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value)
