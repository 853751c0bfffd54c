"""Embeddings of a feature extractor, and a classifier of them and class embeddings: no text tower is needed."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import torch

from vitdeploy.errors import InputError
from vitdeploy.files.json_text import json_file
from vitdeploy.models.checkpoint import architecture_of
from vitdeploy.models.families.lookup import encoder_keys
from vitdeploy.models.signature import output_specs
from vitdeploy.models.zero_shot import with_classes
from vitdeploy.specs import EMBEDS, ZERO_SHOT, ZERO_SHOT_NOTE

if TYPE_CHECKING:
    from vitdeploy.sources.class_embeddings import ClassEmbeddings
    from vitdeploy.sources.read import Checkpoint
    from vitdeploy.specs import Pool

# Of a config.json, in the root of a bundle.
_NOTE = (
    "logits are the normalized image_embeds times zero_shot.weight plus zero_shot.bias, both in model.safetensors; "
    "transformers reads the encoder alone"
)


def with_embedding(checkpoint: Checkpoint, pool: Pool | None, *, normalize: bool) -> Checkpoint:
    """The checkpoint with the output `image_embeds`, recorded in its `config.json`; its model is changed in place.

    Args:
        checkpoint: A feature-extraction model.
        pool: Pooling. Default: that in its `config.json`, if it is a bundle exported with one; else the model's.
        normalize: Divide the vectors by their L2 norms.

    Raises:
        UsageError: As `VisionTransformer.embed_by`.
    """
    model = checkpoint.model
    model.embed_by(pool or model.config.embedding_pool, normalize=normalize)
    data = json.loads(checkpoint.files["config.json"])
    encoder_keys(data).update(embedding_pool=model.config.embedding_pool, normalize_embedding=normalize)
    return dataclasses.replace(checkpoint, files=checkpoint.files | {"config.json": json_file(data)})


def zero_shot(checkpoint: Checkpoint, classes: ClassEmbeddings, pool: Pool | None) -> Checkpoint:
    """The checkpoint as a classifier of these classes.

    Its logits are the cosines of the image embedding and the class embeddings, times the scale, plus the bias. The
    classes' file is recorded beside the weights.

    Args:
        checkpoint: A feature-extraction model.
        classes: The classes.
        pool: Pooling of the image embedding; see `with_embedding`.

    Raises:
        InputError: If their vectors are not as long as the image embedding.
        UsageError: If the model has no such pooling.
    """
    checkpoint = with_embedding(checkpoint, pool, normalize=True)
    (spec,) = output_specs(checkpoint.model, (EMBEDS,))
    width = spec.shape[-1]
    if classes.width != width:
        raise InputError(
            f"{classes.path} has vectors of {classes.width} values, and the image embedding of "
            f"{checkpoint.source.id} has {width}",
            what="vectors", where=classes.path, expected=width, found=classes.width,
            hint="make them with the text tower of this model, or choose another pooling",
        )  # fmt: skip
    weight, bias = torch.from_numpy(classes.weight), torch.from_numpy(classes.bias)
    model = with_classes(checkpoint.model, classes.names, weight, bias, classes.problem_type)
    data = json.loads(checkpoint.files["config.json"])
    data |= {
        "architectures": [architecture_of(model)],
        "id2label": {str(index): name for index, name in enumerate(classes.names)},
        "label2id": {name: index for index, name in enumerate(classes.names)},
        "problem_type": classes.problem_type.in_config,
        ZERO_SHOT: True,
        ZERO_SHOT_NOTE: _NOTE,
    }
    data.pop("num_labels", None)
    source = checkpoint.source
    source = dataclasses.replace(source, weights=(*source.weights, classes.file))
    files = checkpoint.files | {"config.json": json_file(data)}
    return dataclasses.replace(checkpoint, source=source, model=model, files=files)
