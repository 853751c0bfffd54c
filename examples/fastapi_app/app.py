"""A web service for a bundle: an image in, labels out. README.md has the commands."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from serving_metrics import ServingCollector
from starlette.requests import ClientDisconnect

import vitdeploy
from vitdeploy.errors import ImageError, OverloadedError, UsageError, VitDeployError
from vitdeploy.predictor import Prediction

os.environ.setdefault("VITDEPLOY_MAX_IMAGE_PIXELS", "50000000")  # against decompression bombs
UNREAD = {"Connection": "close"}  # or the server would go on to read, and discard, the rest of the body
logger = logging.getLogger("uvicorn.error")


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
    bundle = await asyncio.to_thread(vitdeploy.ReloadingPredictor, settings.bundle, watch=settings.watch)
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


async def read_body(request: Request, limit: int) -> bytes:
    """The body, read to `limit` bytes at most, whatever its header says."""
    too_large = HTTPException(413, f"the body may have {limit} bytes", UNREAD)
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


@app.post("/predict", openapi_extra={"requestBody": {"required": True, "content": {"image/*": {}}}})
async def predict(request: Request, top_k: Annotated[int | None, Query(ge=1, le=1000)] = None) -> list[Prediction]:
    """Labels of the image in the body (JPEG, PNG, WebP ...), best first."""
    service: Service = request.app.state.service
    reading = read_body(request, service.settings.max_body_bytes)
    try:
        image = await asyncio.wait_for(reading, service.settings.body_timeout)
    except asyncio.TimeoutError as exc:
        raise HTTPException(408, "the body did not arrive in time", UNREAD) from exc
    except ClientDisconnect as exc:
        raise HTTPException(400, "the client went away", UNREAD) from exc
    return await service.predictor.predict(image, top_k=top_k)


@app.exception_handler(ImageError)
@app.exception_handler(UsageError)
async def unprocessable(_: Request, error: VitDeployError) -> JSONResponse:
    """A bad image, or an argument that does not suit the model; the hint is for whoever runs the server."""
    return JSONResponse({"detail": str(error).removesuffix(f"; {error.hint}")}, 422)


@app.exception_handler(OverloadedError)
async def overloaded(_: Request, error: OverloadedError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, headers={"Retry-After": "1"})


@app.get("/health")
async def health() -> dict[str, str]:
    """The process lives: its event loop answers."""
    return {"status": "alive"}


@app.get("/ready")
async def ready(request: Request) -> dict[str, object]:
    """The bundle is open and warm; before, and during the shutdown, the server does not listen."""
    service: Service = request.app.state.service
    return dataclasses.asdict(service.bundle.status)


@app.get("/metrics")
async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(generate_latest(service.metrics), media_type=CONTENT_TYPE_LATEST)
