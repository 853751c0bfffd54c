"""Layer comparison: a fault is attributed to its layer."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from bundles import export_all, sign_again
from command_line import run
from families import HEADS, ONE_A_FAMILY, random_config
from faults import copy_of, perturb_layer
from raising import raises
from schemas import validated

import vitdeploy
from vitdeploy.assess.debug import torchscript_split
from vitdeploy.assess.debug.layers import LAYER_TOLERANCES, compare_layers
from vitdeploy.assess.inspection.torchscript_reader import hidden_states
from vitdeploy.assets import default_checkpoint
from vitdeploy.errors import UsageError
from vitdeploy.exporters.naming.layer_names import readable_name

if TYPE_CHECKING:
    from pathlib import Path

    from families import Head
    from faults import Part

    from conftest import WriteCheckpoint
    from vitdeploy.assess.debug.layer_results import ArtifactLayers
    from vitdeploy.bundle.bundle import Bundle


@pytest.fixture(scope="module")
def embedded(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model in two formats and two precisions."""
    folder = copy_of(digits, tmp_path_factory.mktemp("embedded") / "bundle").path
    for to, precision in (("onnx", "fp16"), ("torchscript", "fp32"), ("torchscript", "fp16")):
        bundle = vitdeploy.export(default_checkpoint(), to=to, precision=precision, output=folder)
    return bundle


def by_artifact(bundle: Bundle, **options: Any) -> dict[str, ArtifactLayers]:
    return {result.artifact: result for result in compare_layers(bundle, **options).results}


def beyond(result: ArtifactLayers, tolerance: float) -> list[str]:
    return [part.part for part in result.parts if not part.worst.within(tolerance)]


def test_good_artifacts_pass_in_every_part(embedded: Bundle) -> None:
    comparison = compare_layers(embedded)
    assert (comparison.status, comparison.against) == ("passed", "reference")
    for result in comparison.results:
        parts = ["embeddings", *(f"layers.{index}" for index in range(5)), "head"]
        assert [part.part for part in result.parts] == parts
        # a half type rounds what each layer gives, to 2**-11 = 4.9e-4 (torch rounds inside of a layer, too); it does
        # not add up from layer to layer
        limit = 1e-5 if result.artifact.endswith("fp32") else 1.5e-3
        assert all(part.worst.max_relative < limit for part in result.parts)
        if result.artifact != "torchscript-fp32":  # which calls the reference's own operators
            assert any(part.worst.max_relative > 0 for part in result.parts)
    assert {result.tolerance for result in comparison.results} == {1e-4, LAYER_TOLERANCES["fp16"]}


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("layer", range(5))
def test_weights_that_are_off_by_1_percent_are_found_in_their_layer(
    embedded: Bundle, tmp_path: Path, layer: int, part: Part
) -> None:
    spoilt = copy_of(embedded, tmp_path / "copy")
    for precision in ("fp32", "fp16"):
        spoilt = perturb_layer(spoilt, layer, part=part, precision=precision)
    for name, found in by_artifact(spoilt, backends=["onnxruntime"]).items():
        assert (found.status, found.first) == ("failed", f"layers.{layer}"), name
        # the others are given what the reference's are, and show nothing of it
        assert beyond(found, 1e-5 if name == "onnx-fp32" else 1.5e-3) == [f"layers.{layer}"]


@pytest.mark.parametrize("layer", [0, 3])
def test_a_fault_of_a_torchscript_artifact_is_found_in_its_layer(embedded: Bundle, tmp_path: Path, layer: int) -> None:
    checkpoint = shutil.copytree(default_checkpoint(), tmp_path / "checkpoint")
    weights = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    generator = np.random.default_rng(0)
    for name, value in weights.items():
        if f".{layer}." in name and value.ndim == 2:
            weights[name] = (value * (1 + 0.01 * generator.standard_normal(value.shape))).astype(value.dtype)
    safetensors.numpy.save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    spoilt = copy_of(embedded, tmp_path / "copy")
    for precision in ("fp32", "fp16"):
        other = vitdeploy.export(checkpoint, to="torchscript", precision=precision, output=tmp_path / "other")
        path = other.artifact("torchscript", precision).files[0].path
        shutil.copy(other.path / path, spoilt.path / path)
    for name, found in by_artifact(sign_again(spoilt), backends=["torchscript"]).items():
        assert beyond(found, found.tolerance) == [f"layers.{layer}"], name


