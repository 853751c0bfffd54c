"""Parse a preprocessor_config.json in every form that transformers has written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitdeploy.errors import InputError, shown
from vitdeploy.files.file_kinds import NESTED_FILE
from vitdeploy.specs import MODES


@dataclasses.dataclass(frozen=True)
class Size:
    """An exact size in pixels, for any aspect ratio."""

    height: int
    width: int

    def of(self, image_height: int, image_width: int) -> tuple[int, int]:  # noqa: ARG002  # as in ShortestEdge
        """(H, W) after the resize."""
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class ShortestEdge:
    """Length in pixels of the shorter edge; the aspect ratio is kept, and the longer edge is rounded down."""

    shortest_edge: int

    def of(self, image_height: int, image_width: int) -> tuple[int, int]:
        """(H, W) after the resize."""
        short, long = sorted((image_height, image_width))
        longest_edge = int(self.shortest_edge * long / short)
        return (longest_edge, self.shortest_edge) if image_width <= image_height else (self.shortest_edge, longest_edge)


FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
_USUAL_CHANNELS = 3
_USUAL_STATISTICS = (0.5, 0.5, 0.5)  # for the classes that name no others
_MOST = 1e30  # far below float32's largest value, so that no result is infinite


def read_setting(key: str, value: object) -> Any:
    """Parse one value of a preprocessor_config.json as a field of ImageProcessor; InputError if it is invalid."""
    return _VALUES[key][0](key, value)


def parse(config: Mapping[str, Any], num_channels: int | None = None) -> dict[str, Any]:
    """Parse the settings into fields of ImageProcessor, without its defaults.

    As in transformers, absent keys have the class's defaults, a null step (`do_...`) is off, and other classes' keys
    are ignored; but an enabled step that is not implemented is an error, and so is custom code in the checkpoint. A
    single mean or standard deviation applies to every channel; a list needs one number per channel.

    Args:
        config: The settings.
        num_channels: The model's channels. Default: the number of means, or 3 for a single mean.

    Raises:
        InputError: If the class is unknown, a value is invalid, a step is not implemented, or the numbers of means and
            channels differ.
    """
    settings = complete(config)
    kind = settings["image_processor_type"]
    for key, value in settings.items():
        if key.startswith("do_") and value and key not in _STEPS and key != "do_reduce_labels":
            raise _refusal(key, value, "false: this step is not implemented")
    if settings.get("auto_map"):
        code = settings["auto_map"]
        raise InputError(
            f"'auto_map' names code in the checkpoint's folder, which is not run: {shown(code)}",
            what="auto_map", found=code,
            hint="if transformers gives the same pixels without trust_remote_code, remove the key",
        )  # fmt: skip
    if isinstance(settings.get("size"), int) and not settings.get("default_to_square", True):
        settings["size"] = {"shortest_edge": settings["size"]}
    steps = {step: _flag(step, settings[step]) for step in _STEPS}
    values = {
        key: read(key, settings[key])
        for key, (read, step) in _VALUES.items()
        if key in settings and (settings[key] is not None or steps[step])
    }
    return {"image_processor_type": kind, **steps, **values, **_statistics(values, num_channels, steps["do_normalize"])}


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their class's name and defaults filled in, otherwise unparsed.

    Raises:
        InputError: If the class is unknown, or the settings are nested as in a processor_config.json.
    """
    if isinstance(config.get("image_processor"), Mapping) and not config.keys() & (APPLIED - _CLASS_KEYS):
        message = f"the settings are in 'image_processor', where only a {NESTED_FILE} has them"
        raise InputError(message, what="image_processor", hint="rename the file, or move them to the top level")
    name = class_name(config)
    kind = str(name).removesuffix("Fast").removesuffix("Pil")
    if kind not in _CLASS_DEFAULTS:
        raise _refusal("image_processor_type", name, f"one of {', '.join(_CLASS_DEFAULTS)}")
    settings = {**_STEPS, **_CLASS_DEFAULTS[kind], **config, "image_processor_type": kind}
    if settings.pop("use_square_size", False) and kind == "CLIPImageProcessor":  # Kosmos-2's, of the class's size
        settings["size"] = {"height": 224, "width": 224}
    return settings


def _statistics(values: Mapping[str, Any], num_channels: int | None, used: bool) -> dict[str, tuple[float, ...]]:
    """`image_mean` and `image_std` with a number per channel."""
    given = {key: values.get(key, _USUAL_STATISTICS) for key in ("image_mean", "image_std")}
    lists = [value for value in given.values() if isinstance(value, tuple)]
    count = num_channels or next(map(len, lists), _USUAL_CHANNELS)
    if not used and any(len(value) != count for value in lists):  # unused
        return dict.fromkeys(given, (_USUAL_STATISTICS[0],) * count)
    for key, value in given.items():
        if isinstance(value, tuple) and len(value) != count:
            stated = "" if key in values else ", the defaults of its class"
            option = key.replace("_", "-")
            raise InputError(
                f"{key!r} has {len(value)} numbers, {list(value)}{stated}, for images of {count} channel"
                f"{'s' * (count > 1)}",
                what=key, expected=count, found=value,
                hint=f"state one number for each channel, or one for all, there or with --{option}",
            )  # fmt: skip
    return {key: value if isinstance(value, tuple) else (value,) * count for key, value in given.items()}


