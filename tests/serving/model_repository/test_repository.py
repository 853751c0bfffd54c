"""Triton's model repository: its files, the configuration against the published schema, and what is refused.

No Triton with these backends ran here. What is known of it is its schema, and the rules of its documentation and
sources, of which `holds_tritons_rules` has those that a configuration can break.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import sign_again, tiny_model, write_bundle, write_checkpoint_of
from raising import raises
from triton_schema import PROTO, descriptors, read_config

import vitdeploy
from vitdeploy import write_triton_model
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import Artifact, FileRecord
from vitdeploy.cli import main
from vitdeploy.errors import BundleError, OutputError, UsageError
from vitdeploy.exporting.engine_validation import NOT_RUN
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.serving.model_repository.model_config import model_config
from vitdeploy.serving.model_repository.model_folder import CONFIG, TritonModel
from vitdeploy.specs import AxisRange, Task

NUMPY_TYPES = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8, "TYPE_BOOL": np.bool_}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """ONNX in fp32."""
    return write_bundle(tmp_path_factory.mktemp("triton"))


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle.path, tmp_path / "vit"))


def with_artifact(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with its artifact changed in its manifest."""
    (artifact,) = bundle.manifest.artifacts
    changed = dataclasses.replace(artifact, **changes)
    return sign_again(dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, artifacts=(changed,))))


def as_engine(bundle: Bundle, *batch: str, **options: Any) -> Bundle:
    """The bundle with a stand-in for an engine of TensorRT, which takes these sizes of batches."""
    path = "tensorrt/model_fp32.engine"
    (bundle.path / "tensorrt").mkdir()
    (bundle.path / path).write_bytes(b"an engine")
    return with_artifact(
        bundle, format="tensorrt", files=(FileRecord.of(bundle.path, path),), options={"batch": list(batch), **options}
    )


def configured(path: Path) -> dict[str, Any]:
    config = read_config(path / CONFIG)
    holds_tritons_rules(config, path)
    return config


def holds_tritons_rules(config: dict[str, Any], path: Path) -> None:
    assert config["name"] == path.name, "the folder's name"
    limit = config["max_batch_size"]
    for tensor in (*config["input"], *config["output"]):
        assert tensor["dims"], "an empty shape is not allowed"
        assert all(int(axis) == -1 or int(axis) >= 1 for axis in tensor["dims"])
        assert (path / tensor.get("label_filename", CONFIG)).is_file()
    assert all(1 <= size <= limit for size in config.get("dynamic_batching", {}).get("preferred_batch_size", []))
    inputs = {tensor["name"]: tensor for tensor in config["input"]}
    for sample in config["model_warmup"]:
        assert 1 <= sample["batch_size"] <= limit
        assert set(sample["inputs"]) == set(inputs)
        for name, each in sample["inputs"].items():
            assert each["data_type"] == inputs[name]["data_type"]
            assert len(each["dims"]) == len(inputs[name]["dims"])
            for size, axis in zip(each["dims"], inputs[name]["dims"], strict=True):
                assert int(size) >= 1, "all that is free must be said"
                assert axis in ("-1", size)


def warmed_up(path: Path, config: dict[str, Any]) -> None:
    """Run every sample of the warm-up, and hold the answers to the configured shapes and types."""
    with OnnxRuntime(path / "1" / "model.onnx") as runtime:
        for sample in config["model_warmup"]:
            feeds = {
                name: np.zeros((sample["batch_size"], *map(int, each["dims"])), NUMPY_TYPES[each["data_type"]])
                for name, each in sample["inputs"].items()
            }
            outputs = runtime.run(feeds)
            assert list(outputs) == [output["name"] for output in config["output"]]
            for output in config["output"]:
                array = outputs[output["name"]]
                assert array.dtype == NUMPY_TYPES[output["data_type"]]
                assert array.shape[0] == sample["batch_size"]
                for size, axis in zip(array.shape[1:], output["dims"], strict=True):
                    assert int(axis) in (-1, size)


