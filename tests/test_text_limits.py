"""Files of JSON and TOML that would fill the memory, and those that are no regular files, are refused unread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from limited import ERRORS_OF, GIB, run_limited

from vitdeploy.assess.gate.baseline import Baseline
from vitdeploy.assess.gate.rules import read_rules
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli.debug import kept_nodes
from vitdeploy.errors import InputError
from vitdeploy.files.regular_file import TooLargeError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.config import read_json
from vitdeploy.sources.hub import resolve


def read_index(path: Path) -> object:
    path.with_name("config.json").write_text("{}")
    return resolve(path.parent)


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_json,
    "preprocessor_config.json": lambda path: ImageProcessor.from_pretrained(path.parent),
    "model.safetensors.index.json": read_index,
    "manifest.json": lambda path: Bundle.open(path.parent),
    "baseline.json": Baseline.read,
    "rules.toml": read_rules,
    "bisection.json": lambda path: kept_nodes(str(path)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_huge_file_is_refused_unread(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**36)  # a hole, which takes no room on the disk
    with pytest.raises(InputError) as caught:
        READERS[name](tmp_path / name)
    assert str(caught.value.where) == str(tmp_path / name)
    assert isinstance(caught.value.__cause__, TooLargeError)


def test_text_of_many_small_objects_takes_no_more_than_2_gb(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"[" + b'{"":[]},' * (63 * 2**17) + b"0]")
    done = run_limited(f"from vitdeploy.bundle.bundle import Bundle{ERRORS_OF}Bundle.open(sys.argv[1])", tmp_path)
    assert done.code == 4, done.errors
    assert done.peak_bytes < 2 * GIB


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    raised: list[BaseException] = []

    def read() -> None:
        try:
            READERS[name](tmp_path / name)
        except BaseException as exc:  # noqa: BLE001  (told below)
            raised.append(exc)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    assert [type(exc) for exc in raised if isinstance(exc, InputError)], raised or "it waits"
