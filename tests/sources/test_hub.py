"""Resolving a checkpoint: local folders, and the Hub served on loopback."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hub_server import Hub, hub_server
from huggingface_hub import HfApi
from raising import raises

from vitdeploy.errors import CheckpointError, HubError, MissingDependencyError, OutputError, UsageError
from vitdeploy.sources.hub import CheckpointFiles, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from huggingface_hub import ModelInfo

    Fetch = Callable[..., CheckpointFiles]

ID = "org/vit"
CONFIGS = {"config.json": b"{}", "preprocessor_config.json": b'{"size": 4}'}
WEIGHTS = bytes(range(256)) * 8
NEEDED = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
LOGIN, OFFLINE = re.compile("pass a token .* hf auth login"), re.compile("go online once")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def index(*names: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{number}": name for number, name in enumerate(names)}}).encode()


LAYOUTS: dict[str, tuple[dict[str, bytes], dict[str, bytes]]] = {  # what is needed, and what is not
    "safetensors": ({"model.safetensors": b"s"}, {}),
    "safetensors in shards": (
        {"model.safetensors.index.json": index(SHARDS[1], SHARDS[0], SHARDS[1]), SHARDS[0]: b"0", SHARDS[1]: b"1"},
        {"model-00003-of-00003.safetensors": b"2"},
    ),
    "bin": ({"pytorch_model.bin": b"b"}, {"training_args.bin": b"t"}),
    "bin in shards": ({"pytorch_model.bin.index.json": index("a.bin"), "a.bin": b"a"}, {}),
    "safetensors rather than all others": (
        {"model.safetensors": b"s"},
        {"model.safetensors.index.json": b"{", "pytorch_model.bin": b"b", "pytorch_model.bin.index.json": b"{"},
    ),
    "shards of safetensors rather than bin": (
        {"model.safetensors.index.json": index("a.safetensors"), "a.safetensors": b"a"},
        {"pytorch_model.bin": b"b"},
    ),
    "two processors": ({"model.safetensors": b"s", "processor_config.json": b'{"size": 8}'}, {"tokenizer.json": b"{}"}),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A repository as they are on the Hub: all formats at once."""
    others = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "README.md")
    return write(tmp_path / "repo", {**CONFIGS, "model.safetensors": WEIGHTS, **dict.fromkeys(others, b"x")})


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    with hub_server({ID: checkpoint}) as server:
        yield server


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """`resolve` bound to the server and to an empty cache, whatever this machine's settings are."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    return partial(resolve, cache_dir=tmp_path / "cache", endpoint=hub.url)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the pauses that huggingface_hub makes between its retries."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


# From the Hub.


def test_downloads_only_the_files_needed(hub: Hub, fetch: Fetch) -> None:
    files = fetch(ID)
    assert hub.downloads == NEEDED
    assert {request.name for request in hub.requests} == {"", *NEEDED}
    assert files.model_id == ID
    assert files.revision == hub.commit(ID, "main")
    assert files.weights == (files.folder / "model.safetensors",)
    assert files.weights[0].read_bytes() == WEIGHTS
    assert (files.folder / "preprocessor_config.json").read_bytes() == CONFIGS["preprocessor_config.json"]


def test_another_family_is_refused_before_its_weights_are_downloaded(hub: Hub, fetch: Fetch) -> None:
    hub.add_commit("org/swin", {"config.json": b'{"model_type": "swin"}', "model.safetensors": WEIGHTS})
    with raises(CheckpointError, what="model_type", found="swin"):
        fetch("org/swin")
    assert hub.downloads == ["config.json"]


def test_second_call_uses_the_cache(hub: Hub, fetch: Fetch) -> None:
    first = fetch(ID)
    hub.requests.clear()
    assert fetch(ID) == first
    assert [(request.method, request.name) for request in hub.requests] == [("GET", ""), ("HEAD", "config.json")]


def test_id_without_an_organization(hub: Hub, fetch: Fetch, checkpoint: Path) -> None:
    hub.push("vit", checkpoint)
    assert fetch("vit").model_id == "vit"


def test_revision_is_a_branch_or_a_commit(hub: Hub, fetch: Fetch, checkpoint: Path, tmp_path: Path) -> None:
    main = hub.commit(ID, "main")
    other = hub.push(ID, write(tmp_path / "other", {**CONFIGS, "pytorch_model.bin": b"b"}), branch="other")
    assert fetch(ID, revision="other").revision == other
    assert fetch(ID, revision=other).weights[0].name == "pytorch_model.bin"
    assert fetch(ID, revision=main).weights[0].read_bytes() == WEIGHTS
    assert fetch(ID).revision == main


def test_moved_branch_is_followed(hub: Hub, fetch: Fetch, checkpoint: Path) -> None:
    fetch(ID)
    write(checkpoint, {"model.safetensors": b"retrained"})
    moved = hub.push(ID, checkpoint)
    files = fetch(ID)
    assert files.revision == moved
    assert files.weights[0].read_bytes() == b"retrained"


def test_branch_moves_meanwhile(hub: Hub, fetch: Fetch, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe_then_move(*args: Any, **kwargs: Any) -> ModelInfo:
        info = describe(*args, **kwargs)
        hub.push(ID, write(checkpoint, {"model.safetensors": b"retrained"}))
        return info

    describe = HfApi.model_info
    monkeypatch.setattr(HfApi, "model_info", describe_then_move)
    files = fetch(ID)
    assert files.revision == hub.commit(ID, "main")
    assert (files.folder / "config.json").is_file()
    assert files.weights[0].read_bytes() == b"retrained"


def test_missing_revision(hub: Hub, fetch: Fetch) -> None:
    with raises(CheckpointError, what="revision", where=hub.url, found="v9"):
        fetch(ID, revision="v9")


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_missing_model(hub: Hub, fetch: Fetch, token: str | None) -> None:
    with raises(CheckpointError, what="org/absent", where=hub.url, hint=LOGIN):
        fetch("org/absent", token=token)


def test_private_model_needs_its_token(hub: Hub, fetch: Fetch) -> None:
    hub.private[ID] = "hf_secret"
    with raises(CheckpointError, what=ID, hint=LOGIN):
        fetch(ID)
    hub.requests.clear()
    fetch(ID, token="hf_secret")
    sent = {request.path.startswith("/cdn/"): request.authorization for request in hub.requests}
    assert sent == {False: "Bearer hf_secret", True: None}


def test_gated_model_needs_access(hub: Hub, fetch: Fetch) -> None:
    hub.gated.add(ID)
    hub.granted.add("hf_granted")
    for token in (None, "hf_other"):
        with raises(HubError, what=ID, where=hub.url, hint=re.compile(f"access at {hub.url}/{ID}, .*hf auth login")):
            fetch(ID, token=token)
    assert fetch(ID, token="hf_granted").revision == hub.commit(ID, "main")


def test_refused_token(fetch: Fetch) -> None:
    fetch(ID)
    with raises(HubError, what=ID, found=re.compile("HfHubHTTPError: .*401"), hint=LOGIN):
        fetch(ID, token="invalid")


@pytest.mark.parametrize("token", ["", "hf_secret\n", "hf_s\u00e9cret"])
def test_malformed_token_is_not_repeated(hub: Hub, fetch: Fetch, token: str) -> None:
    with raises(UsageError, what="token") as error:
        fetch(ID, token=token)
    assert "hf_" not in str(error.value)
    assert not hub.requests


@pytest.mark.parametrize("name", ["org/vi t", "org/-vit", "vit.git", "org/a--b", "mod\u00e8le", "a\0b", "a\ud800b"])
def test_invalid_id(hub: Hub, fetch: Fetch, name: str) -> None:
    with raises(UsageError, what="model", found=name):
        fetch(name)
    assert not hub.requests


# A Hub that cannot be reached, or that fails.


def test_unreachable_hub(checkpoint: Path, fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    cached = fetch(ID)
    with hub_server({ID: checkpoint}) as server:
        pass
    assert fetch(ID, endpoint=server.url) == cached
    assert len(caplog.messages) == 1
    assert f"using 'org/vit' from the cache, commit {cached.revision}" in caplog.text

    caplog.clear()
    start = time.monotonic()
    with raises(HubError, what="org/other", where=server.url, hint=re.compile("HF_ENDPOINT, or .* local folder")):
        fetch("org/other", endpoint=server.url)
    assert time.monotonic() - start < 5
    assert not caplog.messages


def test_silent_hub(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with raises(HubError, where=endpoint, found=re.compile("[Tt]ime")):
            fetch(ID, endpoint=endpoint)


# The last with a page that is not the Hub's, as a hotel's network gives.
STATUSES = [HTTPStatus(code) for code in (500, 503, 429, 200)]


@pytest.mark.parametrize("status", STATUSES)
def test_failing_hub(hub: Hub, fetch: Fetch, status: HTTPStatus) -> None:
    hub.failures["info"] = status
    with raises(HubError, where=hub.url, hint=re.compile("HF_ENDPOINT")):
        fetch(ID)
    assert len(hub.requests) == 1
    hub.failures.clear()
    cached = fetch(ID)
    hub.failures["info"] = status
    assert fetch(ID) == cached


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("route", ["file", "blob"])
def test_hub_fails_during_the_download(hub: Hub, fetch: Fetch, route: str) -> None:
    hub.failures[route] = HTTPStatus.SERVICE_UNAVAILABLE
    with raises(HubError, what=ID, where=hub.url, found=re.compile("503"), hint=re.compile("try again")):
        fetch(ID)


@pytest.mark.usefixtures("no_waiting")
def test_broken_connection_is_resumed(hub: Hub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.cuts = [1000, 300]
    assert fetch(ID).weights[0].read_bytes() == WEIGHTS
    assert [request.range for request in hub.requests if request.range] == ["bytes=1000-", "bytes=1300-"]


@pytest.mark.usefixtures("no_waiting")
def test_broken_connection_that_stays_broken(hub: Hub, fetch: Fetch) -> None:
    hub.cuts = [0] * 100
    with raises(HubError, what=ID, where=hub.url):
        fetch(ID)
    with raises(HubError, what=ID, hint=OFFLINE):
        fetch(ID, offline=True)
    hub.cuts.clear()
    assert fetch(ID).weights[0].read_bytes() == WEIGHTS


def test_file_smaller_than_announced(hub: Hub, fetch: Fetch) -> None:
    hub.missing_bytes = 1
    with raises(HubError, what=ID, found=re.compile("should be of size 2048")):
        fetch(ID)


def test_offline_uses_the_cache_alone(hub: Hub, fetch: Fetch) -> None:
    with raises(HubError, what=ID, hint=OFFLINE):
        fetch(ID, offline=True)
    with pytest.raises(UsageError):
        fetch("org/vi t", offline=True)
    assert not hub.requests
    cached = fetch(ID)
    hub.requests.clear()
    assert fetch(ID, offline=True) == cached
    assert fetch(ID, offline=True, revision=cached.revision) == cached
    assert not hub.requests


def test_full_disk(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_chunk(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", write_chunk)
    with raises(OutputError, what=ID, found=os.strerror(errno.ENOSPC)):
        fetch(ID)


def test_cache_that_cannot_be_made(fetch: Fetch, checkpoint: Path) -> None:
    with raises(OutputError, what=ID, found=os.strerror(errno.ENOTDIR)):
        fetch(ID, cache_dir=checkpoint / "config.json" / "cache")


def test_failure_of_the_xet_client(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def download_files(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Data processing error: CAS service error")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", download_files)
    with raises(HubError, found=re.compile("CAS service error")):
        fetch(ID)


# The environment, in processes of their own: huggingface_hub reads it when it is imported.


def resolve_in_process(hub: Hub, cache: Path, stderr: int = subprocess.PIPE, **env: str) -> str:
    """Resolve with what the environment says, and return the last line printed: the commit or the error."""
    program = f"""