def served(bundle: Bundle, folder: Path, **options: Any) -> tuple[TritonModel, dict[str, Any]]:
    """The model in `folder`, and its configuration, by which it was warmed up."""
    model = write_triton_model(bundle.path, folder / "models", **options)
    config = configured(model.path)
    warmed_up(model.path, config)
    return model, config


def sample_of(size: int, dims: Sequence[int], dtype: str = "TYPE_FP32") -> dict[str, Any]:
    each = {"data_type": dtype, "dims": [str(axis) for axis in dims], "zero_data": True}
    return {"name": f"batch of {size}", "batch_size": size, "inputs": {"pixel_values": each}}


def test_the_compiled_schema_is_the_published_one() -> None:
    """Every field and value of the `.proto`, with its number; comments and `[(deprecated)]` aside."""

    def fields(message: Any) -> list[tuple[str, int]]:
        entries = [kind.name for kind in message.nested_type if kind.options.map_entry]
        found = [(field.name, field.number) for field in message.field]
        for kind in message.nested_type:
            found += [] if kind.name in entries else fields(kind)
        return found + [(value.name, value.number) for enum in message.enum_type for value in enum.value]

    file = descriptors()
    compiled = [pair for message in file.message_type for pair in fields(message)]
    compiled += [(value.name, value.number) for enum in file.enum_type for value in enum.value]
    lines = [line.partition("//")[0] for line in PROTO.read_text(encoding="utf-8").splitlines()]
    written = re.findall(r"(\w+)\s*=\s*([0-9]+)\s*(?:\[[^\]]*\])?\s*;", "\n".join(lines))
    assert len(written) > 100
    assert collections.Counter(compiled) == collections.Counter((name, int(number)) for name, number in written)


def test_onnx_in_float32(copy: Bundle, tmp_path: Path) -> None:
    made, config = served(copy, tmp_path)
    assert made.path == tmp_path / "models" / "vit-onnx-fp32"
    assert made.files == (CONFIG, "1/model.onnx", "labels.txt")
    held = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert held == set(made.files)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["vit-onnx-fp32"]
    assert (made.path / "labels.txt").read_text() == "cat\ndog\nnewt\n"
    assert (made.path / "1" / "model.onnx").read_bytes() == (copy.path / "onnx" / "model.onnx").read_bytes()
    assert config == {
        "name": "vit-onnx-fp32",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 32,
        "input": [{"name": "pixel_values", "data_type": "TYPE_FP32", "dims": ["3", "32", "32"]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["3"], "label_filename": "labels.txt"}],
        "instance_group": [{"count": 1}],  # KIND_AUTO is the schema's default
        "dynamic_batching": {},
        "model_warmup": [sample_of(1, (3, 32, 32)), sample_of(32, (3, 32, 32))],
    }
    assert "  kind: KIND_AUTO\n" in (made.path / CONFIG).read_text()


