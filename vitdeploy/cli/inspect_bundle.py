"""`vitdeploy inspect`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import (
    PATH,
    agreement,
    allowed_of,
    json_option,
    left_out_texts,
    pairs,
    print_json,
    print_table,
    print_text,
    size,
)
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from vitdeploy.assess.inspection.graph_summary import GraphSummary
    from vitdeploy.assess.inspection.inspection import Inspection, Pair
    from vitdeploy.bundle.manifest import Artifact, Manifest


@command(examples=("inspect vit", "inspect vit vit --artifact onnx-fp32 --artifact onnx-fp16"))
@click.argument("bundle", type=PATH)
@click.argument("other", type=PATH, required=False)
@option(
    "--artifact", "names", multiple=True,
    help="Artifact, such as onnx-fp32. Default: all. With OTHER: once for both, or twice: BUNDLE's, then OTHER's.",
)  # fmt: skip
@json_option
def inspect(bundle: str, other: str | None, names: tuple[str, ...], as_json: bool) -> None:
    """Show the contents of BUNDLE and of its graphs; with OTHER, the differences between two artifacts.

    BUNDLE and OTHER may be the same bundle. Only the artifacts that are read are verified; `verify` checks every file.
    """
    if other is None:
        _show(bundle, names, as_json)
    else:
        _show_differences(bundle, other, names, as_json)


def _show(path: str, names: tuple[str, ...], as_json: bool) -> None:
    from vitdeploy.assess.inspection.inspection import artifact_named, inspect_artifact
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.retry import retry_if_changed

    @retry_if_changed
    def inspected(path: str) -> tuple[Manifest, list[Inspection]]:
        bundle = Bundle.open(path)
        chosen = [artifact_named(bundle, name) for name in dict.fromkeys(names)] or bundle.manifest.artifacts
        return bundle.manifest, [inspect_artifact(bundle, artifact) for artifact in chosen]

    manifest, inspections = inspected(path)
    if as_json:
        shown = [item.to_dict() for item in inspections]
        artifacts = [{**item["artifact"], "graph": item["graph"], "note": item["note"]} for item in shown]
        print_json({"bundle": path, **manifest.to_dict(), "artifacts": artifacts})
    else:
        print_table(path, ("", ""), _bundle_rows(manifest, inspections))


def _show_differences(path: str, other_path: str, names: tuple[str, ...], as_json: bool) -> None:
    from vitdeploy.assess.inspection.inspection import artifact_named, differences, inspect_artifact, same_bytes
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.retry import retry_if_changed

    if len(names) > 2:
        problem = f"two bundles take one --artifact or two, got {len(names)}: {', '.join(names)}"
        raise UsageError(problem, what="--artifact", found=names)

    @retry_if_changed
    def inspected(path: str, other_path: str) -> tuple[Inspection, Inspection]:
        bundles = Bundle.open(path), Bundle.open(other_path)
        wanted = (names[0], names[-1]) if names else (None, None)
        artifacts = [artifact_named(bundle, name) for bundle, name in zip(bundles, wanted, strict=True)]
        a, b = (inspect_artifact(bundle, artifact) for bundle, artifact in zip(bundles, artifacts, strict=True))
        return a, b

    a, b = inspected(path, other_path)
    sections = differences(a, b)
    if as_json:
        shown = {section: {name: pair.to_dict() for name, pair in rows.items()} for section, rows in sections.items()}
        print_json({"a": a.to_dict(), "b": b.to_dict(), "same_bytes": same_bytes(a, b), "differences": shown})
        return
    print_text(f"A: {a.artifact.name} of {a.bundle}\nB: {b.artifact.name} of {b.bundle}")
    for note in dict.fromkeys(item.note for item in (a, b) if item.note):
        print_text(f"graph not compared: {note}")
    if same_bytes(a, b):
        print_text("the files are identical, by the SHA-256 in the manifests")
    if not sections:
        print_text("nothing differs")
        return
    rows = [
        _difference_row(section, name, pair) for section, entries in sections.items() for name, pair in entries.items()
    ]
    print_table("", ("", "", "A", "B"), rows)


def _bundle_rows(manifest: Manifest, inspections: list[Inspection]) -> list[tuple[str, str]]:
    from vitdeploy.bundle.manifest import NOT_RECORDED

    source = manifest.source
    rows = [("source", source.id + (f" @ {source.revision}" if source.revision else ""))]
    if manifest.packed_from is not None:
        sha256, files = manifest.packed_from.manifest_sha256, manifest.packed_from.files
        rows += [("packed from", f"a bundle whose manifest.json has sha256 {sha256[:16]}…")]
        rows += [("left out", f"{file.path}  {file.size_bytes / 1e6:.1f} MB") for file in files]
    if source.base is not None:
        rows += [("merged into", source.base + (f" @ {source.base_revision}" if source.base_revision else ""))]
    if source.architecture is not None:
        rows += [("architecture", source.architecture)]
    if source.license is not None:
        rows += [("license", source.license.get("license_name", source.license.get("license", "")))]
    rows += [("weights from", f"{file.path}  sha256 {file.sha256[:16]}…") for file in source.weights]
    rows += [("task", manifest.task), ("processor", manifest.processor or NOT_RECORDED)]
    if manifest.tuned is not None:
        tuned = manifest.tuned
        options = pairs({**tuned.options, "batch_size": tuned.batch_size})
        rows += [("tuned choice", f"{tuned.artifact} on {tuned.backend}, {options}")]
        rows += [("  measured on", pairs(tuned.machine)), ("  evidence", tuned.evidence.path)]
    for item in inspections:
        rows += _artifact_rows(item.artifact)
        rows += _graph_rows(item.graph) if item.graph else [("  graph", f"not read: {item.note}")]
    return rows + [("file", f"{file.path}  {file.size_bytes / 1e6:.1f} MB") for file in manifest.files]


def _artifact_rows(artifact: Artifact) -> list[tuple[str, str]]:
    rows = [("artifact", artifact.name)]
    rows += [
        ("  file", f"{file.path}  {file.size_bytes / 1e6:.1f} MB  sha256 {file.sha256[:16]}…")
        for file in artifact.files
    ]
    rows += [("  input", str(spec)) for spec in artifact.inputs]
    rows += [("  output", str(spec)) for spec in artifact.outputs]
    rows += [("  pixels", f"{artifact.pixels.stage}, {artifact.pixels.layout}, {artifact.pixels.dtype}")]
    rows += [("  axis", f"{name} {sizes}") for name, sizes in artifact.axes.items()]
    rows += [("  options", pairs(artifact.options)), ("  made with", pairs(artifact.tools))]
    checked = artifact.validation
    if checked:
        emulated = ", emulated" if checked.get("emulated") else ""
        rows += [
            ("  validated", f"{item['output']} within {item['max_relative']:.1e} of the reference "
             f"({allowed_of(checked)}) on {checked['images']} images, {checked['engine']}{emulated}")
            for item in checked["outputs"]
        ]  # fmt: skip
        rows += [("  not validated", checked["status"])] if not checked["outputs"] and "status" in checked else []
        rows += [("  measured", agreement(item)) for item in checked.get("calibration_images", ())]
        rows += [("  " + name.replace("_", " "), text) for name, text in left_out_texts(checked).items()]
    rows += [("  built for", pairs(artifact.hardware))] if artifact.hardware else []
    return rows


def _graph_rows(graph: GraphSummary) -> list[tuple[str, str]]:
    from vitdeploy.assess.inspection.graph_summary import merge_layers

    types = ", ".join(f"{dtype} {size(count)}" for dtype, count in graph.weight_bytes.items())
    rows = [
        ("  graph", f"{graph.nodes} nodes, {pairs(graph.versions)}"),
        ("  node types", pairs(graph.node_types)),
        ("  weights", f"{graph.weights} tensors: {types}"),
    ]
    if graph.duplicates:
        rows.append(("  duplicated", f"{graph.duplicates} of the weights, {size(graph.duplicate_bytes)}"))
    parts = [f"{part}: {pairs(types)}" for part, types in merge_layers(graph.layers).items()]
    return rows + [("  precision", part) for part in parts]


def _difference_row(section: str, name: str, pair: Pair) -> tuple[str, str, str, str]:
    show = size if section.endswith("bytes") else _shown
    ratio = "" if pair.ratio is None else f"  ({pair.ratio:.2f}x)"
    return section.replace("_", " "), name, show(pair.a), show(pair.b) + ratio


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return pairs(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) if isinstance(item, list) else _shown(item) for item in value) or "-"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:16]}…"
    return "-" if value is None else str(value)
