"""Checkpoints of timm and of Google from the file to a bundle's backends, against what their own libraries compute.

One checkpoint of each family and task has an ONNX graph; TorchScript, which takes a fifth of the time, has all.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from bundles import CPU_BACKENDS, PORTABLE, export_all
from families import TIMM_GRAPHS
from npz_files import NPZ_CONFIG, write_npz
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy.errors import CheckpointError
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.runtimes.pytorch import PyTorchRuntime, PyTorchRuntimeOptions
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conftest import WriteCheckpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "timm"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
BATCHES = (1, 2, 7)
BACKENDS = ("torch", "torchscript")
# Of an output's largest magnitude, float32: the order of sums differs between libraries and engines (seen: 2e-6).
TOLERANCE = 1e-5
CHINA = Image.fromarray(sklearn.datasets.load_sample_images().images[0])
# The photographs of the golden files: whole, and cut so that the margins of a center crop are odd.
PHOTOGRAPHS = {"china": CHINA, "odd": CHINA.crop((0, 0, 601, 427)), "upright": CHINA.crop((100, 3, 353, 427))}


def expected(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / case / "expected.npz") as file:
        return dict(file)


def sizes(want: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
    """The image sizes of a golden file, the model's own first."""
    names = dict.fromkeys(key.partition("/")[0] for key in want)
    pairs = [tuple(map(int, name.split("x"))) for name in names if name[0].isdigit()]
    return [(height, width) for height, width in pairs]


def inputs(want: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(int(want["seed"])).standard_normal((2, 3, *size), np.float32)


def assert_near(
    got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], key: str, rows: Any = slice(None)
) -> None:
    """Every output that the golden file has under `key`."""
    names = [name for name in got if f"{key}/{name}" in want]
    assert names
    for name in names:
        value = want[f"{key}/{name}"][rows]
        assert got[name].shape == value.shape
        difference = np.abs(got[name] - value).max() / np.abs(value).max()
        assert difference <= TOLERANCE, f"{name}: {difference:.1e}"


SQUARE = [case for case in CASES if sizes(expected(case))[0][0] == sizes(expected(case))[0][1]]


