"""Run code in a process of its own with a limited address space, and measure its peak."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

MIB, GIB = 1024**2, 1024**3
# What follows runs; an error of vitdeploy's is printed as its type and its message, and gives its exit code.
ERRORS_OF = """
from vitdeploy.errors import VitDeployError
def stop(kind, error, trace):
    import traceback
    if not issubclass(kind, VitDeployError):
        return traceback.print_exception(kind, error, trace)
    print(kind.__name__, " ".join(str(error).split()), file=sys.stderr, flush=True)
    os._exit(error.exit_code)
sys.excepthook = stop
limit()
"""
READ_CHECKPOINT = f"from vitdeploy.sources.read import read_checkpoint{ERRORS_OF}read_checkpoint(sys.argv[1])"
COMMAND_LINE = "from vitdeploy.cli import main; limit(); main()"
_LIMIT = """
import os, resource, sys
address_space, spare = int(sys.argv.pop(1)), int(sys.argv.pop(1))
def limit():
    if spare:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    most = used + spare if spare else address_space
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""
# A process of its own also because a child's peak counts what its parent has in memory when it starts it.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@dataclasses.dataclass(frozen=True)
class Limited:
    """A process that ended.

    Attributes:
        code: Its exit code.
        errors: What it wrote to stderr.
        peak_bytes: The most that it had in memory (its maximum resident set).
    """

    code: int
    errors: str
    peak_bytes: int


def run_limited(code: str, *arguments: object, address_space: int = 6 * GIB, spare: int = 0) -> Limited:
    """Run Python code with `arguments`, on one thread; where nothing can be limited or measured, the test is skipped.

    Args:
        code: Calls `limit()` when it has imported what it needs.
        arguments: Its `sys.argv`, from 1 on.
        address_space: That it may have, in bytes.
        spare: Instead, how much it may have beyond what it has when it calls `limit()`.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("address spaces are limited on Linux alone")
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, _LIMIT + code, str(address_space), str(spare), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=True,
        timeout=300,
    )
    ended, peak = done.stdout.split()
    return Limited(int(ended), done.stderr, int(peak))
