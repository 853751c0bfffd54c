"""Presets: their names, sizes and random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.presets import preset_config, random_model
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task

SMALL = ViTConfig(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=(32, 32), patch_size=(4, 4), encoder_stride=4
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # With a head of 1000 classes, as torchvision (base, large, huge) and DeiT's repository (tiny, small) publish.
        ("vit-tiny-patch16-224", 5_717_416),
        ("vit-small-patch16-224", 22_050_664),
        ("vit-base-patch16-224", 86_567_656),
        ("vit-base-patch32-224", 88_224_232),
        ("vit-large-patch16-224", 304_326_632),
        ("vit-large-patch32-224", 306_535_400),
        ("vit-huge-patch14-224", 632_045_800),
        ("vit-giant-patch14-224", 1_012_611_432),  # timm says 1,012.61 million
    ],
)
def test_a_preset_has_the_published_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = VisionTransformer(preset_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "image_size", "patch_size"),
    [
        ("vit-base-patch16-384", (384, 384), (16, 16)),
        ("vit-tiny-patch7-30", (30, 30), (7, 7)),
        ("vit-huge-patch8x16-96x160", (96, 160), (8, 16)),
    ],
)
def test_a_name_can_have_any_size(name: str, image_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    config = preset_config(name)
    assert (config.image_size, config.patch_size) == (image_size, patch_size)
    assert len(config.labels) == 1000
    assert config.layer_norm_eps == 1e-12


@pytest.mark.parametrize(
    "name",
    [
        "", "vit", "base", "vit-gigantic-patch14-224", "vit-base-patch16", "vit-base-16-224",
        "vit-base-patch16-224-in21k", "vit-base-patch16-224\n", "VIT-base-patch16-224", "vit-base-patch-16-224",
        "vit-base-patch16x-224", "vit-base-patch16-224x", "vit-base-patch0-224", "vit-base-patch16-0",
        "vit-base-patch32-16", "vit-base-patch16-99999999", "vit-base-patch16-" + "9" * 5000,
    ],
)  # fmt: skip
def test_another_name_is_a_usage_error_of_one_line(name: str) -> None:
    with pytest.raises(UsageError) as error:
        preset_config(name)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("task", Task, ids=str)
def test_one_seed_is_one_set_of_weights(task: Task) -> None:
    state = torch.get_rng_state()
    first, again, other = (random_model(SMALL, task, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("task", Task, ids=str)
def test_a_random_model_is_ready_to_run(task: Task) -> None:
    model = random_model(SMALL, task)
    assert not model.training
    for parameter in model.parameters():
        assert not parameter.requires_grad
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"


@pytest.mark.parametrize("std", [0.02, 0.2])
def test_fresh_weights_are_distributed_as_those_of_transformers(std: float) -> None:
    fields: dict[str, Any] = {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    peer = transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**fields, initializer_range=std))
    config = ViTConfig.from_dict(peer.config.to_dict())
    model = random_model(config, Task.MASKED_IMAGE_MODELING)

    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters())
    ours = dict(model.named_parameters())
    theirs = {name.removeprefix("vit."): parameter.detach() for name, parameter in peer.named_parameters()}
    for name, parameter in ours.items():
        want = theirs[name.removeprefix("head.")]
        if want.std() == 0:
            assert torch.equal(parameter, want), name
        else:  # the estimate of a deviation from n values errs by 1 / sqrt(2n); five times that
            assert parameter.std() == pytest.approx(std, rel=5 / (2 * parameter.numel()) ** 0.5), name
            assert want.std() == pytest.approx(std, rel=5 / (2 * parameter.numel()) ** 0.5), name
