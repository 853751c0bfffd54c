"""Checkpoints: every form that is read, every fault that is named, and what is written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import safetensors.torch
import torch
import transformers
from families import TINY, VIT_CLASSES
from raising import raises
from torch import Tensor

from models.parity import TOLERANCES, answers, assert_near, inputs_of
from vitdeploy.errors import CheckpointError
from vitdeploy.models.checkpoint import load_model, save_model, task_of
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.presets import random_model
from vitdeploy.models.weights import unwrapped
from vitdeploy.sources.hub import resolve
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from conftest import Checkpoint, WriteCheckpoint

    State = dict[str, Tensor]

TASKS = pytest.mark.parametrize("task", Task, ids=str)
V5_NAMES = (  # in order
    ("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
)  # fmt: skip


@pytest.fixture(params=Task, ids=str)
def checkpoint(request: pytest.FixtureRequest, write_checkpoint: WriteCheckpoint) -> Checkpoint:
    """One for each task."""
    return write_checkpoint(request.param, TINY)


@pytest.fixture
def classifier(write_checkpoint: WriteCheckpoint) -> Checkpoint:
    return write_checkpoint(Task.CLASSIFICATION, TINY)


def state_of(checkpoint: Checkpoint) -> State:
    """The tensors by their names on disk."""
    return safetensors.torch.load_file(checkpoint.weights[0])


def load_state(
    state: State, checkpoint: Checkpoint, task: Task | None = None, *, name: str = "model.safetensors"
) -> State:
    """The model's content after reading a file with `state`."""
    path = checkpoint.folder / "changed" / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return load_model(checkpoint.config, [path], task or checkpoint.task).state_dict()


def assert_same(got: State, want: State) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def without_prefix(state: State) -> State:
    return {name.removeprefix("vit."): tensor for name, tensor in state.items()}


def with_prefix(state: State) -> State:
    heads = ("vit.", "classifier", "decoder")
    return {name if name.startswith(heads) else f"vit.{name}": tensor for name, tensor in state.items()}


def with_v5_names(state: State) -> State:
    renamed = {}
    for name, tensor in state.items():
        for old, new in V5_NAMES:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def with_legacy_norms(state: State) -> State:
    def legacy(name: str) -> str:
        return name.replace(".weight", ".gamma").replace(".bias", ".beta") if "layernorm" in name else name

    return {legacy(name): tensor for name, tensor in state.items()}


# What is read.