def test_onnx_in_int8_beside_it(copy: Bundle, tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    vitdeploy.export(checkpoint, precision="int8", output=copy.path)
    with raises(UsageError, what="--artifact", where=copy.path):
        write_triton_model(copy.path, tmp_path / "models")
    _, config = served(copy, tmp_path, artifact="onnx-int8", name="pets", max_batch_size=4)
    assert (config["name"], config["max_batch_size"]) == ("pets", 4)
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert [sample["batch_size"] for sample in config["model_warmup"]] == [1, 4]


def test_bytes_in_sizes_within_limits(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    made = vitdeploy.export(
        checkpoint,
        output=tmp_path / "bytes",
        graph=vitdeploy.GraphOptions(input="uint8", image_size=((16, 16), (32, 32), (40, 48))),
    )
    _, config = served(made, tmp_path, max_batch_size=2, device="cuda")
    assert config["input"] == [{"name": "pixel_values", "data_type": "TYPE_UINT8", "dims": ["-1", "-1", "3"]}]
    assert config["model_warmup"] == [sample_of(size, (32, 32, 3), "TYPE_UINT8") for size in (1, 2)]
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]


def test_decoded_images_of_any_size(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    made = vitdeploy.export(checkpoint, output=tmp_path / "decoded", graph=vitdeploy.GraphOptions(embed_resize=True))
    _, config = served(made, tmp_path, max_batch_size=1)
    assert config["model_warmup"] == [sample_of(1, (256, 256, 3), "TYPE_UINT8")]
    assert "dynamic_batching" not in config


def test_features_have_several_outputs_and_no_labels(tmp_path: Path) -> None:
    made = write_bundle(tmp_path, Task.FEATURES)
    model, config = served(made, tmp_path, max_batch_size=2)
    assert config["output"] == [
        {"name": "last_hidden_state", "data_type": "TYPE_FP32", "dims": ["17", "24"]},
        {"name": "pooler_output", "data_type": "TYPE_FP32", "dims": ["24"]},
    ]
    assert model.files == (CONFIG, "1/model.onnx")


def test_a_mask_is_an_input_too(tmp_path: Path) -> None:
    made = write_bundle(tmp_path, Task.MASKED_IMAGE_MODELING)
    _, config = served(made, tmp_path, max_batch_size=2)
    assert config["input"][1] == {"name": "bool_masked_pos", "data_type": "TYPE_BOOL", "dims": ["16"]}


def test_weights_beside_the_model_keep_their_name(copy: Bundle, tmp_path: Path) -> None:
    model = onnx.load(copy.path / "onnx" / "model.onnx")
    names = ("onnx/model_fp16.onnx", "onnx/model_fp16.onnx.data")
    onnx.save(model, copy.path / names[0], save_as_external_data=True, location="model_fp16.onnx.data")
    records = tuple(FileRecord.of(copy.path, name) for name in names)
    with_artifact(copy, precision="fp16", files=records)
    made, config = served(copy, tmp_path)
    assert made.files == (CONFIG, "1/model.onnx", "1/model_fp16.onnx.data", "labels.txt")
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]


def test_an_engine_with_a_profile(copy: Bundle, tmp_path: Path) -> None:
    as_engine(copy, "1:4:16")
    model = write_triton_model(copy.path, tmp_path / "models")
    assert model.files == (CONFIG, "1/model.plan", "labels.txt")
    assert (model.path / "1" / "model.plan").read_bytes() == b"an engine"
    config = configured(model.path)
    assert (config["platform"], config["backend"]) == ("tensorrt_plan", "tensorrt")
    assert config["max_batch_size"] == 16
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert config["dynamic_batching"] == {}
    assert [sample["batch_size"] for sample in config["model_warmup"]] == [1, 16]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_an_engine_of_another_precision(copy: Bundle, tmp_path: Path, precision: str) -> None:
    """What was quantized for TensorRT is served as an engine, which is on a GPU."""
    with_artifact(as_engine(copy, "1:4:16"), precision=precision)
    config = configured(write_triton_model(copy.path, tmp_path / "models").path)
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]


def test_an_engine_with_profiles(copy: Bundle, tmp_path: Path) -> None:
    """Triton takes the first profile alone where none is named, and is advised of sizes where there are several."""
    as_engine(copy, "1:1:1", "2:8:16", "17:32:64")
    config = configured(write_triton_model(copy.path, tmp_path / "models").path)
    assert config["max_batch_size"] == 64
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "profile": ["0", "1", "2"]}]
    assert config["dynamic_batching"] == {"preferred_batch_size": [8, 32]}
    assert [sample["batch_size"] for sample in config["model_warmup"]] == [1, 8, 32, 64]
    smaller = configured(write_triton_model(copy.path, tmp_path / "models", name="smaller", max_batch_size=8).path)
    assert smaller["dynamic_batching"] == {"preferred_batch_size": [8]}
    assert [sample["batch_size"] for sample in smaller["model_warmup"]] == [1, 8]


