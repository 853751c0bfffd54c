"""Files of weights without a configuration: read with what their architecture's name says, or refused in one line.

tests/golden/make_architectures.py wrote them, and what timm and torchvision compute with them.
"""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sklearn.datasets
import torch
from command_line import run
from PIL import Image
from raising import raises
from torch import Tensor

import vitdeploy
from vitdeploy import ProcessorOptions, SourceOptions, WeightsFile
from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.errors import CheckpointError, InputError, UsageError, VitDeployError
from vitdeploy.sources.architectures import timm_table
from vitdeploy.sources.layouts import torchvision_layout
from vitdeploy.sources.read import Checkpoint, read_checkpoint
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "weights"
TIMM, TORCHVISION = GOLDEN / "timm.pth.tar", GOLDEN / "torchvision.pth"
NAME = "vit_tiny_patch16_224"
SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8}
TRANSFORM = {"input_size": [3, 32, 32], "fixed_input_size": True, "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The named architectures have the sizes of the golden files."""
    tables = {"sizes": {NAME: SIZES}, "transforms": {NAME: TRANSFORM}}
    monkeypatch.setattr(timm_table, "_table", lambda: tables)
    monkeypatch.setitem(torchvision_layout.MODELS, "vit_b_16", torchvision_layout._Sizes(8, 2, 2, 32, 64))
    transforms = {("vit_b_16", 32, False): torchvision_layout._Transforms("IMAGENET1K_V1", 37)}
    monkeypatch.setattr(torchvision_layout, "TRANSFORMS", transforms)


def content() -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded: dict[str, Any] = torch.load(TIMM, weights_only=True)
    return loaded


def state(entry: str = "state_dict") -> dict[str, Tensor]:
    weights: dict[str, Tensor] = content()[entry]
    return weights


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def logits(checkpoint: Checkpoint, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = checkpoint.model(torch.from_numpy(pixels))["logits"].numpy()
    return found


def assert_same(checkpoint: Checkpoint, golden: str, key: str = "logits") -> None:
    """The pixels of a photograph are those of the library, and so are the logits."""
    expected = np.load(GOLDEN / golden)
    photograph = Image.fromarray(sklearn.datasets.load_sample_images().images[0]).crop((0, 0, 601, 427))
    np.testing.assert_array_equal(checkpoint.processor([photograph]), expected["pixel_values"])
    found = logits(checkpoint, expected["pixel_values"])
    np.testing.assert_allclose(found, expected[key], rtol=0, atol=1e-5 * np.abs(expected[key]).max())


# timm's training output: the arguments in it say everything.


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "logits_ema"),
        ({"arch": NAME}, "logits_ema"),
        ({"arch": f"{NAME}.augreg_in21k", "num_classes": 3}, "logits_ema"),
        ({"entry": "state_dict"}, "logits"),
    ],
)
def test_timm_training_output_is_read_with_its_arguments(options: dict[str, Any], key: str) -> None:
    checkpoint = read_checkpoint(WeightsFile(TIMM, **options))
    assert_same(checkpoint, "timm.npz", key)
    source = checkpoint.source
    assert (source.id, source.architecture) == ("timm", f"{NAME}.augreg_in21k")
    assert source.weights == (FileRecord.of(GOLDEN, "timm.pth.tar"),)
    assert str(source.processor) == f"that of the architecture {NAME}.augreg_in21k"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.safetensors"])
