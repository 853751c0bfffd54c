"""Forms of timm's configurations: each is read as timm reads it, or refused.

tests/golden/make_timm.py wrote what timm makes of each.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sklearn.datasets
import torch
import transformers
from raising import raises
from torch import Tensor

import vitdeploy
from vitdeploy import ProcessorOptions
from vitdeploy.errors import CheckpointError, UsageError
from vitdeploy.models.checkpoint import make_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.sources.timm_layouts.config import read_config
from vitdeploy.sources.timm_layouts.keys import (
    CONFIG,
    EVA_ARGS,
    EVA_NULLABLE,
    EVA_PLAIN,
    MODEL_ARGS,
    NULLABLE,
    PLAIN,
    PRETRAINED_CFG,
)
from vitdeploy.sources.timm_layouts.layout import from_timm, processor_config
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "timm"
FORMS = json.loads((GOLDEN / "forms.json").read_text())
PIPELINE = json.loads((GOLDEN / "pipeline.json").read_text())
IGNORED = {
    name: [key for key, fate in table.items() if fate == "no effect"]
    for name, table in {"pretrained_cfg": PRETRAINED_CFG, "": CONFIG}.items()
}
KEYS = json.loads((GOLDEN / "keys.json").read_text())
# Forms that timm takes, and that are refused here: it draws a new head, resamples positions twice, leaves global_pool
# out, or pools as no model of transformers does.
REFUSED = {
    *("classes contradicted", "dynamic, without img_size", "avg at the top alone", "max", "avgmax", "every token"),
    *("prefix in the mean", "avg of a BEiT, normalized before"),
}
# Forms in which timm draws a new head, or does not build what the weights are of, though they leave one reading alone.
# The form whose results these have.
CLEAR = {"classes in model_args": "as saved", "avg at the top alone, fc_norm": "avg"}
TOLERANCE = 1e-5  # relative to the largest logit; the same float32 arithmetic in another order


def read(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config: dict[str, Any] = json.loads((GOLDEN / case / "config.json").read_text())
    return config, safetensors.torch.load_file(GOLDEN / case / "model.safetensors")


def write(folder: Path, form: dict[str, Any]) -> Path:
    """A checkpoint of a form; where rows are to be left out of its heads, others come first."""
    _, tensors = read(form["case"])
    for key in ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
        if form["rows"] and key in tensors:
            tensors[key] = torch.cat([tensors[key][: form["rows"]] + 1, tensors[key]])
    folder.mkdir()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(form["config"]))
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_a_configuration_is_what_timm_makes_of_it_or_refused(tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    folder = write(tmp_path / "model", form)
    want = FORMS[CLEAR[name]] if name in CLEAR else form
    if name in REFUSED or "error" in want:
        with pytest.raises(CheckpointError):
            read_checkpoint(folder)
        return
    checkpoint = read_checkpoint(folder)
    size = tuple(want["transform"]["input_size"][1:])
    assert checkpoint.model.config.image_size == size
    assert json.loads(checkpoint.files["config.json"])["image_size"] == (size[0] if size[0] == size[1] else list(size))
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, *size), np.float32))
    with torch.inference_mode():
        logits = checkpoint.model(pixels)["logits"].numpy()
    expected = np.array(want["logits"], np.float32)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    assert processor_config(form["config"]) == processor_config({"pretrained_cfg": want["transform"]})


def test_every_key_of_the_libraries_has_its_place_in_a_table() -> None:
    """As they were when the golden files were made, and as transformers has them now."""
    wrapper = transformers.TimmWrapperConfig()
    names = {field.name for field in dataclasses.fields(wrapper)}
    assert set(KEYS["PretrainedCfg"]) <= PRETRAINED_CFG.keys()
    assert set(KEYS["model_args"]) <= MODEL_ARGS.keys()
    assert set(KEYS["eva_args"]) <= EVA_ARGS.keys()
    assert {*KEYS["TimmWrapperConfig"], *wrapper.to_dict(), *names} <= CONFIG.keys()
    former = {"labels", "hf_hub", "source_url", "paper"}
    assert PRETRAINED_CFG.keys() == {*KEYS["PretrainedCfg"], *former}


def test_what_is_refused_may_be_as_in_a_plain_model() -> None:
    for fates, plain, nullable in ((MODEL_ARGS, PLAIN, NULLABLE), (EVA_ARGS, EVA_PLAIN, EVA_NULLABLE)):
        assert plain.keys() <= {key for key, fate in fates.items() if fate == "refused"}
        assert fates.keys() >= nullable


@pytest.mark.parametrize(("table", "key"), [(table, key) for table in IGNORED for key in IGNORED[table]])
def test_a_key_without_effect_changes_nothing(table: str, key: str) -> None:
    config, tensors = read("vit_0" if table else "vit_0_wrapped")
    plain = from_timm(config, tensors)[0], processor_config(config)
    (config[table] if table else config)[key] = [3, 99, 99]
    assert (from_timm(config, tensors)[0], processor_config(config)) == plain


@pytest.mark.parametrize("name", KEYS["deprecated"])
def test_a_former_name_is_read_as_the_one_that_timm_gives_it_now(name: str) -> None:
    target = KEYS["deprecated"][name].partition(".")[0]
    config = {"num_classes": 1000, "pretrained_cfg": {}}
    if "clip" in target:
        with raises(CheckpointError, what="architecture"):
            read_config({**config, "architecture": name})
        return
    assert read_config({**config, "architecture": name}) == read_config({**config, "architecture": target})


@pytest.mark.parametrize("value", ["regression", "single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("case", ["vit_0", "vit_0_wrapped"])
def test_the_problem_type_is_carried(tmp_path: Path, case: str, value: str) -> None:
    config, tensors = read(case)
    assert "problem_type" not in from_timm(config, tensors)[0]
    content, _ = from_timm({**config, "problem_type": value}, tensors)
    assert content["problem_type"] == value


@pytest.mark.parametrize("value", ["None", "single_label_classification", "multi_label_classification"])
def test_a_wrapper_gets_the_labels_and_scores_of_transformers(tmp_path: Path, value: str) -> None:
    """Those of its pipeline in pipeline.json, in float32; scores within 1e-6."""
    config, _ = read("vit_0_wrapped")
    config |= {"label_names": list("abcd"), "label_descriptions": {"a": "first"}}
    config["problem_type"] = None if value == "None" else value
    form = {"case": "vit_0_wrapped", "rows": 0, "config": config}
    vitdeploy.export(write(tmp_path / "model", form), to="torchscript", output=tmp_path / "out")
    china = sklearn.datasets.load_sample_images().images[0]
    with vitdeploy.load(tmp_path / "out", backend="torchscript") as predictor:
        (predictions,) = predictor.predict([china], top_k=4)
    want = PIPELINE[value]["china"]
    assert [prediction.label for prediction in predictions] == [row["label"] for row in want]
    scores = [prediction.score for prediction in predictions]
    np.testing.assert_allclose(scores, [row["score"] for row in want], rtol=0, atol=1e-6)


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as timm first wrote it."""
    config = copy.deepcopy(config)
    cfg: dict[str, Any] = config.pop("pretrained_cfg")
    return cfg | config