def test_an_engine_with_profiles_of_image_sizes(copy: Bundle, tmp_path: Path) -> None:
    """Each range of batches with each of sizes is a profile of the engine."""
    as_engine(copy, "1:1:1", "2:8:16", height=["16:16:16", "24:32:40"], width=["16:16:16", "24:40:48"])
    config = configured(write_triton_model(copy.path, tmp_path / "models").path)
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "profile": ["0", "1", "2", "3"]}]


def test_an_engine_is_warmed_up_in_a_size_that_it_takes(copy: Bundle, tmp_path: Path) -> None:
    made = as_engine(copy, "1:2:2", height=["16:32:64"], width=["16:48:64"])
    (artifact,) = made.manifest.artifacts
    spec = dataclasses.replace(artifact.inputs[0], dtype="float16", shape=("batch", 3, "height", "width"))
    axes = {"height": AxisRange(16, 32, 64), "width": AxisRange(16, 48, 64)}
    pixels = dataclasses.replace(artifact.pixels, dtype="float16")
    with_artifact(made, inputs=(spec,), axes=axes, pixels=pixels)
    config = configured(write_triton_model(made.path, tmp_path / "models").path)
    assert config["input"][0]["data_type"] == "TYPE_FP16"
    assert config["model_warmup"] == [sample_of(size, (3, 32, 48), "TYPE_FP16") for size in (1, 2)]


