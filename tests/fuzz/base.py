"""The undamaged files that inputs are made from: a checkpoint in each form, bundles, and what commands write."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import safetensors.torch
import torch
from bundles import export_all, tiny_model, write_checkpoint_of
from npz_files import save_arrays
from PIL import Image

import vitdeploy
from vitdeploy import SourceOptions
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli import main
from vitdeploy.exporting.graph_options import GraphOptions
from vitdeploy.images.preprocessor_config import CLASS_OF_MODEL
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.system.processor import processor_identity
from vitdeploy.tuning.record import record_choice
from vitdeploy.tuning.variant import Variant

GOLDEN = Path(__file__).parents[1] / "golden"
LABELS = ("cat", "dog", "newt")


def prepare(work: Path) -> Path:
    """Make `work`/base, unless it is there whole."""
    base, partial = work / "base", work / "base.partial"
    if not base.exists():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        partial = partial.rename(base)  # commands write absolute paths into some files
        try:
            _make(base)
        except BaseException:
            shutil.rmtree(base)
            raise
    return base


def _make(base: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(num_hidden_layers=1), base / "checkpoint")
    _other_forms(base, checkpoint)
    export_all(checkpoint, formats=("onnx", "torchscript"), output=base / "bundle")
    export_all(checkpoint, formats=("onnx",), output=base / "embedded", graph=GraphOptions(embed_resize=True))
    features = SourceOptions(task="image-feature-extraction")
    vitdeploy.export(checkpoint, output=base / "features", source=features)
    _tuned(base)
    _images(base)
    onnx = ("--backend", "onnxruntime")
    _run("compare", base / "bundle", *onnx, "--save-golden", base / "golden.npz")
    _run("evaluate", base / "bundle", "--data", base / "data", *onnx, "--batch-size", 2, "--resume", base / "resume")
    _run("gate", base / "bundle", "--data", base / "data", "--baseline", base / "baseline.json", "--update")


def _tuned(base: Path) -> None:
    """A bundle with a choice that was measured on this machine."""
    bundle = Bundle.open(shutil.copytree(base / "bundle", base / "tuned"))
    record_choice(
        bundle, Variant.of(bundle, bundle.artifact("onnx", "fp32")), (),
        backend="onnxruntime", options={"intra_op_threads": 1}, batch_size=2,
        machine=processor_identity() | {"engine": f"onnxruntime {onnxruntime.__version__}"}, evidence={},
    )  # fmt: skip


def _run(*args: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main([str(arg) for arg in args])
        except SystemExit as exc:
            if exc.code:
                raise RuntimeError(f"{args[0]} ended with {exc.code}") from exc


def _other_forms(base: Path, checkpoint: Path) -> None:
    """The weights as a torch file, in shards, as Google's arrays; and configurations of other libraries."""
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    torch.save(tensors, base / "pytorch_model.bin")
    (base / "shards").mkdir()
    names, of_shard = sorted(tensors), dict[str, str]()
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in part}, base / "shards" / file)
        of_shard |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": of_shard}
    (base / "shards" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    save_arrays(base / "google.npz", google_arrays())
    processor = ImageProcessor.from_dict({"image_processor_type": CLASS_OF_MODEL["vit"]}).resized(8, 8)
    for name in ("plain", "dora", "bias_all", "saved_parts", "timm"):
        folder = shutil.copytree(GOLDEN / "peft" / name, base / "adapters" / name)
        if "architecture" not in json.loads((folder / "base" / "config.json").read_bytes()):
            text = json.dumps(processor.to_dict())
            (folder / "base" / "preprocessor_config.json").write_text(text, encoding="utf-8")
    for name in ("beit_0", "deit_0"):
        shutil.copytree(GOLDEN / "timm" / name, base / "timm" / name)


def google_arrays() -> dict[str, np.ndarray[Any, Any]]:
    """A model of one block, 8 wide with 2 heads, for images of 16 x 16 in patches of 8, under Google's names."""
    rng = np.random.default_rng(0)
    width, heads, mlp, side = 8, 2, 12, 8
    block = "Transformer/encoderblock_0"
    attention = f"{block}/MultiHeadDotProductAttention_1"
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, 5, width),
        "embedding/kernel": (side, side, 3, width),
        "embedding/bias": (width,),
        f"{block}/MlpBlock_3/Dense_0/kernel": (width, mlp),
        f"{block}/MlpBlock_3/Dense_0/bias": (mlp,),
        f"{block}/MlpBlock_3/Dense_1/kernel": (mlp, width),
        f"{block}/MlpBlock_3/Dense_1/bias": (width,),
        f"{attention}/out/kernel": (heads, width // heads, width),
        f"{attention}/out/bias": (width,),
        "head/kernel": (width, 3),
        "head/bias": (3,),
    }
    for name in ("query", "key", "value"):
        shapes |= {f"{attention}/{name}/kernel": (width, heads, width // heads)}
        shapes |= {f"{attention}/{name}/bias": (heads, width // heads)}
    for name in (f"{block}/LayerNorm_0", f"{block}/LayerNorm_2", "Transformer/encoder_norm"):
        shapes |= {f"{name}/scale": (width,), f"{name}/bias": (width,)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _images(base: Path) -> None:
    """Labelled ones, in folders, in a .csv and in a .parquet file."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(6):
        label = LABELS[number % 3]
        path = base / "data" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
        rows.append((path, label))
    lines = [f"{path.relative_to(base / 'data')},{label}" for path, label in rows]
    (base / "data.csv").write_text("\n".join(["image,label", *lines]) + "\n", encoding="utf-8")
    _parquet(base / "data.parquet", rows)


def _parquet(path: Path, rows: list[tuple[Path, str]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return
    images = [{"bytes": file.read_bytes(), "path": file.name} for file, _ in rows]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(LABELS)}}
    table = pa.table({"image": images, "label": [LABELS.index(label) for _, label in rows]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
