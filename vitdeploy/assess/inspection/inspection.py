"""Describe an artifact by its manifest and its graph, and compare two artifacts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vitdeploy._version import __version__
from vitdeploy.assess.inspection.graph_summary import GraphSummary, merge_layers
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact, Source
    from vitdeploy.files.opened import OpenedFile
    from vitdeploy.specs import TensorSpec


class ReadGraph(Protocol):
    """Read the graph in an artifact's first, verified file."""

    def __call__(self, source: OpenedFile) -> GraphSummary: ...


class GraphReader(NamedTuple):
    """A graph reader: "module:function", and the vitdeploy extra that it needs."""

    target: str
    extra: str


GRAPH_READERS: dict[str, GraphReader] = {
    "onnx": GraphReader("vitdeploy.assess.inspection.onnx_reader:read_onnx", "export"),
    "openvino": GraphReader("vitdeploy.assess.inspection.openvino_reader:read_openvino", "openvino"),
    "torchscript": GraphReader("vitdeploy.assess.inspection.torchscript_reader:read_torchscript", "torch"),
}

# Counts: a missing entry on one side means zero.
_COUNTS = frozenset({"node_types", "weight_bytes"})
_BYTES = frozenset({"file_bytes", "weight_bytes"})


@dataclasses.dataclass(frozen=True)
class Inspection:
    """One artifact: its manifest entry, the model's source and task, and the graph.

    A graph that was not read is None, with the reason in `note`.
    """

    bundle: str
    source: Source
    task: str
    artifact: Artifact
    graph: GraphSummary | None
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "graph": self.graph and self.graph.to_dict()}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two values that differ, None on a side without one; for sizes, `ratio` is b over a."""

    a: Any
    b: Any
    ratio: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b} | ({} if self.ratio is None else {"ratio": self.ratio})


def artifact_named(bundle: Bundle, name: str | None = None) -> Artifact:
    """The artifact of that name ("onnx-fp32"), by default the only one; UsageError for none or several."""
    artifacts = [artifact for artifact in bundle.manifest.artifacts if name in (None, artifact.name)]
    if len(artifacts) == 1:
        return artifacts[0]
    names = [artifact.name for artifact in bundle.manifest.artifacts]
    if not names:
        problem, hint = "has no artifact", f"make one: {bundle.export_line()}"
    elif name is None:
        problem, hint = f"has several artifacts: {', '.join(names)}", "choose one with --artifact"
    else:
        problem, hint = f"has no artifact {name}, only: {', '.join(names)}", "choose one of them"
    problem = f"{bundle.path} {problem}"
    raise UsageError(problem, what="--artifact", where=bundle.path, expected=names, found=name, hint=hint)


def inspect_artifact(bundle: Bundle, artifact: Artifact) -> Inspection:
    """Verify an artifact's files and read its graph, if this installation can.

    Raises:
        BundleError: If a file is missing or altered, or not in the artifact's format.
    """
    manifest = bundle.manifest
    graph = note = None
    try:
        read = _reader(artifact.format)
    except UnavailableError as exc:
        note = str(exc)
    else:
        with bundle.opened_artifact(artifact) as (file, *_):
            graph = read(file)
    return Inspection(str(bundle.path), manifest.source, manifest.task, artifact, graph, note)


def _reader(format: str) -> ReadGraph:  # noqa: A002  (the manifest's word)
    if format not in GRAPH_READERS:
        problem = f"vitdeploy {__version__} has no reader for {format} graphs, only for {', '.join(GRAPH_READERS)}"
        raise UnavailableError(problem, what="format", expected=tuple(GRAPH_READERS), found=format)
    row = GRAPH_READERS[format]
    function: ReadGraph = load_target(row.target, f"reading {format} graphs", row.extra)
    return function


def same_bytes(a: Inspection, b: Inspection) -> bool:
    """True if the files of both are equal, by SHA-256 in the manifests."""
    return [file.sha256 for file in a.artifact.files] == [file.sha256 for file in b.artifact.files]


def differences(a: Inspection, b: Inspection) -> dict[str, dict[str, Pair]]:
    """Differences between two artifacts, by section and name.

    Graphs are compared if both were read. Consecutive layers with equal differences are one entry.
    """
    sections = _manifest_facts(a), _manifest_facts(b)
    if a.graph and b.graph:
        sections = sections[0] | _graph_facts(a.graph), sections[1] | _graph_facts(b.graph)
    changed = {section: _pairs(section, sections[0][section], sections[1][section]) for section in sections[0]}
    changed["validation"] |= _proofs(a.artifact.validation, b.artifact.validation)
    if a.graph and b.graph:
        changed["layers"] = merge_layers(_pairs("layers", a.graph.layers, b.graph.layers))
    return {section: pairs for section, pairs in changed.items() if pairs}


def _pairs(section: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    nothing = 0 if section in _COUNTS else None
    pairs = {name: (a.get(name, nothing), b.get(name, nothing)) for name in {**a, **b}}
    return {
        name: Pair(left, right, right / left if section in _BYTES and left else None)
        for name, (left, right) in pairs.items()
        if left != right
    }


def _proofs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """Differences in the validation figures of outputs that both sides have."""
    left, right = ({item["output"]: item for item in side.get("outputs", ())} for side in (a, b))
    return {
        f"{output} {name}": pair
        for output in left
        if output in right
        for name, pair in _pairs("validation", left[output], right[output]).items()
    }


def _manifest_facts(item: Inspection) -> dict[str, dict[str, Any]]:
    artifact, source = item.artifact, item.source
    return {
        "model": {
            "source": source.id,
            "revision": source.revision,
            "weights": [file.sha256 for file in source.weights],
            "task": item.task,
            "processor": None if source.processor is None else str(source.processor),
        },
        "artifact": {"format": artifact.format, "precision": artifact.precision},
        "files": {"names": [file.path for file in artifact.files], "sha256": [file.sha256 for file in artifact.files]},
        "file_bytes": {"total": sum(file.size_bytes for file in artifact.files)},
        "inputs": _signature(artifact.inputs),
        "outputs": _signature(artifact.outputs),
        "pixels": {**dataclasses.asdict(artifact.pixels), "stage": str(artifact.pixels.stage)},
        "axes": {name: dataclasses.asdict(sizes) for name, sizes in artifact.axes.items()},
        "options": artifact.options,
        "tools": artifact.tools,
        "hardware": artifact.hardware or {},
        "validation": {name: value for name, value in artifact.validation.items() if name != "outputs"},
    }


def _graph_facts(graph: GraphSummary) -> dict[str, dict[str, Any]]:
    counts = {"nodes": graph.nodes, "weights": graph.weights, "duplicated weights": graph.duplicates}
    return {"graph": {**graph.versions, **counts}, "node_types": graph.node_types, "weight_bytes": graph.weight_bytes}


def _signature(specs: tuple[TensorSpec, ...]) -> dict[str, str]:
    return {spec.name: f"{spec.dtype} ({', '.join(map(str, spec.shape))})" for spec in specs}
