"""PEFT adapters, beside weights or alone: find the base, merge them, and configure the merged model."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.labels import class_names
from vitdeploy.errors import CheckpointError, HubError, MissingDependencyError, UsageError
from vitdeploy.models.checkpoint import task_of
from vitdeploy.models.config import ViTConfig, read_json
from vitdeploy.models.families.config_keys import RULES, Effect
from vitdeploy.models.families.family import Family
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.families.weight_names import our_names
from vitdeploy.models.weights import read_weights
from vitdeploy.sources.hub import CheckpointFiles, local_path, resolve
from vitdeploy.sources.layouts.peft_adapter import merge
from vitdeploy.sources.layouts.peft_config import LoraConfig
from vitdeploy.sources.layouts.peft_merged import is_merged
from vitdeploy.sources.timm_layouts.classes import LABEL_KEYS, num_classes
from vitdeploy.sources.timm_layouts.layout import is_timm
from vitdeploy.sources.timm_layouts.parts import mapping, model_args, pretrained_cfg, tables
from vitdeploy.sources.timm_layouts.processor import PREPROCESSING
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torch import Tensor

    from vitdeploy.sources.layouts.peft_adapter import Canonical, Merged

_NAMES = ("id2label", "label2id", "num_labels")
_HEAD_KEYS = (*_NAMES, "problem_type", "architectures")
_HEADS = ("head.classifier.weight", "head.cls_classifier.weight", "head.weight")  # the keys here, and timm's
_TIMM_WRAPPER = "timm_model."


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter before its weights are read.

    Attributes:
        files: Files of the adapter.
        base: Files of its base; the same if the adapter lies beside the base's weights.
        config: Content of its adapter_config.json.
        hub_options: Options of `vitdeploy.sources.hub.resolve` for the base.
    """

    files: CheckpointFiles
    base: CheckpointFiles
    config: LoraConfig
    hub_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def find(cls, files: CheckpointFiles, hub_options: Mapping[str, Any]) -> Adapter:
        """Find the adapter in `files`, and its base: the weights beside it, else the named model.

        Raises:
            CheckpointError: If the adapter cannot be merged, or names no base or a missing one.
            HubError: If the base is on the Hub, which cannot be reached.
        """
        content = read_json(files.adapter[0])
        try:
            config = LoraConfig.from_dict(content)
        except CheckpointError as exc:
            raise exc.with_message(f"{files.folder}: {exc}") from exc
        if files.weights:
            return cls(files, files, config, hub_options)
        adapter = cls(files, files, config, hub_options)
        what = f"'{files.model_id}' is an adapter without its base"
        if not config.base:
            raise CheckpointError(
                f"{what}, and its adapter_config.json names none",
                what="base_model_name_or_path", where=files.adapter[0], hint="name the base there",
            )  # fmt: skip
        try:
            base = adapter._resolve_base()
        except (CheckpointError, HubError, UsageError) as exc:
            kind = HubError if isinstance(exc, HubError) else CheckpointError
            key = "base_model_name_or_path"
            raise kind(
                f"{what} '{config.base}', which {key} of {files.adapter[0]} names: {exc}",
                what=key, where=files.adapter[0], found=config.base,
            ) from exc  # fmt: skip
        if base.adapter:
            raise CheckpointError(
                f"{what}: '{config.base}' is, or has, an adapter itself",
                what="base_model_name_or_path", where=files.adapter[0], found=config.base, hint="merge that one first",
            )  # fmt: skip
        return dataclasses.replace(adapter, base=base)

    @property
    def is_alone(self) -> bool:
        """True if the base's weights are elsewhere."""
        return self.base is not self.files

    def merge(
        self, config: dict[str, Any], weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor], str]:
        """Merge the adapter; return the new config.json content, the weights, and a description of the changes.

        A config.json beside an adapter without base weights describes the trained model: its classes and timm
        preprocessing take precedence; the rest must equal the base's. Without it, a replaced head with another number
        of classes gets the names LABEL_0 ...

        Args:
            config: Content of the base's config.json, from transformers or timm.
            weights: The base's tensors, under that library's names.

        Raises:
            CheckpointError: If the adapter does not fit the base.
        """
        timm = is_timm(config)
        family = None if timm else _family(config)  # the base's, whatever the adapter says
        path, of_base = self.files.folder / "config.json", config
        stated = read_json(path) if self.is_alone and path.exists() else {}
        cfg = stated.get("pretrained_cfg")
        places = (stated, cfg) if timm and isinstance(cfg, dict) else (stated,)
        says_labels = any(key in place for key in (LABEL_KEYS if timm else _NAMES) for place in places)
        try:
            config = _of_timm(config, stated) if timm else _of_transformers(config, stated)
        except CheckpointError as exc:
            raise exc.with_message(f"{path}: {exc}") from exc
        origin = str(self.files.adapter[1])
        canonical = _timm_names if family is None else functools.partial(our_names, family)
        tensors = read_weights(self.files.adapter[1:])
        merged = merge(weights, tensors, self.config, canonical, origin)
        if not self.is_alone:
            self._check_not_merged_before(weights, merged, tensors, canonical)
        heads = {ours: name for name, ours in canonical(merged.weights).items() if ours in _HEADS}
        trained = [merged.weights[heads[ours]] for ours in merged.replaced if ours in heads]
        classes = next((len(weight) for weight in trained if weight.ndim), None)
        if timm:
            if says_labels and not _counts(config):  # only names are given
                config = config | {"num_classes": _count_of_timm(of_base) if classes is None else classes}
            elif classes is not None and not says_labels and classes != _count_of_timm(config):
                config = _without(config, LABEL_KEYS) | {"num_classes": classes}  # none of which has a name
        else:
            config = self._with_head(config, None if says_labels else classes, classified=classes is not None)
        whole = f" and {len(merged.replaced)} tensors replaced" if merged.replaced else ""
        beside = f"'{self.config.base}'" if self.is_alone else "the weights beside it"
        return (config, merged.weights, f"{beside}: {len(merged.adapted)} weights changed{whole}")

    def _check_not_merged_before(
        self, weights: Mapping[str, Tensor], merged: Merged, tensors: Mapping[str, Tensor], canonical: Canonical
    ) -> None:
        """Refuse an adapter whose weights already include it, or may include it.

        `merge_and_unload().save_pretrained(FOLDER)` does not remove an adapter from the folder.
        """
        before = None if merged.replaced else self._differs_from_base(weights, tensors, canonical)
        if before is None:
            names = canonical(merged.weights)
            by_canonical = {names[name]: tensor for name, tensor in weights.items()}
            after = {names[name]: tensor for name, tensor in merged.weights.items()}
            before = is_merged(by_canonical, dataclasses.replace(merged, weights=after), dora=self.config.dora)
        files = " and ".join(path.name for path in self.files.adapter)
        if before:
            raise CheckpointError(
                f"{self.files.folder}: the adapter was merged into the weights beside it",
                where=self.files.folder, found="merged", hint=f"remove {files}",
            )  # fmt: skip
        if before is None:
            at_hand = f", since its base '{self.config.base}' is not at hand" if self.config.base else ""
            raise CheckpointError(
                f"{self.files.folder}: the weights beside the adapter may be merged with it already{at_hand}",
                where=self.files.folder, found="unknown",
                hint=f"remove {files} if it was, else move them to a folder of their own, and name this one there: "
                "base_model_name_or_path",
            )  # fmt: skip

    def _differs_from_base(
        self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], canonical: Canonical
    ) -> bool | None:
        """True if the weights are the base's with the adapter, False if without; None if the base is not available."""
        if not self.config.base:
            return None
        try:
            resolved = self._resolve_base()
            if resolved.folder.resolve() == self.files.folder.resolve():
                return None
            base = read_weights(resolved.weights)
            merged = merge(base, tensors, self.config, canonical, str(self.files.adapter[1]))
        except (CheckpointError, HubError, UsageError, MissingDependencyError):
            return None
        models = (weights, base, merged.weights)
        ours, before, after = ({key: model[name] for name, key in canonical(model).items()} for model in models)
        try:
            to_base = sum(_squared_distance(ours[name], before[name]) for name in merged.adapted)
            to_merged = sum(_squared_distance(ours[name], after[name]) for name in merged.adapted)
            apart = sum(_squared_distance(before[name], after[name]) for name in merged.adapted)
        except RuntimeError:  # of other shapes
            return None
        if min(to_base, to_merged) > apart / 10:  # the name now belongs to another model
            return None
        return to_merged < to_base

    def _resolve_base(self) -> CheckpointFiles:
        revision = None if local_path(self.config.base) is not None else self.config.base_revision
        return resolve(self.config.base, **{**self.hub_options, "revision": revision})

    def _with_head(self, config: dict[str, Any], classes: int | None, *, classified: bool) -> dict[str, Any]:
        """Configuration with transformers' class of the trained model, and its classes."""
        family, model_class = _family(config), self.config.model_class
        known = any(model_class in row.architectures for row in FAMILIES.values())
        if known and model_class not in family.architectures:
            raise CheckpointError(
                f"{self.files.adapter[0]}: trained in {model_class}, which is no {config['model_type']}",
                what="base_model_class", where=self.files.adapter[0], found=model_class,
                hint="merge it with peft, and save the merged model",
            )  # fmt: skip
        if model_class in family.architectures:
            config = {**config, "architectures": [model_class]}
        elif classified and not _classifies(config):
            names = [name for name, task in family.architectures.items() if task is Task.CLASSIFICATION]
            config = {**config, "architectures": names[:1]}
        if classes is not None and classes != len(class_names(config)):
            config = {key: value for key, value in config.items() if key not in _NAMES} | {"num_labels": classes}
        return config


