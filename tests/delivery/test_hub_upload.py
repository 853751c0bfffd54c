"""Pushes to a Hub on loopback, by its protocol, and the messages for its refusals."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from bundles import sign_again
from command_line import run
from hub_server import Hub, hub_server, use_hub
from huggingface_hub.utils import _http
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.delivery.model_card import model_card
from vitdeploy.errors import BundleError, HubError, InputError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID, TOKEN = "me/vit-bundle", "hf_writer"
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server({}) as server:
        server.writers[TOKEN] = ("me", "org")
        use_hub(server.url, tmp_path / "home", monkeypatch)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield server


def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_commit_api", "lfs", "hf_api"):
        backoff = functools.partial(_http.http_backoff, max_retries=0)
        monkeypatch.setattr(f"huggingface_hub.{module}.http_backoff", backoff)


def content(hub: Hub, revision: str = "main", name: str = ID) -> dict[str, bytes]:
    return hub.files(name, str(hub.commit(name, revision)))


def local_files(bundle: Bundle) -> dict[str, bytes]:
    names = [MANIFEST, *(record.path for record in bundle.manifest.records)]
    return {name: (bundle.path / name).read_bytes() for name in names}


def test_a_bundle_is_pushed_and_loaded_back(hub: Hub, both: Bundle, tmp_path: Path) -> None:
    packed = vitdeploy.pack(both, "onnx-fp32", output=tmp_path / "packed")
    pushed = vitdeploy.push(packed.path, ID, token=TOKEN, message="First")
    assert pushed.commit == hub.commit(ID, "main")
    assert pushed.to_dict() == {
        "name": ID, "url": f"{hub.url}/{ID}", "commit": pushed.commit, "card": "written",
        "files": ("README.md", "config.json", MANIFEST, "onnx/model.onnx", "preprocessor_config.json"),
    }  # fmt: skip
    files = content(hub)
    assert {name: files[name] for name in local_files(packed)} == local_files(packed)
    assert files.keys() - local_files(packed).keys() == {".gitattributes", "README.md"}
    assert hub.messages[pushed.commit] == "First"
    with vitdeploy.load(packed.path) as local, vitdeploy.load(ID, revision=pushed.commit) as predictor:
        assert predictor.predict(IMAGE) == local.predict(IMAGE)


def test_the_card_has_the_facts_of_the_manifest(hub: Hub, both: Bundle) -> None:
    source = dataclasses.replace(both.manifest.source, id="google/vit", revision="f" * 40)
    int8 = dataclasses.replace(both.artifact("onnx", "fp16"), precision="int8")
    manifest = dataclasses.replace(both.manifest, source=source, artifacts=(both.artifact("onnx", "fp32"), int8))
    bundle = sign_again(Bundle(both.path, manifest))
    vitdeploy.push(bundle, ID, token=TOKEN)
    card = content(hub)["README.md"].decode()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "vitdeploy",
        "tags": ["vitdeploy", "vit", "onnx", "fp32", "int8"],
        "pipeline_tag": "image-classification",
        "base_model": "google/vit",
        "base_model_relation": "quantized",
    }
    assert "[google/vit](https://huggingface.co/google/vit) at commit `" + "f" * 40 in body
    assert all(f"| {artifact.name} | `{artifact.files[0].path}` |" in body for artifact in manifest.artifacts)
    assert f'vitdeploy.load("{ID}", backend="onnxruntime", precision="fp32")' in body
    assert card == model_card(bundle, ID)


def test_a_card_of_local_weights_names_no_base(both: Bundle, tmp_path: Path) -> None:
    source = dataclasses.replace(both.manifest.source, id="a`b|c\n---", revision=None)
    card = model_card(Bundle(both.path, dataclasses.replace(both.manifest, source=source)), ID)
    assert "base_model" not in yaml.safe_load(card.split("---\n", 2)[1])
    assert "`a b c ---`" in card
    packed = vitdeploy.pack(both, "torch", output=tmp_path / "packed")
    assert 'backend="torch", precision="fp32"' in model_card(packed, ID)


def test_a_readme_that_is_there_is_kept(hub: Hub, both: Bundle) -> None:
    hub.add_commit(ID, {"README.md": b"mine"})
    assert vitdeploy.push(both, ID, token=TOKEN).card == "kept"
    assert content(hub)["README.md"] == b"mine"
    assert vitdeploy.push(both, ID, token=TOKEN, replace_card=True).card == "written"
    assert content(hub)["README.md"] == model_card(both, ID).encode()
    (both.path / "README.md").write_text("by hand")
    assert vitdeploy.push(both, ID, token=TOKEN).card == "kept"
    assert vitdeploy.push(both, ID, token=TOKEN, replace_card=True).card == "own"
    assert content(hub)["README.md"] == b"by hand"


@pytest.mark.parametrize("card", [b"", b"\xff", None])
def test_a_readme_of_the_bundle_that_is_empty_or_no_text(hub: Hub, both: Bundle, card: bytes | None) -> None:
    own = both.path / "README.md"
    own.mkdir() if card is None else own.write_bytes(card)
    if card == b"":
        assert (vitdeploy.push(both, ID, token=TOKEN).card, content(hub)["README.md"]) == ("own", b"")
        return
    with raises(InputError, where=own):
        vitdeploy.push(both, ID, token=TOKEN)
    assert hub.commit(ID, "main") is None


def test_a_later_push_removes_what_the_bundle_no_longer_has(hub: Hub, both: Bundle, tmp_path: Path) -> None:
    vitdeploy.push(both, ID, token=TOKEN)
    hub.add_commit(ID, {**content(hub), "notes.txt": b"kept"})
    packed = vitdeploy.pack(both, "onnx-fp16", output=tmp_path / "packed")
    vitdeploy.push(packed, ID, token=TOKEN)
    assert content(hub).keys() == {*local_files(packed), ".gitattributes", "README.md", "notes.txt"}
    assert vitdeploy.push(packed, ID, token=TOKEN).commit == hub.commit(ID, "main")


def test_a_branch_is_made(hub: Hub, both: Bundle) -> None:
    before = vitdeploy.push(both, ID, token=TOKEN).commit
    with (both.path / "config.json").open("ab") as file:
        file.write(b"\n")
    changed = sign_again(both)
    pushed = vitdeploy.push(changed, ID, token=TOKEN, revision="v2")
    assert (hub.commit(ID, "main"), hub.commit(ID, "v2")) == (before, pushed.commit)
    assert content(hub, "v2")["config.json"] == (both.path / "config.json").read_bytes()


def test_visibility(hub: Hub, both: Bundle) -> None:
    assert vitdeploy.push(both, "private", token=TOKEN, private=True).name == "me/private"
    assert hub.private == {"me/private": TOKEN}
    vitdeploy.push(both, ID, token=TOKEN)
    assert ID not in hub.private
    before = hub.commit(ID, "main")
    with raises(UsageError, what="private", expected=True, found=False):
        vitdeploy.push(both, ID, token=TOKEN, private=True)
    assert hub.commit(ID, "main") == before


def test_files_of_another_model_are_not_overwritten(hub: Hub, both: Bundle) -> None:
    before = hub.add_commit(ID, {"config.json": b"{}", "pytorch_model.bin": b"weights"})
    with raises(UsageError, what="name", where=ID, found=("config.json",)):
        vitdeploy.push(both, ID, token=TOKEN)
    hub.add_commit("me/web", {"manifest.json": b'{"name": "app"}'})
    with raises(UsageError, what="name", where="me/web", found=(MANIFEST,)):
        vitdeploy.push(both, "me/web", token=TOKEN)
    assert hub.commit(ID, "main") == before
    own = dataclasses.replace(both.manifest, source=dataclasses.replace(both.manifest.source, id=ID))
    vitdeploy.push(sign_again(Bundle(both.path, own)), ID, token=TOKEN)  # where its checkpoint came from
    assert "pytorch_model.bin" in content(hub)


# Refusals.


def test_an_altered_bundle_is_not_pushed(hub: Hub, both: Bundle) -> None:
    with (both.path / "onnx/model.onnx").open("ab") as file:
        file.write(b"x")
    with raises(BundleError, where=both.path / "onnx/model.onnx"):
        vitdeploy.push(both, ID, token=TOKEN)
    assert hub.commit(ID, "main") is None


def test_without_a_token(hub: Hub, both: Bundle) -> None:
    with raises(HubError, what="token", hint=re.compile("hf auth login")):
        vitdeploy.push(both, ID)


def test_a_token_of_somebody_else(hub: Hub, both: Bundle) -> None:
    with raises(HubError, what="token", where=hub.url) as caught:
        vitdeploy.push(both, ID, token="hf_unknown")
    assert "hf_unknown" not in str(caught.value)


def test_a_namespace_of_somebody_else(hub: Hub, both: Bundle) -> None:
    """Whether the name is taken there or not."""
    with raises(HubError, what="google/vit", where=hub.url, hint=re.compile("another name")):
        vitdeploy.push(both, "google/vit", token=TOKEN)
    before = hub.add_commit("google/vit", {})
    with raises(HubError, what="google/vit", where=hub.url, hint=re.compile("another name")):
        vitdeploy.push(both, "google/vit", token=TOKEN)
    assert hub.commit("google/vit", "main") == before


@pytest.mark.parametrize("name", ["", "a/b/c", "-x", "me/vit..x", "me/ vit"])
def test_a_name_that_is_none(hub: Hub, both: Bundle, name: str) -> None:
    with raises(UsageError, what="name", found=name):
        vitdeploy.push(both, name, token=TOKEN)


def test_a_card_that_the_hub_refuses(hub: Hub, both: Bundle) -> None:
    (both.path / "README.md").write_text("---\ncolour: blue\n---\n")
    with raises(HubError, what=ID, where=hub.url) as caught:
        vitdeploy.push(both, ID, token=TOKEN)
    assert "README.md" in str(caught.value)
    assert content(hub).keys() == {".gitattributes"}


@pytest.mark.parametrize("route", ["create", "branch", "card", "preupload", "batch", "commit"])
def test_a_hub_that_fails_leaves_the_repository_as_it_was(
    hub: Hub, both: Bundle, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_retries(monkeypatch)
    before = hub.add_commit(ID, {"notes.txt": b"x"})
    for status, hint in ((HTTPStatus.SERVICE_UNAVAILABLE, "try again"), (HTTPStatus.FORBIDDEN, "another name")):
        hub.failures[route] = status
        if (route, status) == ("create", HTTPStatus.FORBIDDEN):
            continue  # who may not create repositories may write to one
        with raises(HubError, what=ID, where=hub.url, found=re.compile(str(int(status))), hint=re.compile(hint)):
            vitdeploy.push(both, ID, token=TOKEN, revision="v2")
    assert hub.commit(ID, "main") == before
    assert hub.commit(ID, "v2") in (None, before)


def test_somebody_else_commits_meanwhile(hub: Hub, both: Bundle) -> None:
    hub.moves = True
    with raises(HubError, what=ID, found=re.compile("412"), hint="try again"):
        vitdeploy.push(both, ID, token=TOKEN)
    assert content(hub) == {"moved": b""}


def test_a_file_that_the_repository_ignores(hub: Hub, both: Bundle) -> None:
    hub.ignored.add("onnx/model.onnx")
    with raises(HubError, what="onnx/model.onnx", hint=re.compile("gitignore")):
        vitdeploy.push(both, ID, token=TOKEN)


def test_no_network(both: Bundle, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub("http://127.0.0.1:9", tmp_path / "home", monkeypatch)
    no_retries(monkeypatch)
    with raises(HubError, what=ID, where="http://127.0.0.1:9"):
        vitdeploy.push(both, ID, token=TOKEN)


def test_offline(both: Bundle, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with raises(HubError, what="HF_HUB_OFFLINE"):
        vitdeploy.push(both, ID, token=TOKEN)


def test_without_huggingface_hub(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with raises(MissingDependencyError, extra="hub"):
        vitdeploy.push(both, ID)


def test_on_the_command_line(hub: Hub, both: Bundle, tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "image.png")
    ran = run("push", both.path, ID, "--token", TOKEN, "--private", "--json")
    assert ran.code == 0
    assert ran.json["bundle"] == str(both.path)
    assert ran.json["commit"] == hub.commit(ID, "main")
    assert run("predict", ID, tmp_path / "image.png", "--token", TOKEN).code == 0
    codes: dict[int, list[Any]] = {
        3: ["push", both.path, "google/vit", "--token", TOKEN],
        4: ["push", tmp_path / "absent", ID, "--token", TOKEN],
        2: ["push", both.path, ID, "--token", TOKEN, "--public"],
    }
    assert {code: run(*command).code for code, command in codes.items()} == {code: code for code in codes}
