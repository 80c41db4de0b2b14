"""What users say of an answer, beside its trace: volunteered, so nothing is ever certified on it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bonmini_guard.logs.appending import encoded
from bonmini_guard.logs.trace_files import TraceFile, feedback_beside
from bonmini_guard.logs.trace_row import Row
from bonmini_guard.server.door import Refused

#: Bytes of a file of feedback, above which it is put aside.
_MOST = 64 * 2**20


class Feedback(BaseModel):
    """A thumb for the answer of a request."""

    model_config = ConfigDict(extra="forbid")
    request_id: Annotated[str, Field(pattern="^(chatcmpl-)?[0-9a-f]{32}$")]
    thumbs: Literal["up", "down"]


def join(traces: str | os.PathLike[str], feedback: Feedback) -> bool:
    """Append the trace's row with the label to the file of feedback beside the traces; whether there is such a row.

    Raises:
        Refused: it is one of a request that was not answered.
        OSError: a file cannot be read or written.
    """
    name = feedback.request_id.removeprefix("chatcmpl-")
    with closing(TraceFile(traces, max_bytes=_MOST)) as file:
        row = _row(file.files(), name)
    if row is None:
        return False
    served = row.get("served", None if row.get("decision") == "abstained" else row.get("selected"))
    if served is None:
        raise Refused(400, "invalid_request", "request_id: that request was not answered")
    row["candidates"][served]["acceptable"] = feedback.thumbs == "up"
    with closing(TraceFile(feedback_beside(traces), max_bytes=_MOST)) as file:
        file.append(encoded(row | {"label_sampling": "volunteered"}))
    return True


def _row(files: Sequence[Path], name: str) -> Row | None:
    """The row of a request, the newest files first; most lines need not be parsed for that."""
    for path in reversed(files):
        with path.open("rb") as file:
            for line in file:
                if name.encode() in line and line.endswith(b"\n"):
                    with suppress(ValueError):  # a damaged line holds no row
                        row: Row = json.loads(line)
                        if isinstance(row, dict) and row.get("id") == name:
                            return row
    return None
