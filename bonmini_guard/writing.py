"""Files: small ones are read as a whole, others are written so that nothing half-written is ever left behind."""

from __future__ import annotations

import errno
import glob
import gzip
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO

from bonmini_guard.errors import ConfigurationError

#: A lone surrogate, which UTF-8 cannot write, in the spelling of JSON.
_ESCAPE = "backslashreplace"
#: How names of temporary files end, and the seconds after which who has not gone on writing one was killed.
_UNFINISHED, _KILLED = ".unfinished", 86400.0
_umask_lock = Lock()
#: Bytes of a profile, a scorer spec, a gateway's guards, the state of a watch. Those that this package writes have a thousandth.
MOST = 2**25


def contents(path: str | os.PathLike[str]) -> bytes:
    """What an ordinary file holds, of so many bytes at most; OSError if it cannot be read, is a pipe or a device, or is larger."""
    file = Path(path)
    if file.exists() and not file.is_file() and not file.is_dir():  # it may have no writer
        raise OSError(errno.EINVAL, "a pipe or a device, and no file", str(path))
    if file.is_file() and file.stat().st_size > MOST:
        raise OSError(errno.EFBIG, f"larger than {MOST >> 20} MiB, so none of these files", str(path))
    return file.read_bytes()


def write_atomically(path: str | os.PathLike[str], text: str, suffix: str = _UNFINISHED) -> None:
    """Write a text file as :func:`appearing` does."""
    with appearing(path, suffix) as file:
        file.write(text)


def unfinished(target: Path, suffix: str = _UNFINISHED) -> Iterator[Path]:
    """Files that are written to take this file's place, or that a kill left behind: mkstemp's, which have eight letters there."""
    return target.parent.glob(f".{glob.escape(target.name)}.????????{suffix}")


@contextmanager
def appearing(path: str | os.PathLike[str], suffix: str = _UNFINISHED) -> Iterator[IO[str]]:
    """A text stream into a file that is the new one when the block ends, gzipped if named ``.gz``; after an error, the old one.

    A link stays a link, and an old file keeps its mode; a lone surrogate becomes its escape. OSError if it cannot be written.
    """
    target = Path(os.path.realpath(path))
    for left_behind in unfinished(target, suffix):
        with suppress(OSError):  # gone by now
            if left_behind.stat().st_mtime < time.time() - _KILLED:
                left_behind.unlink()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=suffix)
    os.close(handle)
    try:
        opened = gzip.open if target.suffix == ".gz" else open
        with opened(temporary, "wt", encoding="utf-8", errors=_ESCAPE) as file:
            yield file
        with open(temporary, "rb") as whole:
            os.fsync(whole.fileno())
        os.chmod(temporary, _usual_mode(target))
        os.replace(temporary, target)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.errno:
            error.filename = os.fspath(path)  # a full disk does not say whose
        raise


def _usual_mode(target: Path) -> int:
    """Of the file that is there, else what ``open`` would give a new one: a temporary file is its owner's alone."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    with _umask_lock:
        umask = os.umask(0o077)  # it can only be read by setting it
        os.umask(umask)
    return 0o666 & ~umask


def check_output(path: Path, inputs: Sequence[str | os.PathLike[str]] = (), *, lines: bool = False) -> None:
    """Refuse an output that cannot be written, before work is done for it.

    Args:
        path: the file to be written.
        inputs: files that are read for it, and must not be replaced by it.
        lines: whether it is to be JSON lines.

    Raises:
        ConfigurationError: it is an input, a folder, a pipe or a device, its folder is missing or not writable, lines are to be
            written and its name says something else, or an input is given twice.
    """
    if lines and not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigurationError(f"{path}: the output is JSON lines; give a name that ends in .jsonl or .jsonl.gz")
    try:
        here = path.exists()
        usable = (not here or path.is_file()) and "\0" not in str(path)
    except OSError:  # a name that no file can have
        here = usable = False
    if here and any(os.path.exists(each) and os.path.samefile(each, path) for each in inputs):
        raise ConfigurationError(f"{path}: is what is to be read; give another name to write to")
    names = list(map(os.path.realpath, inputs))
    if again := next((each for place, each in enumerate(inputs) if names[place] in names[:place]), None):
        raise ConfigurationError(f"{again}: is given twice; give each file once")
    if not usable or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{path}: cannot write there; give a file in a folder that exists and is writable")
