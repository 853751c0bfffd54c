"""Jobs on a local Ray of several processes, which are killed: no row is missing, and none is twice."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pd
import pyarrow.parquet as pq
import pytest
from environments import ROOT, environment, run

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle

ROWS, FILES = 1500, 15
SCRIPT, EXAMPLE = ROOT / "tests/support/ray_jobs.py", ROOT / "examples/ray/batch_job.py"


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's files, in a short path: those of sockets have 107 bytes at most."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Different images, two of them damaged."""
    images = [path.read_bytes() for path in sorted(held_out_images().rglob("*.png"))]
    images[5], images[17] = images[5][:60], b""
    return images


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for file in range(FILES):
        ids = range(file * ROWS // FILES, (file + 1) * ROWS // FILES)
        column = pa.array([images[number % len(images)] for number in ids], pa.binary())
        pq.write_table(pa.table({"id": list(ids), "image": column}), folder / f"{file:03}.parquet")
    return folder


@pytest.fixture(scope="module")
def expected(digits: Bundle, images: list[bytes]) -> list[dict[str, Any]]:
    """Rows of all images, by `Predictor.predict`."""
    with vitdeploy.load(digits.path, backend="onnxruntime", intra_op_threads=1) as predictor:
        good = [image for number, image in enumerate(images) if number not in (5, 17)]
        answers = iter(predictor.predict(good, top_k=1))
    none = {"label": None, "index": None, "score": None}
    return [none if number in (5, 17) else next(answers)[0].to_dict() for number in range(len(images))]


def _rows(output: Path, key: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pd.dataset(output, format="parquet").to_table().sort_by(key).to_pylist()
    return rows


def _check(found: list[dict[str, Any]], key: str, ids: list[Any], expected: list[dict[str, Any]]) -> None:
    assert [row.pop(key) for row in found] == ids
    assert [bool(row.pop("error")) for row in found] == [row["label"] is None for row in expected]
    assert found == expected


def _unfinish(output: Path, count: int) -> None:
    """As if the job had been killed when it had written so many rows of its only file."""
    unfinished = output.with_name(f"{output.name}.unfinished")
    (checkpoint := unfinished / "run-000000/checkpoint").mkdir(parents=True)
    output.rename(parts := checkpoint.with_name("parts"))
    (parts / "_job.json").rename(unfinished / "_job.json")
    (part,) = parts.glob("*.parquet")
    rows = pq.read_table(part).slice(0, count)
    pq.write_table(rows, part)
    pq.write_table(rows.select(["key"]), checkpoint / f"{part.stem.rpartition('-')[0]}.parquet")


def test_rows_are_those_of_predict_though_the_job_and_its_actors_are_killed(
    digits: Bundle, rows: Path, images: list[bytes], expected: list[dict[str, Any]], tmp_path: Path, ray_folder: Path
) -> None:
    python = environment("ray")
    environ = {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(ray_folder), "HOME": str(ray_folder)}

    def arguments(kind: str, path: Path, output: Path) -> list[str]:
        workers = ["--actors", "2", "--rows", "25", "--rows-per-file", "50"]
        return [kind, str(path), "--bundle", str(digits.path), "--output", str(output), *workers]

    output, unfinished = tmp_path / "rows", tmp_path / "rows.unfinished"
    job = arguments("parquet", rows, output)
    command: list[str | Path] = [python, EXAMPLE, *job, "--cpus", "4"]
    silent: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(command, env={**os.environ, **environ}, cwd="/", **silent) as driver:
        while len(list(unfinished.glob("*/checkpoint/*.parquet"))) < 3:
            assert driver.poll() is None, "it was over before the kill"
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
    assert not output.exists()

    (folder := tmp_path / "images").mkdir()
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for number, image in enumerate(images[:30]):
            (folder / f"{number:03}.png").write_bytes(image)
            for ending, content in (("png", image), ("cls", b"3")):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    others = [("files", folder, tmp_path / "files"), ("webdataset", tmp_path / "shard.tar", tmp_path / "tar")]
    jobs = json.dumps([job, *(arguments(*other) for other in others)])
    printed = run(python, SCRIPT, EXAMPLE, jobs, "2", **environ).splitlines()  # with lines of Ray's
    resumed, files, tar, actors = (json.loads(line) for line in printed if line.startswith("{"))

    assert actors == {"killed": 2}
    assert 0 < resumed.pop("resumed") < ROWS
    everything = [expected[number % len(images)] for number in range(ROWS)]
    bad = sum(row["label"] is None for row in everything)
    assert resumed == {"output": str(output), "rows": ROWS, "failed": bad}
    _check(_rows(output, "id"), "id", list(range(ROWS)), everything)
    assert not unfinished.exists()
    assert (files["rows"], files["failed"], tar["rows"], tar["failed"]) == (30, 2, 30, 2)
    paths = [str(path) for path in sorted(folder.iterdir())]
    _check(_rows(tmp_path / "files", "path"), "path", paths, expected[:30])
    keys = [f"{tmp_path / 'shard.tar'}#{number:03}" for number in range(30)]
    _check(_rows(tmp_path / "tar", "key"), "key", keys, expected[:30])

    _unfinish(tmp_path / "tar", 10)
    printed = run(python, SCRIPT, EXAMPLE, json.dumps([arguments(*others[1])]), "0", **environ).splitlines()
    resumed, _ = (json.loads(line) for line in printed if line.startswith("{"))
    assert (resumed["rows"], resumed["resumed"]) == (30, 10)
    _check(_rows(tmp_path / "tar", "key"), "key", keys, expected[:30])


_REPLACED = """
import sys
import numpy as np
from pathlib import Path
from vitdeploy.errors import BundleChangedError
from vitdeploy.serving.scale_out.batch_callable import resolve
from vitdeploy.serving.scale_out.ray_data import _TablePredictor

link, replaced = map(Path, sys.argv[1:])
fingerprint = resolve(link, {}).opening.fingerprint
batch = {"id": np.array([1]), "image": np.array([b"no image"], object)}
print(_TablePredictor(str(link), fingerprint)(batch).num_rows)
link.unlink()
link.symlink_to(replaced)
try:
    _TablePredictor(str(link), fingerprint)(batch)
except BundleChangedError as error:
    print(error.where)
"""


def test_an_actor_that_starts_after_the_bundle_was_replaced_computes_nothing(digits: Bundle, tmp_path: Path) -> None:
    half = vitdeploy.export(default_checkpoint(), precision="fp16", output=tmp_path / "half")
    (bundle := tmp_path / "bundle").symlink_to(digits.path)
    printed = run(environment("ray"), "-c", _REPLACED, bundle, half.path, PYTHONPATH=str(ROOT))
    assert printed.splitlines() == ["1", str(bundle)]
