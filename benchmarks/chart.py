"""README's chart: latency and agreement with the reference, of `trained.py`'s results."""

from __future__ import annotations

import io
from typing import Any

OURS, PEERS = "#0b6e4f", "#8a8f98"
FLOAT32_NOISE = 1e-7  # 1 - cosine of two float32 results
# By the name in the results: the label, and its place beside the point.
POINTS = {
    "transformers, torch": ("transformers (torch)", PEERS, (-6, 10), "right"),
    "optimum, ONNX": ("optimum (ONNX Runtime)", PEERS, (8, -14), "left"),
    "ONNX Runtime, static": ("ONNX Runtime static int8", PEERS, (-8, -3), "right"),
    "ONNX Runtime, dynamic": ("ONNX Runtime dynamic int8", PEERS, (10, 6), "left"),
    "NNCF": ("OpenVINO + NNCF int8", PEERS, (28, -7), "left"),
    "fp32": ("vitdeploy fp32", OURS, (-8, -14), "right"),
    "int8, default": ("vitdeploy int8", OURS, (10, 0), "left"),
    "int8, dynamic": ("vitdeploy int8 dynamic", OURS, (10, -17), "left"),
}


def svg(results: dict[str, Any]) -> str:
    """Time relative to the float32 file's against 1 - mean cosine; nearer to the lower left corner is better."""
    import matplotlib as mpl  # here, because a GPU machine need not have it: benchmarks import the tables
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitdeploy", "font.size": 11}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for name, (label, color, offset, side) in POINTS.items():
            way = results["ways"][name]
            place = way["batch_sizes"]["1"]["ratio"], max(1 - way["mean_cosine"], FLOAT32_NOISE)
            axes.plot(*place, "o", color=color, markersize=8)
            axes.annotate(label, place, offset, textcoords="offset points", color=color, ha=side)
        axes.set_yscale("log")
        axes.set_xlim(left=0)
        axes.margins(y=0.15)
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("time of one image, relative to float32 in ONNX Runtime")
        axes.set_ylabel("1 - cosine with float32")
        images, machine = results["images"]["held-out"], results["machine"]
        axes.set_title(
            f"Trained DINOv2 ViT-S/14, {images} held-out photographs, {machine['cores']} cores of {machine['cpu']}: "
            "lower left is better",
            fontsize=10,
        )
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