def _squared_distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


def _family(config: Mapping[str, Any]) -> Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(
            f"config.json: model_type is {model_type!r:.80}, not one of {', '.join(FAMILIES)}",
            what="model_type", expected=tuple(FAMILIES), found=model_type,
        )  # fmt: skip
    return FAMILIES[model_type]


def _classifies(config: Mapping[str, Any]) -> bool:
    try:
        return task_of(config) is Task.CLASSIFICATION
    except CheckpointError:
        return False


def _of_transformers(config: dict[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The base's configuration with the adapter's head, if the rest computes the same."""
    if not stated:
        return config
    if stated.get("model_type", config["model_type"]) != config["model_type"]:
        raise _of_another_base("model_type", stated["model_type"], config["model_type"])
    rules, base = RULES[config["model_type"]], ViTConfig.from_dict(config)
    for key, value in stated.items():
        computes = key in rules and key not in _HEAD_KEYS and rules[key].effect is not Effect.CARRIED
        if computes and ViTConfig.from_dict({**config, key: value}) != base:
            raise _of_another_base(key, value, config.get(key))
    names = _NAMES if any(key in stated for key in _NAMES) else ()
    kept = {key: value for key, value in config.items() if key not in names}
    return kept | {key: stated[key] for key in _HEAD_KEYS if key in stated}


def _of_timm(config: dict[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The same for timm, whose configuration also defines preprocessing."""
    if not stated:
        return config
    arguments, of_base = (mapping("model_args", data.get("model_args") or {}) for data in (stated, config))
    for key in ("architecture", "global_pool"):
        if stated.get(key) not in (None, config.get(key)):
            raise _of_another_base(key, stated[key], config.get(key))
    fates, *_ = tables(config)
    for key, value in arguments.items():
        if key not in LABEL_KEYS and fates.get(key) != "no effect" and value != of_base.get(key):
            raise _of_another_base(f"model_args.{key}", value, of_base.get(key))
    cfg = pretrained_cfg(stated) if "pretrained_cfg" in stated else {}
    says_labels = any(key in place for key in LABEL_KEYS for place in (stated, cfg))
    names = LABEL_KEYS if says_labels else ()
    merged = _without(config, names) if names else dict(config)
    merged |= {key: stated[key] for key in (*names, "problem_type", "architectures", "model_type") if key in stated}
    preprocessing = {key: value for key, value in cfg.items() if key in (*names, *PREPROCESSING) and value is not None}
    if preprocessing:
        merged["pretrained_cfg"] = {**pretrained_cfg(merged), **preprocessing}
    return merged


def _of_another_base(key: str, value: object, of_base: object) -> CheckpointError:
    return CheckpointError(
        f"{key} is {value!r:.80}, but the base has {of_base!r:.80}: the adapter belongs to another base, or the file "
        f"to another adapter",
        what=key, expected=of_base, found=value,
    )  # fmt: skip


def _timm_names(names: Iterable[str]) -> dict[str, str]:
    return {name: name.removeprefix(_TIMM_WRAPPER) for name in names}


def _counts(config: Mapping[str, Any]) -> bool:
    """True if timm's config.json has the number of classes."""
    places = (config, config.get("pretrained_cfg") or {}, config.get("model_args") or {})
    return any(place.get(key) is not None for place in places for key in ("num_classes", "num_labels"))


def _count_of_timm(config: Mapping[str, Any]) -> int:
    return num_classes(config, model_args(config), pretrained_cfg(config))


def _without(config: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Remove keys from timm's config.json, wherever it has them."""

    def kept(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in keys}

    nested = {key: kept(config[key]) for key in ("pretrained_cfg", "model_args") if isinstance(config.get(key), dict)}
    return kept(config) | nested
