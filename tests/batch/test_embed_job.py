"""Embedding jobs: rows in order, failures in their rows, and interrupted runs that continue."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import run
from image_files import paths_of
from raising import raises
from told import Interrupted, Told

import vitdeploy
from vitdeploy.assets import default_checkpoint
from vitdeploy.errors import ImageError, InputError, MissingDependencyError, NotFiniteError, UsageError
from vitdeploy.predictor import Predictor
from vitdeploy.specs import EMBEDS, Task

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle

FEATURES = vitdeploy.SourceOptions(task=Task.FEATURES)
COUNT = 12  # images in the folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model, with unit vectors of the class token."""
    graph = vitdeploy.GraphOptions(pool="cls", normalize=True)
    output = tmp_path_factory.mktemp("features") / "bundle"
    return vitdeploy.export(default_checkpoint(), output=output, graph=graph, source=FEATURES)


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_image_in_order(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    told = Told()
    result = vitdeploy.embed(predictor, folder, tmp_path / "emb.npy", batch_size=5, progress=told)
    expected = predictor.embed(paths_of(folder), batch_size=5)
    vectors = np.load(tmp_path / "emb.npy")
    assert (vectors.dtype, vectors.shape) == (np.float32, (COUNT, result.width))
    np.testing.assert_array_equal(vectors, expected)
    assert rows(tmp_path / "emb.csv") == [{"path": path, "error": ""} for path in paths_of(folder)]
    assert result.names == str(tmp_path / "emb.csv")
    assert result.embedding == {"output": EMBEDS, "pool": None, "normalize": False}
    assert (result.images, result.failed, result.resumed) == (COUNT, (), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emb.csv", "emb.npy", "images"]


def test_parquet_has_the_same_vectors_with_their_paths(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitdeploy.batch.embedding_parquet._GROUP_BYTES", 5 * 4 * 64)  # several row groups
    (folder / "0" / "01.png").write_bytes(b"no image")
    vitdeploy.embed(predictor, folder, tmp_path / "emb.npy")
    result = vitdeploy.embed(predictor, folder, tmp_path / "emb.parquet")
    assert result.names is None
    with pq.ParquetFile(tmp_path / "emb.parquet") as file:
        assert file.num_row_groups > 1
        content = file.read().to_pydict()
    vectors = np.load(tmp_path / "emb.npy")
    assert content["path"] == paths_of(folder)
    assert [row for row, vector in enumerate(content["vector"]) if vector is None] == [1]
    assert [row for row, error in enumerate(content["error"]) if error is not None] == [1]
    for vector, row in zip(content["vector"], vectors, strict=True):
        assert np.isnan(row).all() if vector is None else np.array_equal(np.float32(vector), row)


def test_files_folders_and_data_sets_follow_each_other(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    first, *others = paths_of(folder)
    (tmp_path / "table.csv").write_text(f"image\nimages/{'/'.join(others[3].split('/')[-2:])}\n", encoding="utf-8")
    sources: list[str | Path] = [others[-1], folder / "0", tmp_path / "table.csv", first]
    result = vitdeploy.embed(predictor, sources, tmp_path / "emb.npy", batch_size=4)
    expected = [others[-1], *paths_of(folder / "0"), others[3], first]
    assert [row["path"] for row in rows(tmp_path / "emb.csv")] == expected
    np.testing.assert_array_equal(np.load(tmp_path / "emb.npy"), predictor.embed(expected, batch_size=4))
    assert list(result.left_out) == [str(folder / "0")]


def test_an_image_that_cannot_be_read_keeps_its_row(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected.npy"
    assert run("embed", bundle.path, folder, "-o", expected).code == 0
    bad = paths_of(folder)[3]
    Path(bad).write_bytes(Path(bad).read_bytes()[:99])
    stopped = run("embed", bundle.path, folder, "-o", tmp_path / "emb.npy", "--on-error", "stop", "--batch-size", 2)
    assert stopped.code == ImageError.exit_code
    assert bad in stopped.err
    assert not (tmp_path / "emb.npy").exists()
    code, out, _ = run("embed", bundle.path, folder, "-o", tmp_path / "emb.npy", "--batch-size", 2, "--json")
    assert code == ImageError.exit_code
    result = json.loads(out)
    assert result["resumed"] == 2
    assert [(failed["row"], failed["path"]) for failed in result["failed"]] == [(3, bad)]
    vectors, intact = np.load(tmp_path / "emb.npy"), np.load(expected)
    assert np.isnan(vectors[3]).all()
    np.testing.assert_allclose(np.delete(vectors, 3, 0), np.delete(intact, 3, 0), atol=1e-6)  # other batches
    assert [bool(row["error"]) for row in rows(tmp_path / "emb.csv")] == [row == 3 for row in range(COUNT)]
    assert "could not be read" in run("embed", bundle.path, folder, "-o", tmp_path / "emb.npy").out


def test_a_link_keeps_the_table_beside_it_and_a_carriage_return_its_row(
    predictor: Predictor, folder: Path, tmp_path: Path
) -> None:
    odd = shutil.copy(folder / "0" / "00.png", tmp_path / "a\rb.png")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "data.csv").write_text("other work", encoding="utf-8")
    (tmp_path / "emb.npy").symlink_to(tmp_path / "real" / "data.npy")
    result = vitdeploy.embed(predictor, [odd, folder / "1"], tmp_path / "emb.npy")
    assert (result.names, (tmp_path / "emb.npy").is_symlink()) == (str(tmp_path / "emb.csv"), True)
    assert [row["path"] for row in rows(tmp_path / "emb.csv")] == [str(odd), *paths_of(folder / "1")]
    assert len(np.load(tmp_path / "emb.npy")) == 1 + COUNT // 2
    assert (tmp_path / "real" / "data.csv").read_text(encoding="utf-8") == "other work"


def test_none_that_can_be_read_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with raises(ImageError, what="images"):
        vitdeploy.embed(predictor, tmp_path / "a.png", tmp_path / "emb.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with raises(InputError, where=tmp_path / "absent.png"):
        vitdeploy.embed(predictor, [tmp_path / "a.png", tmp_path / "absent.png"], tmp_path / "emb.npy")


def test_an_interrupted_run_continues(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    (folder / "1" / "05.png").write_bytes(b"no image")
    whole, output = tmp_path / "whole.npy", tmp_path / "emb.npy"
    vitdeploy.embed(predictor, folder, whole, batch_size=3)
    for after in (3, 9, COUNT):
        with pytest.raises(KeyboardInterrupt):
            vitdeploy.embed(predictor, folder, output, batch_size=3, progress=Interrupted(after))
    assert not output.exists()
    result = vitdeploy.embed(predictor, folder, output, batch_size=3)
    assert result.resumed == COUNT
    assert output.read_bytes() == whole.read_bytes()
    assert output.with_suffix(".csv").read_bytes() == whole.with_suffix(".csv").read_bytes()
    assert not (tmp_path / "emb.npy.unfinished").exists()


def test_torn_vectors_and_other_work_are_refused(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    output, unfinished = tmp_path / "emb.npy", tmp_path / "emb.npy.unfinished"

    def begin() -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            vitdeploy.embed(predictor, folder, output, batch_size=3, progress=Interrupted(6))

    begin()
    with (unfinished / "rows.npy").open("ab") as file:
        file.write(b"half a row")  # of a run that was killed while it wrote
    assert vitdeploy.embed(predictor, folder, output, batch_size=3).resumed == 6
    np.testing.assert_array_equal(np.load(output), predictor.embed(paths_of(folder), batch_size=3))
    begin()
    (unfinished / "notes.txt").touch()  # a file of others stays
    assert vitdeploy.embed(predictor, folder, output, batch_size=3).resumed == 6
    assert [path.name for path in unfinished.iterdir()] == ["notes.txt"]
    begin()
    parts = Predictor(predictor.processor, predictor.runtime, (), config=predictor.config)
    with raises(InputError, what="model"):  # of parts, whose model is unknown
        vitdeploy.embed(parts, folder, output, batch_size=3)
    with raises(InputError, what="embedding / normalize"):
        vitdeploy.embed(predictor, folder, output, batch_size=3, normalize=True)
    with raises(InputError, what="batch_size"):
        vitdeploy.embed(predictor, folder, output, batch_size=4)
    content = (unfinished / "rows.npy").read_bytes()
    (unfinished / "rows.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with raises(InputError, what="rows"):
        vitdeploy.embed(predictor, folder, output, batch_size=3)
    begin()
    shutil.copy(folder / "1" / "11.png", folder / "0" / "00.png")
    with raises(InputError, what="images", found=paths_of(folder)[0]):
        vitdeploy.embed(predictor, folder, output, batch_size=3)
    (unfinished / "rows.npy").unlink()
    assert vitdeploy.embed(predictor, folder, output, batch_size=3).resumed == 0


def test_what_cannot_be_had_is_refused_before_any_work(
    predictor: Predictor, digits: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises(UsageError, what="output", found=".txt"):
        vitdeploy.embed(predictor, folder, tmp_path / "emb.txt")
    with raises(UsageError, what="pool", found="mean"):
        vitdeploy.embed(predictor, folder, tmp_path / "emb.npy", pool="mean")
    with raises(UsageError, what="the table of paths"):
        vitdeploy.embed(predictor, folder, folder / "emb.npy")
    nothing: tuple[list[str] | str, ...] = ([], "", "a\0.png", "\ud800.png")
    for images in nothing:
        with raises(UsageError, what="images"):
            vitdeploy.embed(predictor, images, tmp_path / "emb.npy")
    code, _, err = run("embed", digits.path, folder, "-o", tmp_path / "emb.npy")
    assert (code, "--task image-feature-extraction" in err) == (UsageError.exit_code, True)
    assert run("embed", digits.path, "", "-o", tmp_path / "emb.npy").code == UsageError.exit_code  # not this folder
    wrong: Any
    for wrong in ("max", 5):
        with raises(UsageError, what="pool", found=wrong):
            predictor.embed(paths_of(folder), pool=wrong)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "vitdeploy.batch.embedding_parquet", raising=False)
    with raises(MissingDependencyError):
        vitdeploy.embed(predictor, folder, tmp_path / "emb.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_values_that_are_not_finite_stop_the_work(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute: Any = predictor.runtime.run

    def infinite(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs: dict[str, np.ndarray] = compute(feeds)
        outputs[EMBEDS][1] = np.inf
        return outputs

    monkeypatch.setattr(predictor.runtime, "run", infinite)
    for call in (
        lambda: vitdeploy.embed(predictor, folder, tmp_path / "emb.npy", batch_size=3),
        lambda: predictor.embed(paths_of(folder), batch_size=3),
    ):
        with raises(NotFiniteError, what=EMBEDS) as caught:
            call()
        assert paths_of(folder)[1] in str(caught.value)
