"""TorchScript artifacts: the same function as the model, in every size and precision, the same bytes every time."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from bundles import FLOAT32_TOLERANCE, make_feeds, tiny_model, worst_difference, write_checkpoint_of
from families import HEADS, Head, random_config
from raising import raises

import vitdeploy
from vitdeploy import GraphOptions, SourceOptions
from vitdeploy.assess.data.images import feeds
from vitdeploy.errors import UsageError
from vitdeploy.exporters.torchscript.tracing import trace_torchscript
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.signature import Served, input_specs, output_specs
from vitdeploy.runtimes.torchscript import TorchScriptRuntime
from vitdeploy.specs import ExportSpec, PixelFormat, PixelStage, Precision, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conftest import WriteCheckpoint
    from vitdeploy.exporters import Exported
    from vitdeploy.models.vit import VisionTransformer

BATCHES = (1, 2, 7)
# Patches down and across, and pixels beyond: native, larger, smaller, wide, tall with a part of a patch, and one row.
SIZES = ((4, 4, 0), (7, 7, 0), (2, 2, 0), (3, 6, 0), (6, 4, 3), (1, 5, 1))
# Of the output's scale: the unit roundoff of float16 is 4.9e-4 and of bfloat16 3.9e-3, a few of them in a row.
TOLERANCES = {Precision.FP32: FLOAT32_TOLERANCE, Precision.FP16: 1e-2, Precision.BF16: 8e-2}
# What the number format must at least cost: below, something else ran.
AT_LEAST = {Precision.FP32: 0.0, Precision.FP16: 2e-5, Precision.BF16: 2e-4}


def export(model: VisionTransformer, folder: Path, **spec: Any) -> Exported:
    processor = ImageProcessor(size=Size(*model.config.image_size))
    return trace_torchscript(model, ExportSpec(**spec), processor).write(folder)


def exact(model: VisionTransformer, asked: Sequence[str] | None = None, *, dynamic: bool = False) -> Served:
    """The model in float64, with separate attention operators."""
    return Served(copy.deepcopy(model).double().with_attention("eager").eval(), asked, dynamic_image_size=dynamic)


def answers(served: Served, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        outputs = served(*map(torch.from_numpy, arrays.values()))
    return {name: value.numpy() for name, value in outputs.items()}


def feeds_of(model: VisionTransformer, batch_size: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(0).standard_normal((batch_size, model.config.num_channels, *size), np.float32)
    return feeds(input_specs(model.config, model.task), pixels, seed=0)


def code_of(path: Path) -> str:
    with zipfile.ZipFile(path) as file:
        return "".join(file.read(name).decode() for name in file.namelist() if name.endswith(".py"))


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_every_head_and_every_output(write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head, seed: int) -> None:
    model = write_checkpoint(head, random_config(head, seed), seed=seed).load()
    for outputs in (None, ["hidden_states", "attentions", *(spec.name for spec in output_specs(model))]):
        exported = export(model, tmp_path / str(outputs is None), outputs=outputs)
        assert exported.outputs == output_specs(model, outputs)
        assert exported.options == {"attention": "eager" if outputs else "sdpa"}
        served = exact(model, outputs)
        with TorchScriptRuntime(tmp_path / str(outputs is None) / exported.files[0]) as runtime:
            assert (runtime.inputs, runtime.outputs) == (exported.inputs, exported.outputs)
            for batch_size in BATCHES:
                arrays = feeds_of(model, batch_size, model.config.image_size)
                assert worst_difference(runtime.run(arrays), answers(served, arrays)) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("head", [head for head in HEADS if head.task is not Task.MASKED_IMAGE_MODELING], ids=str)
def test_one_trace_takes_every_size(write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head) -> None:
    model = write_checkpoint(head, random_config(head, 0) | {"patch_size": 5, "image_size": 20}).load()
    exported = export(model, tmp_path, dynamic_image_size=True)
    served = exact(model, dynamic=True)
    with TorchScriptRuntime(tmp_path / exported.files[0]) as runtime:
        assert runtime.inputs == exported.inputs == input_specs(model.config, model.task, dynamic_image_size=True)
        for rows, columns, rest in SIZES:
            for batch_size in BATCHES:
                arrays = feeds_of(model, batch_size, (rows * 5 + rest, columns * 5 + rest))
                assert worst_difference(runtime.run(arrays), answers(served, arrays)) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("task", Task, ids=str)
@pytest.mark.parametrize("io_dtype", ["float32", "float16"])
@pytest.mark.parametrize("precision", list(TOLERANCES), ids=str)
def test_precisions(tmp_path: Path, precision: Precision, io_dtype: str, task: Task) -> None:
    model = tiny_model(task)
    pixels = PixelFormat(dtype=io_dtype)
    exported = export(model, tmp_path, precision=precision, io_dtype=io_dtype, pixels=pixels)
    assert exported.files == (f"torchscript/model_{precision}.pt",)
    assert [path.name for path in (tmp_path / "torchscript").iterdir()] == [f"model_{precision}.pt"]
    arrays = make_feeds(model, 3)
    arrays["pixel_values"] = arrays["pixel_values"].astype(io_dtype)
    with TorchScriptRuntime(tmp_path / exported.files[0]) as runtime:
        assert runtime.inputs == exported.inputs == input_specs(model.config, task, pixels=pixels)
        assert {spec.dtype for spec in runtime.outputs} == {io_dtype}
        found = runtime.run(arrays)
    assert {str(value.dtype) for value in found.values()} == {io_dtype}
    difference = worst_difference(found, answers(exact(model), arrays))
    tolerance = max(TOLERANCES[precision], 2**-10 if io_dtype == "float16" else 0)  # the outputs are rounded to it
    assert AT_LEAST[precision] <= difference <= tolerance


def test_the_weights_take_half_the_room_in_half_precision(tmp_path: Path) -> None:
    model = tiny_model(hidden_size=96, intermediate_size=384)
    sizes = {
        precision: (tmp_path / export(model, tmp_path, precision=precision).files[0]).stat().st_size
        for precision in TOLERANCES
    }
    assert sizes[Precision.FP16] == sizes[Precision.BF16] < 0.6 * sizes[Precision.FP32]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("precision", list(TOLERANCES), ids=str)
def test_bytes_give_what_the_processor_and_the_model_give(tmp_path: Path, precision: Precision, layout: Any) -> None:
    model = tiny_model()
    processor = ImageProcessor(size=Size(*model.config.image_size))
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), np.uint8))
    pixels = PixelFormat(PixelStage.RESIZED, layout, "uint8")
    exported = export(model, tmp_path, precision=precision, pixels=pixels)
    with TorchScriptRuntime(tmp_path / exported.files[0]) as runtime:
        assert runtime.inputs == exported.inputs
        assert (runtime.inputs[0].dtype, runtime.inputs[0].shape[1:]) == ("uint8", pixels.shape(3, (32, 32)))
        found = runtime.run({"pixel_values": processor(pictures, pixels=pixels)})
    wanted = answers(exact(model), {"pixel_values": processor(pictures)})
    assert AT_LEAST[precision] <= worst_difference(found, wanted) <= TOLERANCES[precision]


def test_an_output_that_the_model_does_not_have(tmp_path: Path) -> None:
    with raises(UsageError, what="outputs", hint="did you mean logits?"):
        vitdeploy.export(
            to="torchscript",
            output=tmp_path / "out",
            graph=GraphOptions(outputs=("logit",)),
            source=SourceOptions(random_weights="vit-tiny-patch16-32"),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("trained", [False, True])
def test_the_model_stays_as_it_was_and_training_has_no_effect(
    tmp_path: Path, precision: Precision, trained: bool
) -> None:
    model = tiny_model(num_hidden_layers=1, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model.train().requires_grad_(trained)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    randomness = torch.get_rng_state()
    exported = export(model, tmp_path, precision=precision, pixels=PixelFormat(PixelStage.RESIZED, "nhwc", "uint8"))
    assert torch.equal(torch.get_rng_state(), randomness)
    assert "dropout" not in code_of(tmp_path / exported.files[0])
    assert all(module.training for module in model.modules())
    assert {layer.attention.kind for layer in model.layers} == {"sdpa"}  # type: ignore[union-attr]
    assert all(parameter.requires_grad is trained for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        place, value = before[name]
        assert tensor.dtype == torch.float32
        assert tensor.data_ptr() == place
        assert torch.equal(tensor, value)


def test_a_file_says_nothing_of_this_machine_and_is_laid_out_to_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / export(tiny_model(Task.FEATURES), tmp_path, dynamic_image_size=True).files[0]
    root = Path(__file__).parents[3]
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
        for record in file.infolist():
            assert record.compress_type == zipfile.ZIP_STORED
            assert record.date_time[:3] in ((1980, 0, 0), (1980, 1, 1))
    assert not [name for name in contents if name.endswith(".debug_pkl")]
    for folder in (root, Path(torch.__file__).parent.parent, Path.home(), Path.cwd(), tmp_path):
        assert str(folder) == "/" or not any(os.fsencode(folder) in content for content in contents.values())
    assert not any(word in content for content in contents.values() for word in (b"vitdeploy", b"mangle", b".py"))
    whole = path.read_bytes()
    constants = [content for name, content in contents.items() if "/constants/" in name and len(content) > 64]
    assert constants
    assert all(whole.index(content) % 64 == 0 for content in constants)


def test_a_program_that_knows_torch_alone_finds_names_and_a_tuple(tmp_path: Path) -> None:
    model = tiny_model(Task.MASKED_IMAGE_MODELING)
    path = tmp_path / export(model, tmp_path).files[0]
    program = """