def test_weights_alone_are_read_by_the_name_of_their_architecture(
    tmp_path: Path, tiny: None, name: str, prefix: str
) -> None:
    weights = {prefix + key: tensor for key, tensor in state().items()}
    path = tmp_path / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    checkpoint = read_checkpoint(WeightsFile(path, arch=NAME))
    expected = np.load(GOLDEN / "timm.npz")
    np.testing.assert_allclose(logits(checkpoint, expected["pixel_values"]), expected["logits"], rtol=0, atol=1e-5)
    assert checkpoint.processor.image_mean == (0.5, 0.5, 0.5)
    assert checkpoint.model.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_another_image_size_is_given(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = {NAME: TRANSFORM | {"input_size": [3, 48, 48]}}
    monkeypatch.setattr(timm_table, "_table", lambda: {"sizes": {NAME: SIZES}, "transforms": transforms})
    weights = WeightsFile(saved(tmp_path / "w.pth", state()), arch=NAME)
    with raises(CheckpointError, what="image_size", expected=(48, 48), found=("32x32",)):
        read_checkpoint(weights)
    with raises(CheckpointError, what="image_size"):
        read_checkpoint(weights, image_size=(40, 40))
    assert read_checkpoint(weights, image_size=(32, 32)).model.config.image_size == (32, 32)


def test_a_norm_after_the_mean_tells_the_pooling(tmp_path: Path, tiny: None, caplog: pytest.LogCaptureFixture) -> None:
    """As in fine-tuned MAE models, whose files say nothing of it."""
    folder = GOLDEN.parent / "timm" / "mean_0"
    path = saved(tmp_path / "w.pth", {"model": safetensors.torch.load_file(folder / "model.safetensors")})
    checkpoint = read_checkpoint(WeightsFile(path, arch=NAME))
    assert "global_pool avg" in caplog.text
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(logits(checkpoint, pixels), logits(read_checkpoint(folder), pixels))


def test_weights_without_a_head_give_features(tmp_path: Path, tiny: None) -> None:
    weights = {key: tensor for key, tensor in state().items() if not key.startswith("head.")}
    path = saved(tmp_path / "w.pth", weights)
    assert read_checkpoint(WeightsFile(path, arch=NAME)).model.task is Task.FEATURES
    for options in ({"num_classes": 3}, {"labels": _labels(tmp_path, "a\nb\nc\n")}):
        with pytest.raises(VitDeployError, match="no classifier"):
            read_checkpoint(WeightsFile(path, arch=NAME, **options))
    with pytest.raises(CheckpointError):
        read_checkpoint(WeightsFile(path, arch=NAME), Task.CLASSIFICATION)


# torchvision


@pytest.mark.parametrize("head", ["heads.head", "heads", "heads.0"])
def test_torchvision_is_read_by_its_name(tmp_path: Path, tiny: None, head: str) -> None:
    weights = {key.replace("heads.head", head): tensor for key, tensor in torch.load(TORCHVISION).items()}
    path = saved(tmp_path / "w.pth", weights)
    checkpoint = read_checkpoint(WeightsFile(path, arch="vit_b_16", labels=_labels(tmp_path, "cat\ndog\ncow\n")))
    assert_same(checkpoint, "torchvision.npz")
    assert checkpoint.model.config.labels == ("cat", "dog", "cow")


def test_torchvision_weights_of_an_own_size_need_a_processor(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_layout, "TRANSFORMS", {})
    weights = WeightsFile(TORCHVISION, arch="vit_b_16")
    with raises(CheckpointError, what="image processor"):
        read_checkpoint(weights)
    stated = ProcessorOptions(image_mean=0.5, image_std=0.5, resample="bilinear", size=(32, 32))
    assert read_checkpoint(weights, processor=stated).processor.output_size == (32, 32)


# Refused.


def _labels(folder: Path, text: str, name: str = "names.txt") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("options", "error", "fields"),
    [
        ({"arch": "vit_tiny_patch16_242"}, UsageError, {"what": "arch", "expected": (NAME,)}),
        ({"arch": "resnet50"}, UsageError, {"what": "arch", "expected": ()}),
        ({}, UsageError, {"what": "arch"}),
        ({"arch": "vit_b_16"}, CheckpointError, {"what": "arch", "expected": "timm", "found": "vit_b_16"}),
        ({"arch": NAME, "num_classes": 10}, CheckpointError, {"what": "num_classes", "expected": 10, "found": 3}),
        ({"arch": NAME, "entry": "model"}, CheckpointError, {"what": "weights_entry", "found": "model"}),
        ({"arch": NAME, "labels": "names.txt"}, InputError, {"what": "labels", "expected": 3, "found": 2}),
        ({"arch": NAME, "labels": "none.txt"}, InputError, {"what": "labels", "where": "none.txt"}),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: None, options: dict[str, Any], error: Any, fields: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _labels(tmp_path, "a\nb\n")
    saved(tmp_path / "w.pth", state())
    with raises(error, **fields):
        read_checkpoint(WeightsFile("w.pth", **options))


def test_an_averaged_model_in_another_form_is_not_passed_over(tmp_path: Path, tiny: None) -> None:
    averaged = {"module": state(), "updates": 3}
    path = saved(tmp_path / "w.pth", {"model_ema": averaged, "state_dict_ema": None, "state_dict": state()})
    with raises(CheckpointError, what="weights_entry", found="model_ema", expected=("state_dict",)):
        read_checkpoint(WeightsFile(path, NAME))
    assert read_checkpoint(WeightsFile(path, NAME, entry="state_dict")).source.architecture == NAME


def test_another_architecture_is_refused_with_the_one_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "w.pth", state())
    with raises(CheckpointError, what="arch", found=NAME, expected=(), where=path):
        read_checkpoint(WeightsFile(path, arch=NAME))
    with raises(CheckpointError, what="arch", expected=f"{NAME}.augreg_in21k", found="deit_small_patch16_224"):
        read_checkpoint(WeightsFile(TIMM, arch="deit_small_patch16_224"))
    other = "deit_tiny_patch16_224"
    sizes = {other: SIZES, NAME: SIZES | {"depth": 12}}
    tables = {"sizes": sizes, "transforms": dict.fromkeys(sizes, TRANSFORM)}
    monkeypatch.setattr(timm_table, "_table", lambda: tables)
    with raises(CheckpointError, what="arch", expected=(other,), found=NAME):
        read_checkpoint(WeightsFile(path, arch=NAME))


class Code:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-checkpoint",)


def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = argparse.Namespace(model=NAME, hook=Code())
    for value in (Code(), {"state_dict": state(), "args": arguments}, {"state_dict": state(), "optimizer": Code()}):
        with raises(CheckpointError, where=tmp_path / "w.pth"):
            read_checkpoint(WeightsFile(saved(tmp_path / "w.pth", value), arch=NAME))
    assert not Path("made-by-a-checkpoint").exists()


@pytest.mark.parametrize(
    "value",
    [[1], {}, {"state_dict": {}}, {"state_dict": 5}, {"epoch": 3}, {"state_dict": {"a": 1}}, {1: torch.ones(1)}, 7],
    ids=str,
)
def test_other_content_is_refused(tmp_path: Path, value: object) -> None:
    path = saved(tmp_path / "w.pth", value)
    with raises(CheckpointError, where=path):
        read_checkpoint(WeightsFile(path, arch=NAME))


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    for name, data in (
        ("a.pth", b""),
        ("b.pth", b"x" * 99),
        ("c.safetensors", b"x" * 99),
        ("d.pth", TIMM.read_bytes()[:9999]),
    ):
        (tmp_path / name).write_bytes(data)
        with raises(CheckpointError, where=tmp_path / name):
            read_checkpoint(WeightsFile(tmp_path / name, arch=NAME))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    with raises(CheckpointError, where=tmp_path / "script.pt", found="a TorchScript model"):
        read_checkpoint(WeightsFile(tmp_path / "script.pt", arch=NAME))
    for path in (tmp_path, tmp_path / "none.pth"):
        with raises(CheckpointError, what="weights", where=path):
            read_checkpoint(WeightsFile(path, arch=NAME))


def test_malformed_arguments_are_refused_or_without_effect(tmp_path: Path) -> None:
    good = content()
    for key, value in (("mean", "x"), ("model_kwargs", 3), ("input_size", [3]), ("img_size", "a"), ("gp", "max"),
                       ("crop_pct", 99), ("in_chans", 2), ("model_kwargs", {"depth": "two"}), ("mean", torch.ones(3)),
                       ("model_kwargs", {"patch_size": torch.ones(2)})):  # fmt: skip
        arguments = argparse.Namespace(**vars(good["args"]) | {key: value})
        path = saved(tmp_path / "w.pth", good | {"args": arguments})
        with pytest.raises(VitDeployError):
            read_checkpoint(WeightsFile(path))
    others: tuple[object, ...] = (None, 5, {"model": 3})
    for other in others:
        with raises(UsageError, what="arch"):
            read_checkpoint(WeightsFile(saved(tmp_path / "w.pth", good | {"args": other, "arch": "x"})))


# The command line


def test_the_command_makes_a_bundle_that_records_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    names = _labels(tmp_path, '{"0": "cat", "1": "dog", "2": "cow"}', "names.json")
    result = run("export", "--weights", TIMM, "--labels", names, "--json")
    assert (result.code, "state_dict_ema" in caplog.text) == (0, True), result.err
    assert Path(result.json["bundle"]).name == "timm"
    source = result.json["source"]
    assert source["architecture"] == f"{NAME}.augreg_in21k"
    assert [file["path"] for file in source["weights"]] == ["timm.pth.tar"]
    assert source["processor"]["kind"] == "architecture"
    with vitdeploy.load(tmp_path / "timm") as predictor:
        assert predictor.labels == ("cat", "dog", "cow")
    assert "architecture" in run("inspect", "timm").out
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["id2label"]["1"] == "dog"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (["--arch", NAME], 2),
        (["--weights", TIMM, "--random-weights", "vit-tiny-patch16-32"], 2),
        (["--weights", TIMM, "--revision", "main"], 2),
        (["google/vit-base-patch16-224", "--weights", TIMM], 2),
        (["--weights", "none.pth", "--arch", NAME], 4),
        (["--weights", TIMM, "--arch", "vit_tiny_patch16_242"], 2),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, line: list[object], code: int) -> None:
    result = run("export", *line, "-o", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (code, 1), result.err


def test_a_model_and_weights_exclude_each_other() -> None:
    with raises(UsageError, what="weights"):
        vitdeploy.export("a/b", source=SourceOptions(weights=WeightsFile(TIMM)))


@pytest.mark.skipif(os.name == "nt", reason="pipes are files elsewhere")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pth")
    with raises(CheckpointError, where=tmp_path / "model.pth"):
        read_checkpoint(WeightsFile(tmp_path / "model.pth", arch=NAME))
