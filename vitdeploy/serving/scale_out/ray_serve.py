"""A Ray Serve deployment: an image in a request's body, its predictions or its vector as JSON.

Statuses: 200; 413 for a body over the limit; 422 for a body that is no image; 503 from Serve where its queue is full,
and from a replica that ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import serve
from starlette.responses import JSONResponse

from vitdeploy.errors import ImageError, NotFiniteError, UsageError, VitDeployError
from vitdeploy.serving.in_process.bundle_checks import check_answers
from vitdeploy.serving.in_process.reloading_predictor import ReloadingPredictor
from vitdeploy.serving.scale_out.batch_callable import resolve
from vitdeploy.serving.scale_out.result_columns import Labels, Vectors, rows_of
from vitdeploy.serving.scale_out.serve_config import ServeConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from vitdeploy.predictor import Predictor
    from vitdeploy.serving.in_process.leases import Lease


logger = logging.getLogger("ray.serve")  # in Serve's own log files


class BundleReplica:
    """A replica of the deployment, with one open bundle."""

    _config: ServeConfig  # Serve configures a replica before it has requests
    _model: ReloadingPredictor | None = None
    _opened: tuple[str, Mapping[str, Any]] | None = None  # bundle and options of `load`

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Open the bundle, or a new one, whose predictor is verified and warm before it replaces the other.

        If that fails, an open one stays, and the log has the reason: Serve would end a replica that raises.
        """
        try:
            await self._change(ServeConfig(**user_config))
        except Exception:  # a misspelt setting is a TypeError
            if self._model is None:
                raise
            logger.exception("the new settings failed, and the former ones stay: %s", user_config)

    async def _change(self, config: ServeConfig) -> None:
        old = self._model
        options = await asyncio.to_thread(_resolved, config)  # a bundle that was replaced may be tuned otherwise
        if old is not None and (config.bundle, options) == self._opened:
            await asyncio.to_thread(old.reload)
            _check_rows(old, config)
        else:
            self._model = await asyncio.to_thread(_open, config, options)
            self._opened = config.bundle, options
            if old is not None:
                old.close()  # once its last request is answered
        self._config = config
        self._run.set_max_batch_size(config.max_batch_size)
        self._run.set_batch_wait_timeout_s(config.batch_wait_timeout_s)

    async def check_health(self) -> None:
        with self._lease() as predictor:
            await asyncio.to_thread(check_answers, predictor)

    async def __call__(self, request: Request) -> JSONResponse:
        limit, body = self._config.max_body_bytes, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                return JSONResponse({"error": f"the body has more than {limit} bytes"}, 413)
        try:
            with self._lease() as predictor:
                rows, pixels = self._config.parsed_rows(), predictor.runtime.pixels  # before another config may come
                pixel_values = await asyncio.to_thread(predictor.processor, [bytes(body)], pixels=pixels)
                answer = await self._run((predictor, rows, pixel_values))
                if isinstance(answer, NotFiniteError):
                    raise answer
        except ImageError as exc:
            return JSONResponse({"error": str(exc)}, 422)
        except VitDeployError as exc:
            return JSONResponse({"error": str(exc)}, 503 if exc.found == "closed" else 500)
        return JSONResponse(answer)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _run(
        self, images: list[tuple[Predictor, Labels | Vectors, np.ndarray]]
    ) -> list[dict[str, Any] | NotFiniteError]:
        """Answers in the order of the images; those of one predictor and shape run together."""
        answers: list[Any] = [None] * len(images)
        groups: dict[Any, list[int]] = {}
        for index, (predictor, rows, pixel_values) in enumerate(images):
            groups.setdefault((predictor, rows, pixel_values.shape), []).append(index)
        for (predictor, rows, _), indices in groups.items():
            pixels = [images[index][2] for index in indices]
            for index, answer in zip(indices, await asyncio.to_thread(rows_of, predictor, rows, pixels), strict=True):
                answers[index] = answer
        return answers

    def _lease(self) -> Lease:
        if self._model is None:
            raise UsageError("this replica has no user_config", what="user_config", hint="deploy it with app()")
        return self._model.lease()


def _resolved(config: ServeConfig) -> dict[str, Any]:
    """The options by which `load` opens the bundle in this replica's CPUs."""
    threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    return resolve(config.bundle, config.options, threads).options


def _open(config: ServeConfig, options: Mapping[str, Any]) -> ReloadingPredictor:
    model = ReloadingPredictor(config.bundle, batch_sizes=sorted({1, config.max_batch_size}), **options)
    try:
        _check_rows(model, config)
    except VitDeployError:
        model.close()
        raise
    return model


def _check_rows(model: ReloadingPredictor, config: ServeConfig) -> None:
    """Raise UsageError if the model does not give the rows."""
    with model.lease() as predictor:
        config.parsed_rows().empty(predictor, 0)


def app(
    bundle: str | os.PathLike[str], *, deployment: dict[str, Any] | None = None, **config: Any
) -> serve.Application:
    """The application for `serve.run`.

    Args:
        bundle: The bundle's folder, which every machine sees under this path.
        deployment: Options of the deployment, such as `num_replicas`, `autoscaling_config`, `ray_actor_options`,
            `max_ongoing_requests` (default: two batches) and `max_queued_requests` (default: eight batches).
        config: Fields of `ServeConfig`.
    """
    settings = ServeConfig(os.fspath(bundle), **config)
    options = {
        "max_ongoing_requests": 2 * settings.max_batch_size, "max_queued_requests": 8 * settings.max_batch_size,
        **(deployment or {}),
    }  # fmt: skip
    replicas = serve.deployment(name="vitdeploy", user_config=dataclasses.asdict(settings), **options)(BundleReplica)
    return replicas.bind()
