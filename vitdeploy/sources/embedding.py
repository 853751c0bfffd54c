"""Give a checkpoint's model the output `image_embeds`, with the requested pooling."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from vitdeploy.models.config import encoder_keys

if TYPE_CHECKING:
    from vitdeploy.sources.read import Checkpoint
    from vitdeploy.specs import Pool


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
    content = (json.dumps(data, indent=2) + "\n").encode()
    return dataclasses.replace(checkpoint, files={**checkpoint.files, "config.json": content})