@pytest.mark.parametrize("case", ["vit_1", "beit_0", "dinov2_0", "deit_distilled_0"])
def test_a_flat_configuration_is_read_as_a_nested_one(case: str) -> None:
    config, tensors = read(case)
    old = flat(config)
    if "label_names" in old:
        old["labels"] = old.pop("label_names")
    content, weights = from_timm(old, tensors)
    want, want_weights = from_timm(config, tensors)
    assert content == want
    assert weights.keys() == want_weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in want_weights.items())
    if case != "vit_1":  # it is not square, which timm's transform crops otherwise
        assert processor_config(old) == processor_config(config)


def test_the_labels_are_those_of_the_library_that_reads_the_file() -> None:
    config, tensors = read("vit_0_wrapped")
    names = {"label_names": list("abcd"), "label_descriptions": {"a": "first"}}
    assert labels(config | names, tensors) == list("abcd")  # as transformers.TimmWrapperConfig
    assert list(transformers.TimmWrapperConfig.from_dict(config | names).id2label.values()) == list("abcd")
    config, tensors = read("vit_0")
    assert labels(config | names, tensors) == ["first", "b", "c", "d"]
    assert labels(config | {"id2label": dict(enumerate("wxyz"))} | names, tensors) == ["first", "b", "c", "d"]
    named = {"id2label": dict(zip("0123", "wxyz", strict=True))}
    assert labels(config | named, tensors) == list("wxyz")
    assert labels(config | {"label_names": {"0": "a", "3": "b"}}, tensors) == ["a", "LABEL_1", "LABEL_2", "b"]
    for wrong in ({"0": "a", "4": "b"}, "abcd"):
        with raises(CheckpointError, what="label_names"):
            from_timm(config | {"label_names": wrong}, tensors)


def test_the_wrappers_weights_are_past_the_label_offset() -> None:
    config, tensors = read("vit_0_wrapped")
    content, weights = from_timm(config, tensors)
    config["pretrained_cfg"]["label_offset"] = 1
    changed, same = from_timm(config, tensors)
    assert changed == content
    assert torch.equal(same["classifier.weight"], weights["classifier.weight"])


