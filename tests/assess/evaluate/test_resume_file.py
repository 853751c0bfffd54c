"""The resume log keeps finished batches when the process is killed, and refuses other files."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from raising import raises
from told import Told

from vitdeploy.assess.evaluate.evaluate import evaluate
from vitdeploy.assess.evaluate.resume_file import WorkFile, check_work_file
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, OutputError

HEADER: dict[str, Any] = {"format": "some work 1", "batch_size": 4}


def written(path: Path, count: int) -> bytes:
    with WorkFile(path, HEADER) as work:
        for number in range(count):
            work.append({"batch": number, "value": number**2})
    return path.read_bytes()


def test_a_file_cut_anywhere_gives_back_every_whole_batch(tmp_path: Path) -> None:
    """As a process that is killed while it writes leaves it."""
    content = written(tmp_path / "whole", 3)
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content) + 1):
        path = tmp_path / "cut"
        path.write_bytes(content[:length])
        whole = max(0, sum(end <= length for end in ends) - 1)
        with WorkFile(path, HEADER) as work:
            assert [batch["batch"] for batch in work.batches] == list(range(whole)), length
            for number in range(whole, 3):
                work.append({"batch": number, "value": number**2})
        assert path.read_bytes() == content


def test_a_last_line_of_nothing_is_dropped(tmp_path: Path) -> None:
    content = written(tmp_path / "work", 2)
    (tmp_path / "work").write_bytes(content[:-9] + b"\0" * 8 + b"\n")
    with WorkFile(tmp_path / "work", HEADER) as work:
        assert len(work.batches) == 1
        work.append({"batch": 1, "value": 1})
    assert (tmp_path / "work").read_bytes() == content


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b"name,label\na.png,cat\n", ("resume", None, None)),
        (b"\x89PNG\r\n\x1a\n\0\0", ("resume", None, None)),
        (b"no line end", ("resume", None, None)),
        (b"[1, 2]\n", ("resume", None, None)),
        (b"[" * 200_000 + b"\n", ("resume", None, None)),
        (json.dumps({**HEADER, "batch_size": 8}).encode() + b"\n", ("batch_size", 4, 8)),
        (json.dumps({**HEADER, "more": 1}).encode() + b"\n", ("more", None, 1)),
    ],
)
def test_what_is_another_s_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes, fields: tuple[str, object, object]
) -> None:
    (tmp_path / "work").write_bytes(content)
    what, expected, found = fields
    with raises(InputError, what=what, where=str(tmp_path / "work"), expected=expected, found=found):
        WorkFile(tmp_path / "work", HEADER)
    assert (tmp_path / "work").read_bytes() == content


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_batch_that_was_altered_is_not_believed(tmp_path: Path, number: int) -> None:
    """Whichever byte of it; a last line is computed again, as one that a power cut damaged."""
    content = written(tmp_path / "whole", 3)
    lines = content.splitlines(keepends=True)
    begin = sum(map(len, lines[: number + 1]))
    for offset in range(len(lines[number + 1]) - 1):
        altered = bytearray(content)
        altered[begin + offset] ^= 1
        (tmp_path / "work").write_bytes(altered)
        if number == 2:
            with WorkFile(tmp_path / "work", HEADER) as work:
                assert [batch["batch"] for batch in work.batches] == [0, 1]
        else:
            with raises(InputError, what=f"line {number + 2}"):
                WorkFile(tmp_path / "work", HEADER)
            assert (tmp_path / "work").read_bytes() == altered


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 1, 2], [1, 2], [0, 2, 1], [0, 2, 2], [2, 1, 0]])
def test_batches_that_were_moved_repeated_or_removed_are_refused(tmp_path: Path, order: list[int]) -> None:
    header, *lines = written(tmp_path / "whole", 3).splitlines(keepends=True)
    content = header + b"".join(lines[number] for number in order)
    (tmp_path / "work").write_bytes(content)
    with raises(InputError, what=re.compile(r"^line \d$")):
        WorkFile(tmp_path / "work", HEADER)
    assert (tmp_path / "work").read_bytes() == content


def test_a_batch_of_other_work_is_refused(tmp_path: Path) -> None:
    """Even of the same images with the same header, after another batch."""
    with WorkFile(tmp_path / "other", HEADER) as work:
        for number in range(3):
            work.append({"batch": number, "value": -1 - number})
    header, *lines = written(tmp_path / "whole", 3).splitlines(keepends=True)
    foreign = (tmp_path / "other").read_bytes().splitlines(keepends=True)[2]
    (tmp_path / "work").write_bytes(header + lines[0] + foreign + lines[2])
    with raises(InputError, what="line 3"):
        WorkFile(tmp_path / "work", HEADER)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with raises(InputError, where=str(tmp_path / "pipe")):
        WorkFile(tmp_path / "pipe", HEADER)


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    with WorkFile(tmp_path / "work", HEADER), raises(InputError, what="resume"):
        WorkFile(tmp_path / "work", HEADER)
    written(tmp_path / "work", 1)


def test_where_no_file_can_be(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "work"):
        with raises(OutputError, where=str(path)):
            WorkFile(path, HEADER)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("kind", ["folder", "loop", "pipe", "device", "socket", "nowhere"])
def test_a_place_that_holds_no_work_is_told_before_it(
    tmp_path: Path, digits: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "work"
    if kind == "folder":
        place.mkdir()
    elif kind in ("loop", "device"):
        place.symlink_to(place if kind == "loop" else os.devnull)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("work")
    else:
        place = tmp_path / "absent" / "work"
    steps: list[str] = []
    with pytest.raises((InputError, OutputError)) as caught:
        evaluate(digits, data=held_out_images(), resume=place, progress=Told(steps.append))
    assert (str(caught.value.where), steps) == (str(place), [])


def test_a_look_at_the_place_makes_nothing(tmp_path: Path) -> None:
    check_work_file(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []
    content = written(tmp_path / "work", 1)
    check_work_file(tmp_path / "work")
    assert (tmp_path / "work").read_bytes() == content


def test_batches_do_not_follow_another_header(tmp_path: Path) -> None:
    """As of another bundle's file whose first line was exchanged; the last is computed again, as a damaged one."""
    with WorkFile(tmp_path / "other", {**HEADER, "bundle": "another"}) as work:
        for number in range(2):
            work.append({"batch": number, "value": number})
    _, *lines = (tmp_path / "other").read_bytes().splitlines(keepends=True)
    header, *_ = written(tmp_path / "whole", 1).splitlines(keepends=True)
    (tmp_path / "work").write_bytes(header + b"".join(lines))
    with raises(InputError, what="line 2"):
        WorkFile(tmp_path / "work", HEADER)
    (tmp_path / "work").write_bytes(header + lines[0])
    with WorkFile(tmp_path / "work", HEADER) as work:
        assert work.batches == []
