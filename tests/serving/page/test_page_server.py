"""The page's server: what it serves, what it refuses, and the headers of every response."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from raising import raises

from vitdeploy.errors import ImageError, OutputError, OverloadedError, UnavailableError, VitDeployError
from vitdeploy.serving.page import page_server
from vitdeploy.serving.page.inference_client import BadAnswerError
from vitdeploy.serving.page.page_server import MOST_BYTES, PageServer

IMAGE = {"Content-Type": "application/octet-stream"}


def echo(image: bytes) -> dict[str, Any]:
    return {"values": [["bytes", len(image)]]}


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with PageServer(echo, name="a <b> model", facts="10 classes") as opened:
        yield opened


def request(
    server: PageServer, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port or 0, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()


def test_the_page_and_its_model(server: PageServer) -> None:
    response, content = request(server)
    assert (response.status, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert content.startswith(b"<!doctype html>")
    response, content = request(server, path="/model?x=1")
    assert json.loads(content) == {"name": "a <b> model", "facts": "10 classes", "most_bytes": MOST_BYTES}
    assert response.headers["Content-Type"] == "application/json"


def test_the_page_loads_nothing_and_writes_no_markup() -> None:
    page = (page_server._PAGE).read_text(encoding="utf-8")
    assert not re.findall(r"https?://|@import|url\(|src=(?!\")", page)
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|setTimeout|style=|\son\w+=", page
    )


def test_a_head_has_no_body(server: PageServer) -> None:
    response, content = request(server, "HEAD")
    assert (response.status, content) == (200, b"")
    assert int(response.headers["Content-Length"]) > 1000


def test_an_image_is_answered_with_its_time(server: PageServer) -> None:
    response, content = request(server, "POST", "/predict", b"12345", **IMAGE)
    found = json.loads(content)
    assert response.status == 200
    assert found.pop("server_ms") >= 0
    assert found == {"values": [["bytes", 5]]}


def test_a_connection_is_kept(server: PageServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port or 0, timeout=10)
    with contextlib.closing(connection):
        sockets = set()
        for size in (3, 4):
            connection.request("POST", "/predict", b"x" * size, IMAGE)
            assert json.loads(connection.getresponse().read())["values"] == [["bytes", size]]
            sockets.add(connection.sock)
        assert len(sockets) == 1
        assert None not in sockets


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/page.html", {}, 404),
        ("POST", "/", IMAGE, 404),
        ("PUT", "/predict", IMAGE, 501),
        ("OPTIONS", "/predict", {}, 501),  # so that another site's page may not ask for a POST
        ("POST", "/predict", {"Content-Type": "text/plain"}, 415),
        ("POST", "/predict", {}, 415),
        ("POST", "/predict", {**IMAGE, "Content-Length": "x"}, 411),
        ("POST", "/predict", {**IMAGE, "Content-Length": "-1"}, 411),
        ("POST", "/predict", {**IMAGE, "Transfer-Encoding": "chunked"}, 411),
        ("POST", "/predict", {**IMAGE, "Content-Length": str(MOST_BYTES + 1)}, 413),
        ("POST", "/predict", {**IMAGE, "Host": "rebound.example"}, 421),
        ("GET", "/", {"Host": "rebound.example:80"}, 421),
        ("GET", "/", {"Host": "127.0.0.1.rebound.example"}, 421),
        ("GET", "/model", {"Host": ""}, 421),
    ],
)
def test_what_is_refused_and_that_every_response_has_the_headers(
    server: PageServer, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    response, _ = request(server, method, path, None, **headers)
    assert response.status == status
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Access-Control-Allow-Origin"] is None
    assert response.headers["Server"] == "vitdeploy"


def test_an_address_that_is_none_is_refused(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0), timeout=10) as connection:
        connection.sendall(b"GET http://[ HTTP/1.0\r\nHost: localhost\r\n\r\n")
        with connection.makefile("rb") as answer:
            assert b" 404 " in answer.readline()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_this_machine_are_served_at_any_port(server: PageServer, host: str) -> None:
    assert request(server, Host=host)[0].status == 200  # a port of a tunnel is another one


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (ImageError("cannot read <it>"), 422),
        (OverloadedError("busy"), 503),
        (UnavailableError("down"), 502),
        (BadAnswerError("failed"), 502),
    ],
)
def test_problems_of_the_model_server_are_told(problem: VitDeployError, status: int) -> None:
    def fail(_: bytes) -> dict[str, Any]:
        raise problem

    with PageServer(fail, name="vit") as server:
        response, content = request(server, "POST", "/predict", b"x", **IMAGE)
        assert (response.status, json.loads(content)) == (status, {"error": str(problem)})
        assert request(server)[0].status == 200


def test_a_defect_is_told_and_its_traceback_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: bytes) -> dict[str, Any]:
        raise KeyError("a defect")

    with PageServer(fail, name="vit") as server:
        assert request(server, "POST", "/predict", b"x", **IMAGE)[0].status == 500
        assert request(server)[0].status == 200
        printed = ""
        for _ in range(1000):  # by the thread of the connection, after its response
            printed += capsys.readouterr().err
            if "KeyError: 'a defect'" in printed:
                break
            time.sleep(0.01)
    assert "KeyError: 'a defect'" in printed


def test_a_browser_that_goes_away_ends_nothing(server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    address = ("127.0.0.1", urlsplit(server.url).port or 0)
    for sent in (b"", b"\0\xff\r\n\r\n", b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
                 b"Content-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\nhalf"):  # fmt: skip
        with socket.create_connection(address) as client:
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset at once
    assert request(server)[0].status == 200
    assert capsys.readouterr() == ("", "")


def test_slow_clients_are_refused_and_others_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent ones, and ones that go on to send a byte at a time; they held every place for as long as they liked."""
    monkeypatch.setattr(page_server, "_GRACE_S", 0.3)
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    with PageServer(echo, name="vit") as server, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", urlsplit(server.url).port or 0)
        slow = [
            stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(page_server._MOST_WAITING)
        ]
        for client in slow:
            client.sendall(f"{head}Content-Length: {MOST_BYTES}\r\n\r\nx".encode())
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.05):
                for client in slow[::2]:
                    with contextlib.suppress(OSError):  # refused
                        client.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert request(server, "POST", "/predict", b"12345", **IMAGE)[0].status == 200
            assert [client.recv(64).partition(b"\r\n")[0] for client in slow[1::2]] == 4 * [
                b"HTTP/1.1 408 Request Timeout"
            ]
        finally:
            ended.set()
            dripping.join()


def test_a_port_that_is_taken(server: PageServer) -> None:
    port = urlsplit(server.url).port or 0
    with raises(OutputError, what="page_port", found=port):
        PageServer(echo, name="vit", port=port)


def test_it_ends_with_the_block() -> None:
    with PageServer(echo, name="vit") as server:
        port = urlsplit(server.url).port or 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
