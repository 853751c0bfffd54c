"""Schemas of Kubernetes' manifests, strict: a field that they do not have is an error.

- Kubernetes' own kinds: its published OpenAPI definitions, from the package kubernetes-validate.
- KServe's: the models of its Python package, which are generated from KServe's OpenAPI document.
- KubeRay's, which no package has: the fields that the examples use, described here; their pods are Kubernetes' own.

`VITDEPLOY_CRDS` in the environment is a folder of `CustomResourceDefinition` files, from which `published` reads
the schemas of KServe and KubeRay themselves.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from environments import ROOT
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

PACKAGES = ROOT / ".venvs" / "kubernetes"
VERSION = "v1.37.0"
_CORE = "https://kubernetes.io/api/_definitions.json"
_TYPES = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}
_GROUPS = ("api.core.v1.", "api.apps.v1.", "api.autoscaling.v2.", "apimachinery.pkg.apis.meta.v1.")

Schema = dict[str, Any]


def validator(document: Schema) -> Draft202012Validator:
    """The validator of a document's kind; the test is skipped without the environment that has the schemas."""
    if not (PACKAGES / ".done").exists():
        pytest.skip("needs the environment .venvs/kubernetes; run: make test")
    group, _, version = document["apiVersion"].rpartition("/")
    kind = document["kind"]
    schema: Schema | bool
    if group == "serving.kserve.io":
        schema = _kserve(f"{version.capitalize()}{kind}")
    elif group == "ray.io":
        schema = _RAY[kind]
    else:
        prefix = f"{group.partition('.')[0]}-" if group else ""
        text = (_folder() / f"{kind.lower()}-{prefix}{version}.json").read_text(encoding="utf-8")
        schema = {**json.loads(text), "$id": "https://kubernetes.io/api/kind.json"}
    return Draft202012Validator(schema, registry=_registry())


def published(document: Schema) -> Draft202012Validator:
    """The validator of a document's kind from its `CustomResourceDefinition`; skipped without one."""
    folder = os.environ.get("VITDEPLOY_CRDS")
    if not folder:
        pytest.skip("needs the CustomResourceDefinitions of KServe and KubeRay in the folder VITDEPLOY_CRDS")
    found = _definitions(folder).get((document["apiVersion"], document["kind"]))
    if found is None:
        pytest.skip(f"VITDEPLOY_CRDS has no {document['kind']} of {document['apiVersion']}")
    return Draft202012Validator(found)


def _folder() -> Path:
    return PACKAGES / "kubernetes_validate" / "kubernetes-json-schema" / f"{VERSION}-local-strict"


@functools.cache
def _core() -> Schema:
    definitions: Schema = json.loads((_folder() / "_definitions.json").read_text(encoding="utf-8"))
    return definitions


@functools.cache
def _registry() -> Any:
    return Registry().with_resource(_CORE, Resource.from_contents(_core()))


def core(name: str) -> Schema:
    """A reference to a definition of Kubernetes, such as "Container"."""
    return {"$ref": f"{_CORE}#/$defs/io.k8s.{name}"}


@functools.cache
def _kserve(name: str) -> Schema | bool:
    """A model of KServe's package, read without importing it: names in JSON and types of its attributes.

    False, which no value satisfies, if the package has none of that name.
    """
    file = PACKAGES / "kserve" / "models" / f"{re.sub('(?<=[a-z0-9])(?=[A-Z][a-z])', '_', name).lower()}.py"
    if not file.exists():
        return False
    tables = {
        target.id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip
    names = tables["attribute_map"]
    return strict({names[attribute]: _typed(kind) for attribute, kind in tables["openapi_types"].items()})


def _typed(kind: str) -> Schema | bool:
    """The schema of a type in the notation of OpenAPI's Python generator; False for one that is not known."""
    if kind in _TYPES:
        return {"type": _TYPES[kind]}
    if container := re.fullmatch(r"list\[(.*)\]", kind):
        return {"type": "array", "items": _typed(container[1])}
    if container := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return {"type": "object", "additionalProperties": _typed(container[1])}
    if kind == "ResourceQuantity":
        return core("apimachinery.pkg.api.resource.Quantity")
    if kind.startswith(("V1beta1", "V1alpha1")):
        return _kserve(kind)
    name = kind.removeprefix("V1")
    found = [f"{group}{name}" for group in _GROUPS if f"io.k8s.{group}{name}" in _core()["$defs"]]
    return core(found[0]) if found else False


def strict(properties: Schema, *required: str) -> Schema:
    """An object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _kind(spec: Schema) -> Schema:
    metadata = core("apimachinery.pkg.apis.meta.v1.ObjectMeta")
    return strict(
        {"apiVersion": {"const": "ray.io/v1"}, "kind": {"type": "string"}, "metadata": metadata, "spec": spec},
        "apiVersion", "kind", "metadata", "spec",
    )  # fmt: skip


_TEXT, _WHOLE, _FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
_POD, _START = core("api.core.v1.PodTemplateSpec"), {"type": "object", "additionalProperties": _TEXT}
_CLUSTER = strict(
    {
        "rayVersion": _TEXT,
        "enableInTreeAutoscaling": _FLAG,
        "autoscalerOptions": strict({
            "idleTimeoutSeconds": _WHOLE,
            "resources": core("api.core.v1.ResourceRequirements"),
            "securityContext": core("api.core.v1.SecurityContext"),
        }),
        "headGroupSpec": strict({"rayStartParams": _START, "template": _POD}, "template"),
        "workerGroupSpecs": {
            "type": "array",
            "items": strict(
                {"groupName": _TEXT, "replicas": _WHOLE, "minReplicas": _WHOLE, "maxReplicas": _WHOLE,
                 "rayStartParams": _START, "template": _POD},
                "groupName", "minReplicas", "maxReplicas", "template",
            ),
        },
    },
    "headGroupSpec",
)  # fmt: skip
_RAY = {
    "RayCluster": _kind(_CLUSTER),
    "RayJob": _kind(strict({
        "entrypoint": _TEXT,
        "backoffLimit": _WHOLE,
        "activeDeadlineSeconds": _WHOLE,
        "shutdownAfterJobFinishes": _FLAG,
        "ttlSecondsAfterFinished": _WHOLE,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "submitterPodTemplate": _POD,
        "rayClusterSpec": _CLUSTER,
    }, "rayClusterSpec")),
    "RayService": _kind(strict({"serveConfigV2": _TEXT, "rayClusterConfig": _CLUSTER}, "rayClusterConfig")),
}  # fmt: skip


@functools.cache
def _definitions(folder: str) -> dict[tuple[str, str], Schema]:
    found = {}
    for file in sorted(Path(folder).glob("*.yaml")):
        for document in yaml.load_all(file.read_bytes(), yaml.CSafeLoader):
            if document and document["kind"] == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    found[key] = _closed(version["schema"]["openAPIV3Schema"])
                    found[key]["properties"]["metadata"] = {"type": "object"}  # any, for the API server checks it
    return found


def _closed(schema: Schema) -> Schema:
    """The schema without fields that it does not name, and with Kubernetes' integers or texts."""
    result = {name: _closed(value) if name in ("items", "additionalProperties") and isinstance(value, dict) else value
              for name, value in schema.items()}  # fmt: skip
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        result["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    return result
