"""Engines that TensorRT-RTX builds without a GPU, and what it refuses to build."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from bundles import tiny_model, write_checkpoint_of
from onnx import TensorProto, helper
from raising import raises
from told import Told

import vitdeploy
from vitdeploy import Calibration, EngineOptions, GraphOptions, MinAgreement, Quantization, ValidationOptions
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import Artifact
from vitdeploy.bundle.manifest_parser import parse_manifest
from vitdeploy.errors import CheckFailedError, DeviceError, OutputError, UsageError
from vitdeploy.exporters.engine import build as engine_build
from vitdeploy.exporters.engine.build import EngineRequest, build_engine
from vitdeploy.exporters.engine.capabilities import CAPABILITIES, configure
from vitdeploy.exporters.engine.interrupts import interrupts_held
from vitdeploy.specs import AxisRange, TensorSpec
from vitdeploy.trt.gpu import Gpu
from vitdeploy.trt.library import make_logger

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")

BOUNDS = ((16, 24), (32, 32), (48, 64))
BATCH = (AxisRange(1, 2, 8),)
QUANTIZED = ("int8", "fp8")
IMAGES = Quantization(Calibration(held_out_images(), count=8))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with an ONNX artifact alone."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = write_checkpoint_of(tiny_model(), folder / "checkpoint")
    return vitdeploy.export(checkpoint, output=folder / "bundle", graph=GraphOptions(image_size=BOUNDS))


@pytest.fixture
def without_engine(tiny: Bundle, tmp_path: Path) -> Path:
    """A copy of it: an engine is built without tracing a model."""
    kept = shutil.ignore_patterns("*.engine", "tensorrt-rtx")
    return shutil.copytree(tiny.path, tmp_path / "out", ignore=kept)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_the_embedded_model_with_free_batch_and_size(tmp_path: Path, precision: str) -> None:
    output = tmp_path / "out"
    shares: list[tuple[int, int]] = []
    engine = EngineOptions(batch=(AxisRange(1, 1, 1), *BATCH))
    quantized = precision in QUANTIZED
    bundle = vitdeploy.export(
        default_checkpoint(),
        to="tensorrt-rtx",
        precision=precision,
        output=output,
        engine=engine,
        progress=Told(None, lambda done, total: shares.append((done, total))),
        graph=GraphOptions(image_size=BOUNDS),
        quantization=IMAGES if quantized else None,
    )
    onnx_artifact, artifact = bundle.manifest.artifacts
    assert (onnx_artifact.name, artifact.name) == (f"onnx-{precision}", f"tensorrt-rtx-{precision}")
    assert onnx_artifact.validation["outputs"]
    assert [file.path for file in artifact.files] == [f"tensorrt-rtx/model_{precision}.engine"]
    assert (artifact.inputs, artifact.outputs) == (onnx_artifact.inputs, onnx_artifact.outputs)
    assert artifact.axes == {
        "batch": AxisRange(1, 1, 8),
        "height": AxisRange(16, 32, 48),
        "width": AxisRange(24, 32, 64),
    }
    assert artifact.options["batch"] == ["1:1:1", "1:2:8"]
    assert artifact.options["tf32"] is False
    assert artifact.options["onnx_sha256"] == [file.sha256 for file in onnx_artifact.files]
    assert set(artifact.tools) == {"vitdeploy", "tensorrt_rtx"}
    assert artifact.hardware is not None
    targets = "8.9, 12.0" if precision == "fp8" else "8.0, 8.6, 8.9, 12.0"
    assert artifact.hardware["compute_capabilities"] == [f"portable: {targets} and later"]
    assert artifact.validation["status"] == "not yet run on a GPU"
    assert artifact.validation["tolerance"] == (None if quantized else DEFAULT_TOLERANCES[precision])
    assert onnx_artifact.options.get("target") == ("tensorrt" if quantized else None)
    assert len(onnx_artifact.validation.get("calibration_images", ())) == quantized
    bundle.verify()
    assert parse_manifest(json.loads(json.dumps(bundle.manifest.to_dict()))) == bundle.manifest
    if precision == "fp8":  # what is recorded above
        older = EngineOptions(compute_capabilities=("8.6",))
        with raises(CheckFailedError, what="engine", found=re.compile(r"Cannot compile for target.* sm86, .*fp8_e4m3")):
            vitdeploy.export(to="tensorrt-rtx", precision=precision, output=output, engine=older)
    done = [share for share, total in shares if total == 1000]  # others are of the calibration
    assert done == sorted(set(done))
    assert (done[0] < 500, shares[-1]) == (True, (1000, 1000))
    assert (output.parent / f"out.tensorrt-rtx-{precision}.log").stat().st_size > 0


def test_an_engine_is_made_from_the_artifact_that_is_there_(tiny: Bundle) -> None:
    before = [file.stat().st_mtime_ns for file in (tiny.path / "onnx").iterdir()]
    first = vitdeploy.export(to="tensorrt-rtx", output=tiny.path, engine=EngineOptions(batch=BATCH))
    again = vitdeploy.export(to="tensorrt-rtx", output=tiny.path, engine=EngineOptions(batch=BATCH))
    assert [file.stat().st_mtime_ns for file in (tiny.path / "onnx").iterdir()] == before
    assert what_is_stated(first) == what_is_stated(again)
    other = vitdeploy.export(
        to="tensorrt-rtx", output=tiny.path, graph=GraphOptions(image_size=((16, 24), (16, 24), (32, 32)))
    )
    (artifact,) = (each for each in other.manifest.artifacts if each.format == "tensorrt-rtx")
    assert (artifact.axes["height"], artifact.options["width"]) == (AxisRange(16, 16, 32), ["24:24:32"])


@pytest.fixture(scope="module")
def for_a_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A checkpoint, and its bundle with an ONNX artifact in int8 as a CPU wants it."""
    folder = tmp_path_factory.mktemp("cpu")
    checkpoint = write_checkpoint_of(tiny_model(), folder / "checkpoint")
    return checkpoint, vitdeploy.export(
        checkpoint, precision="int8", output=folder / "bundle", validation=ValidationOptions(tolerance=0.5)
    )


