"""Comparison of artifacts with the reference: passed, failed or skipped; an artifact that did not run never passes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import sign_again, tiny_model, write_bundle, write_checkpoint_of
from command_line import run
from raising import raises
from schemas import validated
from told import Told

import vitdeploy
from vitdeploy.assess.compare.compare import compare
from vitdeploy.assess.compare.results import BackendComparison, Comparison
from vitdeploy.assess.data.folder_listing import LeftOut
from vitdeploy.assess.data.images import feeds, synthetic_images
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, Difference
from vitdeploy.assess.runs import open_runtimes
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.reference import Batches, run_batches, run_reference
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, Artifact
from vitdeploy.errors import BundleError, DeviceError, InputError, UsageError
from vitdeploy.runtimes import BACKENDS, open_runtime
from vitdeploy.specs import Task

GOOD = Difference("logits", 1, True, 1e-6, 1e-6, 1e-6, 1.0, 1.0, 1e-6, 1.0, 120.0)
BAD = dataclasses.replace(GOOD, max_relative=1.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"), Task.MASKED_IMAGE_MODELING)


@pytest.fixture
def own_copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle that the test may spoil."""
    return Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy"))


def with_artifacts(bundle: Bundle, *artifacts: Artifact) -> Bundle:
    manifest = dataclasses.replace(bundle.manifest, artifacts=artifacts)
    (bundle.path / MANIFEST).write_text(json.dumps(manifest.to_dict()), encoding="utf-8")
    return Bundle.open(bundle.path)


def exit_code(bundle: Bundle) -> object:
    result = run("compare", bundle.path, "--json")
    assert validated("compare", result.out)["status"] in ("passed", "failed", "skipped")
    return result.code


def test_a_good_bundle_passes(bundle: Bundle) -> None:
    steps: list[str] = []
    comparison = compare(bundle, progress=Told(steps.append))
    (result,) = comparison.results
    assert (comparison.status, comparison.images, comparison.synthetic) == ("passed", 16, True)
    assert (result.artifact, result.backend, result.status) == ("onnx-fp32", "onnxruntime", "passed")
    assert result.tolerance == DEFAULT_TOLERANCES["fp32"]
    assert [(item.output, item.count) for item in result.differences] == [("reconstruction", 16)]
    assert result.details["providers"] == ["CPUExecutionProvider"]
    assert steps == ["running the reference on 16 images", "running onnx-fp32 on onnxruntime"]
    assert json.loads(json.dumps(comparison.to_dict()))["results"][0]["status"] == "passed"
    assert exit_code(bundle) == 0


def test_a_tolerance_of_zero_fails_and_the_one_that_it_names_passes(bundle: Bundle) -> None:
    failed = compare(bundle, tolerance=0, batch_size=16)
    assert failed.status == "failed"
    required = failed.results[0].differences[0].required_tolerance
    assert 0 < required < 1e-5
    assert compare(bundle, tolerance=required, batch_size=16).status == "passed"


def test_given_images_are_what_is_compared(bundle: Bundle, tmp_path: Path) -> None:
    images = synthetic_images(3, 40, 50)
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    from_folder, from_list = compare(bundle, images=tmp_path), compare(str(bundle.path), images=images)
    assert (from_folder.images, from_folder.synthetic, from_folder.status) == (3, False, "passed")
    assert (from_folder.left_out, dataclasses.replace(from_folder, left_out=None)) == (LeftOut(), from_list)


def test_one_wrong_weight_fails(own_copy: Bundle) -> None:
    """The checksum is right, so that nothing but the comparison can find it."""
    path = own_copy.path / "onnx" / "model.onnx"
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "layers.0.layernorm_before.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[5] += 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    with raises(BundleError, where=str(path)):
        compare(own_copy)
    spoiled = sign_again(own_copy)
    comparison = compare(spoiled)
    assert comparison.status == "failed"
    assert comparison.results[0].differences[0].max_relative > 10 * DEFAULT_TOLERANCES["fp32"]
    assert exit_code(spoiled) == 1


def test_a_backend_that_is_not_installed_is_skipped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    row = BACKENDS["onnxruntime"]._replace(target="an_engine_that_is_not_there:Runtime")
    monkeypatch.setitem(BACKENDS, "onnxruntime", row)
    comparison = compare(bundle)
    (result,) = comparison.results
    assert comparison.status == result.status == "skipped"
    assert result.skipped is not None
    assert "pip install 'vitdeploy[onnxruntime]'" in result.skipped
    assert not result.differences
    assert exit_code(bundle) == 3


def test_one_backend_that_is_skipped_beside_one_that_passes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    row = BACKENDS["onnxruntime"]._replace(target="an_engine_that_is_not_there:Runtime")
    monkeypatch.setitem(BACKENDS, "another", row)
    comparison = compare(bundle)
    assert [(item.backend, item.status) for item in comparison.results] == [
        ("onnxruntime", "passed"),
        ("another", "skipped"),
    ]
    assert (comparison.status, exit_code(bundle)) == ("skipped", 3)


