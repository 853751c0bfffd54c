"""A web service for a bundle: images in, labels out. README.md has the commands."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from pydantic import Base64Bytes, TypeAdapter, ValidationError
from serving_metrics import ServingCollector
from starlette.requests import ClientDisconnect

import vitdeploy
from vitdeploy.errors import ImageError, OverloadedError, UsageError, VitDeployError
from vitdeploy.predictor import Prediction

os.environ.setdefault("VITDEPLOY_MAX_IMAGE_PIXELS", "50000000")  # against decompression bombs
UNREAD = {"Connection": "close"}  # or the server would go on to read, and discard, the rest of the body
UNAVAILABLE = {"Retry-After": "1"}
IMAGES = TypeAdapter(list[Base64Bytes])
logger = logging.getLogger("uvicorn.error")
TopK = Annotated[int | None, Query(ge=1, le=1000)]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Each from the environment variable of its name, in upper case."""

    bundle: str = "vit"
    max_body_bytes: int = 10_000_000
    body_timeout: float = 30.0  # seconds
    max_batch_size: int = 8
    max_delay: float = 0.005  # seconds
    max_queue: int = 64
    watch: float | None = None  # seconds between looks for a new bundle

    @classmethod
    def from_environment(cls) -> Settings:
        given = {
            field.name: os.environ[field.name.upper()]
            for field in dataclasses.fields(cls)
            if field.name.upper() in os.environ
        }
        types = {"bundle": str, "body_timeout": float, "max_delay": float, "watch": float}
        return cls(**{name: types.get(name, int)(value) for name, value in given.items()})


@dataclasses.dataclass(frozen=True)
class Service:
    """What the requests use."""

    settings: Settings
    bundle: vitdeploy.ReloadingPredictor
    predictor: vitdeploy.AsyncPredictor
    metrics: CollectorRegistry


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open and warm the bundle before the server listens; answer what it accepted before the process ends."""
    settings, loop = Settings.from_environment(), asyncio.get_running_loop()
    bundle = await asyncio.to_thread(
        vitdeploy.ReloadingPredictor,
        settings.bundle,
        batch_sizes=sorted({1, settings.max_batch_size}),
        watch=settings.watch,
    )
    batcher = vitdeploy.MicroBatcher(
        bundle, max_batch_size=settings.max_batch_size, max_delay=settings.max_delay, max_queue=settings.max_queue
    )
    metrics = CollectorRegistry()
    metrics.register(ServingCollector(batcher.statistics, lambda: bundle.status))
    ProcessCollector(registry=metrics)  # memory, CPU time, open files
    with bundle:
        async with vitdeploy.AsyncPredictor(batcher) as predictor:
            app.state.service = Service(settings, bundle, predictor, metrics)
            loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, reload, bundle))
            yield
            loop.remove_signal_handler(signal.SIGHUP)


def reload(bundle: vitdeploy.ReloadingPredictor) -> None:
    try:
        logger.info("new bundle in use" if bundle.reload() else "the bundle is the same")
    except VitDeployError as exc:
        logger.error("not reloaded, the previous bundle stays in use: %s", exc)


app = FastAPI(title="Image classification", lifespan=lifespan)


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, read to a limit of bytes and time, whatever its header says."""
    try:
        return await asyncio.wait_for(read_bytes(request, settings.max_body_bytes), settings.body_timeout)
    except asyncio.TimeoutError as exc:
        raise HTTPException(408, "the body did not arrive in time", UNREAD) from exc


async def read_bytes(request: Request, limit: int) -> bytes:
    too_large = HTTPException(413, f"the body may have {limit} bytes", UNREAD)
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """Await an answer; if the client goes away first, it is cancelled and frees its places in the queue."""
    answering, gone = asyncio.ensure_future(answer), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return await answering
    finally:
        answering.cancel()
        gone.cancel()


@app.post("/predict", openapi_extra={"requestBody": {"required": True, "content": {"image/*": {}}}})
async def predict(request: Request, top_k: TopK = None) -> list[Prediction]:
    """Labels of the image in the body (JPEG, PNG, WebP ...), best first."""
    service: Service = request.app.state.service
    image = await read_body(request, service.settings)
    return in_utf_8(await unless_gone(request, service.predictor.predict(image, top_k=top_k)))


@app.post("/predict/batch", openapi_extra={"requestBody": {"required": True, "content": {"application/json": {}}}})
async def predict_batch(request: Request, top_k: TopK = None) -> list[dict[str, Any]]:
    """Labels, or an error, of each image in the body: a JSON list of files in Base64."""
    service: Service = request.app.state.service
    try:
        images = IMAGES.validate_json(await read_body(request, service.settings))
    except ValidationError as exc:
        raise HTTPException(422, "the body takes a JSON list of images in Base64") from exc
    if not 1 <= len(images) <= service.settings.max_queue:
        raise HTTPException(422, f"the body takes from 1 to {service.settings.max_queue} images")
    return await unless_gone(request, predict_each(service.predictor, images, top_k))


async def predict_each(
    predictor: vitdeploy.AsyncPredictor, images: list[bytes], top_k: int | None
) -> list[dict[str, Any]]:
    """The predictions or the error of each image; if one finds no place in the queue, none is answered."""

    async def one(image: bytes) -> dict[str, Any]:
        try:
            return {"predictions": in_utf_8(await predictor.predict(image, top_k=top_k))}
        except ImageError as exc:
            return {"error": told(exc)}

    tasks = [asyncio.ensure_future(one(image)) for image in images]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def in_utf_8(predictions: list[Prediction]) -> list[Prediction]:
    """Predictions whose labels JSON can encode."""
    return [dataclasses.replace(best, label=escaped(best.label)) for best in predictions]


def escaped(text: str) -> str:
    """Text that UTF-8 can encode: a byte of a path that is not, or half of a surrogate pair, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def told(error: VitDeployError) -> str:
    """The message without its hint, which is for whoever runs the server."""
    return escaped(str(error).removesuffix(f"; {error.hint}"))


@app.exception_handler(ClientDisconnect)
async def gone(_request: Request, _error: ClientDisconnect) -> JSONResponse:
    return JSONResponse({"detail": "the client went away"}, 400, headers=UNREAD)


@app.exception_handler(ImageError)
@app.exception_handler(UsageError)
async def unprocessable(_: Request, error: VitDeployError) -> JSONResponse:
    """A bad image, an argument that does not suit the model, or a request that outlasts a shutdown's time."""
    if error.found == "closed":
        return JSONResponse({"detail": "the server ends"}, 503, headers=UNAVAILABLE)
    return JSONResponse({"detail": told(error)}, 422)


@app.exception_handler(OverloadedError)
async def overloaded(_: Request, error: OverloadedError) -> JSONResponse:
    return JSONResponse({"detail": told(error)}, 503, headers=UNAVAILABLE)


@app.get("/health")
async def health() -> dict[str, str]:
    """The process lives: its event loop answers."""
    return {"status": "alive"}


@app.get("/ready")
async def ready(request: Request) -> dict[str, object]:
    """The bundle is open and warm; before, and during the shutdown, the server does not listen."""
    service: Service = request.app.state.service
    status = service.bundle.status
    return dataclasses.asdict(status) | {
        "last_error": None if status.last_error is None else escaped(status.last_error)
    }


@app.get("/metrics")
async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(generate_latest(service.metrics), media_type=CONTENT_TYPE_LATEST)