def test_what_was_quantized_for_a_cpu_is_neither_taken_nor_replaced(for_a_cpu: tuple[Path, Bundle]) -> None:
    checkpoint, bundle = for_a_cpu
    before = (bundle.path / "manifest.json").read_bytes()
    made: dict[str, Any] = {"to": "tensorrt-rtx", "precision": "int8", "output": bundle.path}
    with raises(UsageError, what="target", found="cpu"):
        vitdeploy.export(**made)
    with raises(UsageError, what="target", expected="cpu", found="tensorrt"):
        vitdeploy.export(checkpoint, quantization=IMAGES, **made)
    assert (bundle.path / "manifest.json").read_bytes() == before
    bundle.verify()


def test_what_was_quantized_for_tensorrt_is_taken_and_not_replaced(
    for_a_cpu: tuple[Path, Bundle], tmp_path: Path
) -> None:
    checkpoint, _ = for_a_cpu
    output = tmp_path / "out"
    how = dataclasses.replace(IMAGES, rest="fp16", smooth_quant=0.25, accuracy=MinAgreement(0.1))
    loose = ValidationOptions(tolerance=0.5)
    first = vitdeploy.export(
        checkpoint, to="tensorrt-rtx", precision="int8", output=output, quantization=how, validation=loose
    )
    quantized, engine = first.manifest.artifacts
    assert (quantized.options["smooth_quant"], quantized.options["rest"]) == (0.25, "fp16")
    assert quantized.validation["accuracy"]["bound"] == "min_agreement 0.1"
    assert engine.validation["tolerance"] == 0.5
    again: dict[str, Any] = {"to": "tensorrt-rtx", "precision": "int8", "output": output}
    other = vitdeploy.export(engine=EngineOptions(batch=BATCH), quantization=Quantization(target="tensorrt"), **again)
    assert other.manifest.artifacts[0] == quantized
    assert other.manifest.artifacts[1].options["batch"] == ["1:2:8"]
    with raises(UsageError, what="model"):
        vitdeploy.export(**again, quantization=IMAGES)
    with raises(UsageError, what="target", expected="tensorrt", found="cpu"):
        vitdeploy.export(checkpoint, precision="int8", output=output)


