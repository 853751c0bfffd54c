"""The manifests of `examples/kubernetes`: valid, restricted, bounded, and of one mind with each other."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_schemas
import pytest
import yaml
from environments import ROOT, environment, run
from jsonschema import Draft202012Validator

from vitdeploy.files.polling import poll

FOLDER = ROOT / "examples" / "kubernetes"
DOCUMENTS = {
    f"{file.stem}/{document['kind']}/{document['metadata']['name']}": document
    for file in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
}
USERS = (
    "labels",
    "matchLabels",
    "selector",
    "annotations",
    "requests",
    "limits",
    "rayStartParams",
)  # names of the user's choice
CUSTOM = [name for name, document in DOCUMENTS.items() if document["apiVersion"].startswith(("serving.kserve", "ray"))]


START_TRITON = """
import os, sys
from vitdeploy.serving.server.installation import find_installation
found = find_installation()
os.execve(found.binary, [str(found.binary), *sys.argv[1:]], found.environ(os.environ))
"""


BUILD_APPLICATION = """
import importlib, json, sys, yaml
from ray.serve.schema import ServeDeploySchema
(application,) = ServeDeploySchema.model_validate(yaml.safe_load(sys.argv[1])).applications
module, name = application.import_path.split(":")
deployment = getattr(importlib.import_module(module), name)(application.args)._bound_deployment
print(json.dumps({
    "bundle": deployment.user_config["bundle"], "num_cpus": deployment.ray_actor_options["num_cpus"],
    "max_replicas": deployment._deployment_config.autoscaling_config.max_replicas,
}))
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def status(port: int, path: str) -> int | None:
    """The status of an answer; None if nothing listens."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        try:
            connection.request("GET", path)
        except OSError:
            return None
        return connection.getresponse().status


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Specifications of pods anywhere in a document."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


PODS = {f"{name}/{index}": pod for name, document in DOCUMENTS.items() for index, pod in enumerate(pods(document))}


def misspelt(document: Any, path: tuple[str | int, ...]) -> Any:
    """The document with another name for the field at a path."""
    result = copy.deepcopy(document)
    parent = result
    for step in path[:-1]:
        parent = parent[step]
    parent[f"{path[-1]}s"] = parent.pop(path[-1])
    return result


def fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of the fields of a document, but for those that a user names."""
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from fields(inner, (*path, index))
    if isinstance(value, dict) and ("matchLabels" in value or path[-1:] not in [(name,) for name in USERS]):
        for name, inner in value.items():
            yield (*path, name)
            yield from fields(inner, (*path, name))


def check(document: Any, validator: Draft202012Validator) -> None:
    """The document is valid, and no longer if any of its fields is misspelt."""
    validator.validate(document)
    for path in fields(document):
        assert not validator.is_valid(misspelt(document, path)), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_manifest_is_valid_and_a_misspelt_field_is_not(name: str) -> None:
    check(DOCUMENTS[name], kubernetes_schemas.validator(DOCUMENTS[name]))


