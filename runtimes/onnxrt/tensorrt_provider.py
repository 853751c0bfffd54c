"""Run an ONNX artifact with ONNX Runtime's TensorRT provider, which builds and caches an engine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnxruntime as ort

from vitdeploy.errors import MissingDependencyError, OutputError, UnavailableError, UsageError
from vitdeploy.files.user_cache import user_cache
from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.runtimes.onnxrt.session import TENSORRT, check_built
from vitdeploy.runtimes.options import cuda_index
from vitdeploy.specs import AxisRange, TensorSpec, read_range
from vitdeploy.system.option_fields import described, option
from vitdeploy.trt.library import load_library
from vitdeploy.trt.options import DEFAULT_BATCH, Bounds, EngineOptions, Profile

if TYPE_CHECKING:
    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact


@described
@dataclasses.dataclass(frozen=True)
class TensorRTOnnxRuntimeOptions(OnnxRuntimeOptions):
    """Options of a session with the TensorRT provider only.

    Provider options, as documented by ONNX Runtime, override the values chosen here.
    """

    batch: str | AxisRange = option(
        DEFAULT_BATCH, 'the smallest number of images, the one to be fastest at, and the largest, such as "1:8:64".'
    )
    image_sizes: Bounds | None = option(
        None,
        "the smallest, the usual and the largest (height, width) of images, where it takes several; by default the "
        "artifact's limits. One that takes any, decoded ones for example, must be given them.",
    )
    engine_cache: str | os.PathLike[str] | Literal[False] | None = option(
        None,
        "the folder that engines and measured kernels are kept in, under a hash of their sources; by default the "
        "user's, or `VITDEPLOY_CACHE`; False for none. An engine can run code: keep others from writing there.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sizes  # noqa: B018  (refuses batches and images of sizes that there are not)

    @property
    def sizes(self) -> EngineOptions:
        """Sizes of batches and images."""
        batch = read_range(self.batch) if isinstance(self.batch, str) else self.batch
        return EngineOptions(batch=(batch,), image_sizes=() if self.image_sizes is None else (self.image_sizes,))


class TensorRTOnnxRuntime(OnnxRuntime):
    """A session in which TensorRT runs every node in one engine; otherwise it does not open.

    The engine has the artifact's types: ONNX Runtime makes the network strongly typed if neither `trt_fp16_enable` nor
    `trt_int8_enable` is on, so neither is set. The engine is built when the session opens, for a range of batches and
    the artifact's image sizes; `run` refuses other shapes, for which ONNX Runtime would rebuild it. It is cached, so
    that the next session opens sooner.
    """

    backend = "onnxruntime-tensorrt"
    options_type = TensorRTOnnxRuntimeOptions
    shapes_on_cpu = False  # the engine computes them, and a second engine would have no profile

    @classmethod
    def from_bundle(  # type: ignore[override]  # each runtime takes its own options
        cls, bundle: Bundle, options: TensorRTOnnxRuntimeOptions, *, precision: str, device: str
    ) -> Self:
        """Open the bundle's ONNX artifact of that precision.

        Raises:
            UsageError: If an option is invalid, or the artifact targets a CPU or takes images of any size.
            DeviceError: If the provider is not available.
            BundleError: If a file was altered.
            OutputError: If the engine folder cannot be created.
        """
        index = cuda_index(cls.backend, device)
        if options.providers is not None:
            raise UsageError(
                f"{cls.backend} has its own provider, got {options.providers}",
                what="providers", found=options.providers, hint="use the onnxruntime backend",
            )  # fmt: skip
        artifact = bundle.artifact("onnx", precision)
        if artifact.options.get("target") == "cpu":
            raise UsageError(
                f"{artifact.name} was quantized for a CPU", what="target", where=bundle.path, found="cpu",
                hint="export it with --target tensorrt",
            )  # fmt: skip
        (profile,) = options.sizes.profiles(artifact.inputs, artifact.pixels, artifact.axes)
        check_built((TENSORRT,))
        version = _load_tensorrt()
        options = options.on_gpu(TENSORRT, index, _profile_options(artifact.inputs, profile))
        chosen = (options.provider_options or {})[TENSORRT]
        folder = None
        if options.engine_cache is not False:
            parent = _default_folder() if options.engine_cache is None else Path(options.engine_cache)
            folder = _make_folder(parent / _key(artifact, version, chosen))
        options = dataclasses.replace(options, provider_options={TENSORRT: {**_cache_options(folder), **chosen}})
        with bundle.opened_artifact(artifact, by_name=True) as (model, *_):  # engines are cached by file name, too
            runtime = cls(model, options)
        runtime.axes = profile
        return runtime

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        try:
            check_built((TENSORRT,))
            _load_tensorrt()
        except UnavailableError as exc:
            return {TENSORRT: str(exc)}
        return {TENSORRT: cls._problem(TENSORRT)}


def _load_tensorrt() -> str:
    """Version of the TensorRT package; "" if its libraries were installed without one.

    Importing it loads the libraries, which ONNX Runtime does not find in a package.
    """
    try:
        return str(load_library("tensorrt", "the TensorRT provider").__version__)
    except MissingDependencyError:
        return ""


def _profile_options(inputs: Sequence[TensorSpec], profile: Profile) -> dict[str, str]:
    """Minimum, optimum and maximum shape of each input, in ONNX Runtime's spelling: "x:1x3x224x224,..."."""

    def shape(spec: TensorSpec, size: str) -> str:
        return "x".join(str(axis if isinstance(axis, int) else getattr(profile[axis], size)) for axis in spec.shape)

    return {
        f"trt_profile_{which}_shapes": ",".join(f"{spec.name}:{shape(spec, size)}" for spec in inputs)
        for which, size in (("min", "minimum"), ("opt", "optimum"), ("max", "maximum"))
    }


def _key(artifact: Artifact, tensorrt: str, settings: Mapping[str, Any]) -> str:
    """Hash of an engine's dependencies, except the GPU, whose compute capability is in ONNX Runtime's file name."""
    parts = [
        [file.sha256 for file in artifact.files],
        ort.__version__,
        tensorrt,
        {k: str(v) for k, v in settings.items()},
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cache_options(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {"trt_engine_cache_enable": False, "trt_timing_cache_enable": False}
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }


def _default_folder() -> Path:
    cache = user_cache()
    if cache is None:
        raise OutputError(
            "no home folder to keep engines in", what="engine_cache",
            hint="set VITDEPLOY_CACHE, or give an engine_cache or False",
        )  # fmt: skip
    return cache / "tensorrt-provider"


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(
            f"the folder for engines, {folder}, cannot be made: {exc.strerror}",
            what="engine_cache", where=folder, found=exc.strerror, hint="give another engine_cache, or False",
        ) from exc  # fmt: skip
    return folder