def what_is_stated(bundle: Bundle) -> list[Artifact]:
    """The artifacts without their files: the builder of TensorRT-RTX does not give the same bytes each time."""
    return [dataclasses.replace(artifact, files=()) for artifact in bundle.manifest.artifacts]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"graph": GraphOptions(image_size=((8, 8), (32, 32), (48, 64)))}, "image_sizes"),
        ({"graph": GraphOptions(image_size=((16, 24), (32, 32), (48, 65)))}, "image_sizes"),
        ({"precision": "fp16"}, "model"),
        ({"precision": "int8"}, "model"),
        ({"graph": GraphOptions(opset=18)}, "model"),
        ({"graph": GraphOptions(dynamic_image_size=True)}, "model"),
    ],
)
def test_what_cannot_be_made_of_the_bundle(tiny: Bundle, arguments: dict[str, Any], what: str) -> None:
    before = (tiny.path / "manifest.json").read_bytes()
    with raises(UsageError, what=what):
        vitdeploy.export(to="tensorrt-rtx", output=tiny.path, **arguments)
    assert (tiny.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("version_compatible", True, True),
        ("timing_cache", "cache", re.compile("^cache$")),
        ("hardware_compatibility", "ampere_plus", "ampere_plus"),
        ("compute_capabilities", ("9.0",), "9.0"),
    ],
)
def test_options_that_tensorrt_rtx_does_not_have(tiny: Bundle, option: str, value: Any, found: object) -> None:
    with raises(UsageError, what=option, found=found):
        vitdeploy.export(to="tensorrt-rtx", output=tiny.path, engine=EngineOptions(**{option: value}))


@pytest.fixture
def request_of_tiny(tiny: Bundle, tmp_path: Path) -> EngineRequest:
    artifact = tiny.artifact("onnx", "fp32")
    options = EngineOptions(batch=BATCH)
    return EngineRequest(
        library="tensorrt-rtx",
        onnx=tiny.path / artifact.files[0].path,
        precision=artifact.precision,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        profiles=options.profiles(artifact.inputs, artifact.pixels, artifact.axes),
        options=options,
        timing_cache=tmp_path / "timing",
        log=tmp_path / "build.log",
    )


def test_every_option_reaches_the_builder() -> None:
    options = EngineOptions(
        workspace_mib=64, optimization_level=1, tf32=True, compute_capabilities=("8.9", "12.0"), refit=True,
        strip_weights=True,
    )  # fmt: skip
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    plain, config = builder.create_builder_config(), builder.create_builder_config()
    configure(trt, plain, EngineOptions())
    configure(trt, config, options)
    flags = [trt.BuilderFlag.TF32, trt.BuilderFlag.REFIT, trt.BuilderFlag.STRIP_PLAN]
    assert [plain.get_flag(flag) for flag in flags] == [False, False, False]
    assert [config.get_flag(flag) for flag in flags] == [True, True, True]
    assert (plain.builder_optimization_level, config.builder_optimization_level) == (3, 1)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert plain.num_compute_capabilities == 0
    chosen = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert chosen == [trt.ComputeCapability.SM89, trt.ComputeCapability.SM120]
    reached = {"workspace_mib", "optimization_level", "tf32", "compute_capabilities", "refit", "strip_weights"}
    assert {name for name, row in CAPABILITIES.items() if row.has(trt)} == reached == set(options.chosen())