def class_name(config: Mapping[str, Any]) -> object:
    """The class named in the settings; as in transformers, a feature extractor's without custom code."""
    name, code = config.get("image_processor_type"), config.get("auto_map") or {}
    if name is None and not (isinstance(code, Mapping) and "AutoImageProcessor" in code):
        name = config.get("feature_extractor_type")
        return name.replace("FeatureExtractor", "ImageProcessor") if isinstance(name, str) else name
    return name


def _refusal(key: str, value: object, expected: str) -> InputError:
    return InputError(f"{key!r} is {shown(value)}, expected {expected}", what=key, expected=expected, found=value)


def _flag(key: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _refusal(key, value, "true or false")
    return bool(value)


def _number(key: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -_MOST <= value <= _MOST:
        raise _refusal(key, value, "a number")
    return value


def _channels(key: str, value: object) -> float | tuple[float, ...]:
    """Parse one number for all channels, or one per channel."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return _number(key, value)
    if len(value) not in MODES:
        raise _refusal(key, value, "one number, or one for each of 1, 3 or 4 channels")
    return tuple(_number(key, item) for item in value)


def _resample(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in range(6):
        raise _refusal(key, value, "one of Pillow's filters, 0 to 5")
    return value


def _crop_rounding(key: str, value: object) -> str:
    if value not in ("floor", "half_even"):
        raise _refusal(key, value, "'floor' or 'half_even'")
    return str(value)


def _edge(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refusal(key, value, "positive integers")
    return value


def _size(key: str, value: object) -> Size | ShortestEdge:
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        return ShortestEdge(_edge(key, value["shortest_edge"]))
    return _exact_size(key, value)


def _exact_size(key: str, value: object) -> Size:
    """Parse 224, [224, 224] or {"height": 224, "width": 224}."""
    if isinstance(value, Mapping):
        if set(value) != {"height", "width"}:
            raise _refusal(key, value, "an object of 'height' and 'width' (or, as size, 'shortest_edge')")
        return Size(_edge(key, value["height"]), _edge(key, value["width"]))
    height, width = value if isinstance(value, Sequence) and len(value) == 2 else (value, value)
    return Size(_edge(key, height), _edge(key, width))


# Parser of each setting, and the step that uses it: if that is off, the value may be null.
_VALUES: dict[str, tuple[Callable[[str, object], Any], str]] = {
    "size": (_size, "do_resize"),
    "resample": (_resample, "do_resize"),
    "crop_size": (_exact_size, "do_center_crop"),
    "crop_rounding": (_crop_rounding, "do_center_crop"),
    "rescale_factor": (_number, "do_rescale"),
    "image_mean": (_channels, "do_normalize"),
    "image_std": (_channels, "do_normalize"),
}

STEP_OF = {key: step for key, (_, step) in _VALUES.items()}

# The steps of ViTImageProcessor, and the differences of transformers' other classes.
_STEPS = {"do_convert_rgb": False, "do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True}
_BIT = {
    "size": 224,
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {},
    "DeiTImageProcessor": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "BeitImageProcessor": {"resample": 3, "crop_size": 224},
    "BitImageProcessor": _BIT,
    "CLIPImageProcessor": _BIT,
    "ChineseCLIPImageProcessor": _BIT,
    "SiglipImageProcessor": {
        "size": {"height": 224, "width": 224},
        "default_to_square": False,
        "resample": 3,
        "do_convert_rgb": True,
    },
    "DINOv3ViTImageProcessor": {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}

# Classes that rescale before they resize: resized pixels are not rounded to bytes.
UNROUNDED = frozenset({"DINOv3ViTImageProcessor"})

# Every key that transformers 4 and 5 write, except other steps (`do_...`), which must be off.
_CLASS_KEYS = frozenset({"image_processor_type", "feature_extractor_type"})
APPLIED = frozenset({*_CLASS_KEYS, "default_to_square", "use_square_size", *_STEPS, *_VALUES})
REFUSED = frozenset({"auto_map", "do_pad"})  # unless they are null, false or empty
WITHOUT_EFFECT = frozenset(
    {
        *(
            "do_reduce_labels",
            "reduce_labels",
            "pad_size",
            "image_seq_length",
        ),  # for label maps, batch padding, text
        *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),  # call arguments
        *("processor_class", "_processor_class", "_auto_class", "model_input_names"),  # for transformers' class lookup
        *("_valid_processor_keys", "_valid_kwargs_names"),
    }
)
KNOWN = APPLIED | REFUSED | WITHOUT_EFFECT

# Processor class of each family, for the oldest files, which do not name it. As in transformers, whose table
# (IMAGE_PROCESSOR_MAPPING) has none for dinov2_with_registers: such a file is refused.
CLASS_OF_MODEL = {
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "vit_msn": "ViTImageProcessor",
    "ijepa": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "beit": "BeitImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "chinese_clip": "ChineseCLIPImageProcessor",
    **dict.fromkeys(("clip", "metaclip_2", "altclip"), "CLIPImageProcessor"),
    "siglip": "SiglipImageProcessor",
}
