"""Which artifacts are tried on a machine, and how they are made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from vitdeploy.assess.environment.cpu_features import FastPrecision
from vitdeploy.exporters import EXPORTERS
from vitdeploy.exporting.graph_options import GraphOptions
from vitdeploy.specs import AxisRange, PixelFormat, PixelStage, TensorSpec
from vitdeploy.tuning import candidates
from vitdeploy.tuning.candidates import Recipe, bounded, graph_like, recipes

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle

FAST = (FastPrecision("int8", True, ("VNNI",)), FastPrecision("bf16", True, ("AMX",)))


def test_an_artifact_of_the_bundle_stands_for_its_name(digits: Bundle) -> None:
    chosen, left_out = recipes(digits.manifest, FAST)
    names = [recipe.artifact for recipe in (*chosen, *left_out)]
    assert "onnx-fp32" not in names
    assert names.count("onnx-int8") == 2
    int8 = dataclasses.replace(digits.manifest.artifacts[0], precision="int8")
    chosen, left_out = recipes(dataclasses.replace(digits.manifest, artifacts=(int8,)), FAST)
    assert "onnx-int8" not in [recipe.artifact for recipe in (*chosen, *left_out)]
    assert [recipe for recipe in chosen if recipe.artifact == "onnx-fp32"]


def test_a_precision_that_the_cpu_lacks_is_left_out_with_the_reason(digits: Bundle) -> None:
    slow = (FastPrecision("int8", False), FastPrecision("bf16", False))
    chosen, left_out = recipes(digits.manifest, slow)
    assert chosen == []
    assert all("no VNNI" in left_out[recipe] for recipe in left_out if recipe.artifact == "onnx-int8")
    unknown = (FastPrecision("int8", None), FastPrecision("bf16", None))
    assert [recipe.artifact for recipe in recipes(digits.manifest, unknown)[0]].count("onnx-int8") == 2


def test_a_format_without_an_exporter_is_left_out_with_the_reason(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "EXPORTERS", {name: row for name, row in EXPORTERS.items() if name != "onnx"})
    chosen, left_out = recipes(digits.manifest, FAST)
    assert not [recipe for recipe in chosen if recipe.format == "onnx"]
    assert all("does not export" in reason for recipe, reason in left_out.items() if recipe.format == "onnx")


def test_static_int8_that_missed_the_bound_is_tried_within_it() -> None:
    static, dynamic = (Recipe("onnx", "int8", scheme=scheme) for scheme in ("static", "dynamic"))
    (again,) = bounded([static, dynamic, Recipe("onnx", "fp32")])
    assert again == dataclasses.replace(static, bounded=True)
    assert bounded([again]) == []
    assert len({static.name, dynamic.name, again.name}) == 3


def test_a_new_artifact_has_the_inputs_and_outputs_of_the_bundle(digits: Bundle) -> None:
    artifact = digits.manifest.artifacts[0]
    assert graph_like([]) == GraphOptions()
    assert graph_like([artifact]).outputs == ("logits",)
    of_bytes = dataclasses.replace(artifact, pixels=PixelFormat(PixelStage.RESIZED, "nhwc", "uint8"))
    assert (graph_like([of_bytes]).input, graph_like([of_bytes]).layout) == ("uint8", "nhwc")
    decoded = dataclasses.replace(artifact, pixels=PixelFormat(PixelStage.DECODED, "nhwc", "uint8"))
    assert graph_like([decoded]).embed_resize
    half = dataclasses.replace(artifact, pixels=PixelFormat(dtype="float16"))
    assert graph_like([half]).io_dtype == "float16"
    free = dataclasses.replace(artifact, inputs=(TensorSpec("pixel_values", "float32", ("batch", 3, "h", "w")),))
    assert graph_like([free]).dynamic_image_size
    limited = dataclasses.replace(free, axes={"h": AxisRange(16, 32, 64), "w": AxisRange(8, 32, 48)})
    assert graph_like([limited]).image_size == ((16, 8), (32, 32), (64, 48))
