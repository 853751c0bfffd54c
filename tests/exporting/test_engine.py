"""Engines in bundles: failed builds, and validation completed on another machine."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import environments
import numpy as np
import pytest
from bundles import tiny_model, write_checkpoint_of
from command_line import run
from engine_machines import why_not
from raising import raises

import vitdeploy
from vitdeploy import Calibration, EngineOptions, GraphOptions, Quantization, ValidationOptions
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.assess.metrics.cosine_bound import COSINE_BOUNDS
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import (
    BundleChangedError,
    BundleError,
    CheckFailedError,
    DeviceError,
    MissingDependencyError,
    OtherHardwareError,
    UnavailableError,
    UsageError,
    VitDeployError,
)
from vitdeploy.exporting import engine as engines
from vitdeploy.exporting import engine_validation as engine_validation
from vitdeploy.exporting.engine_validation import judge_of
from vitdeploy.runtimes import BACKENDS, open_recorded, open_runtime
from vitdeploy.runtimes.engine.options import EngineRuntimeOptions
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import AxisRange, Task
from vitdeploy.system.progress import SILENT
from vitdeploy.trt.gpu import Gpu

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")

NO_GPU = pytest.mark.skipif(why_not("tensorrt-rtx") is None, reason="a GPU runs the engine here")
BATCH = (AxisRange(1, 1, 1), AxisRange(2, 4, 5))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("engines")
    checkpoint = write_checkpoint_of(tiny_model(), folder / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "find_gpu", not_here)
        return vitdeploy.export(
            checkpoint,
            to="tensorrt-rtx",
            output=folder / "bundle",
            engine=EngineOptions(batch=BATCH),
            graph=GraphOptions(image_size=((16, 16), (32, 32), (40, 48))),
        )


@pytest.fixture
def bundle(made: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(made.path, tmp_path / "copy"))


def not_here(*_: Any, **__: Any) -> Any:
    raise DeviceError("no GPU")


class OnAGpu(OnnxRuntime):
    """Stands for an engine that runs: the ONNX artifact beside it, its logits a little off where asked for."""

    options_type = EngineRuntimeOptions
    off = 0.0
    problems: Mapping[str, VitDeployError] = {}
    fails = False
    batches: list[int] = []  # noqa: RUF012

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: Any, *, precision: str, device: str) -> OnAGpu:
        assert device == "cuda"
        if precision in cls.problems:
            raise cls.problems[precision]
        with bundle.opened_artifact(bundle.artifact("onnx", precision)) as (file, *_):
            runtime = cls(file)
        with bundle.opened_artifact(bundle.artifact("tensorrt-rtx", precision)):
            pass
        runtime.details["device"] = "cuda:0 Fake GPU"
        return runtime

    @classmethod
    def here(cls, bundle: Bundle) -> OnAGpu:
        return cls.from_bundle(bundle, None, precision="fp32", device="cuda")

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches.append(len(feeds["pixel_values"]))
        if self.fails:
            raise DeviceError("out of memory")
        return {name: value + np.float32(self.off) for name, value in super()._run(feeds).items()}


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> type[OnAGpu]:
    monkeypatch.setitem(
        BACKENDS, "tensorrt-rtx", BACKENDS["tensorrt-rtx"]._replace(target=f"{__name__}:{OnAGpu.__name__}")
    )
    monkeypatch.setattr(OnAGpu, "batches", [])
    monkeypatch.setattr(engines, "find_gpu", lambda: Gpu(0, "Fake GPU", "8.9", "13.0"))
    return OnAGpu


def validation_of(bundle: Bundle) -> dict[str, Any]:
    return Bundle.open(bundle.path).artifact("tensorrt-rtx", "fp32").validation


def test_an_engine_that_was_not_run_says_so(made: Bundle) -> None:
    assert validation_of(made) == {
        "status": "not yet run on a GPU",
        "images": "none",
        "engine": f"tensorrt_rtx {trt.__version__}",
        "tolerance": 1e-4,
        "outputs": [],
    }


def test_the_proof_is_completed_where_there_is_a_gpu(bundle: Bundle, on_a_gpu: type[OnAGpu]) -> None:
    ran = run("verify", bundle.path, "--run", "--json")
    assert (ran.code, ran.json["proven"]) == (0, ["tensorrt-rtx-fp32"])
    validation = validation_of(bundle)
    assert "status" not in validation
    assert (validation["device"], validation["images"]) == ("cuda:0 Fake GPU", "synthetic")
    assert (validation["batches"], validation["against"]) == ([1, 2, 4, 5], "the reference")
    assert validation["image_sizes"] == [[32, 32], [16, 16], [40, 48]]
    assert on_a_gpu.batches == [1, 2, 4, 5] * 3
    assert 0 <= validation["outputs"][0]["max_relative"] < 1e-5
    Bundle.open(bundle.path).verify()
    proven, names = engine_validation.validate_engines(Bundle.open(bundle.path))
    assert names == ()
    assert proven.manifest == Bundle.open(bundle.path).manifest


def test_an_engine_that_is_another_model_fails_and_the_manifest_stays(
    bundle: Bundle, on_a_gpu: type[OnAGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle.path / "manifest.json").read_bytes()
    monkeypatch.setattr(on_a_gpu, "off", 0.5)
    with raises(CheckFailedError, where="tensorrt-rtx-fp32", expected=1e-4):
        engine_validation.validate_engines(bundle)
    assert "against" not in validation_of(bundle)
    with raises(CheckFailedError, where="tensorrt-rtx-fp32"):
        vitdeploy.export(to="tensorrt-rtx", output=bundle.path, engine=EngineOptions(batch=BATCH))
    assert (bundle.path / "manifest.json").read_bytes() == before
    bundle.verify()


def test_an_engine_is_proven_at_once_where_there_is_a_gpu(bundle: Bundle, on_a_gpu: type[OnAGpu]) -> None:
    loose = ValidationOptions(tolerance=0.5)
    vitdeploy.export(to="tensorrt-rtx", output=bundle.path, engine=EngineOptions(batch=BATCH), validation=loose)
    validation = validation_of(bundle)
    assert (validation["tolerance"], validation["device"]) == (0.5, "cuda:0 Fake GPU")
    assert validation["batches"] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("error", "kept"),
    [(OtherHardwareError("built for another"), True), (DeviceError("out of memory"), False)],
    ids=["another GPU's", "fails on this one"],
)
def test_what_does_not_open_on_the_gpu_that_is_there(
    bundle: Bundle, on_a_gpu: type[OnAGpu], monkeypatch: pytest.MonkeyPatch, error: DeviceError, kept: bool
) -> None:
    before = (bundle.path / "manifest.json").read_bytes()
    monkeypatch.setattr(on_a_gpu, "problems", {"fp32": error})
    engine = EngineOptions(batch=(AxisRange(1, 2, 3),))
    if kept:
        source = vitdeploy.SourceOptions(seed=3, offline=True)  # which say nothing of the model that is there
        found = vitdeploy.export(to="tensorrt-rtx", output=bundle.path, engine=engine, source=source)
        assert found.artifact("tensorrt-rtx", "fp32").validation["status"] == "not yet run on a GPU"
        return
    for problems, fails in (({"fp32": error}, False), ({}, True)):  # when it is opened, and when it runs
        monkeypatch.setattr(on_a_gpu, "problems", problems)
        monkeypatch.setattr(on_a_gpu, "fails", fails)
        with raises(CheckFailedError, what="tensorrt-rtx-fp32", where="Fake GPU"):
            vitdeploy.export(to="tensorrt-rtx", output=bundle.path, engine=engine)
    assert (bundle.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "error", [OtherHardwareError("of another GPU"), BundleError("damaged"), CheckFailedError("differs")], ids=repr
)
def test_one_engine_that_cannot_run_keeps_no_other_from_being_proven(
    bundle: Bundle, on_a_gpu: type[OnAGpu], monkeypatch: pytest.MonkeyPatch, error: VitDeployError
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engines, "find_gpu", not_here)
        vitdeploy.export(
            str(bundle.path), to="tensorrt-rtx", precision="fp16", output=bundle.path, engine=EngineOptions(batch=BATCH)
        )
    assert [artifact.name for artifact in Bundle.open(bundle.path).manifest.artifacts][2:] == [
        "tensorrt-rtx-fp16", "tensorrt-rtx-fp32"
    ]  # fmt: skip
    monkeypatch.setattr(on_a_gpu, "problems", {"fp16": error})  # the first
    ran = run("verify", bundle.path, "--run")
    assert ran.code == error.exit_code
    assert f"Error: {error}; validated: tensorrt-rtx-fp32\n" in ran.err
    assert validation_of(bundle)["against"] == "the reference"
    first = Bundle.open(bundle.path).artifact("tensorrt-rtx", "fp16")
    assert first.validation["status"] == "not yet run on a GPU"
    with raises(UsageError, what="artifact", expected=("tensorrt-rtx-fp16",), found="tensorrt-rtx-fp32"):
        engine_validation.validate_engines(Bundle.open(bundle.path), names=["tensorrt-rtx-fp32"])
    monkeypatch.setattr(on_a_gpu, "problems", {})
    monkeypatch.setattr(on_a_gpu, "batches", [])
    names = ["tensorrt-rtx-fp16"] * 2
    assert engine_validation.validate_engines(Bundle.open(bundle.path), names=names)[1] == ("tensorrt-rtx-fp16",)
    assert on_a_gpu.batches == [1, 2, 4, 5]


def test_the_machine_that_runs_an_engine_needs_no_torch_to_prove_it() -> None:
    blocked = "import sys; sys.modules |= dict.fromkeys(['torch', 'onnx', 'onnxscript', 'onnx_ir', 'safetensors'])"
    code = f"{blocked}; import vitdeploy.exporting.engine_validation, vitdeploy.cli.verify"
    environments.run(sys.executable, "-c", code, PYTHONPATH=str(environments.ROOT))


def test_without_torch_an_engine_is_compared_with_the_artifact_it_was_built_from(
    bundle: Bundle, on_a_gpu: type[OnAGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_torch(bundle: Bundle, backend: str, *arguments: Any, **options: Any) -> Any:
        if backend == "torch":
            raise MissingDependencyError("the torch backend", "torch")
        return open_recorded(bundle, backend, *arguments, **options)

    monkeypatch.setattr("vitdeploy.exporting.engine_validation.open_recorded", without_torch)
    with monkeypatch.context() as patch:
        patch.setattr(on_a_gpu, "off", 0.5)
        with raises(CheckFailedError, where="tensorrt-rtx-fp32"):
            engine_validation.validate_engines(bundle)
    engine_validation.validate_engines(bundle)
    assert validation_of(bundle)["against"] == "onnx-fp32"
    vitdeploy.export(
        str(bundle.path), output=bundle.path, graph=GraphOptions(opset=18)
    )  # another artifact than the engine's
    now = Bundle.open(bundle.path)
    built = now.artifact("tensorrt-rtx", "fp32")
    with raises(MissingDependencyError, what="the torch backend", extra="torch"):
        engine_validation.validate_engine(on_a_gpu.here(now), built, now, ValidationOptions(), SILENT)


@NO_GPU
def test_without_a_gpu_the_proof_exits_with_3_and_one_line(bundle: Bundle) -> None:
    ran = run("verify", bundle.path, "--run")
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert validation_of(bundle)["status"] == "not yet run on a GPU"


def test_verify_without_run_takes_no_images(bundle: Bundle) -> None:
    assert run("verify", bundle.path, "--images", "photos").code == 2


def test_where_tensorrt_is_not_the_artifact_that_it_needs_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    output = tmp_path / "out"
    ran = run("export", "--model", checkpoint, "--to", "tensorrt", "--fp16", "-o", output)
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert "pip install 'vitdeploy[tensorrt]', or export --to tensorrt-rtx, which builds" in ran.err
    assert f"{output} has the ONNX artifact in fp16" in ran.err
    kept = Bundle.open(output)
    kept.verify()
    assert [artifact.name for artifact in kept.manifest.artifacts] == ["onnx-fp16"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]
    with pytest.raises(MissingDependencyError) as caught:
        vitdeploy.export(to="tensorrt", precision="fp16", output=output)
    another = pickle.loads(pickle.dumps(caught.value))  # as another process gets it
    assert (another.extra, str(another)) == ("tensorrt", str(caught.value))


def test_what_was_altered_or_built_elsewhere_is_refused_before_it_is_loaded(bundle: Bundle) -> None:
    path = bundle.path / "tensorrt-rtx" / "model_fp32.engine"
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    (engine,) = (artifact for artifact in manifest["artifacts"] if artifact["format"] == "tensorrt-rtx")
    engine["tools"]["tensorrt_rtx"] = "1.0.0"
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with raises(UnavailableError, what="tensorrt_rtx", where=str(path)):
        open_runtime(Bundle.open(bundle.path), "tensorrt-rtx")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with raises(BundleError, where=path):
        open_runtime(Bundle.open(bundle.path), "tensorrt-rtx")


def test_the_cpu_is_no_device_of_an_engine(bundle: Bundle) -> None:
    with raises(DeviceError, what="device", found="cpu"):
        open_runtime(bundle, "tensorrt-rtx", device="cpu")


def test_masks_and_outputs_of_other_tasks_go_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_gpu", not_here)
    checkpoint = write_checkpoint_of(tiny_model(Task.MASKED_IMAGE_MODELING), tmp_path / "checkpoint")
    made = vitdeploy.export(
        checkpoint, to="tensorrt-rtx", output=tmp_path / "out", graph=vitdeploy.GraphOptions(input="uint8")
    )
    artifact = made.artifact("tensorrt-rtx", "fp32")
    assert [spec.name for spec in artifact.inputs] == ["pixel_values", "bool_masked_pos"]
    assert artifact.pixels == made.artifact("onnx", "fp32").pixels


DECODED = EngineOptions(batch=BATCH, image_sizes=(((16, 20), (37, 50), (70, 64)),))


def test_an_engine_of_decoded_images_has_limits_of_its_own(tmp_path: Path, on_a_gpu: type[OnAGpu]) -> None:
    output = tmp_path / "out"
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    made: dict[str, Any] = {"to": "tensorrt-rtx", "output": output}
    with raises(UsageError, what="image_sizes"):
        vitdeploy.export(checkpoint, graph=GraphOptions(embed_resize=True), **made)
    assert not output.exists()
    bundle = vitdeploy.export(checkpoint, engine=DECODED, graph=GraphOptions(embed_resize=True), **made)
    artifact = bundle.artifact("tensorrt-rtx", "fp32")
    assert {name: str(sizes) for name, sizes in artifact.axes.items()} == {
        "batch": "from 1 to 5", "height": "from 16 to 70", "width": "from 20 to 64"
    }  # fmt: skip
    assert (artifact.options["height"], artifact.options["width"]) == (["16:37:70"], ["20:50:64"])
    validation = artifact.validation
    assert validation["image_sizes"] == [[37, 50], [16, 20], [70, 64]]
    assert on_a_gpu.batches == [1, 2, 4, 5] * 3
    photos = tmp_path / "photos"
    photos.mkdir()
    synthetic_images(1, 90, 120)[0].save(photos / "larger.png")
    again = vitdeploy.export(
        engine=DECODED, validation=ValidationOptions(images=photos), **made
    )  # of the artifact that is there
    compared = again.artifact("tensorrt-rtx", "fp32").validation
    assert (compared["images"], compared["batches"]) == ("given", [1, 2, 4, 5])
    assert compared["image_sizes"] == validation["image_sizes"]


def test_a_calibrated_engine_is_compared_on_the_images_of_its_calibration(
    tmp_path: Path, on_a_gpu: type[OnAGpu]
) -> None:
    bundle = vitdeploy.export(
        write_checkpoint_of(tiny_model(), tmp_path / "checkpoint"),
        to="tensorrt-rtx",
        precision="int8",
        output=tmp_path / "out",
        engine=EngineOptions(batch=(AxisRange(1, 2, 4),)),
        quantization=Quantization(Calibration(held_out_images(), count=4, cache=False)),
        validation=ValidationOptions(tolerance=0.5),
    )
    validation = bundle.artifact("tensorrt-rtx", "int8").validation
    assert (validation["images"], validation["batches"], on_a_gpu.batches) == ("given", [1, 2, 4], [1, 2, 4])


def test_engines_in_8_bits_are_judged_by_cosine_unless_a_tolerance_is_given(bundle: Bundle) -> None:
    """As the graphs that they are built from: their largest difference says nothing of the vectors."""
    (artifact,) = [each for each in bundle.manifest.artifacts if each.format == "onnx"]
    for precision, given, wanted in (
        ("int8", None, (None, COSINE_BOUNDS["int8"])),
        ("fp8", None, (None, COSINE_BOUNDS["fp8"])),
        ("int8", 0.5, (0.5, None)),
        ("int8", DEFAULT_TOLERANCES["int8"], (DEFAULT_TOLERANCES["int8"], None)),
        ("fp16", None, (DEFAULT_TOLERANCES["fp16"], None)),
    ):
        assert judge_of(dataclasses.replace(artifact, precision=precision), given) == wanted


def test_profiles_of_several_sizes(bundle: Bundle, on_a_gpu: type[OnAGpu]) -> None:
    sizes = ["--engine-size", "16:16:16", "--engine-size", "24x24:32x40:40x48"]
    options = ["--batch", "1", "--batch", "2:4:5", *sizes]
    assert run("export", "--to", "tensorrt-rtx", "-o", bundle.path, *options).code == 0
    artifact = Bundle.open(bundle.path).artifact("tensorrt-rtx", "fp32")
    assert artifact.options["batch"] == ["1:1:1", "2:4:5"]
    assert artifact.options["height"] == ["16:16:16", "24:32:40"]
    assert artifact.options["width"] == ["16:16:16", "24:40:48"]
    assert (artifact.axes["height"], artifact.axes["width"]) == (AxisRange(16, 16, 40), AxisRange(16, 16, 48))
    assert artifact.validation["image_sizes"] == [[16, 16], [32, 40], [24, 24], [40, 48]]
    assert on_a_gpu.batches == [1, 2, 4, 5] * 4


@pytest.mark.parametrize(
    ("what", "engine"), [("image_sizes", DECODED), ("version_compatible", EngineOptions(version_compatible=True))]
)
def test_options_that_no_engine_can_have_are_refused_before_anything_is_made(
    tmp_path: Path, what: str, engine: EngineOptions
) -> None:
    """Sizes, for a model of one size; and an option that the library lacks."""
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    with raises(UsageError, what=what):
        vitdeploy.export(checkpoint, to="tensorrt-rtx", output=tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--to", "onnx", "--batch", "1:2:4", "--random-weights", "vit-tiny-patch16-32"], "--batch"),
        (["--to", "tensorrt-rtx", "--batch", "4:2:1"], "--batch"),
        (["--to", "tensorrt-rtx", "--batch", "1:2"], "--batch"),
        (["--to", "tensorrt-rtx", "--batch", "0"], "--batch"),
        (["--to", "tensorrt-rtx", "--engine-size", "8:16:x"], "--engine-size"),
        (["--to", "tensorrt-rtx", "--engine-size", "8"], "height"),
        (["--to", "tensorrt-rtx", "--timing-cache", "x"], "--timing-cache"),
        (["--to", "tensorrt-rtx", "--dynamic-image-size", "--random-weights", "vit-tiny-patch16-32"], "--engine-size"),
        (["--to", "tensorrt-rtx", "--int8", "--target", "cpu"], "--target"),
        (["--to", "tensorrt-rtx", "--int8", "--scheme", "dynamic"], "--scheme"),
    ],
)
def test_the_command_line_refuses(bundle: Bundle, arguments: list[str], name: str) -> None:
    ran = run("export", *arguments, "-o", bundle.path)
    assert (ran.code, name in ran.err) == (2, True)


def test_a_folder_of_the_models_name_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights may be others by now: only a model of the Hub is known by its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "find_gpu", not_here)
    write_checkpoint_of(tiny_model(), tmp_path / "model")
    vitdeploy.export("model", to="tensorrt-rtx", output="out")
    shutil.rmtree(tmp_path / "model")
    other = tiny_model()
    next(iter(other.parameters())).data.neg_()
    write_checkpoint_of(other, tmp_path / "model")
    with raises(UsageError, what="model"):
        vitdeploy.export("model", to="tensorrt-rtx", output="out")


@pytest.mark.parametrize("how", ["replaced", "altered"])
def test_an_artifact_that_changes_while_its_engine_is_built(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(engines, "find_gpu", not_here)
    onnx = bundle.path / bundle.artifact("onnx", "fp32").files[0].path

    def meanwhile(_done: int, _total: int) -> None:
        if how == "altered":
            with onnx.open("ab") as file:
                file.write(b"x")
        else:
            vitdeploy.export(str(bundle.path), output=bundle.path, graph=GraphOptions(opset=18))

    options: dict[str, Any] = {"to": "tensorrt-rtx", "output": bundle.path, "engine": EngineOptions(batch=BATCH)}
    error, where = (BundleError, bundle.path) if how == "replaced" else (BundleChangedError, onnx)
    with monkeypatch.context() as patch:
        once = iter([meanwhile])
        patch.setattr(engines, "pending", lambda *given: next(once)(0, 0) or engine_validation.pending(*given))
        with raises(error, where=where):
            vitdeploy.export(**options)
    if how == "replaced":
        Bundle.open(bundle.path).verify()
        vitdeploy.export(**options)
        Bundle.open(bundle.path).verify()


@NO_GPU
def test_images_that_are_not_there_are_missed_without_a_gpu_too(bundle: Bundle) -> None:
    for command in (["export", "--to", "tensorrt-rtx", "-o"], ["verify", "--run"]):
        ran = run(*command, bundle.path, "--images", "nope")
        assert (ran.code, "nope is not a folder" in ran.err) == (4, True)


def test_the_command_line_shows_what_was_not_run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_gpu", not_here)
    for command in (["export", "--to", "tensorrt-rtx", "--batch", "1:2:4", "-o"], ["inspect"]):
        ran = run(*command, bundle.path)
        assert (ran.code, "not yet run on a GPU" in ran.out) == (0, True)
    assert Bundle.open(bundle.path).artifact("tensorrt-rtx", "fp32").axes["batch"] == AxisRange(1, 2, 4)
