"""Sizes within limits: stated in the manifest, proven at the limits, enforced by every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import CPU_BACKENDS, FLOAT32_TOLERANCE, PORTABLE, tiny_model, worst_difference, write_checkpoint_of
from compiler import build_engine
from raising import raises

import vitdeploy
from vitdeploy import GraphOptions
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.runtimes import BACKENDS, open_runtime
from vitdeploy.specs import AxisRange

BOUNDS = ((16, 24), (40, 56), (64, 72))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bounded")
    checkpoint = write_checkpoint_of(tiny_model(), folder / "checkpoint")
    for to in PORTABLE:
        made = vitdeploy.export(checkpoint, to=to, output=folder / "bundle", graph=GraphOptions(image_size=BOUNDS))
    return made


def test_limits_are_in_the_manifest_and_were_proven(bundle: Bundle) -> None:
    assert bundle.read_config().model["image_size"] == 32
    for artifact in bundle.manifest.artifacts:
        assert artifact.axes == {"height": AxisRange(16, 40, 64), "width": AxisRange(24, 56, 72)}
        assert artifact.validation["image_sizes"] == [[40, 56], [16, 24], [64, 72]]
    assert vitdeploy.compare(bundle).status == "passed"


@pytest.mark.parametrize("backend", [name for name in CPU_BACKENDS if BACKENDS[name].artifact_formats])
def test_a_runtime_takes_what_lies_within(bundle: Bundle, backend: str) -> None:
    generator = np.random.default_rng(0)
    with open_runtime(bundle, backend) as runtime, open_runtime(bundle, "torch") as reference:
        for size in ((16, 24), (64, 72), (33, 41)):
            feeds = {"pixel_values": generator.standard_normal((2, 3, *size), np.float32)}
            assert worst_difference(runtime.run(feeds), reference.run(feeds)) <= FLOAT32_TOLERANCE
        for size, axis, found in (
            ((15, 24), "height", 15),
            ((16, 23), "width", 23),
            ((65, 72), "height", 65),
            ((64, 720), "width", 720),
        ):
            with raises(UsageError, what=axis, expected=runtime.axes[axis], found=found):
                runtime.run({"pixel_values": np.zeros((1, 3, *size), np.float32)})
        with raises(UsageError, what="height", found=7):
            reference.run({"pixel_values": np.zeros((1, 3, 7, 32), np.float32)})


def test_a_predictor_gives_the_usual_size(bundle: Bundle) -> None:
    with vitdeploy.load(bundle.path) as predictor:
        assert predictor.processor.output_size == (40, 56)
        assert len(predictor.predict([np.zeros((9, 100, 3), np.uint8)])[0]) == 3


def test_a_processor_that_leaves_the_limits(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    from bundles import sign_again

    folder = shutil.copytree(bundle.path, tmp_path / "copy")
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"height": 40', '"height": 80'), encoding="utf-8")
    sign_again(Bundle.open(folder))
    with raises(BundleError, what="size", where=folder, found=(80, 56)) as caught:
        vitdeploy.load(folder)
    assert "height from 16 to 64" in str(caught.value)


def test_an_engine_is_built_for_the_limits(bundle: Bundle) -> None:
    build_engine(bundle, "onnx")


def test_a_size_smaller_than_a_patch(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    with raises(UsageError, what="image_size", expected=(8, 8), found=7):
        vitdeploy.export(checkpoint, output=tmp_path / "out", graph=GraphOptions(image_size=(7, 32, 64)))
    assert not (tmp_path / "out").exists()
