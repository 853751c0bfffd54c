"""Names of timm and torchvision lead to the checkpoint on the Hub; files of other formats to the command to type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import run
from environments import environment
from faults import copy_of
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import CheckpointError
from vitdeploy.sources.hub import local_path
from vitdeploy.sources.other_names import _DEFAULTS, check_other_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch16_224", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("vit_base_patch16_224.augreg_in21k", "timm/vit_base_patch16_224.augreg_in21k"),
        ("deit3_small_patch16_384", "timm/deit3_small_patch16_384.fb_in1k"),
        ("vit_small_patch14_reg4_dinov2", "timm/vit_small_patch14_reg4_dinov2.lvd142m"),
        ("vit_base_patch16_plus_240", None),  # which timm has no weights of
        ("vit_b_16", "google/vit-base-patch16-224"),
    ],
)
def test_a_name_of_another_library_is_answered_with_ours(name: str, expected: str | None) -> None:
    with raises(CheckpointError, what="model", found=name, expected=expected) as caught:
        local_path(name)
    assert (expected or f"timm/{name}.TAG") in str(caught.value.hint)


@pytest.mark.parametrize(
    "name", ["vit", "gpt2", "google/vit-base-patch16-224", "timm/vit_base_patch16_224.augreg_in21k", "my_vit_16",
             "vit-base-patch16-224", "vit_base"],
)  # fmt: skip
def test_other_names_are_hub_ids(name: str) -> None:
    check_other_names(name)
    assert local_path(name) is None


def test_the_tags_are_those_that_timm_takes() -> None:
    (models,) = environment("timm").parents[1].glob("lib/python*/site-packages/timm/models")
    first: dict[str, str] = {}
    for file in ("vision_transformer.py", "deit.py", "beit.py", "eva.py"):
        text = (models / file).read_text(encoding="utf-8")
        for name, tag in re.findall(r"^    '([a-z0-9_]+)\.([a-z0-9_]+)': ?_(?:pe_)?cfg", text, re.MULTILINE):
            first.setdefault(name, tag)
    assert {name: first.get(name) for name in _DEFAULTS} == _DEFAULTS


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("a.pth", "save_pretrained"), ("a.pt", "timm.models.save_for_hf"), ("a.onnx", "that it was made from"),
        ("a.engine", "that it was made from"), ("a.h5", "from_tf=True"), ("a.keras", "from_tf=True"),
        ("a.tflite", "that it was made from"),
    ],
)  # fmt: skip
def test_a_file_of_another_format_is_answered_with_what_to_do(tmp_path: Path, file: str, remedy: str) -> None:
    (tmp_path / file).touch()
    exported = run("export", tmp_path / file, "-o", tmp_path / "out")
    assert (exported.code, remedy in exported.err, exported.err.count("\n")) == (4, True, 1)
    opened = run("predict", tmp_path / file, "x.jpg")
    assert (opened.code, "export the checkpoint that the file was made from" in opened.err) == (4, True)


def test_an_artifact_of_a_bundle_leads_to_the_bundle(digits: Bundle, tmp_path: Path) -> None:
    bundle = copy_of(digits, tmp_path / "bundle")
    exported = run("export", bundle.path / "onnx" / "model.onnx", "-o", tmp_path / "out")
    assert (exported.code, exported.err.endswith(f"name the bundle: vitdeploy export {bundle.path}\n")) == (4, True)
