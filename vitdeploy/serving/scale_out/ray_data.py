"""A Ray Data job: images in, decoded by CPU tasks, run by actors that open the bundle, parquet files of rows out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import pyarrow.dataset as pd
from ray.data.checkpoint import CheckpointConfig

from vitdeploy._version import __version__
from vitdeploy.errors import BundleChangedError, check_count
from vitdeploy.serving.scale_out.arrow_table import as_table
from vitdeploy.serving.scale_out.batch_callable import ERROR, PIXELS, BatchPredictor, DecodeImages, resolve
from vitdeploy.serving.scale_out.job_folder import JobFolder
from vitdeploy.serving.scale_out.ray_checkpoint import RecordedIds, UnfinishedRows
from vitdeploy.serving.scale_out.ray_workers import Workers
from vitdeploy.serving.scale_out.result_columns import Labels, Vectors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.serving.scale_out.ray_sources import ImageFiles, ParquetRows, WebDataset


@dataclasses.dataclass(frozen=True)
class RayJobResult:
    """The result of `run_ray_job`.

    Attributes:
        output: Folder of parquet files.
        rows: Number of rows, one per image.
        failed: Number of rows with an `error`.
        resumed: Number of rows that an earlier, interrupted run had written; all, if the output existed.
    """

    output: str
    rows: int
    failed: int
    resumed: int


class _TablePredictor(BatchPredictor):
    """A `BatchPredictor` that returns a table with nulls, whose types are the same in each batch."""

    def __init__(self, bundle: str, fingerprint: str, **options: Any) -> None:
        super().__init__(bundle, **options)
        self._fingerprint = fingerprint

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Any:
        if self.predictor.fingerprint != self._fingerprint:
            path = self.predictor.details["bundle"]
            message = f"{path} was replaced during the job"
            raise BundleChangedError(message, where=path, hint="put the job's bundle back, or start a new job")
        return as_table(super().__call__(batch), self.rows.names)


def run_ray_job(
    source: ParquetRows | ImageFiles | WebDataset,
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    rows: Labels | Vectors | None = None,
    workers: Workers | None = None,
    batch_size: int | None = None,
    rows_per_file: int = 4096,
    **options: Any,
) -> RayJobResult:
    """Run the images of a source on the current Ray cluster, or on a local one, into a folder of parquet files.

    The columns are the source's id, those of `rows`, and `error`, the reason why an image could not be read. The order
    of the rows is not that of the source. The work of an interrupted job stays in the folder `OUTPUT.unfinished`: the
    same call continues it. Rows are counted before the folder becomes the output: none is missing, and none is twice.

    Args:
        source: The images.
        bundle: The bundle's folder, which every machine sees under this path.
        output: Folder to write, which every machine sees under this path.
        rows: Columns to compute. Default: `Labels()`.
        workers: Processes to start. Default: `Workers()`.
        batch_size: Images per run. Default: the predictor's.
        rows_per_file: Smallest number of rows in a file, but for the last. A killed job repeats files that were not
            whole.
        options: See `vitdeploy.load`: backend, precision, device, and options of the backend.

    Raises:
        UsageError: If an option does not fit the model, or the output is another job's.
        BundleError: If the bundle is damaged.
        InputError: If the source cannot be read, ids are not unique, or the unfinished work is another job's.
        OutputError: If a row is missing or twice, or a file cannot be written.
    """
    place, chosen, workers = source.check_output(output), rows or Labels(), workers or Workers()
    source.check_columns((*chosen.names, PIXELS, ERROR))
    check_count("rows_per_file", rows_per_file)
    resolved = resolve(bundle, options, workers.cpus)
    settings, size = resolved.options, batch_size or resolved.batch_size
    decode = DecodeImages.of(bundle, source.image_column, **settings)
    identity = {
        "source": {"kind": type(source).__name__, **dataclasses.asdict(source), "paths": list(source.paths)},
        "files": [record.sha256 for record in resolved.opening.records],
        "rows": {"kind": type(chosen).__name__, **dataclasses.asdict(chosen)},
        "options": {name: repr(value) for name, value in settings.items()},
        "batch_size": size,
        "versions": {"vitdeploy": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
    }
    with JobFolder(place, identity) as folder:
        if not folder.finished:
            expected, dataset = source.count(), source.read()
            workers.check_cluster()
            dataset.context.checkpoint_config = CheckpointConfig(
                source.id_column,
                str(folder.checkpoint),
                delete_checkpoint_on_success=False,
                checkpoint_filter_cls=UnfinishedRows,
                checkpoint_manager_cls=RecordedIds,
            )
            dataset = dataset.repartition(target_num_rows_per_block=workers.rows)
            # Ray would move the decoding into the actors if both reserved the same.
            dataset = dataset.map_batches(
                decode, batch_size=workers.rows, num_cpus=1, memory=workers.task_bytes(decode.image_bytes)
            )
            dataset = dataset.map_batches(
                _TablePredictor,
                fn_constructor_args=(str(Path(bundle).absolute()), resolved.opening.fingerprint),
                fn_constructor_kwargs={"rows": chosen, "batch_size": size, **settings},
                batch_size=workers.rows,
                compute=workers.pool,
                num_cpus=workers.cpus,
                num_gpus=workers.gpus or None,
            )
            dataset.write_parquet(
                str(folder.parts),
                min_rows_per_file=rows_per_file,
                concurrency=workers.most_actors,
                # If they reserved CPUs, a small cluster would write nothing until all else has ended.
                ray_remote_args={"num_cpus": 0},
            )
            folder.finish(source.id_column, expected)
    table = pd.dataset(place, format="parquet")
    count = table.count_rows()
    failed = table.count_rows(filter=pd.field("error").is_valid()) if count else 0
    return RayJobResult(str(place), count, failed, count if folder.finished else folder.resumed)