import json, sys, torch
extra = {"signature.json": ""}
module = torch.jit.load(sys.argv[1], _extra_files=extra).eval()
outputs = module(torch.zeros(3, 3, 32, 32), torch.zeros(3, 16, dtype=torch.bool))
signature = json.loads(extra["signature.json"])
names = [argument.name for argument in module.forward.schema.arguments]
print(json.dumps([names, signature, type(outputs).__name__, [list(output.shape) for output in outputs]]))
"""
    process = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True)
    assert process.stdout.strip() == (
        '[["self", "pixel_values", "bool_masked_pos"], '
        '{"inputs": [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, 32, 32]}, '
        '{"name": "bool_masked_pos", "dtype": "bool", "shape": ["batch", 16]}], '
        '"outputs": [{"name": "reconstruction", "dtype": "float32", "shape": ["batch", 3, 32, 32]}]}, '
        '"tuple", [[3, 3, 32, 32]]]'
    )


EXPORT = """
import pathlib, sys
from vitdeploy.exporters.torchscript.tracing import trace_torchscript
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.specs import ExportSpec, Precision
checkpoint = read_checkpoint(sys.argv[1])
for precision in sys.argv[3:]:
    spec = ExportSpec(precision=Precision(precision), dynamic_image_size=True)
    trace_torchscript(checkpoint.model, spec, checkpoint.processor).write(pathlib.Path(sys.argv[2]))
