"""Adapters of PEFT: merged as PEFT itself computes them, or refused by name.

tests/golden/make_peft.py wrote the models, the adapters and the results of PEFT's unmerged models in float64.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hub_server import hub_server
from raising import raises

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import FileRecord, ProcessorOrigin
from vitdeploy.cli import main
from vitdeploy.errors import CheckpointError, HubError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.checkpoint import save_model
from vitdeploy.sources.layouts.peft_config import LoraConfig
from vitdeploy.sources.read import Checkpoint, read_checkpoint
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
# Of the largest magnitude, in float64: merged weights are rounded to float32, 6e-8, and two layers follow (seen: 3e-7).
TOLERANCE = 2e-6
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": 8, "image_mean": [0.1] * 3, "image_std": [0.3] * 3}


@pytest.fixture
def case(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a golden folder, "plain" by default, which is the working directory: the adapter's base is "base"."""
    folder = tmp_path / "case"
    shutil.copytree(GOLDEN / getattr(request, "param", "plain"), folder)
    if "architecture" not in json.loads((folder / "base" / "config.json").read_bytes()):
        (folder / "base" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    monkeypatch.chdir(folder)
    return folder


def difference(found: Checkpoint, folder: Path) -> float:
    """Of our reference from PEFT's outputs, as a share of the largest of these."""
    with np.load(folder / "expected.npz") as expected:
        arrays = {name: torch.from_numpy(expected[name]) for name in expected.files}
    pixels = arrays.pop("pixels").double()
    ((name, want),) = arrays.items()
    with torch.inference_mode():
        got = found.model.with_attention("eager").double()(pixel_values=pixels)[name]
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def put_beside(folder: Path) -> Path:
    """Move the adapter beside the weights of its base; that folder."""
    for path in (folder / "adapter").iterdir():
        path.rename(folder / "base" / path.name)
    return folder / "base"


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_a_merged_model_computes_what_peft_does(case: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert difference(read_checkpoint("adapter"), case) < TOLERANCE
    assert len([record for record in caplog.records if record.msg.startswith("merged the LoRA adapter")]) == 1


@pytest.mark.parametrize("case", ["plain", "dora", "patterns", "torch_file", "timm", "old_dinov2"], indirect=True)
def test_an_adapter_beside_the_weights_is_merged_into_them(case: Path) -> None:
    """As transformers does, which takes the weights beside and not those that the adapter names."""
    edit(case / "adapter" / "adapter_config.json", base_model_name_or_path="nobody/has-this")
    assert difference(read_checkpoint(put_beside(case)), case) < TOLERANCE


@pytest.mark.parametrize("case", ["plain", "rslora", "dora"], indirect=True)
def test_the_base_alone_computes_something_else(case: Path) -> None:
    """So that an adapter that is left out shows."""
    assert difference(read_checkpoint("base"), case) > 0.05


@pytest.mark.parametrize(
    ("case", "labels"),
    [
        ("plain", ("cat", "dog", "newt")),
        ("classifier", tuple(f"LABEL_{index}" for index in range(5))),
        ("named", tuple(f"species {index}" for index in range(4))),
        ("timm", tuple(f"LABEL_{index}" for index in range(4))),
        ("old_vit", tuple(f"LABEL_{index}" for index in range(5))),
        ("deit", ("LABEL_0", "LABEL_1")),
    ],
    indirect=["case"],
)
def test_the_classes_are_those_of_the_trained_head(case: Path, labels: tuple[str, ...]) -> None:
    found = read_checkpoint("adapter")
    assert found.model.config.labels == labels
    assert found.model.task is Task.CLASSIFICATION


@pytest.mark.parametrize("case", ["classifier"], indirect=True)
@pytest.mark.parametrize("mapping", [None, {"base_model_class": "Unknown"}])
def test_a_saved_head_makes_a_classifier_of_a_base_without(case: Path, mapping: object) -> None:
    """Adapters with a task_type do not say the class of their model."""
    edit(case / "adapter" / "adapter_config.json", auto_mapping=mapping)
    assert difference(read_checkpoint("adapter"), case) < TOLERANCE


def test_a_bundle_says_what_it_was_made_of(
    case: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = vitdeploy.export("adapter", output="out")
    source = Bundle.open(bundle.path).manifest.source
    assert (source.id, source.base, source.base_revision) == ("adapter", "base", None)
    names = {"base": "model.safetensors", "adapter": "adapter_model.safetensors"}
    assert source.weights == (
        FileRecord.of(case / "base", names["base"]),
        FileRecord.of(case / "adapter", "adapter_config.json"),
        FileRecord.of(case / "adapter", names["adapter"]),
    )
    assert "merged the LoRA adapter into 'base': 4 weights changed" in caplog.text
    with pytest.raises(SystemExit):
        main(["inspect", str(bundle.path)])
    assert "merged into" in capsys.readouterr().out


def test_the_image_processor_is_the_adapters_else_the_bases(case: Path) -> None:
    assert read_checkpoint("adapter").processor == ImageProcessor.from_dict(PROCESSOR)
    other = PROCESSOR | {"image_mean": [0.7] * 3}
    (case / "adapter" / "preprocessor_config.json").write_text(json.dumps(other))
    assert read_checkpoint("adapter").processor == ImageProcessor.from_dict(other)


def test_wrappers_of_training_are_removed_from_an_adapter_too(case: Path) -> None:
    path = case / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    renamed = {name.replace("base_model.model.", "base_model.model._orig_mod."): tensors[name] for name in tensors}
    safetensors.torch.save_file({f"module.{name}": renamed[name] for name in renamed}, path)
    assert difference(read_checkpoint("adapter"), case) < TOLERANCE


def test_names_without_the_prefix_and_with_the_adapters_name(case: Path) -> None:
    """As `torch.save(model.state_dict())` and transformers' own integration write them."""
    path = case / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    bare = {name.removeprefix("base_model.model."): tensors[name] for name in tensors}
    renamed = {name.replace(".weight", ".default.weight"): bare[name] for name in bare}
    safetensors.torch.save_file(renamed, path)
    assert difference(read_checkpoint("adapter"), case) < TOLERANCE


BASES = {"there": "base", "absent": "nobody/has-this", "null": None, "another": "other", "itself": "adapter"}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "case", ["plain", "dora", "classifier", "bias_all", "conv", "lora_bias", "old_deit", "registers"], indirect=True
)
def test_an_adapter_beside_weights_that_have_it_is_not_merged_again(case: Path, base: str) -> None:
    """`merge_and_unload().save_pretrained("adapter")` in PEFT leaves the adapter there, whatever names its base."""
    merged = read_checkpoint("adapter")
    save_model(merged.model, case / "adapter" / "model.safetensors")
    (case / "adapter" / "config.json").write_bytes(merged.files["config.json"])
    shutil.copytree(GOLDEN / "beit" / "base", case / "other")
    edit(case / "adapter" / "adapter_config.json", base_model_name_or_path=BASES[base])
    with raises(CheckpointError, found="merged"):
        read_checkpoint("adapter")
    for path in (case / "adapter").glob("adapter_*"):
        path.unlink()
    shutil.copy(case / "base" / "preprocessor_config.json", case / "adapter")
    assert difference(read_checkpoint("adapter"), case) < TOLERANCE


@pytest.mark.parametrize("base", ["nobody/has-this", None, "other", "base"])
@pytest.mark.parametrize("case", CASES, indirect=True)
def test_an_adapter_beside_weights_without_it_is_merged_whatever_names_its_base(case: Path, base: str | None) -> None:
    edit(case / "adapter" / "adapter_config.json", base_model_name_or_path=base)
    shutil.copytree(GOLDEN / ("plain" if case.name == "beit" else "beit") / "base", case / "other")
    assert difference(read_checkpoint(put_beside(case)), case) < TOLERANCE


def make_faint(folder: Path) -> None:
    """So small an adapter that the weights alone do not tell whether they have it."""
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    faint = {name: tensor * (1e-3 if "lora_B" in name else 1) for name, tensor in tensors.items()}
    safetensors.torch.save_file(faint, path)


def test_an_adapter_too_small_to_tell_whether_it_was_merged_is_refused(case: Path) -> None:
    """The way that the error names is then taken: the adapter in a folder of its own."""
    make_faint(case / "adapter")
    edit(case / "adapter" / "adapter_config.json", base_model_name_or_path="nobody/has-this")
    shutil.copytree(case / "adapter", case / "apart")
    folder = put_beside(case)
    with raises(CheckpointError, found="unknown"):
        read_checkpoint(folder)
    for path in folder.glob("adapter_*"):
        path.unlink()
    edit(case / "apart" / "adapter_config.json", base_model_name_or_path=str(folder))
    assert read_checkpoint("apart").model.config.labels == ("cat", "dog", "newt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_beside_may_be_a_copy_of_the_base(case: Path, dtype: torch.dtype) -> None:
    shutil.copytree(case / "base", case / "copy")
    tensors = safetensors.torch.load_file(case / "base" / "model.safetensors")
    rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    safetensors.torch.save_file(rounded, case / "copy" / "model.safetensors")
    for path in (case / "adapter").iterdir():
        shutil.copy(path, case / "copy")
    assert difference(read_checkpoint("copy"), case) < (TOLERANCE if dtype is torch.float32 else 0.05)


@pytest.mark.parametrize("case", ["timm"], indirect=True)
def test_transformers_wrapper_around_timm_has_the_names_of_its_classes(case: Path) -> None:
    stated = json.loads((case / "base" / "config.json").read_bytes())
    stated |= {"model_type": "timm_wrapper", "num_classes": 4, "label_names": ["a", "b", "c", "d"]}
    (case / "adapter" / "config.json").write_text(json.dumps(stated))
    found = read_checkpoint("adapter")
    assert found.model.config.labels == ("a", "b", "c", "d")
    assert difference(found, case) < TOLERANCE


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "layer_norm_eps": ("plain", {"layer_norm_eps": 0.5}),
    "num_attention_heads": ("plain", {"num_attention_heads": 4}),
    "hidden_act": ("plain", {"hidden_act": "relu"}),
    "image_size": ("plain", {"image_size": 16}),
    "architecture": ("timm", {"architecture": "vit_small_patch16_224"}),
    "global_pool": ("timm", {"global_pool": "avg"}),
    "model_args": ("timm", {"model_args": {"num_heads": 4}}),
}


@pytest.mark.parametrize(("case", "key"), [(case, key) for key, (case, _) in KINDS.items()], indirect=["case"])
def test_a_config_beside_an_adapter_does_not_change_what_its_base_computes(case: Path, key: str) -> None:
    """PEFT reads the base's alone. What is the same there, or of the head, is no difference."""
    base = json.loads((case / "base" / "config.json").read_bytes())
    (case / "adapter" / "config.json").write_text(json.dumps(base | KINDS[key][1]))
    with raises(CheckpointError, what=re.compile(f"^{key}")):
        read_checkpoint("adapter")
    (case / "adapter" / "config.json").write_text(json.dumps(base | {"initializer_range": 5, "num_classes": 4}))
    if "architecture" not in base:
        edit(case / "adapter" / "config.json", problem_type="multi_label_classification")
        assert read_checkpoint("adapter").model.problem_type == "multi_label_classification"


TIMM_NAMES: dict[str, dict[str, Any]] = {
    "labels": {"pretrained_cfg": {"labels": ["x", "y", "z"], "num_classes": 3}},
    "id2label": {"model_type": "timm_wrapper", "id2label": {"0": "cat", "1": "dog", "2": "newt"}, "num_labels": 3},
}


@pytest.mark.parametrize("names", TIMM_NAMES)
@pytest.mark.parametrize("case", ["timm"], indirect=True)
def test_a_new_head_has_none_of_the_names_of_the_bases_classes(case: Path, names: str) -> None:
    path = case / "base" / "config.json"
    config = json.loads(path.read_bytes())
    del config["num_classes"]
    cfg = {key: value for key, value in config["pretrained_cfg"].items() if key not in ("label_names", "num_classes")}
    changes = dict(TIMM_NAMES[names])
    cfg |= changes.pop("pretrained_cfg", {})
    path.write_text(json.dumps(config | changes | {"pretrained_cfg": cfg}))
    assert read_checkpoint("adapter").model.config.labels == tuple(f"LABEL_{index}" for index in range(4))


@pytest.mark.parametrize("case", ["timm"], indirect=True)
def test_names_alone_beside_an_adapter_are_those_of_its_head(case: Path) -> None:
    names = {"model_type": "timm_wrapper", "id2label": dict(zip("0123", "abcd", strict=True))}
    (case / "adapter" / "config.json").write_text(json.dumps(names))
    assert read_checkpoint("adapter").model.config.labels == tuple("abcd")


@pytest.mark.parametrize("case", ["timm"], indirect=True)
def test_names_are_kept_where_the_new_head_has_as_many_classes(case: Path) -> None:
    """The number of classes of timm may be in model_args alone."""
    config = json.loads((case / "base" / "config.json").read_bytes())
    config.pop("num_classes")
    config["model_args"]["num_classes"] = 4
    config["pretrained_cfg"]["label_names"] = list("wxyz")
    (case / "base" / "config.json").write_text(json.dumps(config))
    assert read_checkpoint("adapter").model.config.labels == tuple("wxyz")


@pytest.mark.parametrize("case", ["timm"], indirect=True)
def test_timms_processor_is_that_of_the_merged_configuration(case: Path) -> None:
    edit(
        case / "base" / "config.json",
        pretrained_cfg={"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    )
    plain = read_checkpoint("adapter").processor
    assert (plain.output_size, plain.image_mean) == ((8, 8), (0.5, 0.5, 0.5))
    names: dict[str, Any] = {"architecture": "vit_tiny_patch16_224", "num_classes": 4, "label_names": list("abcd")}
    (case / "adapter" / "config.json").write_text(json.dumps(names))
    assert read_checkpoint("adapter").processor == plain
    edit(case / "adapter" / "config.json", pretrained_cfg={"mean": [0.25] * 3})
    assert read_checkpoint("adapter").processor == dataclasses.replace(plain, image_mean=(0.25, 0.25, 0.25))


# From the Hub.


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.usefixtures("online")
def test_an_adapter_and_its_base_come_from_the_hub(case: Path) -> None:
    """The base in the revision that the adapter says; then from the cache."""
    edit(case / "adapter" / "adapter_config.json", base_model_name_or_path="org/vit-base", revision="v1")
    with hub_server({"me/lora": case / "adapter"}) as hub:
        old = hub.push("org/vit-base", case / "base", branch="v1")
        (case / "base" / "model.safetensors").write_bytes(b"retrained")
        hub.push("org/vit-base", case / "base")
        options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": case / "cache"}
        found = read_checkpoint("me/lora", **options)
        offline = read_checkpoint("me/lora", offline=True, **options)
    assert (found.source.id, found.source.base, found.source.base_revision) == ("me/lora", "org/vit-base", old)
    assert found.source.processor == ProcessorOrigin("base")
    assert found.source.revision == hub.commit("me/lora", "main")
    assert offline.source == found.source
    assert difference(found, case) < TOLERANCE


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("merged", [True, False])
def test_the_base_is_fetched_to_tell_whether_an_adapter_was_merged(case: Path, merged: bool) -> None:
    """In the revision that the adapter says, into the cache that was named."""
    make_faint(case / "adapter")
    whole = read_checkpoint("adapter")
    edit(case / "adapter" / "adapter_config.json", base_model_name_or_path="org/vit-base", revision="v1")
    with hub_server({"org/vit-base": case / "adapter"}) as hub:  # on main is something else
        hub.push("org/vit-base", case / "base", branch="v1")
        folder = put_beside(case)
        if merged:
            save_model(whole.model, folder / "model.safetensors")
        options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": case / "cache"}
        for offline in (False, True):
            if not merged:
                assert read_checkpoint(folder, offline=offline, **options).source.base == "base"
                continue
            with raises(CheckpointError, found="merged"):
                read_checkpoint(folder, offline=offline, **options)


@pytest.mark.usefixtures("online")
def test_a_base_that_is_not_on_the_hub_is_named(case: Path) -> None:
    edit(case / "adapter" / "adapter_config.json", base_model_name_or_path="org/absent")
    with (
        hub_server({"me/lora": case / "adapter"}) as hub,
        raises(CheckpointError, what="base_model_name_or_path", found="org/absent"),
    ):
        read_checkpoint("me/lora", endpoint=hub.url, cache_dir=case / "cache")


# What is refused.


@pytest.mark.parametrize(
    ("base", "error"),
    [
        (None, CheckpointError),
        ("", CheckpointError),
        ("./nowhere", CheckpointError),
        ("org/offline", HubError),
        ("adapter", CheckpointError),
    ],
)
def test_an_adapter_alone_needs_its_base(
    case: Path, capsys: pytest.CaptureFixture[str], base: str | None, error: type[CheckpointError | HubError]
) -> None:
    edit(case / "adapter" / "adapter_config.json", base_model_name_or_path=base)
    with raises(error, what="base_model_name_or_path", found=base or None):
        read_checkpoint("adapter", offline=True, cache_dir=case / "cache")
    with pytest.raises(SystemExit) as exited:
        main(["export", "--model", "adapter", "--offline", "--cache-dir", "cache", "-o", "out"])
    assert exited.value.code == (3 if error is HubError else 4)
    assert len(capsys.readouterr().err.splitlines()) <= 2  # with the step that failed


INITS = ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
REFUSED: dict[str, dict[str, Any]] = {
    "peft_type": {"peft_type": "LOHA"},
    "no peft_type": {"peft_type": None},
    **{init: {"init_lora_weights": init} for init in INITS},
    "layer_replication": {"layer_replication": [[0, 2], [0, 2]]},
    "target_parameters": {"target_parameters": ["weight"]},
    "trainable_token_indices": {"trainable_token_indices": [1]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "megatron_config": {"megatron_config": {"tensor_parallel": 2}},
    "use_qalora": {"use_qalora": True},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "kasa_config": {"kasa_config": {"beta": 0.1}},
    "velora_config": {"velora_config": {"scale": 1.0}},
    "monteclora_config": {"monteclora_config": {"num_samples": 8}},
    "arrow_config": {"arrow_config": {"top_k": 3}},
    "enable_lora": {"enable_lora": [True, False, True]},
    "a key that nobody knows": {"use_new_thing": True},
    "rank_pattern": {"rank_pattern": {"(": 3}},
    "a pattern that is too long": {"rank_pattern": {"a{99999999999}": 3}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": "3"}},
    "r": {"r": 0},
    "lora_alpha": {"lora_alpha": True},
    "use_rslora": {"use_rslora": "yes"},
    "bias": {"bias": "some"},
    "modules_to_save": {"modules_to_save": "classifier"},
    "base_model_name_or_path": {"base_model_name_or_path": 3},
}


@pytest.mark.parametrize("key", REFUSED)
def test_an_adapter_that_cannot_be_merged_exactly_is_refused_by_name(case: Path, key: str) -> None:
    changes = REFUSED[key]
    edit(case / "adapter" / "adapter_config.json", **changes)
    for folder in (case / "adapter", case / "base"):
        with raises(CheckpointError, what=next(iter(changes))):
            read_checkpoint(folder)
        put_beside(case)


def test_keys_of_features_that_are_off_do_not_matter(case: Path) -> None:
    off: dict[str, Any] = {"use_new_thing": False, "new_config": None, "new_pattern": {}, "enable_lora": None}
    edit(case / "adapter" / "adapter_config.json", **off)
    assert difference(read_checkpoint("adapter"), case) < TOLERANCE


@pytest.mark.parametrize("init", ["gaussian", "eva", "orthogonal", "mica", False])
def test_initialisations_that_leave_the_base_alone_are_taken(case: Path, init: str | bool) -> None:
    edit(case / "adapter" / "adapter_config.json", init_lora_weights=init)
    assert difference(read_checkpoint("adapter"), case) < TOLERANCE


def test_every_other_key_of_peft_has_an_effect_or_is_refused() -> None:
    """Of those that peft 0.21 writes: given an odd value, all but these make a difference."""
    written = json.loads((GOLDEN / "plain" / "adapter" / "adapter_config.json").read_bytes())

    def is_ignored(key: str) -> bool:
        try:
            return LoraConfig.from_dict(written | {key: {"odd": 1}}) == LoraConfig.from_dict(written)
        except CheckpointError:
            return False

    of_training = {"task_type", "inference_mode", "lora_dropout", "loftq_config", "eva_config", "corda_config"}
    of_selection = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
    of_other_models = {"fan_in_fan_out", "megatron_core", "qalora_group_size", "ensure_weight_tying", "lora_ga_config"}
    ignored = {key for key in written if is_ignored(key)}
    assert ignored == {"peft_version", *of_training, *of_selection, *of_other_models}


def test_defaults_are_those_of_peft() -> None:
    """As `peft.LoraConfig()` has them in peft 0.21."""
    config = LoraConfig.from_dict({"peft_type": "LORA"})
    numbers = {"rank": 8, "alpha": 8, "rank_pattern": {}, "alpha_pattern": {}}
    names = {"base": "", "base_revision": None, "model_class": "", "saved_modules": (), "bias": "none"}
    off = dict.fromkeys(("rslora", "lora_bias", "dora"), False)
    assert dataclasses.asdict(config) == {**numbers, **names, **off}


State = dict[str, torch.Tensor]
QUERY = "base_model.model.vit.layers.0.attention.q_proj"
FAULTS: dict[str, Callable[[State], State]] = {
    "nothing": lambda _: {},
    "one factor": lambda state: {name: value for name, value in state.items() if name != f"{QUERY}.lora_B.weight"},
    "another rank": lambda state: state | {f"{QUERY}.lora_A.weight": torch.zeros(3, 16)},
    "another width": lambda state: state | {f"{QUERY}.lora_A.weight": torch.zeros(4, 17)},
    "rank 1": lambda state: state | {f"{QUERY}.lora_A.weight": torch.zeros(64)},
    "magnitudes without DoRA": lambda state: state | {f"{QUERY}.lora_magnitude_vector": torch.ones(16)},
    "a bias without lora_bias": lambda state: state | {f"{QUERY}.lora_B.bias": torch.ones(16)},
    "a bias that was not trained": lambda state: state | {f"{QUERY}.base_layer.bias": torch.ones(16)},
    "a module that was not trained": lambda state: state | {"base_model.model.classifier.weight": torch.ones(3, 16)},
    "an embedding": lambda state: state | {"base_model.model.vit.embeddings.lora_embedding_A": torch.ones(3, 16)},
    "another method": lambda state: state | {f"{QUERY}.lora_E": torch.ones(4, 1)},
    "a layer more": lambda state: state | {name.replace(".0.", ".7."): state[name].clone() for name in state},
    "two names": lambda state: state | {name.removeprefix("base_model.model."): state[name].clone() for name in state},
    "integers": lambda state: state | {f"{QUERY}.lora_A.weight": torch.zeros(4, 16, dtype=torch.int8)},
    "not finite": lambda state: state | {f"{QUERY}.lora_A.weight": torch.full((4, 16), torch.inf)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_tensor_of_an_adapter_must_be_used(case: Path, fault: str) -> None:
    path = case / "adapter" / "adapter_model.safetensors"
    safetensors.torch.save_file(FAULTS[fault](safetensors.torch.load_file(path)), path)
    with raises(CheckpointError, where=re.compile(r"adapter_model\.safetensors$")):
        read_checkpoint("adapter")


@pytest.mark.parametrize("case", ["classifier"], indirect=True)
@pytest.mark.parametrize("shape", [(), (5,), (5, 17), (0, 16), (4, 16)])
def test_a_head_that_does_not_fit_is_refused(case: Path, shape: tuple[int, ...]) -> None:
    path = case / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path) | {"base_model.model.classifier.weight": torch.zeros(shape)}
    safetensors.torch.save_file(tensors, path)
    with raises(CheckpointError, what="weights", found=re.compile(r"classifier\.(weight|bias)")):
        read_checkpoint("adapter")


@pytest.mark.parametrize("case", ["named"], indirect=True)
def test_a_config_of_another_model_beside_the_adapter_is_refused(case: Path) -> None:
    edit(case / "adapter" / "config.json", model_type="deit")
    with raises(CheckpointError, what="model_type", expected="vit", found="deit"):
        read_checkpoint("adapter")


def test_an_adapter_of_another_family_is_refused(case: Path) -> None:
    mapping = {"base_model_class": "DeiTForImageClassification"}
    edit(case / "adapter" / "adapter_config.json", auto_mapping=mapping)
    with raises(CheckpointError, what="base_model_class", found="DeiTForImageClassification"):
        read_checkpoint("adapter")


@pytest.mark.parametrize("lost", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("beside", [True, False])
def test_half_an_adapter_is_refused(case: Path, lost: str, beside: bool) -> None:
    folder = put_beside(case) if beside else case / "adapter"
    (folder / lost).unlink()
    with raises(CheckpointError, what=lost, where=folder):
        read_checkpoint(folder)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_quantized_checkpoint_is_refused(case: Path, key: str) -> None:
    """Whose weights may look like any others, where it is the activations that are quantized."""
    edit(case / "base" / "config.json", **{key: {"quant_method": "compressed-tensors"}})
    with raises(CheckpointError, what=key, found={"quant_method": "compressed-tensors"}):
        read_checkpoint("base")
