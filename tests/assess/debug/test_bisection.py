"""Nodes that must stay in float32: found in the embedded model with a planted fault in one block."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from bundles import sign_again, tiny_model, write_checkpoint_of
from command_line import run
from faults import copy_of
from raising import raises
from schemas import validated
from told import Told

import vitdeploy
from vitdeploy.assess.debug.bisection import bisect
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli.debug import kept_nodes
from vitdeploy.errors import BundleError, CheckFailedError, InputError, UsageError
from vitdeploy.specs import PixelFormat, PixelStage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Weights = dict[str, np.ndarray]

LAYER = "vit.encoder.layer.2."
VALUE, OUTPUT = LAYER + "attention.attention.value", LAYER + "attention.output.dense"


def beyond_half(weights: Weights) -> None:
    """Make the values of one block's attention 2^16 times as large, and what reads them so much smaller."""
    for name, factor in ((f"{VALUE}.weight", 2.0**16), (f"{VALUE}.bias", 2.0**16), (f"{OUTPUT}.weight", 2.0**-16)):
        weights[name] *= np.float32(factor)


def far_from_zero(weights: Weights) -> None:
    """Add 3000 to the values of one block's attention, whose weights sum to 1, and take it away after the projection.

    Between 2048 and 4096 half precision has even numbers alone; nothing comes near its largest, 65504.
    """
    weights[f"{VALUE}.bias"] += np.float32(3000)
    weights[f"{OUTPUT}.bias"] -= (3000 * weights[f"{OUTPUT}.weight"].sum(axis=1, dtype=np.float64)).astype(np.float32)


def checkpoint_with(fault: Callable[[Weights], None], folder: Path) -> Path:
    """The embedded checkpoint with the same function, up to rounding, and other weights."""
    shutil.copytree(default_checkpoint(), folder)
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    fault(weights)
    safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_with(far_from_zero, tmp_path_factory.mktemp("far") / "checkpoint")


@pytest.fixture(scope="module")
def faulty(checkpoint: Path) -> Bundle:
    """The embedded model, far from zero in one block."""
    # What remains of float32 at 3000: 2e-4.
    return vitdeploy.export(
        checkpoint, output=checkpoint.parent / "out", validation=vitdeploy.ValidationOptions(tolerance=1e-3)
    )


def between_value_and_output(bundle: Bundle) -> list[str]:
    """The nodes that work on the values of the faulty attention, from the addition of their bias to the projection."""
    found: list[str] = []
    reached = {"layers.2.attention.v_proj.bias"}
    for node in onnx.load(bundle.path / "onnx/model.onnx").graph.node:
        if "layers.2.attention.o_proj.bias" in node.input:
            return found
        if reached.intersection(node.input):
            found.append(node.output[0])
            reached.update(node.output)
    raise AssertionError("the graph must have both biases")


@pytest.mark.parametrize("way", [bisect, compare_layers])
def test_a_corrupt_graph_that_the_manifest_vouches_for_is_one_line(
    digits: Bundle, tmp_path: Path, way: Callable[[Bundle], Any]
) -> None:
    copy = copy_of(digits, tmp_path / "copy")
    path = copy.path / "onnx/model.onnx"
    graph = onnx.load(path)
    graph.graph.initializer[0].raw_data = b"1"
    for content in (b"no graph" * 9, graph.SerializeToString()):
        path.write_bytes(content)
        with raises(BundleError, where=path, hint="export the bundle again"):
            way(sign_again(copy))


def test_a_sound_model_needs_nothing(digits: Bundle) -> None:
    for precision in ("fp16", "bf16"):
        result = bisect(digits, precision, max_images=4)
        assert (result.kept, result.status, result.runs, result.minimal) == ((), "passed", 1, True)
        assert result.error == result.error_without
        assert 0 < result.error <= result.tolerance
        assert f"{precision} passes with none of its {result.candidates} nodes kept" in result.summary


def test_every_rounding_counts(digits: Bundle) -> None:
    """A unit in the last place of half is 2^-11 and of bfloat16 2^-8: the second loses about eight times as much."""
    half, brain = (bisect(digits, precision, max_images=4).error for precision in ("fp16", "bf16"))
    assert 3 < brain / half < 20


def test_values_beyond_the_range(tmp_path: Path) -> None:
    bundle = vitdeploy.export(checkpoint_with(beyond_half, tmp_path / "checkpoint"), output=tmp_path / "out")
    steps: list[str] = []
    result = bisect(bundle, images=held_out_images(), max_images=4, progress=Told(steps.append))
    assert (result.status, result.images, result.synthetic, result.minimal) == ("passed", 4, False, True)
    assert result.error_without == math.inf
    assert result.error <= result.tolerance == 1e-2
    # The product before them stays float32 in any case: its weights are near the largest half.
    assert [node.name for node in result.kept] == between_value_and_output(bundle)
    assert [node.op_type for node in result.kept] == [
        "Add", "Reshape", "Transpose", "MatMul", "Transpose", "Reshape", "MatMul"
    ]  # fmt: skip
    assert ({node.part for node in result.kept}, len(steps)) == ({"layers.2"}, 1 + result.runs)
    assert steps[0] == "running the reference on 4 images"
    assert steps[1] == f"run 1: 0 of {result.candidates} nodes in float32, difference inf"
    assert bisect(bundle, "bf16", max_images=4).kept == ()  # which has the range of float32


