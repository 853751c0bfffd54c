"""Run by the interpreter of .venvs/ray: a Ray Serve application, whose settings change while it runs.

Its arguments are the HTTP port, and the options of the deployment as JSON. Each line of its input, a `ServeConfig` as
JSON, deploys these settings; then it prints a line: the status of the application.
"""

from __future__ import annotations

import json
import sys

import ray
from ray import serve

from vitdeploy.serving.scale_out.ray_serve import app

if __name__ == "__main__":
    ray.init(num_cpus=2, object_store_memory=100 * 1024**2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    for line in sys.stdin:
        serve.run(app(**json.loads(line), deployment=json.loads(sys.argv[2])))
        print(serve.status().applications["default"].status, flush=True)
    serve.shutdown()
    ray.shutdown()
    assert "torch" not in sys.modules
