"""Jobs that are interrupted, killed, or run out of space: the next run writes what an uninterrupted one writes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_files import paths_of
from PIL import Image
from raising import raises
from told import Interrupted, Told

import vitdeploy
from vitdeploy.assess.evaluate.resume_file import WorkFile
from vitdeploy.assets import held_out_images
from vitdeploy.errors import ImageError, InputError, OutputError
from vitdeploy.images.pixel_limit import MAX_PIXELS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitdeploy.batch.predict_job import PredictedImages
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.predictor import Predictor

FORMATS = ("csv", "jsonl", "parquet")
WRITERS = {
    "csv": "vitdeploy.batch.prediction_files.csv_writer",
    "jsonl": "vitdeploy.batch.prediction_files.path_as_utf_8",
    "parquet": "vitdeploy.batch.prediction_parquet.rank_columns",
}
# Every batch is logged at once, so that a kill finds work to continue.
JOB = """
import sys, vitdeploy
from vitdeploy.batch import unfinished
unfinished._SAVE_S = 0
with vitdeploy.load(sys.argv[1]) as predictor:
    result = vitdeploy.predict(predictor, sys.argv[2], sys.argv[3], batch_size=2)
print(result.resumed)
"""
KILLS = 3


@contextlib.contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file may be larger in this block, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("ending", FORMATS)
def test_an_interrupted_run_continues(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (folder / "1" / "05.png").write_bytes(b"no image")
    whole, output = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    vitdeploy.predict(predictor, folder, whole, batch_size=3)
    for after in (3, 9, 12):
        with pytest.raises(KeyboardInterrupt):
            vitdeploy.predict(predictor, folder, output, batch_size=3, progress=Interrupted(after))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WRITERS[ending], interrupt)  # while the file is written
        with pytest.raises(KeyboardInterrupt):
            vitdeploy.predict(predictor, folder, output, batch_size=3)
    assert not output.exists()
    assert vitdeploy.predict(predictor, folder, output, batch_size=3).resumed == 12
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["images", whole.name, output.name])


def test_a_killed_process_continues(digits: Bundle, tmp_path: Path) -> None:
    """SIGKILL at random times; the same bytes."""
    images = tmp_path / "images"
    images.mkdir()
    for number, file in enumerate(sorted(held_out_images().rglob("*.png"))[:300]):
        shutil.copy(file, images / f"{number:03}.png")
    (images / "123.png").write_bytes(b"no image")
    output, log = tmp_path / "out.csv", tmp_path / "out.csv.unfinished" / "log"
    draw = random.Random(0)

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", JOB, str(digits.path), str(images), str(output)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    finished = 0
    for kill in range(KILLS):
        process = start()
        batches = finished + draw.randrange(5, 30)
        while not log.exists() or log.read_bytes().count(b"\n") <= batches:
            assert process.poll() is None, "it ended before the kill"
            time.sleep(0.001)
        process.kill()
        process.communicate()
        finished = log.read_bytes().count(b"\n") - 1
        assert batches <= finished < 150, kill
    out, _ = start().communicate(timeout=60)
    assert int(out) == 2 * finished
    with vitdeploy.load(digits.path) as predictor:
        vitdeploy.predict(predictor, images, tmp_path / "whole.csv", batch_size=2)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_an_interrupted_save_leaves_the_work_whole(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a batch was logged, before the next: nothing is logged twice."""
    append = WorkFile.append

    def interrupted(self: WorkFile, batch: dict[str, Any]) -> None:
        append(self, batch)
        if batch["batch"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkFile, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vitdeploy.predict(predictor, folder, tmp_path / "out.csv", batch_size=3)
    assert vitdeploy.predict(predictor, folder, tmp_path / "out.csv", batch_size=3).resumed == 6


@pytest.mark.parametrize("while_it", ["predicts", "writes the file"])
def test_a_full_disk_keeps_the_work(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, while_it: str
) -> None:
    monkeypatch.setattr("vitdeploy.batch.unfinished._SAVE_S", 0)
    whole, output, log = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.unfinished" / "log"
    vitdeploy.predict(predictor, folder, whole, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        vitdeploy.predict(predictor, folder, output, batch_size=3, progress=Interrupted(3))
    most = log.stat().st_size + 10 if while_it == "predicts" else whole.stat().st_size - 1
    told = Told()
    with largest_file(most), raises(OutputError):
        vitdeploy.predict(predictor, folder, output, batch_size=3, progress=told)
    assert told.advances[-1] == ((3, 12) if while_it == "predicts" else (12, 12))
    assert sorted(path.name for path in log.parent.iterdir()) == ["log", "rows.npy"]
    assert not output.exists()
    assert vitdeploy.predict(predictor, folder, output, batch_size=3).resumed == (3 if while_it == "predicts" else 12)
    assert output.read_bytes() == whole.read_bytes()


def test_another_limit_of_pixels_continues_only_if_it_changes_no_finished_row(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that a lower limit refuses may be predicted, and one that a higher limit takes may be refused."""
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    for name, size in (("0/large.png", 40), ("1/large.png", 50)):
        Image.new("L", (size, size)).save(folder / name)

    def limited(pixels: int, **options: Any) -> PredictedImages:
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, str(pixels))
        return vitdeploy.predict(predictor, folder, output, batch_size=2, **options)

    with raises(ImageError):
        limited(50**2 - 1, on_error="stop")  # the hint of the error is to raise the limit
    with raises(InputError, what="reads"):
        limited(40**2 - 1)
    with pytest.raises(KeyboardInterrupt):
        limited(40**2, progress=Interrupted(6))  # no finished image is larger
    with pytest.raises(KeyboardInterrupt):
        limited(50**2 - 1, progress=Interrupted(14))
    with raises(InputError, what="reads"):
        limited(50**2)
    with raises(InputError, what="reads"):
        limited(30**2)
    assert [failed.path for failed in limited(50**2 - 1).failed] == [str(folder / "1/large.png")]
    output.replace(whole)
    limited(50**2 - 1)
    assert output.read_bytes() == whole.read_bytes()


def test_a_second_run_of_the_same_output_is_refused(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    refused = []

    def begin_another(done: int, _total: int) -> None:
        if done == 3:
            with raises(InputError, what="resume"):
                vitdeploy.predict(predictor, folder, tmp_path / "out.csv", batch_size=3)
            refused.append(done)

    told = Told(on_advance=begin_another)
    assert vitdeploy.predict(predictor, folder, tmp_path / "out.csv", batch_size=3, progress=told).failed == ()
    assert refused == [3]


@pytest.mark.usefixtures("reads_nothing_ahead")
def test_a_folder_that_vanishes_stops_the_work(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    """Its images are no bad ones: once it is back, they are predicted."""
    whole, output, away = tmp_path / "whole.csv", tmp_path / "out.csv", tmp_path / "away"
    vitdeploy.predict(predictor, folder, whole, batch_size=1)
    for place in (folder, folder / "1"):
        told = Told(on_advance=lambda done, _total: done == 1 and place.rename(away))  # noqa: B023
        with raises(InputError, what="images"):
            vitdeploy.predict(predictor, folder, output, batch_size=1, progress=told)
        away.rename(place)
    assert vitdeploy.predict(predictor, folder, output, batch_size=1).failed == ()
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("reads_nothing_ahead")
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_drive_that_is_unmounted_stops_the_work(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    """Its folder stays, empty."""
    drive = tmp_path / "drive"
    drive.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(drive)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    shutil.copytree(folder / "0", drive, dirs_exist_ok=True)

    def unmount(done: int, _total: int) -> None:
        if done == 1:
            subprocess.run(["umount", str(drive)], check=True)

    with raises(InputError, what="images", where=drive):
        vitdeploy.predict(predictor, drive, tmp_path / "out.csv", batch_size=1, progress=Told(on_advance=unmount))
    shutil.copytree(folder / "0", drive, dirs_exist_ok=True)
    result = vitdeploy.predict(predictor, drive, tmp_path / "out.csv", batch_size=1)
    assert (result.resumed, result.failed) == (1, ())


@pytest.mark.usefixtures("reads_nothing_ahead")
def test_a_file_that_vanishes_is_recorded(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    last = paths_of(folder)[-1]
    told = Told(on_advance=lambda done, _total: Path(last).unlink(missing_ok=True) if done == 1 else None)
    result = vitdeploy.predict(predictor, folder, tmp_path / "out.jsonl", batch_size=1, progress=told)
    assert [failed.path for failed in result.failed] == [last]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="ascii").splitlines()]
    assert [row["path"] for row in rows if row["error"]] == [last]