"""


def test_the_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    """With another order of sets, in another folder, and the second time in one process."""
    model = tiny_model(Task.FEATURES, num_hidden_layers=1)
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders[:2]:
        for precision in TOLERANCES:
            export(model, folder, precision=precision, dynamic_image_size=True)
    checkpoint = write_checkpoint_of(model, tmp_path / "checkpoint")
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", EXPORT, str(checkpoint), str(folders[2]), *TOLERANCES]
    environ = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environ)
    for precision in TOLERANCES:
        assert len({(folder / f"torchscript/model_{precision}.pt").read_bytes() for folder in folders}) == 1


def test_a_disk_that_is_full_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(torch._C.PyTorchFileWriter):
        def write_record(self, *record: Any) -> None:
            super().write_record(*record)
            raise RuntimeError("PytorchStreamWriter failed writing file data/0\nmore")

    monkeypatch.setattr(torch._C, "PyTorchFileWriter", Full)
    with pytest.raises(OSError, match=r"model_fp32\.pt .*failed writing file data/0\)"):
        export(tiny_model(num_hidden_layers=0), tmp_path)
    assert not list((tmp_path / "torchscript").iterdir())


@pytest.mark.parametrize("family", sorted({head.family for head in HEADS}))
def test_no_tensor_is_made_on_a_device_of_its_own(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, family: str
) -> None:
    """What names the CPU would stay there when the file is loaded on a GPU."""
    head = next(head for head in HEADS if head.family == family and head.task is Task.FEATURES)
    model = write_checkpoint(head, random_config(head, 0) | {"patch_size": 5, "image_size": 20}).load()
    for dynamic in (False, True):
        path = tmp_path / str(dynamic) / export(model, tmp_path / str(dynamic), dynamic_image_size=dynamic).files[0]
        assert "torch.device" not in code_of(path)
