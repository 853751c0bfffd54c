"""A Ray Data job: images in, decoded by CPU tasks, run by actors that open the bundle, parquet files of rows out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import pyarrow.dataset as pd
import ray
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import CheckpointManager

from vitdeploy._version import __version__
from vitdeploy.serving.scale_out.arrow_table import as_table
from vitdeploy.serving.scale_out.batch_callable import BatchPredictor, DecodeImages, resolve
from vitdeploy.serving.scale_out.job_folder import JobFolder
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

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Any:
        return as_table(super().__call__(batch), self.rows.names)


class _RecordedIds(CheckpointManager):  # type: ignore[misc]
    """Reads the ids of finished rows at once; Ray takes a task for every few files, 0.07 s a file."""

    def load_checkpoint(self, *_data_files: Any) -> tuple[Any, int]:
        """The sorted ids in Ray's object store, and their size in bytes; None and 0 if no row is finished."""
        ids = pd.dataset(self.checkpoint_path_unwrapped, format="parquet", filesystem=self.filesystem).to_table()
        if not len(ids):
            return None, 0
        return ray.put(np.sort(ids.column(self.id_column).to_numpy())), 2 * ids.nbytes


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
        InputError: If the work of an interrupted job is another job's.
        OutputError: If a row is missing or twice, or a file cannot be written.
    """
    place, chosen, workers = Path(output).absolute(), rows or Labels(), workers or Workers()
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
            dataset = source.read()
            workers.check_cluster()
            dataset.context.checkpoint_config = CheckpointConfig(
                source.id_column,
                str(folder.checkpoint),
                delete_checkpoint_on_success=False,
                checkpoint_manager_cls=_RecordedIds,
            )
            dataset = dataset.repartition(target_num_rows_per_block=workers.rows)
            # Ray would move the decoding into the actors if both reserved the same.
            dataset = dataset.map_batches(
                decode, batch_size=workers.rows, num_cpus=1, memory=workers.task_bytes(decode.image_bytes)
            )
            dataset = dataset.map_batches(
                _TablePredictor,
                fn_constructor_args=(str(Path(bundle).absolute()),),
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
            folder.finish(source.id_column, source.count())
    table = pd.dataset(place, format="parquet")
    count = table.count_rows()
    failed = table.count_rows(filter=pd.field("error").is_valid()) if count else 0
    return RayJobResult(str(place), count, failed, count if folder.finished else folder.resumed)