import sys
from vitdeploy.errors import VitDeployError
from vitdeploy.sources.hub import resolve
assert "huggingface_hub" not in sys.modules
try:
    print(resolve({ID!r}).revision)
except VitDeployError as error:
    print(error)
"""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-W", "error", "-c", program]
    process = subprocess.run(
        command, env=clean | settings | env, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=True
    )
    assert not process.stderr
    return process.stdout.strip()


def test_environment_is_honoured(hub: Hub, tmp_path: Path) -> None:
    hub.private[ID] = "hf_secret"
    assert "offline mode is on" in resolve_in_process(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert not hub.requests
    commit = resolve_in_process(hub, tmp_path, HF_TOKEN="hf_secret")
    assert commit == hub.commit(ID, "main")
    assert hub.downloads == NEEDED
    hub.requests.clear()
    assert resolve_in_process(hub, tmp_path, HF_HUB_OFFLINE="1") == commit
    assert not hub.requests


def test_progress_bars_are_for_terminals(hub: Hub, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs a Unix terminal")
    terminal, stderr = pty.openpty()
    resolve_in_process(hub, tmp_path, stderr=stderr, TQDM_NCOLS="100", TQDM_NROWS="20")
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that nobody holds the other end
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert b"model.safetensors: 100%" in shown


def test_without_huggingface_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with raises(MissingDependencyError, hint=re.compile(r"pip install 'vitdeploy\[hub\]'")):
        resolve(ID)
    assert resolve(checkpoint).folder == checkpoint


# The forms of weights, on the Hub and in a folder.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_preferred_weights(hub: Hub, fetch: Fetch, tmp_path: Path, layout: str) -> None:
    needed, others = LAYOUTS[layout]
    weights = sorted(name for name in needed if not name.endswith(".json"))
    folder = write(tmp_path / "local", CONFIGS | needed | others)
    assert resolve(folder) == CheckpointFiles("local", None, folder, tuple(folder / name for name in weights))

    hub.push("org/other", folder)
    files = fetch("org/other")
    assert files.weights == tuple(files.folder / name for name in weights)
    assert hub.downloads == sorted(CONFIGS | needed)


NO_MAPS = ("[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a.safetensors"]}')
PATHS = ("../a.safetensors", "/a.safetensors", "..\\a.safetensors", "c:a.safetensors", "..")
BAD_INDEXES: dict[str, dict[str, object]] = {
    "{": {"what": None},
    **{content: {"what": "weight_map"} for content in NO_MAPS},
    **{
        json.dumps({"weight_map": {"norm.bias": name}}): {"what": "norm.bias", "found": name}
        for name in (1, *PATHS, "a.bin", "a.safetensors")
    },
}


@pytest.mark.parametrize("content", BAD_INDEXES)
def test_bad_index(hub: Hub, fetch: Fetch, tmp_path: Path, content: str) -> None:
    files = {"model.safetensors.index.json": content.encode(), "a.bin": b"b"}
    folder = write(tmp_path / "local", CONFIGS | files)
    hub.push("org/other", folder)
    for open_it in (partial(resolve, folder), partial(fetch, "org/other")):
        with raises(CheckpointError, where=re.compile(r"/model\.safetensors\.index\.json$"), **BAD_INDEXES[content]):
            open_it()


@pytest.mark.parametrize(("files", "absent"), [({"model.safetensors": b"s"}, "config.json"), (CONFIGS, "weights")])
def test_incomplete_checkpoint(hub: Hub, fetch: Fetch, tmp_path: Path, files: dict[str, bytes], absent: str) -> None:
    folder = write(tmp_path / "local", {**files, "README.md": b"#"})
    hub.push("org/other", folder)
    with raises(CheckpointError, what=absent, where=folder):
        resolve(folder)
    with raises(CheckpointError, what=absent, where="'org/other'"):
        fetch("org/other")


# Folders.


def test_folder_wins_over_a_hub_id(
    hub: Hub, fetch: Fetch, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.rename(write(tmp_path / "org", {"keep": b""}) / "vit")
    files = fetch(ID)
    assert files == CheckpointFiles("vit", None, Path(ID), (Path(ID, "model.safetensors"),))
    assert not hub.requests
    monkeypatch.chdir(ID)
    assert resolve(".").model_id == "vit"


def test_home_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert resolve(f"~/{checkpoint.name}").folder == checkpoint


def test_revision_of_a_folder_is_refused(checkpoint: Path) -> None:
    with raises(UsageError, what="revision", found="main"):
        resolve(checkpoint, revision="main")


@pytest.mark.parametrize(
    "model", ["/no/vit", "./vit", "../vit", "~/no/vit", "a/b/c", "models/", "a\\b", Path("org/vit")]
)
def test_path_that_does_not_exist(hub: Hub, fetch: Fetch, model: str | Path) -> None:
    with raises(CheckpointError, where=model, hint=re.compile("Hub id")):
        fetch(model)
    assert not hub.requests


def test_file_is_not_a_folder(checkpoint: Path) -> None:
    with raises(CheckpointError, where=checkpoint / "model.safetensors") as error:
        resolve(checkpoint / "model.safetensors")
    assert str(error.value).endswith(f": {checkpoint}")


def test_an_npz_file_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B_16.npz"
    path.touch()
    files = resolve(path)
    assert (files.model_id, files.revision, files.weights) == ("ViT-B_16", None, (path,))
    with raises(UsageError, what="revision", found="main"):
        resolve(path, revision="main")


@pytest.mark.parametrize("model", ["ViT-B_16.npz", "./no/ViT-B_16.npz", Path("ViT-B_16.npz")])
def test_an_npz_file_that_does_not_exist(hub: Hub, fetch: Fetch, model: str | Path) -> None:
    with raises(CheckpointError, where=model):
        fetch(model)
    assert not hub.requests


@pytest.mark.parametrize("model", ["~no-such-user/vit", "a" * 300])
def test_path_that_cannot_be_opened(model: str) -> None:
    with raises(CheckpointError, where=model):
        resolve(model)


def test_empty_name() -> None:
    with raises(UsageError, what="model", found=""):
        resolve("")
