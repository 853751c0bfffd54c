"""Each layer of an artifact against the reference's: a fault is named by the layer that has it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import vitdeploy
from bundles import write_bundle
from faults import perturb_layer
from schemas import validated
from vitdeploy.assess.layers import compare_layers
from vitdeploy.assets import default_checkpoint
from vitdeploy.bundle import Bundle
from vitdeploy.cli.compare import compare as compare_command
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from faults import Part


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("embedded") / "bundle"
    vitdeploy.export(default_checkpoint(), to="onnx", output=folder)
    return vitdeploy.export(default_checkpoint(), to="onnx", precision="fp16", output=folder)


def test_good_artifacts_pass_in_every_part(embedded: Bundle) -> None:
    comparison = compare_layers(embedded)
    assert comparison.status == "passed"
    for result in comparison.results:
        parts = ["embeddings", *(f"layers.{index}" for index in range(5)), "head"]
        assert [part.part for part in result.parts] == parts
        # fp16 rounds what each layer gives once more, to 2**-11 = 4.9e-4; it does not add up from layer to layer
        limit = 1e-5 if result.artifact == "onnx-fp32" else 2e-3
        assert all(0 < part.worst.max_relative < limit for part in result.parts)


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("layer", range(5))
def test_weights_that_are_off_by_1_percent_are_found_in_their_layer(
    embedded: Bundle, tmp_path: Path, layer: int, part: Part
) -> None:
    spoilt = perturb_layer(Bundle.open(shutil.copytree(embedded.path, tmp_path / "copy")), layer, part=part)
    by_artifact = {result.artifact: result for result in compare_layers(spoilt).results}
    found = by_artifact["onnx-fp32"]
    assert (found.status, found.first) == ("failed", f"layers.{layer}")
    # the others are given what the reference's are, and show nothing of it
    assert [each.part for each in found.parts if not each.worst.within(1e-5)] == [f"layers.{layer}"]
    assert by_artifact["onnx-fp16"].status == "passed"


def test_the_command_names_the_layer_and_exits_with_1(embedded: Bundle, tmp_path: Path) -> None:
    spoilt = perturb_layer(Bundle.open(shutil.copytree(embedded.path, tmp_path / "copy")), 3)
    page, summary, suite = (tmp_path / name for name in ("page.html", "summary.md", "suite.xml"))
    files = ["--html", str(page), "--markdown", str(summary), "--junit", str(suite)]
    result = CliRunner().invoke(compare_command, [str(spoilt.path), "--layers", "--json", *files])
    assert result.exit_code == 1
    firsts = {item["artifact"]: item["first"] for item in validated("compare", result.output)["results"]}
    assert firsts == {"onnx-fp16": None, "onnx-fp32": "layers.3"}
    assert ">layers.3 (first)<" in page.read_text(encoding="utf-8")
    assert "the first part that diverges" in summary.read_text(encoding="utf-8").splitlines()[6]
    assert b'tests="14" failures="1"' in suite.read_bytes()
    shown = CliRunner().invoke(compare_command, [str(spoilt.path), "--layers"])
    assert shown.exit_code == 1
    assert "layers.3" in shown.output


def test_what_is_no_onnx_graph_is_skipped_and_no_pass(tmp_path: Path) -> None:
    comparison = compare_layers(write_bundle(tmp_path, formats=("torchscript",)))
    (result,) = comparison.results
    assert comparison.status == "skipped"
    assert "ONNX artifacts alone" in (result.skipped or "")


def test_a_negative_tolerance_is_refused(embedded: Bundle) -> None:
    with pytest.raises(UsageError, match="tolerance must be at least 0"):
        compare_layers(embedded, tolerance=-1.0)
