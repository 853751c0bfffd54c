"""Serve a bundle with Ray Serve: POST an image, get its classes as JSON. It ends at the end of its input.

A line of its input is a JSON object of settings, the fields of `ServeConfig`. They change while requests are answered:
`{"version": "2"}` opens a bundle that was exported again, `{"bundle": "other"}` another one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from typing import Any

import ray
from ray import serve

from vitdeploy.serving.scale_out.ray_serve import app


def build(settings: dict[str, Any]) -> serve.Application:
    """The application of a Serve configuration that imports `serve_app:build`; its `args` are those of `app`."""
    return app(**settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--cpus", type=int, help="start a local Ray with so many, instead of joining a cluster")
    parser.add_argument(
        "--deployment", type=json.loads, default={}, help="Serve's options, such as num_replicas, as JSON"
    )
    given = parser.parse_args()
    if given.cpus:
        ray.init(num_cpus=given.cpus, object_store_memory=100 * 1024**2, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    settings: dict[str, Any] = {"bundle": given.bundle}
    for line in itertools.chain(["{}"], sys.stdin):
        settings |= json.loads(line)
        serve.run(app(**settings, deployment=given.deployment))
        print(serve.status().applications["default"].status.value, flush=True)
    serve.shutdown()


if __name__ == "__main__":
    main()
