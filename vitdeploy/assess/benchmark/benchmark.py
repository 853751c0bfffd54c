"""Latency of every setting of a bundle, each in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vitdeploy.assess.benchmark.accuracy import measure_quality, open_source
from vitdeploy.assess.benchmark.image_files import image_files
from vitdeploy.assess.benchmark.result import Benchmark
from vitdeploy.assess.benchmark.setting import Load, settings_of, thread_counts
from vitdeploy.assess.benchmark.timer import MOST_WINDOWS, WINDOW, WITHIN
from vitdeploy.assess.benchmark.turns import Request, time_settings
from vitdeploy.assess.environment.conditions import Conditions, moment
from vitdeploy.assess.environment.machine import machine
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import UsageError, check_count, shown
from vitdeploy.predictor import check_batch_size, load_processor
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

_LARGEST_SIDE = 99_999  # pixels, as `vitdeploy.specs.read_image_size`


@typed
@retry_if_changed
def benchmark(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    image_sizes: Sequence[Sequence[int]] = (),
    backends: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    device: str = "cpu",
    threads: int | Sequence[int] = 0,
    images: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    similarity: bool = False,
    limit: int | None = None,
    processes: int | None = None,
    rounds: int = 10,
    runs: int = 10,
    progress: Progress = SILENT,
) -> Benchmark:
    """Time every artifact and the reference, in turns, each in its own process.

    The settings take turns in every round, in another order each time. In its turn, a setting runs every batch size on
    preprocessed input and then from encoded image files. Settings that cannot be measured here are listed in `skipped`.
    The processes are spawned, so a script that calls this needs the usual `if __name__ == "__main__":`. No process
    outlives the call.

    Args:
        bundle: The bundle or its folder.
        batch_sizes: Images per run, 1 to 2**20.
        image_sizes: (height, width) of the images, in pixels, for artifacts of dynamic size. Default: the model's.
        backends: Backends such as "onnxruntime:fp16", see `select`. Default: the reference and every artifact, or with
            `settings` these alone.
        settings: Backends with options, such as "onnxruntime:int8,allow_spinning=false", see `read_setting`.
        device: "cpu", "cuda" or "cuda:1".
        threads: Threads per backend, up to 1024, or several numbers to time each; 0 for the default:
            `vitdeploy.system.cpu.session_threads` for ONNX Runtime, torch's choice within the cgroup quota for torch.
        images: Folder of images, searched recursively. Default: synthetic JPEG files of 640x480 pixels.
        data: Labelled images, see `vitdeploy.assess.data.dataset.open_data`, to measure the top-1 accuracy of each
            setting too, and its agreement with the reference.
        similarity: True to measure the mean cosine of each setting with the reference on at most 64 of `images`.
        limit: Most images for these, sampled.
        processes: Processes per setting, one after the other; at most `rounds` are started. Default: 5, or fewer, but
            3, if the start of more would take over a fifth of the time of the rounds.
        rounds: Turns per setting, over all of its processes.
        runs: Timed runs per turn, of each kind, batch size and image size.
        progress: Receives each step and its progress.

    Raises:
        UsageError: If an argument is invalid.
        BundleError: If the bundle or an artifact is missing or was altered.
        InputError: If there are no images, or one cannot be read.
    """
    loads = _loads(batch_sizes, image_sizes)
    for name, value in (("processes", processes), ("rounds", rounds), ("runs", runs)):
        if value is not None:
            check_count(name, value)
    if limit is not None:
        check_count("limit", limit)
    counts = thread_counts(threads)
    bundle = Bundle.of(bundle)
    timed = settings_of(bundle, backends, settings, counts if len(counts) > 1 else ())
    load_processor(bundle)  # or raises before a process is started
    files = image_files(images, max(load.batch_size for load in loads))
    if similarity and images is None:
        raise UsageError("similarity needs images", what="similarity", found=similarity, hint="name a folder of images")
    source = open_source(bundle, data, images if similarity else None, limit)
    quality = None
    if source is not None:
        sizes = list(dict.fromkeys(load.image_size for load in loads))
        quality = measure_quality(bundle, timed, sizes, source, device=device, progress=progress)
    before = moment()
    result = time_settings(
        bundle,
        [Request(setting, loads, optional=backends is None and setting.is_reference) for setting in timed],
        images=files.encoded,
        device=device,
        threads=counts[0] if len(counts) == 1 else 0,
        processes=processes,
        rounds=rounds,
        runs=runs,
        qualities=None if quality is None else quality.by_setting,
        progress=progress,
    )
    order = {tuple(load): position for position, load in enumerate(loads)}
    return Benchmark(
        bundle=str(bundle.path),
        machine=machine(),
        settings={
            "batch_sizes": list(dict.fromkeys(load.batch_size for load in loads)),
            "image_sizes": [list(size) for size in dict.fromkeys(load.image_size for load in loads) if size],
            "processes": min((len(item.rounds_by_session) for item in result.latencies), default=0),
            "rounds": rounds,
            "runs": runs,
            "device": device,
            "threads": counts[0] if len(counts) == 1 else list(counts),
            "images": files.kind,
            "accuracy": None if quality is None else quality.text,
            "warm_up": f"until the medians of {WINDOW} runs are within {WITHIN:.0%}, at most {MOST_WINDOWS} times",
        },
        latencies=tuple(sorted(result.latencies, key=lambda latency: order[latency.load])),
        skipped=result.skipped,
        conditions=Conditions.since(before),
        processor=bundle.manifest.processor,
        left_out=files.left_out,
    )


def _loads(batch_sizes: Sequence[int], image_sizes: Sequence[Sequence[int]]) -> tuple[Load, ...]:
    """Every combination of a batch size and an image size."""
    if not batch_sizes:
        raise UsageError("batch_sizes is empty", what="batch_sizes", found=batch_sizes, hint="give one or more sizes")
    for batch_size in batch_sizes:
        check_batch_size(batch_size)
    sizes: list[tuple[int, int] | None] = []
    for size in image_sizes:
        if len(size) != 2:
            raise UsageError(
                f"image_sizes takes pairs of height and width, got {shown(size)}", what="image_sizes", found=size
            )
        for side in size:
            check_count("image_sizes", side, most=_LARGEST_SIDE)
        sizes.append((size[0], size[1]))
    return tuple(dict.fromkeys(Load(batch, size) for size in sizes or [None] for batch in batch_sizes))