def labels(config: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    return list(from_timm(config, tensors)[0]["id2label"].values())


def test_a_key_bias_drops_out_of_the_softmax() -> None:
    """Whatever it is, a ViT whose norm follows the mean has the same results as without it (see `_beit`)."""
    config, tensors = read("mean_0")
    plain = from_timm(config, tensors)
    for index in range(2):
        tensors[f"blocks.{index}.attn.qkv.bias"][32:64] += 3
    changed = from_timm(config, tensors)
    assert changed[0] == plain[0]
    assert changed[1].keys() == plain[1].keys()
    assert all(torch.equal(tensor, changed[1][name]) for name, tensor in plain[1].items())


PHOTOGRAPHED = [
    *("vit_0", "mean_0", "mean_features_0", "norm_mean_0", "token_norm_0", "beit_token_norm_0"),
    *("dynamic_0", "dynamic_1", "dynamic_2"),
]


@pytest.mark.parametrize("case", PHOTOGRAPHED)
def test_transformers_computes_what_timm_computes_with_a_bundle(tmp_path: Path, case: str) -> None:
    bundle = vitdeploy.export(GOLDEN / case, to="torchscript", output=tmp_path / "out").path
    architecture = json.loads((bundle / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, architecture).from_pretrained(bundle, output_loading_info=True)
    assert not any(report.values()), report
    with np.load(GOLDEN / case / "expected.npz") as expected, torch.inference_mode():
        for photograph in ("china", "odd", "upright"):
            results = model(torch.from_numpy(expected[f"{photograph}/pixel_values"]))
            name = "logits" if f"{photograph}/logits" in expected else "pooler_output"
            want = expected[f"{photograph}/{name}"]
            np.testing.assert_allclose(results[name].numpy(), want, rtol=0, atol=TOLERANCE * np.abs(want).max())


@pytest.mark.parametrize("case", ["norm_mean_0", "token_norm_0"])
def test_features_that_no_model_of_transformers_gives_are_those_before_the_head(case: str) -> None:
    config, tensors = read(case)
    content, weights = from_timm(config, tensors, Task.FEATURES)
    assert content["architectures"] == ["TimmViTModel"]
    model = make_model(ViTConfig.from_dict(content), weights, Task.FEATURES, origin=case)
    with np.load(GOLDEN / case / "expected.npz") as expected, torch.inference_mode():
        pooled = model(torch.from_numpy(expected["china/pixel_values"]))["pooler_output"]
        logits = torch.nn.functional.linear(pooled, tensors["head.weight"].float(), tensors["head.bias"].float())
        want = expected["china/logits"]
    np.testing.assert_allclose(logits.numpy(), want, rtol=0, atol=TOLERANCE * np.abs(want).max())
    config["num_classes"] = config["model_args"]["num_classes"] = 0
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("head")}
    same, others = from_timm(config, headless)
    assert (same.get("model_type"), others.keys()) == ("timm_vit", weights.keys())


def test_tokens_alone_are_given_where_nothing_pools_them() -> None:
    config, tensors = read("norm_mean_0")
    config["num_classes"] = config["model_args"]["num_classes"] = 0
    config["global_pool"] = config["model_args"]["global_pool"] = ""
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("head")}
    assert from_timm(config, headless)[0]["architectures"] == ["ViTModel"]


DYNAMIC = GOLDEN / "dynamic_0"


@pytest.mark.parametrize(("option", "off"), [("crop_size", 4), ("image_size", 4), ("size", 2)])
def test_a_dynamic_model_takes_whole_patches_alone(option: str, off: int) -> None:
    """As timm asserts: what is left of a row of patches would be dropped."""
    whole = read_checkpoint(DYNAMIC).model.config.patch_size[0] * 4

    def at(size: int) -> tuple[int, int]:
        given: dict[str, Any] = {"image_size": (size, size)}
        if option != "image_size":
            given = {"processor": ProcessorOptions(size=size, crop_size=size if option == "crop_size" else False)}
        return read_checkpoint(DYNAMIC, **given).model.config.image_size

    assert at(whole) == (whole, whole)
    with raises(UsageError, what="image_size", found=(whole + off, whole + off)):
        at(whole + off)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_null_dynamic_img_size_is_that_of_timm_and_of_the_wrapper(tmp_path: Path, wrapped: bool) -> None:
    """The wrapper leaves nulls out, timm hands them on; the error names the folder."""
    shutil.copytree(DYNAMIC.parent / "vit_0", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model_args"]["dynamic_img_size"] = None
    if wrapped:
        config |= {"model_type": "timm_wrapper"}
    path.write_text(json.dumps(config))
    if wrapped:
        assert read_checkpoint(tmp_path / "model").model.config.image_size == (32, 32)
        return
    with raises(CheckpointError, what="dynamic_img_size") as caught:
        read_checkpoint(tmp_path / "model")
    assert str(caught.value).startswith(f"{tmp_path / 'model'}: ")
