"""Small files that are read as a whole: never a pipe, which may have no writer, and never more than such a file can be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: Bytes of a profile, a scorer spec, a gateway's guards, the state of a watch. Those that this package writes have a thousandth.
MOST = 2**25


def contents(path: str | os.PathLike[str]) -> bytes:
    """What an ordinary file holds, of so many bytes at most; OSError if it cannot be read, is a pipe or a device, or is larger."""
    file = Path(path)
    if file.exists() and not file.is_file() and not file.is_dir():
        raise OSError(errno.EINVAL, "a pipe or a device, and no file", str(path))
    if file.is_file() and file.stat().st_size > MOST:
        raise OSError(errno.EFBIG, f"larger than {MOST >> 20} MiB, so none of these files", str(path))
    return file.read_bytes()
