"""A short run of each class of bad inputs, and of faults that a run must find; `make fuzz` is the long one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.base import prepare
from fuzz.cases import generator
from fuzz.classes import CLASSES
from fuzz.damage import choose
from fuzz.faulty import FAULTS, MOST_BYTES
from fuzz.runner import Worker, fuzz

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks and processes are measured by Linux's /proc")

SEED = 18
COUNT = 50  # of each class
WITH_COMMAND = frozenset({"images", "bundle", "rules", "arguments"})  # which takes less than a second
FAULTY = "fuzz.faulty:Faulty"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def worker(work: Path) -> Iterator[Worker]:
    with Worker(work, SEED) as running:
        yield running


@pytest.mark.parametrize("name", CLASSES)
def test_bad_inputs_are_refused_or_do_no_harm(name: str, worker: Worker) -> None:
    summary = fuzz(worker, name, range(COUNT), real_every=COUNT if name in WITH_COMMAND else 0)
    assert not summary.failures, "\n".join(map(str, summary.failures))
    assert summary.inputs == COUNT


def test_every_fault_is_found_and_kept(tmp_path: Path) -> None:
    """A process that hangs, grows or ends is named like an error, and the next input has another one."""
    indices = {choose(generator(FAULTY, 0, index), sorted(FAULTS)): index for index in range(200)}
    with Worker(tmp_path, seconds=2.0, most_bytes=MOST_BYTES) as worker:
        summary = fuzz(worker, FAULTY, [indices["nothing"], *indices.values()])
    assert (summary.inputs, summary.refused[4]) == (len(FAULTS) + 1, 1)
    problems = {failure.note: failure.problem for failure in summary.failures}
    for failure in summary.failures:
        assert [path.name for path in failure.kept.iterdir()] == [failure.note]
        assert f"INDEX={indices[failure.note]}" in str(failure)
    assert problems.keys() == FAULTS.keys() - {"nothing", "refused"}
    assert "KeyError" in problems["traceback"]
    assert "exit code 2 in place of 0 or 4" in problems["exit code"]
    assert "GB" in problems["memory"]
    assert "no end after" in problems["hang"]
    assert "the process ended with -6" in problems["crash"]


@pytest.mark.parametrize("name", ["config", "torch", "data"])
def test_an_input_depends_on_its_seed_and_index_alone(name: str, work: Path, tmp_path: Path) -> None:
    module, attribute = CLASSES[name].split(":")
    inputs = getattr(importlib.import_module(module), attribute)(work / "base")
    for index in range(6):
        found = []
        for attempt in "ab":
            (folder := tmp_path / f"{index}{attempt}").mkdir()
            note = inputs.make(generator(name, SEED, index), folder).note
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            found.append((note, [path.read_bytes() for path in paths]))
        assert found[0] == found[1]