def test_a_fault_of_attention_pooling_is_found_in_the_head(write_checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    """The pool's query, which is a constant of the graph, with its heads in another order."""
    head = next(head for head in HEADS if head.name == "SiglipVisionModel")
    checkpoint = write_checkpoint(head, random_config(head, 1))
    bundle = vitdeploy.export(checkpoint.folder, output=tmp_path / "out")
    assert compare_layers(bundle).status == "passed"
    path = bundle.path / bundle.manifest.artifacts[0].files[0].path
    model = onnx.load(path)
    products = {node.input[0] for node in model.graph.node if node.op_type == "MatMul"}
    (query,) = (weight for weight in model.graph.initializer if weight.name in products)
    other = onnx.numpy_helper.to_array(query)[:, ::-1]
    query.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(other), query.name))
    onnx.save(model, path)
    (found,) = compare_layers(sign_again(bundle)).results
    assert (found.status, found.first) == ("failed", "head")
    failed = [difference.output for difference in found.parts[-1].differences if not difference.within(found.tolerance)]
    assert failed == ["pooler_output"]


def test_a_channel_of_large_values_hides_no_fault(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(default_checkpoint(), tmp_path / "checkpoint")
    weights = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    weights["vit.encoder.layer.0.output.dense.bias"][3] += 300
    safetensors.numpy.save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    bundle = vitdeploy.export(
        checkpoint, precision="fp16", output=tmp_path / "out", validation=vitdeploy.ValidationOptions(tolerance=0.2)
    )
    assert compare_layers(bundle).status == "passed"
    spoilt = perturb_layer(copy_of(bundle, tmp_path / "copy"), 2, part="attention", precision="fp16")
    (found,) = compare_layers(spoilt).results
    assert beyond(found, found.tolerance) == ["layers.2"]


def test_an_artifact_that_gives_hidden_states(tmp_path: Path) -> None:
    outputs = ["logits", "hidden_states", "attentions.1"]
    bundle = export_all(default_checkpoint(), graph=vitdeploy.GraphOptions(outputs=outputs), output=tmp_path / "out")
    comparison = compare_layers(bundle)
    assert comparison.status == "passed"
    for result in comparison.results:
        assert [difference.output for difference in result.parts[-1].differences] == ["logits"]


def test_layers_that_cannot_be_told_apart_are_skipped(embedded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchscript_split, "hidden_states", lambda graph: hidden_states(graph)[:3])
    found = by_artifact(embedded, backends=["torchscript:fp32"])["torchscript-fp32"]
    assert found.status == "skipped"
    assert "2 layers of torchscript-fp32 can be told apart, the reference has 5" in str(found)


@pytest.mark.parametrize("seed", [1])
def test_the_first_state_of_a_model_with_shared_biases(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, seed: int
) -> None:
    """BEiT's, which every layer adds to its attention."""
    head = next(head for head in HEADS if head.family == "beit")
    checkpoint = write_checkpoint(head, random_config(head, seed) | {"use_shared_relative_position_bias": True})
    bundle = vitdeploy.export(
        checkpoint.folder, output=tmp_path / "out", graph=vitdeploy.GraphOptions(dynamic_image_size=True)
    )
    assert compare_layers(bundle).status == "passed"


def test_an_artifact_that_resizes_images_itself(tmp_path: Path) -> None:
    bundle = vitdeploy.export(
        default_checkpoint(), output=tmp_path / "out", graph=vitdeploy.GraphOptions(embed_resize=True)
    )
    comparison = compare_layers(bundle)
    assert (comparison.status, len(comparison.results[0].parts)) == ("passed", 7)


@pytest.mark.parametrize("head", ONE_A_FAMILY, ids=str)
def test_the_torchscript_graph_of_every_family_is_cut(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head
) -> None:
    checkpoint = write_checkpoint(head, random_config(head, 0))
    bundle = vitdeploy.export(checkpoint.folder, to="torchscript", output=tmp_path / "out")
    (result,) = compare_layers(bundle).results
    assert result.status == "passed", result
    assert len(result.parts) == checkpoint.config.num_hidden_layers + 2


def test_artifacts_against_each_other(embedded: Bundle, tmp_path: Path) -> None:
    spoilt = perturb_layer(copy_of(embedded, tmp_path / "copy"), 2)
    results = by_artifact(spoilt, against="onnxruntime:fp32")
    assert list(results) == ["onnx-fp16", "torchscript-fp16", "torchscript-fp32"]
    assert {result.first for result in results.values()} == {"layers.2"}
    results = by_artifact(spoilt, backends=["torchscript"], against="torchscript:fp16")
    assert {name: result.status for name, result in results.items()} == {"torchscript-fp32": "passed"}
    assert results["torchscript-fp32"].tolerance == LAYER_TOLERANCES["fp16"]  # the larger of the two
    with raises(UsageError, what="against", found="onnxruntime"):
        compare_layers(spoilt, against="onnxruntime")
    with raises(UsageError, what="backends", found=["torch", "onnxruntime:fp16"]):
        compare_layers(spoilt, backends=["torch", "onnxruntime:fp16"], against="onnxruntime:fp16")


def test_the_command_names_the_layer_and_exits_with_1(embedded: Bundle, tmp_path: Path) -> None:
    spoilt = perturb_layer(copy_of(embedded, tmp_path / "copy"), 3)
    page, summary, suite = (tmp_path / name for name in ("page.html", "summary.md", "suite.xml"))
    command = ("debug", "layers", spoilt.path, "--backend", "onnxruntime")
    code, out, _ = run(*command, "--json", "--html", page, "--markdown", summary, "--junit", suite)
    assert code == 1
    firsts = {item["artifact"]: item["first"] for item in validated("compare", out)["results"]}
    assert firsts == {"onnx-fp16": None, "onnx-fp32": "layers.3"}
    assert ">block 3 (first)<" in page.read_text(encoding="utf-8")
    assert "the first part that diverges" in summary.read_text(encoding="utf-8").splitlines()[10]
    assert b'tests="14" failures="1"' in suite.read_bytes()
    shown = run(*command, "--against", "torchscript:fp32")
    assert shown.code == 1
    assert f"first that diverges  {readable_name('layers.3')}  " in shown.out
    assert "against torchscript-fp32" in shown.out


@pytest.mark.parametrize("name", ["layers", "bisect", "sensitivity"])
def test_flags_of_compare_answer_with_the_command(name: str) -> None:
    for args, bundle in (
        (("my vit", f"--{name}", "--max-images", "3"), "'my vit'"),
        ((f"--{name}=1", "--device", "cuda", "vit"), "BUNDLE"),
    ):
        done = run("compare", *args)
        (line,) = done.err.splitlines()
        assert (done.code, line.endswith(f"; use: vitdeploy debug {name} {bundle}")) == (2, True)


def test_what_cannot_be_cut_is_skipped_and_no_pass(tmp_path: Path) -> None:
    bundle = vitdeploy.export(
        default_checkpoint(), output=tmp_path / "fused", graph=vitdeploy.GraphOptions(optimize="onnxruntime")
    )
    comparison = compare_layers(bundle)
    (result,) = comparison.results
    assert comparison.status == "skipped"
    assert "export it without --optimize" in (result.skipped or "")


def test_no_images_are_refused(embedded: Bundle) -> None:
    with raises(UsageError, what="images", found=[]):
        compare_layers(embedded, images=[])
