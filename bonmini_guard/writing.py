"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bonmini_guard.errors import ConfigurationError


def write_atomically(path: str | os.PathLike[str], text: str, mode: int = 0o644, suffix: str = "") -> None:
    """Write a text file: it is either the old one or the whole new one.

    Args:
        path: the file.
        text: all of it.
        mode: who may read it. A profile or report is for others too, a temporary file would be its owner's alone.
        suffix: ending of the temporary file's name, to find one that a kill left behind.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=suffix)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def appearing(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """A text stream into a file that appears whole when the block ends, gzipped if named ``.gz``; after an error, nothing.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        opened = gzip.open if target.suffix == ".gz" else open
        with opened(temporary, "wt", encoding="utf-8") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def appearing_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its place at the end, or vanishes after an error."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        yield folder
        folder.chmod(0o755)
        os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_output(path: Path) -> None:
    """Refuse an output that cannot be written, before work is done for it.

    Raises:
        ConfigurationError: it is a folder, or its folder is missing or not writable.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{path}: cannot write there; give a file in a folder that exists and is writable")
