"""The Hub's neighbours: settings that are malformed, and servers that are slow, broken, hostile or not the Hub."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from raising import raises
from raw_server import COMMIT, Exchange, listing, raw_server

from vitdeploy.errors import CheckpointError, HubError, OutputError, UsageError, VitDeployError
from vitdeploy.sources import hub_calls
from vitdeploy.sources.hub import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    Fetch = Callable[..., Any]
    Answer = Callable[[Exchange], Any]

FILES = {"config.json": b"{}", "preprocessor_config.json": b'{"size": 4}', "model.safetensors": b"weights"}


def etag(content: bytes) -> str:
    """Git's id of a file, as the Hub names it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def hub_with(answer: Answer) -> Answer:
    """The description of a model, and for its files what the test answers."""

    def answer_all(exchange: Exchange) -> None:
        if exchange.path.startswith("/api/"):
            exchange.reply(body=listing(*FILES))
        else:
            answer(exchange)

    return answer_all


def good_file(exchange: Exchange, **headers: str) -> None:
    content = FILES[exchange.path.rpartition("/")[2]]
    exchange.reply(headers={"X-Repo-Commit": COMMIT, "ETag": f'"{etag(content)}"', **headers}, body=content)


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def believed(cache: Path) -> set[str]:
    """The files of a cache that a later run would open: "*.incomplete" ones have a number, and are nobody's."""
    names = {name for name in everything_below(cache) if "/snapshots/" in name or "/blobs/" in name}
    return {name for name in names if not name.endswith(".incomplete")}


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """`resolve` bound to an empty cache, whatever this machine's settings are."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    return partial(resolve, "org/vit", cache_dir=tmp_path / "cache" / "hub")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the pauses that huggingface_hub makes between its retries."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def refused(error: type[VitDeployError], call: Callable[[], Any]) -> str:
    """The message of the error that a call must raise: one printable line."""
    with raises(error) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable()
    return text


# Settings.

ADDRESSES = [
    "", "  ", "hub.example", "http://", "http:///x", "http://a b", "ftp://hub.example", "file:///etc", "http://[::1",
    "http://127.0.0.1:99999", "http://127.0.0.1:0", "http://127.0.0.1:port", "http://hub.example/\n", "\x01",
    "http://hub.example?x=1", "http://hub.example#x",
]  # fmt: skip
PROXIES = ["http://", "http://[::1", "http://a b:1", "http://127.0.0.1:port", "http://127.0.0.1:99999", "ftp://a:1"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_malformed_endpoint(fetch: Fetch, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert "endpoint" in refused(UsageError, lambda: fetch(endpoint=address))
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert "HF_ENDPOINT" in refused(UsageError, fetch)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("address", PROXIES)
def test_malformed_proxy(fetch: Fetch, monkeypatch: pytest.MonkeyPatch, variable: str, address: str) -> None:
    monkeypatch.setenv(variable, address)
    assert variable in refused(UsageError, lambda: fetch(endpoint="http://127.0.0.1:9"))
    refused(HubError, lambda: fetch(endpoint="http://127.0.0.1:9", offline=True))  # where no proxy is used


@pytest.mark.parametrize("variable", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
@pytest.mark.parametrize("seconds", ["", "abc", "-1", "0.5", "1e9", "99999999999999999999"])
def test_malformed_time_limit(fetch: Fetch, monkeypatch: pytest.MonkeyPatch, variable: str, seconds: str) -> None:
    monkeypatch.setenv(variable, seconds)
    assert variable in refused(UsageError, fetch)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_absent_certificates(fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    assert variable in refused(UsageError, lambda: fetch(endpoint="http://127.0.0.1:9"))


def test_passwords_are_not_shown(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, error in {"ftp://me:secret@hub.example": UsageError, "http://me:secret@127.0.0.1:9": HubError}.items():
        text = refused(error, partial(fetch, endpoint=address))
        assert "secret" not in text
    monkeypatch.setenv("HTTP_PROXY", "ftp://me:secret@proxy.example")
    assert "secret" not in refused(UsageError, lambda: fetch(endpoint="http://127.0.0.1:9"))


def in_process(env: dict[str, str], file_bytes: int = 0) -> tuple[int, list[str]]:
    """Resolve a model on the Hub by the environment alone: the command line's exit code, and the lines on stderr.

    `file_bytes` limits the files that the process can write, as a full disk does.
    """
    program = """
import sys
if limit := int(sys.argv[1]):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from vitdeploy.errors import VitDeployError
from vitdeploy.sources.hub import resolve
try:
    resolve("org/vit")
