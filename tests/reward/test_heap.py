"""Memory of freed tensors is used again."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from bonmini_guard.reward.model import _keep_freed_memory

def pages():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        parts = [torch.ones(2**20) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

before = pages()
_keep_freed_memory()
pages()
print(before, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_tensors_are_not_given_back_to_the_system():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    before, after = map(int, run.stdout.split())
    assert before > 5_000
    assert after < before / 10
