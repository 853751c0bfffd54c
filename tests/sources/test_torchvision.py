"""The recipe for torchvision's models gives a checkpoint with torchvision's own results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from environments import ROOT, environment, run

import vitdeploy

# As in tests/golden/make_timm.py: the import of torchvision looks up operators that its build for another torch has.
BEFORE = """
import torch
operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}() -> ()")
"""
AFTER = """
from functools import partial
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
import numpy as np

torch.manual_seed(0)
model = torchvision.models.VisionTransformer(
    image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3
).eval()
for weight in model.parameters():
    torch.nn.init.normal_(weight, std=0.2)
transforms = ImageClassification(crop_size=32, resize_size=40, interpolation=InterpolationMode.BICUBIC)
save(model, transforms, ["a", "b", "c"], "checkpoint")
pixels = torch.randn(2, 3, 32, 32)
np.savez("expected.npz", pixels=pixels.numpy(), logits=model(pixels).detach().numpy())
"""


def test_the_logits_are_those_of_torchvision(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "torchvision.md").read_text(encoding="utf-8")
    recipe = text.partition("```python\n")[2].partition("\n\nweights = torchvision")[0]
    run(environment("timm"), "-c", f"import os; os.chdir({str(tmp_path)!r})\n{BEFORE}\n{recipe}\n{AFTER}")
    bundle = vitdeploy.export(tmp_path / "checkpoint", output=tmp_path / "out")
    expected = np.load(tmp_path / "expected.npz")
    with vitdeploy.load(bundle.path) as predictor:
        assert predictor.labels == ("a", "b", "c")
        assert predictor.processor.output_size == (32, 32)
        found = predictor.logits(expected["pixels"])
    np.testing.assert_allclose(found, expected["logits"], atol=1e-5 * np.abs(expected["logits"]).max())
