"""Read the classes in timm's config.json: number, names and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.sources.timm_layouts.parts import MOST, count, first, is_wrapper, mapping, refuse, unsupported

LABEL_KEYS = ("label_names", "labels", "label_descriptions", "id2label", "label2id", "num_classes", "num_labels")
_DEFAULT_CLASSES = 1000  # of timm's PretrainedCfg
_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def num_classes(config: Mapping[str, Any], arguments: Mapping[str, Any], cfg: Mapping[str, Any]) -> int:
    """Number of logits: from the top level or else from `model_args` or `pretrained_cfg`."""
    if config.get("architectures") == ["TimmWrapperModel"]:
        return 0  # it has no head, though its configuration has a number of classes, as all in transformers do
    stated = first(config.get("num_classes"), config.get("num_labels"), cfg.get("num_classes"))
    classes = count("num_classes", first(arguments.get("num_classes"), stated, _DEFAULT_CLASSES), least=0)
    if stated is not None and count("num_classes", stated, least=0) != classes:  # timm would drop the head's weights
        raise unsupported("num_classes", f"num_classes is {classes} in model_args, {stated} beside it; make them agree")
    return classes


def label_offset(config: Mapping[str, Any], cfg: Mapping[str, Any], layers: list[str]) -> int:
    """Number of leading classifier rows that timm skips when it reads weights; the wrapper's weights lack them."""
    offset, classifier = cfg.get("label_offset"), cfg.get("classifier")
    if is_wrapper(config) or offset is None or classifier is None:
        return 0
    if isinstance(offset, bool) or not isinstance(offset, int) or offset > MOST:
        raise unsupported(
            "pretrained_cfg.label_offset", f"pretrained_cfg.label_offset is an integer, got {offset!r:.80}"
        )
    named = [classifier] if isinstance(classifier, str) else classifier
    if offset > 0 and named != layers:
        raise unsupported(
            "pretrained_cfg.label_offset",
            f"label_offset is for {classifier!r:.80}, but the classifier is {' and '.join(layers)}",
        )
    return max(offset, 0)


def problem_type(config: Mapping[str, Any]) -> dict[str, Any]:
    """The problem type in transformers' pipeline, which reads timm's configurations too."""
    value = config.get("problem_type")
    if value not in (None, *_PROBLEM_TYPES):
        raise unsupported("problem_type", f"problem_type is one of {', '.join(_PROBLEM_TYPES)}, got {value!r:.80}")
    return {} if value is None else {"problem_type": value}


def labels(config: Mapping[str, Any], cfg: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Class descriptions or else names; only numbers without names.

    transformers' wrapper uses the names, or `id2label` without names.
    """
    names: Any = next(
        (place[key] for key in ("label_names", "labels") for place in (config, cfg) if place.get(key)),
        config.get("id2label"),
    )
    if not names:
        return {"num_labels": classes}
    if isinstance(names, Mapping) and names.keys() <= {str(index) for index in range(classes)}:
        # timm writes an object if some classes have no name
        names = [names.get(str(index), f"LABEL_{index}") for index in range(classes)]
    if (
        not isinstance(names, Sequence)
        or isinstance(names, str)
        or len(names) != classes
        or not all(isinstance(name, str) for name in names)
    ):
        raise refuse("label_names", f"is not a list of {classes} strings", names)
    descriptions = config.get("label_descriptions") or cfg.get("label_descriptions") or {}
    descriptions = {} if is_wrapper(config) else mapping("label_descriptions", descriptions)
    names = [str(descriptions.get(name, name)) for name in names]
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
