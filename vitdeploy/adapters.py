"""Adapters of PEFT, beside weights or alone: find the base, merge them, and configure the merged model."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError, HubError, MissingDependencyError, UsageError
from vitdeploy.hub import CheckpointFiles, local_path, resolve
from vitdeploy.labels import class_names
from vitdeploy.layouts.peft_adapter import merge
from vitdeploy.layouts.peft_config import LoraConfig
from vitdeploy.layouts.timm_layout import is_timm
from vitdeploy.models.checkpoint import task_of
from vitdeploy.models.config import read_json
from vitdeploy.models.families import FAMILIES, Family
from vitdeploy.models.names import our_names
from vitdeploy.models.weights import read_weights
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from vitdeploy.layouts.peft_adapter import Canonical

_LABELS = ("id2label", "label2id", "num_labels")
_TIMM_LABELS = ("label_names", "label_descriptions", "num_classes")
_HEADS = ("head.classifier.weight", "head.cls_classifier.weight", "head.weight")  # ours, and timm's
_TIMM_WRAPPER = "timm_model."


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter, of which the weights have not been read.

    Attributes:
        files: where the adapter is.
        base: where its base is; the same files where it lies beside the base's weights.
        config: what its adapter_config.json says.
    """

    files: CheckpointFiles
    base: CheckpointFiles
    config: LoraConfig

    @classmethod
    def find(cls, files: CheckpointFiles, hub_options: Mapping[str, Any]) -> Adapter:
        """The adapter in `files`, with its base: the weights beside it, else the model that it names.

        Raises:
            CheckpointError: the adapter cannot be merged, or names no base, or one that is not there.
            HubError: the base is on the Hub, which cannot be reached.
        """
        try:
            config = LoraConfig.from_dict(read_json(files.adapter[0]))
        except CheckpointError as exc:
            raise CheckpointError(f"{files.folder}: {exc}") from exc
        if files.weights:
            return cls(files, files, config)
        what = f"'{files.model_id}' is an adapter without its base"
        if not config.base:
            raise CheckpointError(
                f"{what}, and its adapter_config.json names none (base_model_name_or_path); name the base there"
            )
        try:
            revision = None if local_path(config.base) is not None else config.base_revision
            base = resolve(config.base, **{**hub_options, "revision": revision})
        except (CheckpointError, HubError, UsageError) as exc:
            kind = HubError if isinstance(exc, HubError) else CheckpointError
            raise kind(
                f"{what} '{config.base}', which is not available: {exc}; download it, or correct "
                f"base_model_name_or_path in {files.adapter[0]}"
            ) from exc
        if base.adapter:
            raise CheckpointError(f"{what}: '{config.base}' is, or has, an adapter itself; merge that one first")
        return cls(files, base, config)

    @property
    def is_alone(self) -> bool:
        """Whether the base's weights lie elsewhere."""
        return self.base is not self.files

    def merge(
        self, config: dict[str, Any], weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor], str]:
        """The content of the merged model's config.json, its weights, and one line that says what was done.

        A config.json beside an adapter that is alone is that of the model it was trained in: its keys go first. Without
        it, a head that the adapter replaces by one with another number of classes gets the names LABEL_0 ...

        Args:
            config: the content of the base's config.json, of transformers or timm.
            weights: the base's tensors, under the names of that library.

        Raises:
            CheckpointError: the adapter does not fit the base.
        """
        stated = self._stated_config(config)
        names = _TIMM_LABELS if is_timm(config) else _LABELS
        says_labels = any(key in stated for key in names)
        if says_labels:
            config = {key: value for key, value in config.items() if key not in names}
        config = config | stated
        origin = str(self.files.adapter[1])
        canonical = _timm_names if is_timm(config) else functools.partial(our_names, _family(config))
        tensors = read_weights(self.files.adapter[1:])
        merged = merge(weights, tensors, self.config, canonical, origin)
        self._check_not_merged_before(weights, tensors, canonical)
        heads = {ours: name for name, ours in canonical(merged.weights).items() if ours in _HEADS}
        trained = [merged.weights[heads[ours]] for ours in merged.replaced if ours in heads]
        classes = next((len(weight) for weight in trained if weight.ndim), None)
        if is_timm(config):
            if classes is not None and not says_labels and classes != config.get("num_classes"):
                config = _timm_classes(config, classes)
        else:
            config = self._with_head(config, None if says_labels else classes, classified=classes is not None)
        whole = f" and {len(merged.replaced)} tensors replaced" if merged.replaced else ""
        beside = f"'{self.config.base}'" if self.is_alone else "the weights beside it"
        return (
            config,
            merged.weights,
            f"merged the LoRA adapter into {beside}: {len(merged.adapted)} weights changed{whole}",
        )

    def _check_not_merged_before(
        self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], canonical: Canonical
    ) -> None:
        """Refuse an adapter beside weights that have it already, as far as can be told: by the base that it names.

        `merge_and_unload().save_pretrained(FOLDER)` leaves an adapter that is in the folder where it is.
        """
        if self.is_alone or not self.config.base:
            return
        try:
            named = resolve(self.config.base, offline=True)
            base = read_weights(named.weights)
            merged = merge(base, tensors, self.config, canonical, str(self.files.adapter[1]))
        except (CheckpointError, HubError, UsageError, MissingDependencyError):
            return
        models = (weights, base, merged.weights)
        ours, before, after = ({own: model[name] for name, own in canonical(model).items()} for model in models)
        to_base = sum(_squared_distance(ours[name], before[name]) for name in merged.adapted)
        to_merged = sum(_squared_distance(ours[name], after[name]) for name in merged.adapted)
        if to_merged < to_base:
            raise CheckpointError(
                f"{self.files.folder}: the weights are those of the base '{self.config.base}' with the adapter merged; "
                f"remove {' and '.join(path.name for path in self.files.adapter)}"
            )

    def _stated_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        path = self.files.folder / "config.json"
        if not self.is_alone or not path.exists():
            return {}
        stated = read_json(path)
        for key in ("architecture",) if is_timm(config) else ("model_type",):
            if stated.get(key, config.get(key)) != config.get(key):
                raise CheckpointError(
                    f"{path}: {key} is {stated[key]!r:.80}, but the base '{self.config.base}' has "
                    f"{config.get(key)!r:.80}; the adapter belongs to another base"
                )
        return stated

    def _with_head(self, config: dict[str, Any], classes: int | None, *, classified: bool) -> dict[str, Any]:
        """The configuration of transformers with the class of the model that was trained, and its classes."""
        family, model_class = _family(config), self.config.model_class
        if model_class not in family.architectures and any(
            model_class in row.architectures for row in FAMILIES.values()
        ):
            raise CheckpointError(
                f"{self.files.adapter[0]}: the adapter was trained in {model_class}, which a {config['model_type']} is "
                f"not; merge it with peft, and save the merged model"
            )
        if model_class in family.architectures:
            config = {**config, "architectures": [model_class]}
        elif classified and not _classifies(config):
            names = [name for name, task in family.architectures.items() if task is Task.CLASSIFICATION]
            config = {**config, "architectures": names[:1]}
        if classes is not None and classes != len(class_names(config)):
            config = {key: value for key, value in config.items() if key not in _LABELS} | {"num_labels": classes}
        return config


def _squared_distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


def _family(config: Mapping[str, Any]) -> Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"config.json: model_type must be one of {', '.join(FAMILIES)}, got {model_type!r:.80}")
    return FAMILIES[model_type]


def _classifies(config: Mapping[str, Any]) -> bool:
    try:
        return task_of(config) is Task.CLASSIFICATION
    except CheckpointError:
        return False


def _timm_names(names: Iterable[str]) -> dict[str, str]:
    return {name: name.removeprefix(_TIMM_WRAPPER) for name in names}


def _timm_classes(config: dict[str, Any], classes: int) -> dict[str, Any]:
    """A config.json of timm for a head of another size, whose classes have no names."""

    def without(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in _TIMM_LABELS}

    config = without(config) | {"num_classes": classes}
    for key in ("pretrained_cfg", "model_args"):
        if isinstance(config.get(key), dict):
            config[key] = without(config[key])
    return config