@pytest.mark.parametrize(
    "spell",
    [
        without_prefix,
        with_prefix,
        with_v5_names,
        with_legacy_norms,
        lambda state: without_prefix(with_v5_names(state)),
        lambda state: with_prefix(with_v5_names(with_legacy_norms(state))),
    ],
    ids=["bare", "prefixed", "v5", "legacy", "v5-bare", "v5-legacy-prefixed"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_every_spelling_is_read(checkpoint: Checkpoint, spell: Callable[[State], State], name: str) -> None:
    state = state_of(checkpoint)
    spelled = spell(state)
    assert_same(load_state(spelled, checkpoint, name=name), checkpoint.load().state_dict())


def test_the_v5_names_of_this_test_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    assert with_v5_names(state_of(checkpoint)).keys() == checkpoint.peer.state_dict().keys()


def test_shards_are_read(checkpoint: Checkpoint) -> None:
    folder = checkpoint.folder / "sharded"
    checkpoint.peer.save_pretrained(folder, max_shard_size="15KB")
    shards = resolve(folder).weights
    assert len(shards) > 2
    assert_same(load_model(checkpoint.config, shards, checkpoint.task).state_dict(), checkpoint.load().state_dict())
    with raises(CheckpointError, what="weights") as error:
        load_model(checkpoint.config, shards[1:], checkpoint.task)
    assert first_differences(error.value).keys() == {"missing"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_torch_file_is_read(classifier: Checkpoint, zipped: bool) -> None:
    """Of parameters, of which some share memory, some are views and some are of half precision."""
    state = state_of(classifier)
    shared = "vit.encoder.layer.0.attention.attention.query.bias", "vit.encoder.layer.1.attention.attention.query.bias"
    state[shared[1]] = state[shared[0]]
    state["classifier.weight"] = state["classifier.weight"].t().contiguous().t()
    state["classifier.bias"] = torch.nn.Parameter(state["classifier.bias"].half())
    path = classifier.folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)

    model = load_model(classifier.config, [path], classifier.task)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.state_dict()["head.classifier.weight"], state["classifier.weight"])
    again = classifier.folder / "again.safetensors"
    save_model(model, again)
    assert_same(load_model(classifier.config, [again], classifier.task).state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_point_types_become_float32(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in state_of(checkpoint).items()}
    got = load_state(state, checkpoint)
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    assert_same(got, load_state({name: tensor.float() for name, tensor in state.items()}, checkpoint))


# The weights of other tasks' heads are left out; a task whose own head is missing says so.


@pytest.mark.parametrize("source", [Task.CLASSIFICATION, Task.MASKED_IMAGE_MODELING], ids=str)
def test_features_come_from_any_checkpoint(write_checkpoint: WriteCheckpoint, source: Task) -> None:
    checkpoint = write_checkpoint(source, TINY)
    model = load_model(checkpoint.config, checkpoint.weights, Task.FEATURES)
    (pixels, *_) = inputs_of(checkpoint, (32, 32), torch.float32)
    want = answers(checkpoint.peer.base_model, pixels)
    assert want.keys() == {"last_hidden_state"}  # no pooler, here as there
    assert_near(model(pixels), want, TOLERANCES[torch.float32])


@pytest.mark.parametrize("pooler", [True, False])
def test_a_model_without_labels_comes_from_a_base_checkpoint(write_checkpoint: WriteCheckpoint, pooler: bool) -> None:
    checkpoint = write_checkpoint(Task.FEATURES, TINY | {"id2label": {}, "label2id": {}}, pooler=pooler)
    model = load_model(checkpoint.config, checkpoint.weights, Task.CLASSIFICATION)
    (pixels, *_) = inputs_of(checkpoint, (32, 32), torch.float32)
    assert_near(model(pixels), {"logits": checkpoint.peer(pixels).last_hidden_state[:, 0]}, TOLERANCES[torch.float32])


@pytest.mark.parametrize(
    ("source", "target", "missing"),
    [
        (Task.FEATURES, Task.CLASSIFICATION, ["classifier.weight", "classifier.bias"]),
        (Task.MASKED_IMAGE_MODELING, Task.CLASSIFICATION, ["classifier.weight", "classifier.bias"]),
        (Task.FEATURES, Task.MASKED_IMAGE_MODELING, ["embeddings.mask_token", "decoder.0.weight", "decoder.0.bias"]),
    ],
    ids=str,
)
def test_a_task_without_its_head_says_so(
    write_checkpoint: WriteCheckpoint, source: Task, target: Task, missing: list[str]
) -> None:
    checkpoint = write_checkpoint(source, TINY)
    with raises(CheckpointError, what="weights", found={"missing": missing}, hint=re.compile("--task")):
        load_model(checkpoint.config, checkpoint.weights, target)


# What is refused, by name.

QUERY = "vit.encoder.layer.1.attention.attention.query.weight"


def drop(*names: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


def put(**tensors: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def change(name: str, to: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {name: to(state[name])}


# Each with the first difference of each kind, or with the fields of another error.
FAULTS: dict[str, tuple[Callable[[State], State], dict[str, str]]] = {
    "missing": (drop(QUERY), {"missing": "encoder.layer.1.attention.attention.query.weight"}),
    "half a head": (drop("classifier.bias"), {"missing": "classifier.bias"}),
    "all missing": (lambda state: {}, {"missing": "embeddings.cls_token"}),
    "extra": (put(vit__head__weight=torch.zeros(3)), {"unexpected": "vit.head.weight"}),
    "extra layer": (
        put(vit__encoder__layer__2__output__dense__bias=torch.zeros(32)),
        {"unexpected": "vit.encoder.layer.2.output.dense.bias"},
    ),
    "misspelt": (put(classifier__wieght=torch.zeros(3)), {"unexpected": "classifier.wieght"}),
    "misspelt head of another task": (put(pooler__weight=torch.zeros(3)), {"unexpected": "pooler.weight"}),
    "extra bias": (put(decoder__1__bias=torch.zeros(3)), {"unexpected": "decoder.1.bias"}),
    "shape": (change(QUERY, lambda tensor: tensor[:, :-1]), {"wrong shape:": f"{QUERY} must be (32, 32), is (32, 31)"}),
    "rank": (change("classifier.bias", lambda x: x[None]), {"wrong shape:": "classifier.bias must be (3,), is (1, 3)"}),
    "integers": (change(QUERY, lambda tensor: tensor.int()), {"no floats:": f"{QUERY} is torch.int32"}),
    "booleans": (change(QUERY, lambda tensor: tensor > 0), {"no floats:": f"{QUERY} is torch.bool"}),
    "float8": (change(QUERY, lambda x: x.to(torch.float8_e4m3fn)), {"no floats:": f"{QUERY} is torch.float8_e4m3fn"}),
    "two faults": (
        lambda state: {name.replace("cls_token", "class_token"): tensor for name, tensor in state.items()},
        {"missing": "embeddings.cls_token", "unexpected": "vit.embeddings.class_token"},
    ),
}


def first_differences(error: CheckpointError) -> dict[str, str]:
    assert isinstance(error.found, dict)
    return {kind: names[0] for kind, names in error.found.items()}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_do_not_fit_are_named(classifier: Checkpoint, fault: str, name: str) -> None:
    make, differences = FAULTS[fault]
    state = {key: tensor.contiguous() for key, tensor in make(state_of(classifier)).items()}
    with raises(CheckpointError, what="weights", where=re.compile(rf"{name}$")) as error:
        load_state(state, classifier, name=name)
    assert first_differences(error.value) == differences


def test_many_differences_are_told_in_one_line(classifier: Checkpoint) -> None:
    state = {name: tensor for name, tensor in state_of(classifier).items() if "layer.1" not in name}
    with raises(CheckpointError, what="weights") as error:
        load_state(state, classifier)
    assert isinstance(error.value.found, dict)
    assert len(error.value.found["missing"]) == 16
    assert len(str(error.value)) < 500


def test_a_weight_under_two_names_is_refused(classifier: Checkpoint) -> None:
    with raises(CheckpointError, what=re.compile("layernorm.weight$"), found=re.compile("layernorm.weight$")):
        load_state(put(layernorm__weight=torch.ones(32))(state_of(classifier)), classifier)


@pytest.mark.parametrize(
    ("fields", "differences"),
    [
        ({"num_hidden_layers": 3}, {"missing": r"encoder\.layer\.2\.layernorm_before\.weight"}),
        ({"num_hidden_layers": 1}, {"unexpected": r".*encoder\.layer\.1\..*"}),
        ({"hidden_size": 48}, {"wrong shape:": r".*cls_token must be \(1, 1, 48\), is \(1, 1, 32\)"}),
        ({"head_dim": 4}, {"wrong shape:": r".* must be \(16, 32\), is \(32, 32\)"}),
        ({"qkv_bias": False}, {"unexpected": r".*attention\.(query|key|value)\.bias"}),
        ({"image_size": 64}, {"wrong shape:": r".*position_embeddings must be \(1, 65, 32\), is \(1, 17, 32\)"}),
        ({"patch_size": [8, 4]}, {"wrong shape:": r".*"}),
        ({"num_channels": 1}, {"wrong shape:": r".*projection\.weight must be \(32, 1, 8, 8\), .*"}),
        ({"id2label": {"0": "cat"}}, {"wrong shape:": r"classifier\.weight must be \(1, 32\), is \(3, 32\)"}),
        ({"id2label": {}}, {"unexpected": r"classifier\.bias"}),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_named(
    classifier: Checkpoint, fields: dict[str, Any], differences: dict[str, str]
) -> None:
    config = json.loads((classifier.folder / "config.json").read_bytes()) | fields
    with raises(CheckpointError, what="weights") as error:
        load_model(ViTConfig.from_dict(config), classifier.weights, classifier.task)
    changes = first_differences(error.value)
    assert changes.keys() == differences.keys()
    assert all(re.fullmatch(differences[kind], name) for kind, name in changes.items()), changes


def test_an_unknown_activation_is_named(classifier: Checkpoint) -> None:
    config = json.loads((classifier.folder / "config.json").read_bytes()) | {"hidden_act": "swiglu"}
    with raises(CheckpointError, what="hidden_act", where="config.json", found="swiglu"):
        load_model(ViTConfig.from_dict(config), classifier.weights, classifier.task)


def test_an_unused_pooler_needs_no_known_activation(write_checkpoint: WriteCheckpoint) -> None:
    checkpoint = write_checkpoint(Task.FEATURES, TINY | {"pooler_act": "prelu"}, pooler=False)
    assert "pooler_output" not in checkpoint.load()(*inputs_of(checkpoint, (32, 32), torch.float32))


# Files that are corrupt, or worse.


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 1, 7, 100, 2000, -1000, -1])
def test_a_truncated_file_is_one_line_that_names_it(classifier: Checkpoint, name: str, keep: int) -> None:
    load_state(state_of(classifier), classifier, name=name)
    path = classifier.folder / "changed" / name
    path.write_bytes(path.read_bytes()[:keep])
    assert_unreadable(path, classifier)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_random_bytes_never_raise_anything_else(classifier: Checkpoint, name: str) -> None:
    load_state(state_of(classifier), classifier, name=name)
    path = classifier.folder / "changed" / name
    good = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        content = bytearray(good)
        for position, byte in torch.randint(0, 256, (8, 2), generator=generator).tolist():
            content[position * 4] = byte
        path.write_bytes(content)
        try:
            load_model(classifier.config, [path], classifier.task)
        except CheckpointError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017  (some changes do no harm)


ONES = torch.ones(3)


@pytest.mark.parametrize("content", [{"state_dict": {"x": ONES}}, {"epoch": 3}, {0: ONES}, [ONES], ONES, None])
def test_a_torch_file_must_hold_named_tensors(classifier: Checkpoint, tmp_path: Path, content: object) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    with raises(CheckpointError, where=path, expected="named tensors"):
        load_model(classifier.config, [path], classifier.task)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_pickle_does_not_run(classifier: Checkpoint, tmp_path: Path, zipped: bool) -> None:
    path, written = tmp_path / "pytorch_model.bin", tmp_path / "written"
    torch.save(state_of(classifier) | {"x": Malicious(written)}, path, _use_new_zipfile_serialization=zipped)
    assert "could run code" in assert_unreadable(path, classifier)
    assert not written.exists()

    torch.load(path, weights_only=False)  # it is one
    assert written.is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_absent_file_or_a_folder_is_named(classifier: Checkpoint, tmp_path: Path, name: str) -> None:
    assert_unreadable(tmp_path / name, classifier)
    (tmp_path / name).mkdir()
    assert_unreadable(tmp_path / name, classifier)


def assert_unreadable(path: Path, checkpoint: Checkpoint) -> str:
    with raises(CheckpointError, where=path) as error:
        load_model(checkpoint.config, [path], checkpoint.task)
    message = str(error.value)
    assert "weights_only" not in message  # torch advises to open it without
    return message


# What is written.


@pytest.mark.parametrize("pooler", [True, False])
@TASKS
def test_transformers_reads_what_is_written(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, task: Task, pooler: bool
) -> None:
    config = TINY | {"image_size": (32, 24), "qkv_bias": pooler, "head_dim": 6}
    checkpoint = write_checkpoint(task, config, pooler=pooler)
    model = checkpoint.load()
    save_model(model, tmp_path / "model.safetensors")
    written = model.config.to_dict() | {"architectures": [VIT_CLASSES[task]]}
    (tmp_path / "config.json").write_text(json.dumps(written), encoding="utf-8")

    names = safetensors.torch.load_file(tmp_path / "model.safetensors").keys()
    assert names == state_of(checkpoint).keys()
    options = {"add_pooling_layer": pooler} if task is Task.FEATURES else {}
    architecture = getattr(transformers, VIT_CLASSES[task])
    peer, report = architecture.from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not any(report.values()), report
    want = checkpoint.peer.state_dict()
    assert_same(peer.state_dict(), want)


def test_the_same_weights_give_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for path in paths[:2]:
        save_model(checkpoint.load(), path)
    save_model(checkpoint.load("eager").with_attention("sdpa"), paths[2])
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_file_is_as_readable_as_any_other(classifier: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_model(classifier.load(), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=(16, 16))
    with pytest.raises(OSError, match="absent"):
        save_model(random_model(config), tmp_path / "absent" / "model.safetensors")


# The task that a configuration names.


@TASKS
def test_the_task_is_that_of_the_architecture(task: Task) -> None:
    assert task_of({"architectures": [VIT_CLASSES[task]]}) is task
    assert task_of({"architectures": ["Another", VIT_CLASSES[task]]}) is task


@pytest.mark.parametrize(
    "architectures", [None, [], "ViTModel", ["BertModel"], ["x\n"] * 99, [None], [["ViTModel"]], [{}], {}, 3]
)
def test_an_unknown_architecture_is_named(architectures: object) -> None:
    with raises(CheckpointError, what="architectures", found=architectures, hint=re.compile("--task")):
        task_of({"architectures": architectures})


# What training leaves in a checkpoint.

WRAPPED = {
    "DataParallel": ("module.", ""),
    "torch.compile": ("_orig_mod.", ""),
    "compiled DataParallel": ("_orig_mod.module.", ""),
    "DataParallel of a compiled model": ("module._orig_mod.", ""),
    "compiled layers": ("", "_orig_mod."),
    "FSDP": ("_fsdp_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_prefixes_of_wrappers_are_removed(checkpoint: Checkpoint, wrapped: str, name: str) -> None:
    prefix, of_layer = WRAPPED[wrapped]

    def wrap(key: str) -> str:
        return prefix + re.sub(r"(layer\.\d+\.)", rf"\1{of_layer}", key)

    state = {wrap(key): tensor for key, tensor in state_of(checkpoint).items()}
    assert_same(load_state(state, checkpoint, name=name), checkpoint.load().state_dict())


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # which torch.compile's imports call
def test_the_prefixes_are_those_that_torch_gives(classifier: Checkpoint) -> None:
    peer, compiled = classifier.peer, cast("Callable[[torch.nn.Module], torch.nn.Module]", torch.compile)
    names = list(torch.nn.DataParallel(compiled(peer)).state_dict())
    names += list(compiled(torch.optim.swa_utils.AveragedModel(peer)).state_dict())
    names += [f"vit.layers.0.{name}" for name in compiled(peer.vit.layers[0]).state_dict()]
    assert all(name.startswith(("module._orig_mod.", "_orig_mod.", "vit.layers.0._orig_mod.")) for name in names)
    assert {unwrapped(name) for name in names} == {*peer.state_dict(), "n_averaged"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_weight_with_and_without_a_prefix_is_refused(classifier: Checkpoint, prefix: str) -> None:
    """Both may be there after a resumed training, and differ."""
    with raises(CheckpointError, what=QUERY):
        load_state(state_of(classifier) | {f"{prefix}{QUERY}": torch.zeros(32, 32)}, classifier)


@pytest.mark.parametrize(
    "name", ["loss_fct.weight", "criterion.pos_weight", "loss_fn.weight", "vit.embeddings.position_ids", "n_averaged"]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_only_training_needs_is_left_out(classifier: Checkpoint, name: str, prefix: str) -> None:
    """As transformers does, which leaves out every tensor that its model does not have."""
    state = {f"{prefix}{key}": tensor for key, tensor in state_of(classifier).items()}
    state[f"{prefix}{name}"] = torch.arange(17) if name.endswith("ids") else torch.ones(3)
    assert_same(load_state(state, classifier), classifier.load().state_dict())


@pytest.mark.parametrize("name", ["mean", "pixel_std", "vit.norm.running_mean", "ema.weight", "head.loss.bias"])
def test_a_tensor_that_may_have_an_effect_is_refused(classifier: Checkpoint, name: str) -> None:
    """A model that normalises its images itself has the mean in its weights, for example."""
    with raises(CheckpointError, what="weights", found={"unexpected": [name]}):
        load_state(state_of(classifier) | {name: torch.ones(3)}, classifier)