def test_threads_of_onnx_runtime(copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default its own choice, which does not depend on the machine that writes the model."""
    command = ("triton", copy.path, tmp_path / "models", "--name")
    assert run(capsys, *command, "plain")[0] == 0
    assert configured(tmp_path / "models" / "plain").get("parameters", {}) == {}
    assert run(capsys, *command, "limited", "--threads", 4)[0] == 0
    parameters = configured(tmp_path / "models" / "limited")["parameters"]
    assert parameters == {"intra_op_thread_count": {"string_value": "4"}}
    with raises(UsageError, what="threads", found=-1):
        write_triton_model(copy.path, tmp_path / "models", threads=-1)
    with raises(UsageError, what="threads", found=4):
        write_triton_model(as_engine(copy, "1:4:16").path, tmp_path / "models", threads=4)


def test_the_same_artifact_gives_the_same_bytes(copy: Bundle, tmp_path: Path) -> None:
    first, second = (write_triton_model(copy.path, tmp_path / name, name="m").path for name in ("a", "b"))
    again = write_triton_model(copy.path, tmp_path / "a", name="m").path
    for path in (second, again):
        for file in first.rglob("*"):
            assert file.is_dir() or file.read_bytes() == (path / file.relative_to(first)).read_bytes()


def test_what_was_written_is_replaced_whole(copy: Bundle, tmp_path: Path) -> None:
    write_triton_model(copy.path, tmp_path / "models", name="m")
    as_engine(copy, "1:2:4")
    model = write_triton_model(copy.path, tmp_path / "models", name="m")
    held = {path.relative_to(model.path).as_posix() for path in model.path.rglob("*") if path.is_file()}
    assert held == {CONFIG, "1/model.plan", "labels.txt"}
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["m"]


def test_names_are_escaped_as_protobuf_reads_them(copy: Bundle, tmp_path: Path) -> None:
    (artifact,) = copy.manifest.artifacts
    name = 'a "b"\\c\n\u00e9\U0001f600'
    output = dataclasses.replace(artifact.outputs[0], name=name)
    text = model_config(dataclasses.replace(artifact, outputs=(output,)), "m", labeled=False)
    assert text.isascii()
    (tmp_path / CONFIG).write_text(text)
    assert read_config(tmp_path / CONFIG)["output"][0]["name"] == name


def test_a_full_disk_leaves_what_was_there(copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_triton_model(copy.path, tmp_path / "models", name="m")
    before = (model.path / CONFIG).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vitdeploy.serving.model_repository.repository.shutil.copyfile", full)
    with raises(OutputError, where=model.path):
        write_triton_model(copy.path, tmp_path / "models", name="m", max_batch_size=2)
    assert (model.path / CONFIG).read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["m"]


def test_an_altered_file_of_the_bundle_is_refused(copy: Bundle, tmp_path: Path) -> None:
    with (copy.path / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"?")
    with raises(BundleError, where=copy.path / "onnx" / "model.onnx"):
        write_triton_model(copy.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def moved(path: Path, to: Path) -> None:
    path.rename(to)
    path.symlink_to(to)


ALTERED: dict[str, Callable[[Path], object]] = {
    "its configuration": lambda path: (path / CONFIG).write_text((path / CONFIG).read_text() + "# tuned\n"),
    "its header": lambda path: (path / CONFIG).write_text("# Ours\n" + (path / CONFIG).read_text()),
    "its model": lambda path: (path / "1" / "model.onnx").write_bytes(b"another"),
    "another version": lambda path: shutil.copytree(path / "1", path / "2"),
    "a file that is gone": lambda path: (path / "labels.txt").unlink(),
    "no configuration": lambda path: (path / CONFIG).unlink(),
    "an empty one": lambda path: (path / CONFIG).write_text(""),
    "one that is no text": lambda path: (path / CONFIG).write_bytes(b"\xff\x00"),
    "a link": lambda path: path.rename(path.with_name("else")).with_name("m").symlink_to("else"),
    "a file": lambda path: path.rename(path.with_name("else")).with_name("m").write_text("a file"),
    "a link to a folder": lambda path: (path / "2").symlink_to(path.parent),
    "an empty folder": lambda path: (path / "2").mkdir(),
    "a folder in the version's": lambda path: (path / "1" / "empty").mkdir(),
    "its model behind a link": lambda path: moved(path / "1" / "model.onnx", path.parent / "elsewhere"),
    "its version behind a link": lambda path: moved(path / "1", path.parent / "elsewhere"),
    "its configuration behind a link": lambda path: moved(path / CONFIG, path.parent / "elsewhere"),
    "a link to nowhere": lambda path: (path / "README").symlink_to("nowhere"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_somebody_else_wrote_is_not_replaced(copy: Bundle, tmp_path: Path, what: str) -> None:
    model = write_triton_model(copy.path, tmp_path / "models", name="m")
    ALTERED[what](model.path)

    def found() -> dict[Path, bytes | None]:
        return {path: path.read_bytes() if path.is_file() else None for path in (tmp_path / "models").rglob("*")}

    before = found()
    with raises(UsageError, what="name"):
        write_triton_model(copy.path, tmp_path / "models", name="m")
    assert found() == before


def test_an_empty_folder_may_become_a_model(copy: Bundle, tmp_path: Path) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    configured(write_triton_model(copy.path, tmp_path / "models", name="m").path)


NAMES = ["", ".", "..", "a/b", "../a", ".hidden", "a b", "a\nb", "\u00e9", "-x", "a" * 201]
OPTIONS = [("max_batch_size", 0), ("max_batch_size", True), ("max_batch_size", 2**31), ("device", "cuda:1")]


@pytest.mark.parametrize(("name", "value"), [*(("name", name) for name in NAMES), *OPTIONS])
def test_arguments_that_are_refused(copy: Bundle, tmp_path: Path, name: str, value: Any) -> None:
    with raises(UsageError, what=name, found=value):
        write_triton_model(copy.path, tmp_path / "models", **{name: value})


def test_a_repository_that_is_none(copy: Bundle, tmp_path: Path) -> None:
    """A file, what cannot be a path, and the bundle or a folder in it."""
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to(copy.path / "onnx")
    in_bundle = (copy.path, copy.path / "onnx", copy.path / "models" / "of" / "triton", tmp_path / "link")
    for place in (tmp_path / "file", "", tmp_path / "circle", tmp_path / ("y" * 300), "a\0b", *in_bundle):
        with raises(UsageError, what="repository"):
            write_triton_model(copy.path, place)


PENDING = {"status": NOT_RUN, "images": "none", "engine": "tensorrt 11", "tolerance": 1e-4, "outputs": []}


def engine(*batch: str, **options: Any) -> dict[str, Any]:
    return {"format": "tensorrt", "options": {"batch": list(batch), **options}}


@pytest.mark.parametrize(
    ("changes", "arguments", "what", "found"),
    [
        ({"format": "torchscript"}, {}, "artifact", "torchscript"),
        (engine("1:4:8") | {"format": "tensorrt-rtx"}, {}, "artifact", "tensorrt-rtx"),
        ({"precision": "int8", "options": {"target": "tensorrt"}}, {}, "artifact", "tensorrt"),
        ({"precision": "bf16"}, {}, "artifact", "bf16"),
        (engine("1:4:8") | {"validation": PENDING}, {}, "artifact", "tensorrt-fp32"),
        (engine("2:4:8"), {}, "batch", 1),
        (engine("1:1:1", "4:8:16"), {}, "batch", 2),
        (engine("1:4:8"), {"max_batch_size": 9}, "max_batch_size", 9),
        (engine("1:4:8"), {"device": "cpu"}, "device", "cpu"),
        (engine("1:4:8", strip_weights=True), {}, "artifact", "strip_weights"),
    ],
)
def test_artifacts_that_are_refused(
    copy: Bundle, tmp_path: Path, changes: dict[str, Any], arguments: dict[str, Any], what: str, found: Any
) -> None:
    with_artifact(copy, **changes)
    with raises(UsageError, what=what, found=found):
        write_triton_model(copy.path, tmp_path / "models", **arguments)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "change", [{"shape": (4, 3)}, {"shape": ("others", 3)}, {"shape": ("batch",)}, {"dtype": "complex64"}]
)
def test_tensors_that_are_refused(bundle: Bundle, change: dict[str, Any]) -> None:
    (artifact,) = bundle.manifest.artifacts
    changed: Artifact = dataclasses.replace(artifact, outputs=(dataclasses.replace(artifact.outputs[0], **change),))
    with raises(UsageError, what="logits", found=next(iter(change.values()))):
        model_config(changed, "m", labeled=False)


def test_class_names_that_are_refused(copy: Bundle, tmp_path: Path) -> None:
    config = json.loads((copy.path / "config.json").read_text())
    for labels, error in (({"0": "cat\ndog", "1": "b", "2": "c"}, UsageError), ({"0": "cat", "1": "dog"}, BundleError)):
        (copy.path / "config.json").write_text(json.dumps(config | {"id2label": labels, "num_labels": len(labels)}))
        sign_again(copy)
        with raises(error, what="labels"):
            write_triton_model(copy.path, tmp_path / "models")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return exited.value.code, *capsys.readouterr()


def test_the_command(copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "models"
    code, out, _ = run(capsys, "triton", copy.path, repository, "--max-batch-size", 4, "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(out) == {
        "bundle": str(copy.path),
        "name": "vit-onnx-fp32",
        "path": str(repository / "vit-onnx-fp32"),
        "artifact": "onnx-fp32",
        "files": [CONFIG, "1/model.onnx", "labels.txt"],
    }
    config = configured(repository / "vit-onnx-fp32")
    assert (config["max_batch_size"], config["instance_group"][0]["kind"]) == (4, "KIND_CPU")
    code, out, _ = run(capsys, "triton", copy.path, repository, "--artifact", "onnx-fp32", "--name", "pets")
    assert code == 0
    assert str(repository / "pets" / CONFIG) in out
    code, out, err = run(capsys, "triton", copy.path, repository, "--artifact", "onnx-fp16")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_export_writes_the_model_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = ("--random-weights", "vit-tiny-patch16-32", "--output", tmp_path / "vit")
    code, out, _ = run(capsys, "export", *preset, "--triton", tmp_path / "models", "--json")
    assert code == 0
    (model,) = json.loads(out)["triton"]
    assert model["path"] == str(tmp_path / "models" / "vit-onnx-fp32")
    configured(tmp_path / "models" / "vit-onnx-fp32")


def test_export_refuses_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = ("--random-weights", "vit-tiny-patch16-32", "--output", tmp_path / "vit")
    code, _, err = run(
        capsys, "export", *preset, "--to", "onnx", "--to", "torchscript", "--triton", tmp_path / "models"
    )
    assert code == 2
    assert "torchscript" in err
    code, _, err = run(capsys, "export", *preset, "--layout", "triton")
    assert code == 2
    assert "--triton DIR writes a model repository of Triton" in err
    for repository, output in (("", "vit"), (tmp_path / "vit", "vit"), (tmp_path / "models", "no name")):
        options = ("--random-weights", "vit-tiny-patch16-32", "--output", tmp_path / output)
        code, _, err = run(capsys, "export", *options, "--triton", repository)
        assert (code, len(err.splitlines())) == (2, 1 if repository else 4)  # click shows the usage of an option
    assert list(tmp_path.iterdir()) == []


def named(folder: Path, label: str) -> None:
    """Give the first class of a checkpoint that name."""
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {**config["id2label"], "0": label}
    (folder / "config.json").write_text(json.dumps(config))


BREAKS = ["", "\r", "a\0b", "a\x0bb", "a\x0c", "a\x1eb", "a\x85b", "a\u2028b", "a\u2029", "\ud800", "a\r\nb"]


@pytest.mark.parametrize("label", BREAKS, ids=ascii)
def test_class_names_that_are_no_line_of_text(copy: Bundle, tmp_path: Path, label: str) -> None:
    named(copy.path, label)
    sign_again(copy)
    with raises(UsageError, what="labels"):
        write_triton_model(copy.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_class_names_with_marks(copy: Bundle, tmp_path: Path) -> None:
    label = 'H\u00e4her, \u732b: "a"\tb \U0001f600'
    named(copy.path, label)
    sign_again(copy)
    model = write_triton_model(copy.path, tmp_path / "models")
    assert (model.path / "labels.txt").read_bytes().decode() == f"{label}\ndog\nnewt\n"


def test_export_refuses_class_names_before_anything_is_made(
    copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    named(checkpoint, "\ud800")
    to = ("--triton", tmp_path / "models", "-o", tmp_path / "out")
    for options in ((), ("--task", "image-classification"), ("--outputs", "logits,hidden_states.1")):
        code, _, err = run(capsys, "export", "--model", checkpoint, *to, *options)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "'\\ud800'" in err
        assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, "export", "--model", checkpoint, *to, "--outputs", "hidden_states.1")
    assert (code, err) == (0, "")
    named(copy.path, "a\nb")
    sign_again(copy)
    code, _, err = run(capsys, "export", "--to", "tensorrt", "-o", copy.path, "--triton", tmp_path / "models")
    assert (code, len(err.splitlines())) == (2, 1)
    assert r"'a\nb'" in err


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((), "bundle-onnx-fp32"),
        (("--int8", "--target", "tensorrt"), "onnx-int8"),
        (("--fp8",), "onnx-fp8"),
        (("--int8", "--to", "tensorrt", "--to", "onnx"), "onnx-int8"),
        (("--to", "tensorrt", "--batch", "2:4:8"), "--batch 1:8:8"),
        (("--to", "tensorrt", "--strip-weights"), "--strip-weights"),
    ],
)
def test_export_refuses_what_triton_cannot_have_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: Sequence[str],
    name: str,
) -> None:
    """By the name of the bundle that is given, or that it has after the model."""
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "of" / "bundle")
    foreign = tmp_path / "models" / "bundle-onnx-fp32"
    foreign.mkdir(parents=True)
    (foreign / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for output in (("-o", "out/bundle"), ()):
        code, _, err = run(capsys, "export", "--model", checkpoint, *options, *output, "--triton", "models")
        assert (code, len(err.splitlines())) == (2, 1)
        assert name in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "of"]


def test_the_largest_batch_of_the_command(copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "triton", copy.path, tmp_path / "models", "--max-batch-size", 2**31)
    assert code == 2
    assert "2147483648 is not in the range 1<=x<=65535" in err
    code, _, _ = run(capsys, "triton", copy.path, tmp_path / "models", "--max-batch-size", 65_535)
    assert code == 0