def test_what_is_found_is_what_an_export_needs(faulty: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """Nothing comes near the largest half, so that no observation helps; the list does."""
    with raises(CheckFailedError, what="logits", where="onnx-fp16", expected=0.01):
        vitdeploy.export(checkpoint, precision="fp16", output=tmp_path / "out")
    code, printed, _ = run("debug", "bisect", faulty.path, "--json")
    result = validated("compare", printed)
    assert (code, result["status"], result["precision"]) == (0, "passed", "fp16")
    assert result["error"] <= result["tolerance"] < result["error_without"]
    assert {node["part"] for node in result["kept"]} == {"layers.2"}
    assert {node["op_type"] for node in result["kept"]} >= {"MatMul", "Add"}
    (tmp_path / "found.json").write_text(printed)
    options = ("--model", checkpoint, "--fp16", "--output", tmp_path / "out")
    exported = run("export", *options, "--keep-fp32-from", tmp_path / "found.json", "--json")
    assert exported.code == 0, exported.err
    (artifact,) = exported.json["artifacts"]
    assert sorted(artifact["options"]["float32_nodes"]) == sorted(node["name"] for node in result["kept"])
    assert vitdeploy.compare(tmp_path / "out").status == "passed"


def test_a_tolerance_that_not_even_float32_meets(digits: Bundle) -> None:
    result = bisect(digits, tolerance=0, max_images=2)
    assert (result.status, result.kept, result.runs, result.minimal) == ("failed", (), 2, False)
    assert 0 < result.error < 1e-5
    printed = run("debug", "bisect", digits.path, "--tolerance", 0)
    assert printed.code == 1
    assert "even float32 differs from the reference by" in printed.out
    assert "the fault is not fp16" in printed.out


def test_the_table(faulty: Bundle) -> None:
    """Twelve runs are too few to come down to nodes: what is printed passes, and says that it is not the smallest."""
    options = ("--precision", "fp16", "--max-runs", 12, "--images", held_out_images())
    printed = run("debug", "bisect", faulty.path, *options)
    assert printed.code == 0, printed.err
    first, second, third, header, *rows, last = printed.out.splitlines()
    assert first == f"{faulty.path} in fp16 against the reference, 16 images: passed"
    assert second.endswith("nodes kept in float32, the best of 12 runs; fewer may do")
    assert third.endswith("tolerance 0.01; 12 runs")
    assert re.split(" {2,}", header) == ["layer, as --keep-fp32 takes it", "operator", "node"]
    assert second.startswith(f"fp16 passes with {len(rows)} of its ")
    assert ({row.split(",")[0] for row in rows}, last) == ({"block 2"}, "Files left out: none")


def test_a_graph_of_bytes_with_several_half_outputs(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "graph": vitdeploy.GraphOptions(input="uint8", io_dtype="float16", outputs=["logits", "hidden_states"])
    }
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    bundle = vitdeploy.export(checkpoint, output=tmp_path / "out", **options)
    result = bisect(bundle, max_images=3, batch_size=2)
    assert (result.status, result.kept) == ("passed", ())
    stricter = bisect(bundle, tolerance=result.error / 2, max_images=3, max_runs=12)
    assert (stricter.status, stricter.minimal, stricter.runs) == ("passed", False, 12)
    assert stricter.kept


@pytest.mark.parametrize(
    ("name", "value"),
    [("precision", "fp32"), ("batch_size", 0), ("max_images", 0), ("max_runs", 1)],
)
def test_arguments(digits: Bundle, name: str, value: Any) -> None:
    with raises(UsageError, what=name, found=value):
        bisect(digits, **{name: value})


@pytest.mark.parametrize(
    "change",
    [{"options": {"optimize": "onnxruntime 1.20.0"}}, {"pixels": PixelFormat(PixelStage.DECODED, "nhwc", "uint8")}],
    ids=["optimized", "resizes"],
)
def test_a_graph_that_is_not_portable(digits: Bundle, change: dict[str, Any]) -> None:
    artifacts = tuple(dataclasses.replace(artifact, **change) for artifact in digits.manifest.artifacts)
    bundle = Bundle(digits.path, dataclasses.replace(digits.manifest, artifacts=artifacts))
    with raises(UsageError, what="onnx-fp32", where=str(digits.path)):
        bisect(bundle)


@pytest.mark.parametrize("content", ["", "[]", '{"kept": [1]}', '{"kept": [{"name": 1}]}', '{"kept": null}'])
def test_a_file_without_a_list(content: str, tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text(content)
    with raises(InputError, what="kept", where=str(tmp_path / "found.json")):
        kept_nodes(str(tmp_path / "found.json"))
    with raises(InputError, where=str(tmp_path / "none.json")):
        kept_nodes(str(tmp_path / "none.json"))


def test_names_to_keep(tmp_path: Path) -> None:
    with raises(UsageError, what="keep_fp32"):
        vitdeploy.export(
            default_checkpoint(),
            precision="fp16",
            output=tmp_path / "out",
            graph=vitdeploy.GraphOptions(keep_fp32=["none"]),
        )
    assert not (tmp_path / "out").exists()