def test_an_artifact_that_nothing_here_runs_is_skipped(own_copy: Bundle) -> None:
    (artifact,) = own_copy.manifest.artifacts
    changed = with_artifacts(own_copy, dataclasses.replace(artifact, format="tomorrow"))
    comparison = compare(changed)
    (result,) = comparison.results
    assert (result.artifact, result.backend, result.status) == ("tomorrow-fp32", "", "skipped")
    assert (comparison.status, exit_code(changed)) == ("skipped", 3)


def test_a_precision_without_a_tolerance_of_its_own_needs_one(own_copy: Bundle) -> None:
    (artifact,) = own_copy.manifest.artifacts
    changed = with_artifacts(own_copy, dataclasses.replace(artifact, precision="fp7"))
    with raises(UsageError, what="tolerance"):
        compare(changed)
    assert compare(changed, tolerance=1e-4).status == "passed"


def test_what_cannot_be_compared(own_copy: Bundle, tmp_path: Path) -> None:
    with raises(UsageError, what="batch_size", found=0):
        compare(own_copy, batch_size=0)
    with raises(InputError, what="images", where=tmp_path / "copy" / "onnx"):
        compare(own_copy, images=tmp_path / "copy" / "onnx")
    with raises(UsageError, what="images"):
        compare(own_copy, images=[])
    with raises(BundleError, where=str(tmp_path / "absent")):
        compare(tmp_path / "absent")
    with raises(UsageError, where=str(own_copy.path)):
        compare(with_artifacts(own_copy))


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ((), "skipped"),
        (((GOOD,), None), "passed"),
        (((GOOD, BAD), None), "failed"),
        (((), None), "failed"),
        (((), "no engine"), "skipped"),
    ],
)
def test_a_status_is_passed_only_where_something_ran_and_all_passed(
    results: tuple[tuple[Difference, ...], str | None] | tuple[()], status: str
) -> None:
    made = []
    if results:
        differences, skipped = results
        made.append(BackendComparison("onnx-fp32", "onnxruntime", 1e-4, differences, skipped=skipped))
        assert made[0].status == status
    assert Comparison("bundle", 1, True, tuple(made)).status == status


@pytest.mark.parametrize("order", [("passed", "skipped"), ("skipped", "passed"), ("failed", "skipped", "passed")])
def test_the_worst_status_is_that_of_all(order: tuple[str, ...]) -> None:
    made = {
        "passed": BackendComparison("a", "b", 1e-4, (GOOD,)),
        "failed": BackendComparison("a", "b", 1e-4, (BAD,)),
        "skipped": BackendComparison("a", "b", 1e-4, skipped="why"),
    }
    comparison = Comparison("bundle", 1, True, tuple(made[status] for status in order))
    assert comparison.status == ("failed" if "failed" in order else "skipped")


def test_batches_are_joined_in_their_order(bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).standard_normal((10, 3, 32, 32), np.float32)
    with open_runtime(bundle, "onnxruntime") as runtime:
        whole = runtime.run(feeds(runtime.inputs, pixels[:4]))["reconstruction"]
        outputs = run_batches(runtime, [feeds(runtime.inputs, part) for part in (pixels[:4], pixels[4:10])])
    assert outputs["reconstruction"].shape == (10, 3, 32, 32)
    np.testing.assert_array_equal(outputs["reconstruction"][:4], whole)


def test_every_output_of_an_artifact_is_compared(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    outputs = ["logits", "attentions", "hidden_states.1"]
    comparison = compare(
        vitdeploy.export(checkpoint, output=tmp_path / "bundle", graph=vitdeploy.GraphOptions(outputs=outputs))
    )
    names = [difference.output for difference in comparison.results[0].differences]
    assert names == ["logits", "attentions.0", "attentions.1", "hidden_states.1"]
    assert comparison.status == "passed"


def test_images_of_sizes_of_their_own(tmp_path: Path) -> None:
    """A processor without a crop, as for dense features: one image compares, two of different shapes cannot."""
    checkpoint = write_checkpoint_of(tiny_model(Task.FEATURES), tmp_path / "checkpoint")
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "do_center_crop": False}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    bundle = vitdeploy.export(
        checkpoint, output=tmp_path / "bundle", graph=vitdeploy.GraphOptions(dynamic_image_size=True)
    )
    wide = synthetic_images(1, 30, 60)[0]
    assert (compare(bundle).status, compare(bundle, images=[wide, wide]).status) == ("passed", "passed")
    with raises(UsageError, what="last_hidden_state"):
        compare(bundle, images=[wide, synthetic_images(1, 80, 80)[0]])


def test_on_a_gpu_that_torch_cannot_use_the_reference_runs_on_the_cpu(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside an engine; where there is no GPU at all, nothing runs."""
    on_gpu, on_cpu = OpenRuntimes(digits, "cuda"), OpenRuntimes(digits)
    batches = Batches(on_cpu.processor, synthetic_images(2, 32, 32), 2)
    with raises(DeviceError, what="device", found="cuda"):
        run_reference(on_gpu, batches)
    monkeypatch.setattr(open_runtimes, "find_gpus", lambda: [None])
    found, _ = run_reference(on_gpu, batches)
    expected, _ = run_reference(on_cpu, batches)
    np.testing.assert_array_equal(found["logits"], expected["logits"])
