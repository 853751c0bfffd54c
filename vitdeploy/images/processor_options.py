"""Options of the image processor: another one than the checkpoint's, and single settings."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from vitdeploy.errors import InputError, UsageError, shown
from vitdeploy.images.preprocessor_config import FILTERS, STEP_OF, ShortestEdge, Size, read_setting


@dataclasses.dataclass(frozen=True)
class ProcessorOptions:
    """Where the image processor comes from, and settings that replace single ones of it.

    Settings have the names of a preprocessor_config.json. Without a processor to replace settings of, they define one:
    `image_mean`, `image_std`, `resample` and `size` (or the export's image size) are then required. There is no center
    crop unless `crop_size` is given, and `rescale_factor` is 1/255, the default of every class of transformers.

    Attributes:
        source: a local folder, a file such as preprocessor_config.json, or a Hub id, "ID" or "ID@REVISION"; None for
            the checkpoint's own processor.
        image_mean: one number for all channels, or one for each, of values rescaled by `rescale_factor`.
        image_std: likewise.
        size: (height, width) in pixels to resize to, one number for a square, {"shortest_edge": pixels} to keep the
            aspect ratio, or False not to resize.
        crop_size: (height, width) in pixels of the center crop, one number for a square, or False for no crop.
        resample: the filter of the resize, by Pillow's number or its name, such as "bicubic".
        rescale_factor: multiplies the bytes of the image.

    Raises:
        UsageError: a value is not valid.
    """

    source: str | os.PathLike[str] | None = None
    image_mean: Any = None
    image_std: Any = None
    size: Any = None
    crop_size: Any = None
    resample: int | str | None = None
    rescale_factor: float | None = None

    def __post_init__(self) -> None:
        if self.source is not None and not (isinstance(self.source, (str, os.PathLike)) and os.fspath(self.source)):
            message = f"an image processor is named by a folder, a file or a Hub id, got {shown(self.source)}"
            raise UsageError(message, what="processor", found=self.source)
        for name in self.settings:
            object.__setattr__(self, name, self._read(name, getattr(self, name)))
        deviations = self.image_std if isinstance(self.image_std, tuple) else (self.image_std,)
        if any(value is not None and value <= 0 for value in deviations):
            lowest = min(deviations)
            message = f"image_std contains {lowest:g}; a standard deviation is above 0"
            raise UsageError(message, what="image_std", found=lowest)
        if self.rescale_factor is not None and self.rescale_factor <= 0:
            message, factor = "rescale_factor is not above 0", self.rescale_factor
            raise UsageError(message, what="rescale_factor", found=factor, hint="give one such as 1/255")
        if self.size is False and self.resample is not None:
            message = "a resample filter has no effect where images are not resized"
            raise UsageError(message, what="resample", found=self.resample, hint="leave it out, or resize")

    @staticmethod
    def _read(name: str, value: Any) -> Any:
        if name in ("size", "crop_size") and (value is False or isinstance(value, (Size, ShortestEdge))):
            return value
        if name == "resample" and isinstance(value, str):
            if value not in FILTERS:
                message, hint = f"resample {shown(value)} is not a filter", f"use one of {', '.join(FILTERS)}"
                raise UsageError(message, what="resample", found=value, hint=hint)
            return FILTERS[value]
        try:
            return read_setting(name, value)
        except InputError as exc:
            raise exc.as_type(UsageError) from exc

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of the settings that are given."""
        names = (field.name for field in dataclasses.fields(self) if field.name != "source")
        return tuple(name for name in names if getattr(self, name) is not None)

    def missing(self, *, sized: bool) -> tuple[str, ...]:
        """The settings that these lack to define a processor.

        Args:
            sized: whether an image size is given that stands for `size` where there is no crop.
        """
        required = ["image_mean", "image_std", "size", "resample"]
        if sized and self.crop_size in (None, False):
            required.remove("size")
        if self.size is False:
            required.remove("resample")
        return tuple(name for name in required if getattr(self, name) is None)

    def replace_in(self, config: dict[str, Any]) -> dict[str, Any]:
        """The content of a preprocessor_config.json with these settings.

        Args:
            config: the content, with the defaults of its class; see `preprocessor_config.complete`.

        Raises:
            UsageError: a setting belongs to a step that is off, and the other settings of that step are not given.
        """
        changed = dict(config)
        for step in dict.fromkeys(STEP_OF.values()):
            names = [name for name, of_step in STEP_OF.items() if of_step == step and hasattr(self, name)]
            given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            if any(value is False for value in given.values()):
                changed[step] = False
            elif given:
                lacking = [name for name in names if name not in given]
                if not config[step] and lacking:  # a step that is off is turned on by naming all of its settings
                    message = f"the image processor has {step} off, so {', '.join(given)} alone has no effect"
                    raise UsageError(message, what=next(iter(given)), hint=f"give {', '.join(lacking)} too")
                changed |= {step: True, **{name: _plain(value) for name, value in given.items()}}
        return changed


def _plain(value: Any) -> Any:
    """A field of ImageProcessor as JSON has it."""
    if isinstance(value, (Size, ShortestEdge)):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value