def test_what_was_chosen_is_recorded(request_of_tiny: EngineRequest, tmp_path: Path) -> None:
    options = dataclasses.replace(request_of_tiny.options, compute_capabilities=("8.9", "12.0"), optimization_level=0)
    built = build_engine(dataclasses.replace(request_of_tiny, options=options), tmp_path, "x.engine")
    assert built.hardware["compute_capabilities"] == ["8.9", "12.0"]
    assert (built.options["optimization_level"], built.options["batch"]) == (0, ["1:2:8"])
    assert "version_compatible" not in built.options
    assert built.tools == {"tensorrt_rtx": trt.__version__}
    assert not request_of_tiny.timing_cache.exists()


def graph_of(path: Path, operator: str, domain: str, opset: int) -> Path:
    """A graph of one node, (batch, 2, 4, 8) float32 to the same."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 4, 8]) for name in ("x", "y"))
    count = 3 if operator == "Attention" else 2
    node = helper.make_node(operator, ["x"] * count, ["y"], name="the_node", domain=domain)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("operator", "domain", "opset", "hint"),
    [("BiasGelu", "com.microsoft", 20, "--optimize"), ("Attention", "", 23, "--opset 22")],
)
def test_what_the_parser_refuses_is_told_before_the_build(
    request_of_tiny: EngineRequest, tmp_path: Path, operator: str, domain: str, opset: int, hint: str
) -> None:
    spec = TensorSpec("x", "float32", ("batch", 2, 4, 8))
    request = dataclasses.replace(
        request_of_tiny,
        onnx=graph_of(tmp_path / "one.onnx", operator, domain, opset),
        inputs=(spec,),
        profiles=[{"batch": batch} for batch in BATCH],
        progress=Told(None, lambda *_: pytest.fail("the build has started")),
    )
    with raises(CheckFailedError, what="the_node", where=request.onnx, found=operator, hint=re.compile(hint)):
        build_engine(request, tmp_path, "x.engine")
    assert not (tmp_path / "x.engine").exists()


def test_a_graph_that_is_none(request_of_tiny: EngineRequest, tmp_path: Path) -> None:
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    with raises(CheckFailedError, where=tmp_path / "none.onnx", hint=re.compile(f"see {tmp_path}/build.log")):
        build_engine(dataclasses.replace(request_of_tiny, onnx=tmp_path / "none.onnx"), tmp_path, "x.engine")


def test_what_needs_a_gpu_to_be_built(
    request_of_tiny: EngineRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> Gpu:
        raise DeviceError("no GPU")

    request = dataclasses.replace(request_of_tiny, options=EngineOptions(batch=BATCH, refit=True))
    monkeypatch.setattr(engine_build, "find_gpu", no_gpu)
    with raises(DeviceError, what="refit"):
        build_engine(request, tmp_path, "x.engine")
    assert not (tmp_path / "x.engine").exists()


def test_a_log_that_cannot_be_written_is_an_error(
    request_of_tiny: EngineRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which Linux has")
    with Path("/dev/full").open("wb", buffering=0) as full:
        unbuffered: Any = types.SimpleNamespace(closed=False, write=lambda text: full.write(text.encode()))
        monkeypatch.setattr(engine_build, "make_logger", lambda trt, _: make_logger(trt, unbuffered))
        with pytest.raises(OSError, match="No space left on device"):
            build_engine(request_of_tiny, tmp_path, "x.engine")


def test_what_a_library_says_after_its_log_was_closed_goes_nowhere(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        logger = make_logger(trt, file)
        logger.log(trt.Logger.ERROR, "first\nof all")
    logger.log(trt.Logger.ERROR, "second")
    assert logger.errors == ["first of all", "second"]
    assert (tmp_path / "log").read_text() == "ERROR: first\nof all\n"


INTERRUPTED = """
import sys, vitdeploy

