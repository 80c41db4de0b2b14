"""Code of an answer, run with tests in a process of its own that has limits."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

#: What runs there. It reads the word that vouches for a result only after the answer's code and the tests have run, so leaving the
#: process early, or printing much, passes no test.
_INSIDE = r"""
import json, os, sys
write, read, leave, result = os.write, os.read, os._exit, os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
seconds, size = json.loads(sys.argv[1])
code, tests = open("answer.py", encoding="utf-8").read(), json.load(open("tests.json", encoding="utf-8"))
refused = ("socket.connect", "socket.bind", "socket.get", "socket.send", "subprocess.", "os.system", "os.exec", "os.posix_spawn",
    "os.spawn", "os.fork", "os.kill")

def limit():
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ImportError, ValueError, OSError):
        pass
    try:
        import ctypes
        ctypes.CDLL(None).unshare(0x50000000)  # a user and a network of its own: an empty one
    except (ImportError, OSError, AttributeError, TypeError):
        pass

def refuse(event, _):
    if event.startswith(refused):
        raise PermissionError(event + " is not allowed here")

def passes(test, names):
    before = set(names)
    exec(compile(test, "test", "exec"), names)
    for name in [name for name in names if name.startswith("test_") and name not in before]:
        names[name]()

limit()
sys.addaudithook(refuse)
names = {"__name__": "answer"}
exec(compile(code, "answer", "exec"), names)
passed = 0
for test in tests:
    try:
        passes(test, dict(names))
        passed += 1
    except BaseException:
        pass
write(result, read(0, 64) + b" %d" % passed)
leave(0)
"""


def share_passed(code: str, tests: Sequence[str], seconds: float, memory_mb: int) -> float:
    """The share of tests that code passes; 0 where it does not run, ends early or uses more than its time and its MiB of memory."""
    with tempfile.TemporaryDirectory(prefix="bonmini-guard-", ignore_cleanup_errors=True) as folder:
        Path(folder, "answer.py").write_text(code, encoding="utf-8", errors="replace")
        Path(folder, "tests.json").write_text(json.dumps(list(tests)), encoding="utf-8")
        return _passed(folder, seconds, memory_mb) / len(tests) if tests else 0.0


def _passed(folder: str, seconds: float, memory_mb: int) -> int:
    word = secrets.token_hex(16).encode()
    with subprocess.Popen(
        [sys.executable, "-I", "-B", "-X", "utf8", "-c", _INSIDE, json.dumps([int(seconds) + 1, memory_mb * 2**20])],
        cwd=folder,
        env={"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        said = b""
        with contextlib.suppress(subprocess.TimeoutExpired):
            try:
                said, _ = process.communicate(word, timeout=seconds)
            finally:
                _end(process)
    vouched, _, number = said.partition(b" ")
    return int(number) if vouched == word else 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process, and what it has started."""
    if sys.platform == "win32":
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
