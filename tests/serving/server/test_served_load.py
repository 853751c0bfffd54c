"""`vitdeploy serve` in a real Triton: the page, overload, and processes that are killed under load."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from environments import environment
from PIL import Image
from served import Load, Memory, Outcomes, Server

import vitdeploy
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle

IMAGES = [str(path) for path in sorted(held_out_images().rglob("*.png"))[::30]]
PROTOCOLS = ("http", "grpc")
QUEUE = 16
SIDE = 2_000
Expected: TypeAlias = "list[dict[str, list[object]]]"


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("triton")


@pytest.fixture(scope="module")
def server(python: Path, digits: Bundle) -> Iterator[Server]:
    with Server(python, digits.path, f"--max-queue={QUEUE}", "--page", "--page-port=0") as running:
        yield running


def predictions(bundle: Bundle, images: list[str]) -> Expected:
    with vitdeploy.load(bundle.path) as predictor:
        return [
            {name: [getattr(best, attribute) for best in image] for name, attribute in
             (("labels", "label"), ("scores", "score"), ("indices", "index"))}
            for image in predictor.predict(images)
        ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(digits: Bundle) -> Expected:
    return predictions(digits, IMAGES)


@pytest.fixture(scope="module")
def slow(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Expected]:
    """Images of few bytes that take the server many times as long to read as a client to send, and their outputs."""
    folder, paths = tmp_path_factory.mktemp("slow"), []
    for path in IMAGES[:4]:
        paths.append(str(folder / Path(path).name))
        with Image.open(path) as image:
            image.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(paths[-1])
    return paths, predictions(digits, paths)


def load_on(server: Server, protocol: str, images: list[str], expected: Expected) -> Load:
    name = server.described["name"]
    return Load(protocol, server.address(protocol), name, "image", images, expected, timeout_s=60.0)


def answers(found: Outcomes) -> dict[str, int]:
    return {outcome: found.count(outcome) for outcome in sorted(set(found.outcomes))}


def test_the_page_answers_as_the_predictor(server: Server, expected: Expected) -> None:
    url = server.described["addresses"]["page"]
    request = urllib.request.Request(
        f"{url}predict", Path(IMAGES[0]).read_bytes(), {"Content-Type": "application/octet-stream"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found = json.load(response)["predictions"]
    assert [item["label"] for item in found] == expected[0]["labels"]
    assert [item["score"] for item in found] == pytest.approx(expected[0]["scores"], rel=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_more_requests_than_the_queue_takes_are_refused_and_the_next_are_answered(
    server: Server, python: Path, protocol: str, slow: tuple[list[str], Expected]
) -> None:
    load = load_on(server, protocol, *slow)
    with load.sending(python, [0.0] * 200) as sending, Memory(server.process.pid, every_s=0.05) as first:
        found = answers(sending.outcomes())
    assert set(found) == {"answered", "refused"}
    assert found["answered"] >= QUEUE
    with load.sending(python, [0.0] * 400) as sending, Memory(server.process.pid, every_s=0.05) as second:
        assert set(answers(sending.outcomes())) == {"answered", "refused"}
    assert max(second.mb) < max(first.mb) + 30
    with load.sending(python, [0.0] * QUEUE) as sending:
        assert answers(sending.outcomes()) == {"answered": QUEUE}


@pytest.mark.parametrize(("protocol", "killed"), [("http", "Triton"), ("grpc", "serve")])
def test_whatever_is_killed_every_request_has_an_outcome_and_no_answer_is_wrong(
    server: Server, python: Path, protocol: str, killed: str, expected: Expected
) -> None:
    load = load_on(server, protocol, IMAGES, expected)
    with load.sending(python, [index / 100 for index in range(150)]) as sending:
        sending.sleep_until(0.5)
        server.kill(killed)
        found = answers(sending.outcomes())
    assert found.pop("answered") > 0
    assert found.keys() <= {"lost", "refused"}
    with load.sending(python, [index / 100 for index in range(QUEUE)]) as sending:
        assert answers(sending.outcomes()) == {"answered": QUEUE}
