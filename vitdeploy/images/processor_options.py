"""Options of the image processor: a replacement for the checkpoint's, and single settings."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from vitdeploy.errors import InputError, UsageError, shown
from vitdeploy.images.preprocessor_config import FILTERS, STEP_OF, ShortestEdge, Size, read_setting
from vitdeploy.specs import MODES
from vitdeploy.system.option_fields import described, option


def _read_number(text: str) -> float:
    """Parse a number, or a fraction such as 1/255."""
    numerator, slash, denominator = text.partition("/")
    try:
        number = float(numerator) / float(denominator) if slash else float(text)
        read_setting("rescale_factor", number)  # neither NaN nor infinite
    except (InputError, ValueError, ZeroDivisionError) as exc:
        raise UsageError(f"{text!r:.80} is not a number", found=text) from exc
    return number


def _read_channels(text: str) -> float | list[float]:
    values = [_read_number(part) for part in text.split(",")]
    if len(values) not in MODES:
        hint = "give one number, or one for each of 1, 3 or 4 channels"
        raise UsageError(f"{text!r:.80} has {len(values)} numbers", found=text, hint=hint)
    return values[0] if len(values) == 1 else values


def _read_crop(text: str) -> Any:
    if text == "off":
        return False
    size = re.fullmatch("([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    if size is None:
        raise UsageError(f"{text!r:.80} is not a size", found=text, hint="write HEIGHTxWIDTH, one number, or off")
    return int(size[1]), int(size[2] or size[1])


def _read_resize(text: str) -> Any:
    shortest = re.fullmatch("shortest:([1-9][0-9]{0,4})", text)
    return {"shortest_edge": int(shortest[1])} if shortest else _read_crop(text)


@described
@dataclasses.dataclass(frozen=True)
class ProcessorOptions:
    """The source of the image processor, and settings that override it.

    Settings have the names of a preprocessor_config.json. Without a processor to override, they define one:
    `image_mean`, `image_std`, `resample` and `size` (or the export's image size) are then required. There is no center
    crop unless `crop_size` is given, and `rescale_factor` is 1/255, the default of every transformers class.

    Raises:
        UsageError: If an option is invalid.
    """

    source: str | os.PathLike[str] | None = option(
        None,
        "Image processor: a folder, preprocessor_config.json or Hub id.",
        typed="processor",
        metavar="FOLDER|ID[@REV]",
        unset="the model's own",
    )
    image_mean: Any = option(
        None,
        "Processor setting: mean of rescaled values, for each channel or for all.",
        read=_read_channels,
        metavar="V[,V,V]",
    )
    image_std: Any = option(
        None, "Processor setting: standard deviation of each channel.", read=_read_channels, metavar="V[,V,V]"
    )
    size: Any = option(
        None,
        "Processor setting: size after resizing; shortest:N keeps the aspect ratio. In Python: (height, width), a "
        'number, {"shortest_edge": N} or False.',
        read=_read_resize,
        typed="resize",
        metavar="HxW|shortest:N|off",
    )
    crop_size: Any = option(
        None, "Processor setting: size of the center crop. In Python: False for off.", read=_read_crop,
        metavar="HxW|off",
    )  # fmt: skip
    resample: int | str | None = option(
        None, "Processor setting: filter of the resize, by its name or Pillow's number.", typed_choices=tuple(FILTERS)
    )
    rescale_factor: float | None = option(
        None, "Processor setting: factor for pixel values, such as 1/255.", read=_read_number, metavar="V"
    )

    def __post_init__(self) -> None:
        if self.source is not None and not (isinstance(self.source, (str, os.PathLike)) and os.fspath(self.source)):
            message = f"source takes a folder, a file or a Hub id, got {shown(self.source)}"
            raise UsageError(message, what="source", found=self.source)
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
        """Names of the given settings."""
        names = (field.name for field in dataclasses.fields(self) if field.name != "source")
        return tuple(name for name in names if getattr(self, name) is not None)

    def missing(self, *, sized: bool) -> tuple[str, ...]:
        """Settings that are missing to define a processor.

        Args:
            sized: True if an image size is given, which replaces `size` without a crop.
        """
        required = ["image_mean", "image_std", "size", "resample"]
        if sized and self.crop_size in (None, False):
            required.remove("size")
        if self.size is False:
            required.remove("resample")
        return tuple(name for name in required if getattr(self, name) is None)

    def replace_in(self, config: dict[str, Any]) -> dict[str, Any]:
        """Override settings in the content of a preprocessor_config.json.

        Args:
            config: Content with its class's defaults; see `preprocessor_config.complete`.

        Raises:
            UsageError: If a setting belongs to a step that is off, and the step's other settings are not given.
        """
        changed = dict(config)
        for step in dict.fromkeys(STEP_OF.values()):
            names = [name for name, of_step in STEP_OF.items() if of_step == step and hasattr(self, name)]
            given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            if any(value is False for value in given.values()):
                changed[step] = False
            elif given:
                lacking = [name for name in names if name not in given]
                if not config[step] and lacking:  # a step that is off is enabled by all of its settings together
                    message = f"the image processor has {step} off, so {', '.join(given)} alone has no effect"
                    raise UsageError(message, what=next(iter(given)), hint=f"give {', '.join(lacking)} too")
                changed |= {step: True, **{name: _plain(value) for name, value in given.items()}}
        return changed


def _plain(value: Any) -> Any:
    """A field of ImageProcessor as a JSON value."""
    if isinstance(value, (Size, ShortestEdge)):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value
