"""The stated inputs and outputs are those of the model."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.presets import random_model
from vitdeploy.models.signature import Served, example_inputs, input_specs, output_names, output_specs
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task, TensorSpec

SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": (24, 47), "patch_size": (8, 5), "num_channels": 4, "encoder_stride": 3,
    "labels": ("cat", "dog", "newt"), "pooler_output_size": 5,
}  # fmt: skip
PIXELS = TensorSpec("pixel_values", "float32", ("batch", 4, 24, 47))


@pytest.mark.parametrize(
    ("task", "inputs", "outputs"),
    [
        (Task.CLASSIFICATION, (PIXELS,), {"logits": (3,)}),
        (Task.FEATURES, (PIXELS,), {"last_hidden_state": (28, 16), "pooler_output": (5,)}),
        (
            Task.MASKED_IMAGE_MODELING,
            (PIXELS, TensorSpec("bool_masked_pos", "bool", ("batch", 27))),
            {"reconstruction": (4, 9, 27)},
        ),
    ],
    ids=str,
)
def test_the_specs_say_what_the_model_takes_and_gives(
    task: Task, inputs: tuple[TensorSpec, ...], outputs: dict[str, tuple[int, ...]]
) -> None:
    model = random_model(ViTConfig(**SMALL), task)
    assert input_specs(model.config, task) == inputs
    specs = output_specs(model)
    assert specs == tuple(TensorSpec(name, "float32", ("batch", *shape)) for name, shape in outputs.items())

    examples = example_inputs(model.config, task, batch_size=2)
    assert [tuple(example.shape) for example in examples] == [(2, *spec.shape[1:]) for spec in inputs]
    assert [str(example.dtype) for example in examples] == [f"torch.{spec.dtype}" for spec in inputs]
    got = model(*examples)
    assert [(name, tuple(value.shape)) for name, value in got.items()] == [(s.name, (2, *s.shape[1:])) for s in specs]


def test_a_model_without_labels_gives_the_class_token() -> None:
    model = random_model(ViTConfig(**SMALL | {"labels": ()}))
    assert output_specs(model) == (TensorSpec("logits", "float32", ("batch", 16)),)


def test_a_model_without_a_pooler_has_no_such_output() -> None:
    model = VisionTransformer(ViTConfig(**SMALL), Task.FEATURES, pooler=False)
    assert [spec.name for spec in output_specs(model)] == ["last_hidden_state"]


@pytest.mark.parametrize("task", Task, ids=str)
def test_the_specs_follow_a_new_size(task: Task) -> None:
    model = random_model(ViTConfig(**SMALL), task)
    model.resize((40, 40))
    got = model(*example_inputs(model.config, task, batch_size=1))
    assert [tuple(value.shape[1:]) for value in got.values()] == [spec.shape[1:] for spec in output_specs(model)]


def test_specs_cost_no_memory_and_draw_no_random_number() -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        huge = VisionTransformer(ViTConfig(hidden_size=2**15, intermediate_size=2**15, num_hidden_layers=1))
    assert output_specs(huge) == (TensorSpec("logits", "float32", ("batch", 2)),)
    assert torch.equal(torch.get_rng_state(), state)


TOKENS = 28  # the class token, and 3 x 9 patches


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (["logits"], ["logits"]),
        (["hidden_states", "logits"], ["hidden_states.0", "hidden_states.1", "logits"]),
        (["attentions"], ["attentions.0"]),
        (("hidden_states.1", "attentions.0"), ["hidden_states.1", "attentions.0"]),
    ],
)
def test_what_is_asked_for_is_given_in_that_order(asked: list[str], names: list[str]) -> None:
    model = random_model(ViTConfig(**SMALL)).with_attention("eager")
    served = Served(model, asked)
    assert [spec.name for spec in served.outputs] == names
    got = served(*example_inputs(model.config, model.task, batch_size=2))
    assert [(name, tuple(value.shape)) for name, value in got.items()] == [
        (spec.name, (2, *spec.shape[1:])) for spec in served.outputs
    ]
    shapes = {spec.name: spec.shape for spec in output_specs(model, ["hidden_states", "attentions"])}
    assert shapes["hidden_states.1"] == ("batch", TOKENS, 16)
    assert shapes["attentions.0"] == ("batch", 2, TOKENS, TOKENS)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ([], []),
        (["logits", "logits"], ["logits", "logits"]),
        (["hidden_states", "hidden_states.0"], re.compile("hidden_states.0.*hidden_states.0")),
        (["hidden_state"], "hidden_state"),
        (["hidden_states.2"], "hidden_states.2"),
        (["hidden_states.-1"], "hidden_states.-1"),
        (["last_hidden_state"], "last_hidden_state"),
        ([3], 3),
        ("logits", "logits"),
        (5, 5),
    ],
)
def test_an_output_that_is_not_there_is_refused(asked: Any, found: object) -> None:
    with raises(UsageError, what="outputs", found=found):
        output_names(random_model(ViTConfig(**SMALL)), asked)


def test_a_similar_output_is_suggested() -> None:
    with raises(UsageError, what="outputs", hint="did you mean hidden_states?"):
        output_names(random_model(ViTConfig(**SMALL)), ["hidden_state"])


def test_a_dynamic_image_size_frees_the_axes_that_follow_from_it() -> None:
    model = random_model(ViTConfig(**SMALL), Task.FEATURES)
    served = Served(model, ["last_hidden_state", "pooler_output", "hidden_states.0"], dynamic_image_size=True)
    assert served.inputs == (TensorSpec("pixel_values", "float32", ("batch", 4, "height", "width")),)
    assert [spec.shape for spec in served.outputs] == [("batch", "tokens", 16), ("batch", 5), ("batch", "tokens", 16)]
    got = served(torch.zeros(2, 4, 17, 10))
    assert [tuple(value.shape) for value in got.values()] == [(2, 5, 16), (2, 5), (2, 5, 16)]
    with raises(UsageError, what="dynamic_image_size", found=Task.MASKED_IMAGE_MODELING):
        Served(random_model(ViTConfig(**SMALL), Task.MASKED_IMAGE_MODELING), dynamic_image_size=True)
