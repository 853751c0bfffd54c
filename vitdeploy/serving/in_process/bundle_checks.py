"""Prove that a newly opened predictor may replace the one in use."""

from __future__ import annotations

import numpy as np

from vitdeploy.bundle.bundle import EXPORT_AGAIN
from vitdeploy.errors import BundleError, NotFiniteError, shown
from vitdeploy.predictor import Predictor

_SIDE = 64  # pixels of the test image, which the processor resizes


def check_answers(predictor: Predictor) -> None:
    """Preprocess and run an image of noise.

    Raises:
        NotFiniteError: If an output is NaN or infinite.
        DeviceError: If the engine failed.
    """
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, predictor.processor.num_channels), np.uint8)
    pixel_values = predictor.processor([noise], pixels=predictor.runtime.pixels)
    for name, values in predictor.runtime.run({"pixel_values": pixel_values}).items():
        if not np.isfinite(values).all():
            bundle = predictor.details.get("bundle")
            message = f"{bundle}: the model gives NaN or infinite {name} for an image of noise"
            raise NotFiniteError(message, what=name, where=bundle, hint=EXPORT_AGAIN)


def check_same_answers(new: Predictor, old: Predictor, *, allow_new_labels: bool) -> None:
    """Raise BundleError unless `new` gives what callers of `old` expect.

    These are outputs of the same names and shapes, problem type and labels; with `allow_new_labels`, the names alone.
    """
    compared = {"outputs": [[spec.name for spec in predictor.runtime.outputs] for predictor in (new, old)]}
    if not allow_new_labels:
        compared["labels"] = [list(predictor.labels) for predictor in (new, old)]
        compared["problem_type"] = [[str(predictor.problem_type)] for predictor in (new, old)]
        compared["shapes"] = [[str(spec.shape) for spec in predictor.runtime.outputs] for predictor in (new, old)]
    for what, (found, expected) in compared.items():
        if found != expected:
            bundle = new.details.get("bundle")
            message = f"{bundle}: the new bundle has other {what}: {shown(found, 80)} instead of {shown(expected, 80)}"
            hint = "start the application anew for it" if what == "outputs" else "set allow_new_labels if that is meant"
            raise BundleError(message, what=what, where=bundle, expected=expected, found=found, hint=hint)