class Interrupt(vitdeploy.Progress):
    def advance(self, done, total):
        raise KeyboardInterrupt

vitdeploy.export(to="tensorrt-rtx", output=sys.argv[1], progress=Interrupt())
"""


ENDED = """
import os, signal, sys, threading
from vitdeploy.cli import main

step = sys.argv[2]
def kill():
    os.kill(os.getpid(), signal.SIGTERM)

if step == "log":  # which the library calls before any step is done
    import vitdeploy.trt.library as library
    make = library.make_logger
    def made(trt, file=None):
        logger = make(trt, file)
        log = logger.log
        logger.__class__.log = lambda self, severity, message: (kill(), log(severity, message))
        return logger
    import vitdeploy.exporters.engine.build as engine_build
    engine_build.make_logger = made
else:
    import vitdeploy.exporters.engine.progress as progress
    start = progress.BuildProgress.start
    progress.BuildProgress.start = lambda *given: (kill(), start(*given))
main(["export", "--to", "tensorrt-rtx", "-o", sys.argv[1]])
"""


@pytest.mark.parametrize("step", ["log", "phase"])
def test_a_signal_during_the_build_ends_it(without_engine: Path, tmp_path: Path, step: str) -> None:
    command = [sys.executable, "-c", ENDED, str(without_engine), step]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, "Exception caught" in done.stderr, done.stdout) == (128 + signal.SIGTERM, False, "")
    assert not list(without_engine.rglob("*.engine"))
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("what", ["log", "timing_cache"])
def test_files_beside_the_engine_must_be_files(request_of_tiny: EngineRequest, tmp_path: Path, what: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to(precious)
    folder.mkdir()
    for path in (link, folder, Path("/dev/full"), tmp_path / "a\0b"):
        with pytest.raises(OutputError):
            build_engine(dataclasses.replace(request_of_tiny, **{what: path}), tmp_path, "x.engine")  # type: ignore[arg-type]
    assert precious.read_text() == "precious"


def test_a_path_that_is_not_utf_8(request_of_tiny: EngineRequest, tmp_path: Path) -> None:
    request = dataclasses.replace(request_of_tiny, onnx=tmp_path / "bad\udcff.onnx")
    with raises(UsageError, where=request.onnx, hint="rename the folder"):
        build_engine(request, tmp_path, "x.engine")


def test_what_is_ignored_stays_so_and_what_is_handled_is_handled_afterwards() -> None:
    seen: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with interrupts_held() as came:
            signal.raise_signal(signal.SIGTERM)
        assert came == []
        signal.signal(signal.SIGTERM, lambda *_: seen.append("handled"))
        with interrupts_held() as came:
            signal.raise_signal(signal.SIGTERM)
            assert (came, seen) == ([signal.SIGTERM], [])
        assert seen == ["handled"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupt_ends_the_build(without_engine: Path) -> None:
    """In a process with a deadline: once, of several hundred times, the library did not let go of a builder."""
    command = [sys.executable, "-c", INTERRUPTED, str(without_engine)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert done.returncode == -signal.SIGINT
    assert not list(without_engine.rglob("*.engine"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"compute_capabilities": ("7.5",)}, "FP32 GEMM is not supported"),
        ({"workspace_mib": 1}, "no tactics to implement the operation within workspace limit"),
    ],
)
def test_what_the_builder_does_not_build_is_told_with_the_log(
    request_of_tiny: EngineRequest, tmp_path: Path, option: dict[str, Any], message: str
) -> None:
    options = dataclasses.replace(request_of_tiny.options, **option)
    with raises(CheckFailedError, what="engine", where=tmp_path / "build.log", found=re.compile(message)):
        build_engine(dataclasses.replace(request_of_tiny, options=options), tmp_path, "x.engine")
    assert not (tmp_path / "x.engine").exists()
    assert "ERROR: " in request_of_tiny.log.read_text(encoding="utf-8")
