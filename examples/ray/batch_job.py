"""Classify the images of parquet files, folders or tar files on Ray, into a folder of parquet files.

Started again after a kill, it goes on; started again after its end, it prints the same result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

import ray

from vitdeploy.serving.scale_out.ray_data import run_ray_job
from vitdeploy.serving.scale_out.ray_sources import ImageFiles, ParquetRows, WebDataset
from vitdeploy.serving.scale_out.ray_workers import Workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("parquet", "files", "webdataset"))
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--id-column", default="id", help="column of unique ids, for parquet")
    parser.add_argument("--actors", type=int, default=1, help="processes that run the model, on one CPU each")
    parser.add_argument("--rows", type=int, default=256, help="images in a task")
    parser.add_argument("--rows-per-file", type=int, default=4096)
    parser.add_argument("--cpus", type=int, help="start a local Ray with so many, instead of joining a cluster")
    given = parser.parse_args()
    paths = tuple(given.paths)
    sources: dict[str, ParquetRows | ImageFiles | WebDataset] = {
        "parquet": ParquetRows(paths, given.id_column),
        "files": ImageFiles(paths),
        "webdataset": WebDataset(paths),
    }
    if given.cpus:
        ray.init(num_cpus=given.cpus, object_store_memory=200 * 1024**2, include_dashboard=False)
    workers = Workers(actors=given.actors, rows=given.rows)
    result = run_ray_job(
        sources[given.kind], given.bundle, given.output, workers=workers, rows_per_file=given.rows_per_file
    )
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    main()