def outputs_of(case: str) -> list[str]:
    names = {key.partition("/")[2] for key in expected(case)}
    head = next(name for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state") if name in names)
    return [head, "hidden_states"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a case, which is exported once."""

    @functools.cache
    def export(case: str) -> Path:
        formats = PORTABLE if case in TIMM_GRAPHS else ("torchscript",)
        graph = vitdeploy.GraphOptions(outputs=outputs_of(case))
        return export_all(
            GOLDEN / case, formats=formats, output=tmp_path_factory.mktemp(case) / "out", graph=graph
        ).path

    return export


# One of each kind: the others, of other seeds, run in torch alone. BEiT's biases are of several kinds.
EXPORTED = [case for case in SQUARE if case.endswith("_0") or case.startswith("beit") or case in TIMM_GRAPHS]


@pytest.mark.parametrize("case", [case for case in SQUARE if case not in EXPORTED])
def test_a_checkpoint_of_timm_gives_what_timm_computes(case: str) -> None:
    want = expected(case)
    size = sizes(want)[0]
    model = read_checkpoint(GOLDEN / case).model
    with PyTorchRuntime(model, PyTorchRuntimeOptions(outputs=outputs_of(case))) as runtime:
        assert_near(runtime.run({"pixel_values": inputs(want, size)}), want, f"{size[0]}x{size[1]}")


@pytest.mark.parametrize("case", EXPORTED)
def test_a_timm_model_gives_what_timm_computes(exported: Callable[[str], Path], case: str) -> None:
    want = expected(case)
    size = sizes(want)[0]
    key = f"{size[0]}x{size[1]}"
    for backend in CPU_BACKENDS if case in TIMM_GRAPHS else BACKENDS:
        options: dict[str, Any] = {"outputs": outputs_of(case)} if backend == "torch" else {}
        with vitdeploy.load(exported(case), backend=backend, **options) as predictor:
            assert predictor.processor.output_size == size
            pixels = inputs(want, size)
            for batch_size in BATCHES:
                rows = np.arange(batch_size) % 2
                found = predictor.runtime.run({"pixel_values": pixels[rows]})
                assert {f"{key}/{name}" for name in found} <= set(want)
                assert_near(found, want, key, rows)


def test_a_timm_model_of_another_aspect_needs_an_image_size_that_timm_crops_alike(tmp_path: Path) -> None:
    others = set(CASES) - set(SQUARE)
    assert "vit_1" in others
    for case in others:
        with raises(CheckpointError, what="pretrained_cfg.crop_mode"):
            vitdeploy.export(GOLDEN / case, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    graph = vitdeploy.GraphOptions(image_size=36)
    vitdeploy.export(GOLDEN / "vit_1", to="torchscript", output=tmp_path / "out", graph=graph)


@pytest.mark.parametrize("case", [case for case in CASES if "china/pixel_values" in expected(case)])
def test_a_photograph_gives_what_timm_makes_of_it(exported: Callable[[str], Path], case: str) -> None:
    want = expected(case)
    for backend in BACKENDS:
        with vitdeploy.load(exported(case), backend=backend) as predictor:
            for name, image in PHOTOGRAPHS.items():
                pixels = predictor.processor(image)
                np.testing.assert_array_equal(pixels, want[f"{name}/pixel_values"])
                assert_near(predictor.runtime.run({"pixel_values": pixels}), want, name)


@pytest.mark.parametrize("case", [case for case in CASES if len(sizes(expected(case))) > 1])
def test_other_sizes_follow_timms_rule(tmp_path: Path, case: str) -> None:
    want = expected(case)
    others = [size for size in sizes(want)[1:] if case in SQUARE or size[0] == size[1]]
    for size in others:
        with PyTorchRuntime(read_checkpoint(GOLDEN / case, image_size=size).model) as runtime:
            assert_near(runtime.run({"pixel_values": inputs(want, size)}), want, f"{size[0]}x{size[1]}")
    for size in others[-1:] if case in ("vit_0", "deit3_0", "reg4_dinov2_0") else ():  # by what the table holds
        graph = vitdeploy.GraphOptions(image_size=size)
        vitdeploy.export(GOLDEN / case, to="torchscript", output=tmp_path / "fixed", graph=graph)
        with vitdeploy.load(tmp_path / "fixed", backend="torchscript") as predictor:
            assert_near(predictor.runtime.run({"pixel_values": inputs(want, size)}), want, f"{size[0]}x{size[1]}")
    if case.startswith("beit") or case not in EXPORTED:
        return
    graph = vitdeploy.GraphOptions(dynamic_image_size=True)
    vitdeploy.export(GOLDEN / case, to="torchscript", output=tmp_path / "dynamic", graph=graph)
    for backend in BACKENDS:
        with vitdeploy.load(tmp_path / "dynamic", backend=backend) as predictor:
            for size in sizes(want):
                outputs = predictor.runtime.run({"pixel_values": inputs(want, size)})
                assert_near(outputs, want, f"{size[0]}x{size[1]}")


@pytest.mark.parametrize("size", [(48, 48), (40, 56), (16, 16)], ids=str)
def test_the_processor_of_another_size_keeps_timms_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    graph = vitdeploy.GraphOptions(image_size=size)
    bundle = vitdeploy.export(GOLDEN / "vit_0", to="torchscript", output=tmp_path / "out", graph=graph)
    processor = ImageProcessor.from_pretrained(bundle.path)
    config = json.loads((GOLDEN / "vit_0" / "config.json").read_text())
    crop_pct = config["pretrained_cfg"]["crop_pct"]
    assert processor.output_size == size
    assert processor.crop_rounding == "half_even"
    if size[0] == size[1]:  # timm's own rule
        assert processor.to_dict()["size"] == {"shortest_edge": int(size[0] / crop_pct)}


def test_a_timm_classifier_also_gives_features(tmp_path: Path) -> None:
    want = expected("vit_0")
    source = vitdeploy.SourceOptions(task="image-feature-extraction")
    vitdeploy.export(GOLDEN / "vit_0", to="torchscript", output=tmp_path / "out", source=source)
    with vitdeploy.load(tmp_path / "out", backend="torchscript") as predictor:
        outputs = predictor.runtime.run({"pixel_values": inputs(want, (32, 32))})
    assert list(outputs) == ["last_hidden_state"]
    assert_near(outputs, want, "32x32")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda config: config.update(architecture="swin_tiny"), "architecture"),
        (lambda config: config.update(global_pool="avg"), "global_pool"),
        (lambda config: config.pop("pretrained_cfg"), "pretrained_cfg.input_size"),
        (lambda config: config.update(num_classes=7), "num_classes"),
        (lambda config: config.pop("architecture"), "model_type"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_writes_nothing(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], key: str
) -> None:
    folder = shutil.copytree(GOLDEN / "vit_0", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with raises(CheckpointError, what=key):
        vitdeploy.export(folder, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spelling", ["vision_transformer", "big_vision", "big_vision-stacked"])
def test_an_npz_file_gives_what_transformers_makes_of_its_weights(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], tmp_path: Path, spelling: str
) -> None:
    labels = {"id2label": None, "label2id": None, "num_labels": 5}
    peer = write_checkpoint(Task.CLASSIFICATION, {**tiny_config, **NPZ_CONFIG, **labels}).peer
    if spelling != "vision_transformer":  # big_vision has no position for the class token
        with torch.no_grad():
            peer.vit.embeddings.position_embeddings[:, 0] = 0
    path = tmp_path / "ViT-Ti_8.npz"
    write_npz(path, peer, spelling, prefix="params/" if spelling == "big_vision" else "")
    pixels = np.random.default_rng(0).standard_normal((7, 3, 32, 32), np.float32)
    with torch.inference_mode():
        want = {"x/logits": peer(torch.from_numpy(pixels)).logits.numpy()}

    bundle = export_all(path, output=tmp_path / "out")
    assert bundle.manifest.source.id == "ViT-Ti_8"
    assert [record.path for record in bundle.manifest.source.weights] == ["ViT-Ti_8.npz"]
    for backend in CPU_BACKENDS:
        with vitdeploy.load(bundle.path, backend=backend) as predictor:
            for batch_size in BATCHES:
                rows = slice(batch_size)
                assert_near(predictor.runtime.run({"pixel_values": pixels[rows]}), want, "x", rows)
            (best,) = predictor.predict(PHOTOGRAPHS["china"], top_k=1)
            assert best[0].label == f"LABEL_{best[0].index}"


def test_an_npz_file_with_pre_logits_gives_features(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    peer = write_checkpoint(Task.FEATURES, {**tiny_config, **NPZ_CONFIG}).peer
    path = tmp_path / "imagenet21k.npz"
    write_npz(path, peer)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    with torch.inference_mode():
        answer = peer(torch.from_numpy(pixels))
    want = {"x/last_hidden_state": answer.last_hidden_state.numpy(), "x/logits": answer.pooler_output.numpy()}
    export_all(path, output=tmp_path / "out")
    for backend in CPU_BACKENDS:
        with vitdeploy.load(tmp_path / "out", backend=backend) as predictor:
            outputs = predictor.runtime.run({"pixel_values": pixels})
            assert_near({**outputs, "logits": outputs["pooler_output"]}, want, "x")
    source = vitdeploy.SourceOptions(task="image-classification")
    with raises(CheckpointError, what="task", found="pre_logits"):
        vitdeploy.export(path, output=tmp_path / "classifier", source=source)


def test_what_lies_beside_an_npz_file_is_not_of_it(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    write_npz(tmp_path / "a.npz", write_checkpoint(Task.CLASSIFICATION, {**tiny_config, **NPZ_CONFIG}).peer)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    graph = vitdeploy.GraphOptions(image_size=(24, 40))
    bundle = vitdeploy.export(tmp_path / "a.npz", to="torchscript", output=tmp_path / "out", graph=graph)
    assert ImageProcessor.from_pretrained(bundle.path) == ImageProcessor(size=Size(24, 40))