except VitDeployError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_", "XDG_"))}
    command, env = [sys.executable, "-c", program, str(file_bytes)], {**clean, "NO_PROXY": "127.0.0.1", **env}
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    return process.returncode, process.stderr.splitlines()


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:port"}, 2),  # huggingface_hub fails when it is imported
        ({"HF_HUB_ETAG_TIMEOUT": "abc"}, 2),
        ({"HF_TOKEN": "hf_s\u00e9cret"}, 2),
        ({"HTTP_PROXY": "http://127.0.0.1:port"}, 2),
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, 3),
    ],
)
def test_the_environment_says_one_line(tmp_path: Path, env: dict[str, str], code: int) -> None:
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": ""}
    returned, lines = in_process(settings | env)
    assert (returned, len(lines)) == (code, 1), lines
    assert "cret" not in lines[0]


# The user's folders.


@pytest.mark.parametrize("variable", ["HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_a_file_in_place_of_the_cache(tmp_path: Path, variable: str) -> None:
    (tmp_path / "file").touch()
    with raw_server(hub_with(good_file)) as server:
        returned, lines = in_process({"HF_ENDPOINT": server.url, variable: str(tmp_path / "file")})
    assert (returned, len(lines)) == (3, 1), lines
    assert str(tmp_path / "file") in lines[0]


@pytest.mark.skipif(os.name == "nt", reason="the limit of a process's files is Unix'")
def test_no_room_for_a_file(tmp_path: Path) -> None:
    large = {**FILES, "model.safetensors": bytes(100_000)}

    def answer(exchange: Exchange) -> None:
        content = large[exchange.path.rpartition("/")[2]]
        exchange.reply(headers={"X-Repo-Commit": COMMIT, "ETag": f'"{etag(content)}"'}, body=content)

    with raw_server(hub_with(answer)) as server:
        env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)}
        returned, lines = in_process(env, file_bytes=50_000)
        assert (returned, len(lines)) == (3, 1), lines
        assert not [name for name in everything_below(tmp_path) if "incomplete" in name or "model" in Path(name).name]
        assert in_process(env) == (0, [])


def test_a_home_that_is_unknown(fetch: Fetch) -> None:
    with raw_server(hub_with(good_file)) as server:
        refused(OutputError, lambda: fetch(endpoint=server.url, cache_dir="~no-such-user/cache"))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root may write everywhere; Unix permissions")
def test_a_cache_without_permission(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o555)
    with raw_server(hub_with(good_file)) as server:
        refused(OutputError, lambda: fetch(endpoint=server.url))


# An endpoint that is not the Hub. Every answer leaves nothing in the cache.

PAGE = b"<html>Welcome to the hotel. Log in.</html>"


def redirect_to_a_login(exchange: Exchange) -> None:
    if exchange.path == "/login":
        exchange.reply(headers={"Content-Type": "text/html"}, body=PAGE)
    else:
        exchange.reply("302 Found", {"Location": f"{exchange.url}/login"})


