"""The model card of a bundle on the Hub: README.md, from its manifest."""

from __future__ import annotations

import json
from typing import Any

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import NOT_RECORDED, Artifact, Source
from vitdeploy.exporters import EXPORTERS
from vitdeploy.specs import QUANTIZED, ZERO_SHOT, Task

CARD = "README.md"
_ZERO_SHOT = (
    "- Zero-shot: the vectors of the classes are `zero_shot.weight` in `model.safetensors`; transformers reads the "
    "image encoder alone."
)
_PIPELINE_TAGS = (Task.CLASSIFICATION, Task.FEATURES)  # tasks known to the Hub


def model_card(bundle: Bundle, name: str) -> str:
    """The card of a bundle with the Hub id `name`; the same bundle and name give the same text."""
    manifest, labels = bundle.manifest, bundle.read_config().labels
    table = ["| artifact | files | size | validation |", "|---|---|---|---|", *map(_row, manifest.artifacts), ""]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in _metadata(bundle).items()),
        "---",
        "",
        f"# {name.rpartition('/')[2]}",
        "",
        f"A vitdeploy bundle of {_origin(manifest.source)}.",
        "",
        *(table if manifest.artifacts else []),
        f"- Task: {manifest.task}",
        *([f"- Classes: {len(labels)}"] if labels else []),
        *([_ZERO_SHOT] if bundle.read_config().model.get(ZERO_SHOT) else []),
        f"- Image processor: {_code(manifest.processor or NOT_RECORDED)}",
        *(f"- Weights: {_code(file.path)}, SHA-256 `{file.sha256}`" for file in manifest.source.weights),
        *([] if manifest.has_reference else ["- Packed without the weights of the reference."]),
        "",
        "`manifest.json` has the checksum of every file, and options, tools and validation of each artifact.",
        "",
        "## Use",
        "",
        *_usage(bundle, name),
    ]
    return "\n".join(lines) + "\n"


def _metadata(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    kinds = [kind for artifact in manifest.artifacts for kind in (artifact.format, artifact.precision)]
    model_type = bundle.read_config().model.get("model_type")
    data: dict[str, Any] = {
        "library_name": "vitdeploy",
        "tags": [*dict.fromkeys(["vitdeploy", *([model_type] if isinstance(model_type, str) else []), *kinds])],
    }
    if manifest.task in _PIPELINE_TAGS:
        data["pipeline_tag"] = manifest.task
    data |= manifest.source.license or {}
    if manifest.source.revision is not None:  # it is a Hub id
        data["base_model"] = manifest.source.id
        if any(artifact.precision in QUANTIZED for artifact in manifest.artifacts):
            data["base_model_relation"] = "quantized"
    return data


def _origin(source: Source) -> str:
    if source.revision is None:
        return _code(source.id)
    return f"[{source.id}](https://huggingface.co/{source.id}) at commit `{source.revision}`"


def _row(artifact: Artifact) -> str:
    size = sum(file.size_bytes for file in artifact.files) / 1e6
    files = ", ".join(_code(file.path) for file in artifact.files)
    return f"| {artifact.name} | {files} | {size:.1f} MB | {_validation(artifact)} |"


def _validation(artifact: Artifact) -> str:
    """The difference from the reference, as short text."""
    record = artifact.validation
    if not record:
        return "none"
    if not record["outputs"]:
        return str(record.get("status", "none"))
    worst = max(record["outputs"], key=lambda output: float(output["max_relative"]))
    parts = [f"{worst['output']} within {worst['max_relative']:.1e} of the reference"]
    for measured in record.get("calibration_images", ())[:1]:
        if measured["top1_agreement"] is not None:
            parts.append(f"the reference's class for {measured['top1_agreement']:.2%} of {measured['images']} images")
        elif measured["mean_cosine"] is not None:
            parts.append(f"mean cosine {measured['mean_cosine']:.5f} on {measured['images']} images")
    return ", ".join(parts)


def _usage(bundle: Bundle, name: str) -> list[str]:
    artifact = next((each for each in bundle.manifest.artifacts if each.format in EXPORTERS), None)
    backend, precision = (
        ("torch", "fp32") if artifact is None else (EXPORTERS[artifact.format].backend, artifact.precision)
    )
    code = ["```python", "import vitdeploy", ""]
    code += [f'with vitdeploy.load("{name}", backend="{backend}", precision="{precision}") as predictor:']
    if not bundle.read_config().labels:
        pixels = '    pixels = predictor.processor(["image.jpg"], pixels=predictor.runtime.pixels)'
        return [*code, pixels, "    print(predictor.runtime.inputs, predictor.runtime.outputs)", "```"]
    command = f"vitdeploy predict {name} image.jpg --backend {backend} --precision {precision}"
    return [*code, '    print(predictor.predict(["image.jpg"]))', "```", "", "```sh", command, "```"]


def _code(text: str) -> str:
    """Any text as code, in a line or in a table cell."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return f"`{plain.translate(str.maketrans('`|', '  '))}`"