@pytest.mark.parametrize("name", CUSTOM)
def test_a_manifest_is_what_the_published_definition_takes(name: str) -> None:
    check({**DOCUMENTS[name], "metadata": {}}, kubernetes_schemas.published(DOCUMENTS[name]))


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_no_rights_that_it_does_not_need(name: str) -> None:
    """Kubernetes' Pod Security Standard "restricted", and a read-only root file system."""
    pod = PODS[name]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    mounted = {volume["name"]: volume for volume in pod["volumes"]}
    assert all(set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security == {
            "runAsNonRoot": True, "runAsUser": 1000, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        }  # fmt: skip
        assert {mount["name"] for mount in container["volumeMounts"]} <= mounted.keys()
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_images_have_versions() -> None:
    images = {container["image"] for pod in PODS.values() for container in pod["containers"]}
    assert len(images) >= 2
    for image in images:
        _, _, tag = image.rpartition(":")
        assert any(map(str.isdigit, tag)), image
        assert "latest" not in tag


@pytest.mark.parametrize("name", DOCUMENTS)
def test_requests_are_limits(name: str) -> None:
    """Guaranteed quality of service: no other pod takes the memory, and threads are not throttled by neighbours."""

    def resources(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            if "limits" in value:
                yield value
            value = list(value.values())
        for inner in value if isinstance(value, list) else ():
            yield from resources(inner)

    found = list(resources(DOCUMENTS[name]))
    for each in found:
        assert each["requests"] == each["limits"]
        assert {"cpu", "memory"} <= each["limits"].keys()
    containers = sum(len(pod["containers"]) for pod in pods(DOCUMENTS[name]))
    assert len(found) >= containers or "ServingRuntime" in name  # its resources are those of the InferenceService


def test_threads_are_the_cpus_of_the_pod() -> None:
    """Triton's own backend does not know the quota."""
    (runtime,) = (document for document in DOCUMENTS.values() if document["kind"] == "ServingRuntime")
    (service,) = (document for document in DOCUMENTS.values() if document["kind"] == "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    cpus = model["resources"]["limits"]["cpu"]
    assert f"--backend-config=onnxruntime,intra_op_thread_count={cpus}" in runtime["spec"]["containers"][0]["args"]


def test_volumes_are_claimed_and_parts_find_each_other() -> None:
    claims = {name.rpartition("/")[2] for name in DOCUMENTS if "/PersistentVolumeClaim/" in name}
    text = "".join(json.dumps(document) for document in DOCUMENTS.values())
    named = set(re.findall(r'"claimName": "([^"]+)"|pvc://([^/"]+)', text))
    assert {name for pair in named for name in pair if name} == claims
    application = {
        document["kind"]: document["spec"] for name, document in DOCUMENTS.items() if name.startswith("application/")
    }
    labels = application["Deployment"]["template"]["metadata"]["labels"]
    assert application["Deployment"]["selector"]["matchLabels"] == labels
    assert application["PodDisruptionBudget"]["selector"]["matchLabels"] == labels
    assert application["Service"]["selector"] == labels
    assert f"application/Deployment/{application['HorizontalPodAutoscaler']['scaleTargetRef']['name']}" in DOCUMENTS


def test_the_application_has_what_its_manifest_asks_for() -> None:
    """Paths of probes, settings from the environment, its port and its files."""
    folder = ROOT / "examples" / "fastapi_app"
    source, image = ((folder / name).read_text(encoding="utf-8") for name in ("app.py", "Dockerfile"))
    (container,) = DOCUMENTS["application/Deployment/vit-app"]["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f'@app.get("{container[probe]["httpGet"]["path"]}")' in source
    for variable in container["env"]:
        assert re.search(rf"^    {variable['name'].lower()}: ", source, re.MULTILINE), variable
    (port,) = container["ports"]
    assert f'"--port", "{port["containerPort"]}"' in image
    assert {path.name for path in folder.glob("*.py")} == set(re.findall(r"\w+\.py", image))


def test_triton_starts_with_the_arguments_of_its_manifest(tmp_path: Path) -> None:
    """On other ports, without models; it answers the probes, and keeps interfaces closed that reach into the server."""
    python, models, log = environment("triton"), tmp_path / "models", tmp_path / "log"
    models.mkdir()
    (runtime,) = (document for document in DOCUMENTS.values() if document["kind"] == "ServingRuntime")
    (container,) = runtime["spec"]["containers"]
    port, grpc, metrics = free_ports(3)
    changed = {"--model-repository": models, "--http-port": port, "--grpc-port": grpc}
    arguments = [argument for argument in container["args"] if argument.partition("=")[0] not in changed]
    assert len(arguments) == len(container["args"]) - len(changed)
    arguments += [f"{name}={value}" for name, value in changed.items()]
    arguments += [f"--metrics-port={metrics}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    with log.open("wb") as output, subprocess.Popen(
        [python, "-c", START_TRITON, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        stdout=output, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            poll(lambda: process.poll() or status(port, "/v2/health/live"), 60)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert status(port, container[probe]["httpGet"]["path"]) == 200, log.read_text()
            assert status(port, "/v2/logging") == 403
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_the_ray_job_gives_options_that_its_script_has() -> None:
    program, script, *words = DOCUMENTS["ray-job/RayJob/vit-batch"]["spec"]["entrypoint"].split()
    source = (ROOT / "examples" / "ray" / script.rpartition("/")[2]).read_text(encoding="utf-8")
    assert program == "python"
    for word in words:
        assert not word.startswith("--") or f'add_argument("{word}"' in source, word


def test_ray_serve_takes_the_configuration_of_the_ray_service() -> None:
    """By Ray's own schema; the application is built, not run."""
    python = environment("ray")
    config = DOCUMENTS["ray-service/RayService/vit"]["spec"]["serveConfigV2"]
    built = run(
        python, "-c", BUILD_APPLICATION, config, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "examples" / "ray")])
    )
    assert json.loads(built.splitlines()[-1]) == {"bundle": "/models/vit", "num_cpus": 4, "max_replicas": 16}