STRANGE_JSON = [
    b"[]", b"null", b"1", b'"x"', b"{}", b'{"id": 1}', b'{"id": "org/vit"}', b'{"id": "org/vit", "siblings": null}',
    b'{"id": "org/vit", "siblings": 1}', b'{"id": "org/vit", "siblings": [1]}', b'{"id": "org/vit", "siblings": [{}]}',
    b'{"id": "org/vit", "siblings": [{"rfilename": 1}]}', b'{"id": "a", "lastModified": "x", "siblings": []}',
    b"\xff\xfe", b"[" * 200_000, b"", b'{"id": "org/vit", "sha": 1, "siblings": []}',
]  # fmt: skip
NOT_THE_HUB: dict[str, Answer] = {
    "a page": lambda exchange: exchange.reply(headers={"Content-Type": "text/html"}, body=PAGE),
    "a login page elsewhere": redirect_to_a_login,
    "a circle": lambda exchange: exchange.reply("302 Found", {"Location": exchange.url + exchange.path}),
    "a redirect to a file": lambda exchange: exchange.reply("302 Found", {"Location": "file:///etc/passwd"}),
    "a redirect to nothing": lambda exchange: exchange.reply("302 Found", {"Location": "http://[::1"}),
    "no content": lambda exchange: exchange.reply("204 No Content"),
    "an error": lambda exchange: exchange.reply("500 Internal Server Error", body=PAGE),
    "a busy gateway": lambda exchange: exchange.reply("503 Service Unavailable", {"Retry-After": "86400"}),
    "half an answer": lambda exchange: exchange.reply(body=b'{"id"', length=1000),
    "an odd length": lambda exchange: exchange.reply(body=b"{}", length="abc"),
    "another protocol": lambda exchange: exchange.write(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "nothing": lambda exchange: None,
    **{
        f"JSON {number}": lambda exchange, content=content: exchange.reply(body=content)  # type: ignore[misc]
        for number, content in enumerate(STRANGE_JSON)
    },
}


@pytest.mark.parametrize("name", NOT_THE_HUB)
def test_an_endpoint_that_is_not_the_hub(fetch: Fetch, tmp_path: Path, name: str) -> None:
    with raw_server(NOT_THE_HUB[name]) as server:
        start = time.monotonic()
        text = refused(HubError, lambda: fetch(endpoint=server.url))
    assert server.url in text
    assert time.monotonic() - start < 50  # the limit is a minute
    assert not everything_below(tmp_path)


def test_an_endpoint_that_is_not_the_hub_leaves_the_cached_copy(fetch: Fetch) -> None:
    with raw_server(hub_with(good_file)) as server:
        cached = fetch(endpoint=server.url)
    with raw_server(lambda exchange: exchange.reply(body=b"[]")) as server:
        assert fetch(endpoint=server.url) == cached


def reply(**options: Any) -> Answer:
    """An answer for a file; its commit is one, and its ETag well-formed, unless the headers say otherwise."""
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{"b" * 40}"', **options.pop("headers", {})}
    return hub_with(lambda exchange: exchange.reply(headers=headers, **options))


BAD_FILES: dict[str, tuple[Answer, type[VitDeployError]]] = {
    "no ETag": (reply(headers={"ETag": None}), HubError),
    "no commit": (reply(headers={"X-Repo-Commit": None}, body=PAGE), HubError),
    "an error": (reply(status="500 Internal Server Error"), HubError),
    "a redirect to a file": (reply(status="302 Found", headers={"Location": "file:///etc/passwd"}), HubError),
    "an odd range": (reply(headers={"Content-Range": "bytes x"}, body=b"{}"), HubError),
    "no compressed data": (reply(headers={"Content-Encoding": "gzip"}, body=b"{}"), HubError),
    "half a file": (reply(body=b"{}", length=100), HubError),
    "a larger file": (reply(headers={"X-Linked-Size": "99"}, body=b"{}"), HubError),
    "too large a file": (reply(headers={"X-Linked-Size": "9" * 14}, body=b"{}"), HubError),
    "no content": (reply(status="204 No Content"), CheckpointError),
    "a page of no stated length": (
        reply(headers={"Content-Length": None, "Transfer-Encoding": "chunked"}, body=b"3\r\nabc\r\n0\r\n\r\n"),
        CheckpointError,
    ),
}  # fmt: skip


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_not_the_hubs(
    fetch: Fetch, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    answer, error = BAD_FILES[name]
    with raw_server(answer) as server:
        refused(error, lambda: fetch(endpoint=server.url))
    assert not believed(tmp_path)
    assert not [record for record in caplog.records if record.levelno < logging.CRITICAL]
    assert "Retrying" not in capfd.readouterr().err


# Names that a server chooses.

UPWARDS = ("../../../outside", "..\\..\\outside", "a/../../b", "..", ".")
ESCAPES = [*UPWARDS, "/outside", "c:outside", "x" * 300, "\xe9", ""]


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("name", ESCAPES)
def test_no_answer_names_a_file_outside_the_cache(fetch: Fetch, tmp_path: Path, header: str, name: str) -> None:
    outside = f"{tmp_path}/outside" if name == "/outside" else name
    value = outside if header == "X-Repo-Commit" else f'"{outside}"'
    if header == "X-Linked-ETag" and not name:
        pytest.skip("an empty one counts as absent")
    with raw_server(reply(headers={header: value}, body=b"{}")) as server:
        refused(HubError, lambda: fetch(endpoint=server.url))
    assert not everything_below(tmp_path)


@pytest.mark.parametrize("name", ["../../../outside", "..", "x"])
def test_a_missing_file_names_no_folder_outside_the_cache(fetch: Fetch, tmp_path: Path, name: str) -> None:
    headers = {"X-Repo-Commit": name, "X-Error-Code": "EntryNotFound"}
    with raw_server(reply(status="404 Not Found", headers=headers)) as server:
        refused(HubError, lambda: fetch(endpoint=server.url))
    assert not everything_below(tmp_path)


def test_names_in_a_listing_are_no_paths_and_no_text(fetch: Fetch, tmp_path: Path) -> None:
    names = ("../../x", "/etc/passwd", "a\x1b[31m\nb", "config.json/../../x")
    with raw_server(lambda exchange: exchange.reply(body=listing(*names))) as server:
        refused(CheckpointError, lambda: fetch(endpoint=server.url))
    assert not everything_below(tmp_path)


@pytest.mark.parametrize("revision", ["..", "../../x", "refs/../../x", "a//b", "", "\\..\\x"])
def test_a_revision_names_no_file_outside_the_cache(fetch: Fetch, tmp_path: Path, revision: str) -> None:
    with raw_server(hub_with(good_file)) as server:
        refused(UsageError, lambda: fetch(endpoint=server.url, revision=revision))
    assert not everything_below(tmp_path)


def test_checksums_of_the_hub_and_of_mirrors(fetch: Fetch) -> None:
    def mirror(exchange: Exchange) -> None:
        content = FILES[exchange.path.rpartition("/")[2]]
        tags = {
            "config.json": hashlib.sha1(content).hexdigest(),
            "preprocessor_config.json": "1a2b-3c:etag-of-a-server",
            "model.safetensors": hashlib.sha256(content).hexdigest(),
        }
        good_file(exchange, ETag=f'"{tags[exchange.path.rpartition("/")[2]].replace(":", "-")}"')

    with raw_server(hub_with(mirror)) as server:
        files = fetch(endpoint=server.url)
    assert {name: (files.folder / name).read_bytes() for name in FILES} == FILES


# Slow servers.


def silent(exchange: Exchange) -> None:
    time.sleep(5)


def head_then(method: str, rest: Answer) -> Answer:
    """The headers of a file of 1 MB, and then for one method what follows them."""

    def answer(exchange: Exchange) -> None:
        exchange.reply(headers={"X-Repo-Commit": COMMIT, "ETag": f'"{"b" * 40}"'}, length=1_000_000)
        if exchange.method == method:
            rest(exchange)

    return hub_with(answer)


def dripping(exchange: Exchange, start: bytes) -> None:
    exchange.write(b"HTTP/1.1 200 OK\r\n" + start)
    exchange.drip()


def come_back_tomorrow(exchange: Exchange) -> None:
    if exchange.method == "HEAD":
        exchange.reply(headers={"X-Repo-Commit": COMMIT, "ETag": f'"{"b" * 40}"'}, length=100)
    else:
        exchange.reply("429 Too Many Requests", {"Retry-After": "86400"})


SLOW: dict[str, Answer] = {
    "accepts and never answers": silent,
    "a listing by the byte": partial(dripping, start=b"\r\n"),
    "no answer for a file": hub_with(silent),
    "headers by the byte": hub_with(partial(dripping, start=b"X-Slow: ")),
    "a file that stops": head_then("GET", silent),
    "a file by the byte": head_then("GET", Exchange.drip),
    "a file tomorrow": hub_with(come_back_tomorrow),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_every_wait_ends(fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By limits of a second in place of a minute and of ten; main waits for ever for four of these."""
    monkeypatch.setattr(hub_calls, "time_limits", lambda: hub_calls.TimeLimits(1, 1))
    monkeypatch.setattr("vitdeploy.sources.hub.time_limits", lambda: hub_calls.TimeLimits(1, 1))
    with raw_server(SLOW[name]) as server:
        start = time.monotonic()
        refused(HubError, lambda: fetch(endpoint=server.url))
        assert time.monotonic() - start < 40
    assert not believed(tmp_path)


def test_limits_follow_those_of_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_calls.time_limits() == (60, 600)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 20)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 20)
    assert hub_calls.time_limits() == (120, 1200)


def test_a_file_that_grows_is_waited_for(tmp_path: Path) -> None:
    partial_file = tmp_path / "x.incomplete"

    def write() -> str:
        for _ in range(10):
            with partial_file.open("ab") as file:
                file.write(b"x")
            time.sleep(0.25)
        return "done"

    assert hub_calls.within(hub_calls.TimeLimits(10, 2), write, tmp_path) == "done"


def test_a_call_that_is_given_up_cleans_up(tmp_path: Path) -> None:
    def write() -> None:
        path = tmp_path / "x.incomplete"
        path.touch()
        try:
            while True:
                time.sleep(0.01)
        finally:
            path.unlink()

    with pytest.raises(TimeoutError):
        hub_calls.within(hub_calls.TimeLimits(0.5, 0.5), write, tmp_path)
    assert not everything_below(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends a process there")
def test_an_interrupt_reaches_the_call(tmp_path: Path) -> None:
    ended = threading.Event()

    def write() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            hub_calls.within(hub_calls.TimeLimits(60, 60), write, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.wait(30)
