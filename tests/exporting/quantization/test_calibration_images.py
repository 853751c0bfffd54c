"""Calibration images: selection, hashes, and measurements on them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raising import raises
from stub_runtime import StubRuntime
from told import Told

from vitdeploy.assess.data.image_set import ImageSet, open_images
from vitdeploy.assess.metrics.features import TokenVector
from vitdeploy.errors import ImageError, InputError
from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.specs import PixelFormat, PixelStage, TensorSpec
from vitdeploy.system.progress import SILENT

PROCESSOR = ImageProcessor(size=Size(8, 8))
CLASS = TokenVector("cls_token", 1)
BYTES = PixelFormat(PixelStage.RESIZED, "nhwc", "uint8")


class Answers(StubRuntime):
    """Gives the mean color of an image, and something that is added to it."""

    def __init__(self, add: list[float], output: str = "logits", pixels: PixelFormat = PixelFormat()) -> None:  # noqa: B008
        super().__init__()
        self.inputs = (TensorSpec("pixel_values", pixels.dtype, ("batch", *pixels.shape(3, (8, 8)))),)
        self.outputs = (TensorSpec(output, "float32", ("batch", 3)),)
        self.pixels = pixels
        self._add = np.array(add, np.float32)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        pixels = feeds["pixel_values"].astype(np.float32)
        if pixels.shape[-1] == 3:
            pixels = pixels.transpose(0, 3, 1, 2) / 127.5 - 1
        return {self.outputs[0].name: pixels.mean(axis=(2, 3)) + self._add}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(6):
        color = [40 * index, 255 - 40 * index, 7]
        path = tmp_path / "images" / ("even" if index % 2 == 0 else "odd") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, 9, 3), color, np.uint8)).save(path)
    return tmp_path / "images"


def images_of(folder: Path, limit: int = 512, seed: int = 0, **options: Any) -> CalibrationImages:
    progress = options.get("progress", SILENT)
    return CalibrationImages.open(folder, PROCESSOR, limit, seed, progress)


def test_a_seeded_part_that_a_smaller_one_is_in(folder: Path) -> None:
    names = [f"even/{index}.png" for index in (0, 2, 4)] + [f"odd/{index}.png" for index in (1, 3, 5)]
    assert images_of(folder).images.names == tuple(names)
    three, two = (images_of(folder, limit).images.names for limit in (3, 2))
    assert set(two) < set(three)
    assert list(three) == sorted(three)
    assert len({images_of(folder, 2, seed).images.names for seed in range(20)}) > 3


def test_the_hash_is_of_what_is_seen(folder: Path, tmp_path: Path) -> None:
    first = images_of(folder).sha256()
    assert images_of(folder).sha256() == first
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert images_of(tmp_path / "elsewhere").sha256() == first
    assert images_of(folder, 5).sha256() != first
    other = CalibrationImages(images_of(folder).images, PROCESSOR.resized(9, 8), 0, SILENT)
    assert other.sha256() != first
    Image.fromarray(np.zeros((10, 9, 3), np.uint8)).save(folder / "even" / "0.png")
    assert images_of(folder).sha256() != first


def test_images_come_one_by_one_in_each_format(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    images = images_of(folder, progress=Told(None, lambda done, total: seen.append((done, total))))
    found = list(images.pixels(PixelFormat(), BYTES))
    assert seen == [(index, 6) for index in range(1, 7)]
    assert [each[BYTES].shape for each in found] == [(1, 8, 8, 3)] * 6
    np.testing.assert_array_equal(found[0][PixelFormat()], PROCESSOR([folder / "even" / "0.png"]))


def test_agreement_is_measured_in_each_ones_own_pixels(folder: Path) -> None:
    (same,) = images_of(folder).agreement(Answers([0, 0, 0]), Answers([0, 0, 0], pixels=BYTES), CLASS, one_by_one=False)
    assert (same.output, same.images, same.top1_agreement) == ("logits", 6, 1.0)
    assert same.min_cosine == pytest.approx(1, abs=1e-5)
    # Red is 0, 40 ... 200 of 255 and green the rest: red is best from 160 on, and with 89 more from 120 on.
    (other,) = images_of(folder).agreement(Answers([0, 0, 0]), Answers([0.7, 0, 0]), CLASS, one_by_one=False)
    assert other.top1_agreement == pytest.approx(5 / 6, abs=1e-6)
    given = [np.array(PROCESSOR([path])).mean(axis=(2, 3))[0] for path in sorted(folder.rglob("*.png"))]
    added = np.array([0.7, 0, 0])
    cosines = [a @ (a + added) / np.linalg.norm(a) / np.linalg.norm(a + added) for a in given]
    assert other.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-5)
    assert other.p5_cosine == pytest.approx(np.percentile(cosines, 5), abs=1e-5)
    assert other.min_cosine == pytest.approx(min(cosines), abs=1e-5)
    answers = Answers([0], "features")
    (features,) = images_of(folder).agreement(answers, answers, CLASS, one_by_one=False)
    assert features.top1_agreement is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_two_images_have_no_choice_of_neighbours(folder: Path, count: int) -> None:
    reference, artifact = (Answers(add, "pooler_output") for add in ([0.0, 0, 0], [0.7, 0, 0]))
    (found,) = images_of(folder, count).agreement(reference, artifact, CLASS, one_by_one=False)
    assert found.images == count
    assert (found.same_neighbours is None) == (count < 3)


@pytest.mark.parametrize(("one_by_one", "largest"), [(True, 1), (False, 6)])
def test_an_artifact_that_ranges_a_batch_takes_images_alone(folder: Path, one_by_one: bool, largest: int) -> None:
    artifact, seen = Answers([0, 0, 0]), []
    run = artifact._run
    artifact._run = lambda feeds: (seen.append(len(feeds["pixel_values"])), run(feeds))[1]  # type: ignore[method-assign, func-returns-value]
    images_of(folder).agreement(Answers([0, 0, 0]), artifact, CLASS, one_by_one=one_by_one)
    assert (max(seen), sum(seen)) == (largest, 6)


@pytest.mark.parametrize(("count", "expected"), [(16, (8, 4, 4)), (120, (60, 30, 30)), (512, (416, 32, 64))])
def test_parts_share_no_image_and_depend_on_names_and_seed(count: int, expected: tuple[int, ...]) -> None:
    names = tuple(f"{index:03}.png" for index in range(count))
    parts = [CalibrationImages(ImageSet("x", names, lambda at: b"%d" % at), PROCESSOR, seed, SILENT).parts()
             for seed in (0, 0, 1)]  # fmt: skip
    found = [[part.images.names for part in (each.ranges, each.choice, each.judge)] for each in parts]
    assert found[0] == found[1] != found[2]
    assert tuple(map(len, found[0])) == expected
    assert sorted(sum(found[0], ())) == list(names)
    assert parts[0].measured.images.names == tuple(sorted(found[0][0] + found[0][1]))
    assert parts[0].held_out


def test_few_images_are_for_everything(folder: Path) -> None:
    images = images_of(folder)
    parts = images.parts()
    assert not parts.held_out
    assert {part.images.names for part in (parts.ranges, parts.choice, parts.judge)} == {images.images.names}


@pytest.mark.parametrize(
    ("count", "distinct", "counts"),
    [(40, 20, (10, 5, 5)), (40, 16, (8, 4, 4)), (40, 15, (15, 15, 15)), (40, 1, (1, 1, 1))],
)
def test_copies_of_an_image_are_in_no_other_part(count: int, distinct: int, counts: tuple[int, ...]) -> None:
    """They would judge what they made: 40 copies of one image were ten held-out images."""
    names = tuple(f"{index:03}.png" for index in range(count))
    images = ImageSet("x", names, lambda position: b"%d" % (position % distinct))
    parts = CalibrationImages(images, PROCESSOR, 0, SILENT).parts()
    assert tuple(len(part.images) for part in (parts.ranges, parts.choice, parts.judge)) == counts
    assert parts.held_out == (distinct >= 16)
    contents = [{*part.contents} for part in (parts.ranges, parts.choice, parts.judge)]
    assert len(set().union(*contents)) == distinct
    assert not parts.held_out or sum(map(len, contents)) == distinct


def test_images_of_one_shape_come_together() -> None:
    sizes = [8, 8, 8, 9, 8]
    images = CalibrationImages(ImageSet("x", tuple(map(str, sizes)), lambda _: b""), PROCESSOR, 0, SILENT)
    alone = [{BYTES: np.full((1, size, size, 3), index, np.uint8)} for index, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalibrationImages, "pixels", lambda *_: iter(alone))
        found = [batch[BYTES] for batch in images.batches(2, BYTES)]
    assert [batch.shape for batch in found] == [(2, 8, 8, 3), (1, 8, 8, 3), (1, 9, 9, 3), (1, 8, 8, 3)]
    assert [image[0, 0, 0] for batch in found for image in batch] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("table", ["image,label\n{},4.5\n{},bird\n", "image,label\n{},\n{},1\n", "file_name\n{}\n{}\n"])
def test_a_csv_gives_its_images_whatever_its_labels(folder: Path, table: str) -> None:
    (folder / "images.csv").write_text(table.format("odd/1.png", "even/2.png"), encoding="utf-8")
    found = open_images(folder / "images.csv")
    assert found.names == ("odd/1.png", "even/2.png")
    assert found.load(1) == (folder / "even" / "2.png").read_bytes()


@pytest.mark.parametrize("labels", [{"label": [4.5, None]}, {"label": ["bird", "cat"]}, {}])
def test_parquet_files_give_their_images_whatever_their_labels(tmp_path: Path, labels: dict[str, Any]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": [b"first", b"second"], **labels}), tmp_path / "a.parquet")
    for source in (tmp_path / "a.parquet", tmp_path):
        found = open_images(source)
        assert (found.names, found.load(1)) == (("a.parquet#0", "a.parquet#1"), b"second")


def test_images_that_cannot_be_had(folder: Path, tmp_path: Path) -> None:
    for name in ("none", "none.csv", "none.parquet"):
        with raises(InputError, where=tmp_path / name):
            images_of(tmp_path / name)
    (folder / "odd" / "1.png").write_bytes(b"no image")
    with raises(ImageError, what="odd/1.png", where=str(folder)):
        list(images_of(folder).pixels(PixelFormat()))
