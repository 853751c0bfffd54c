"""Every key of transformers' configurations is in a table, and the table tells the truth about its effect."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import logging
import re
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from families import HEADS, OF_TRANSFORMERS, Head, random_config
from families import TINY as VIT_TINY
from raising import raises
from torch import Tensor
from transformers.generation import GenerationConfig

from models.parity import TOLERANCES, answers, images, masks
from vitdeploy.errors import CheckpointError
from vitdeploy.models.checkpoint import make_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.families.config_keys import COMMON, OF_FAMILY, RULES, Effect
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.models.weights import read_weights
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from conftest import Checkpoint, WriteCheckpoint

BY_FAMILY = pytest.mark.parametrize("family", OF_TRANSFORMERS)
CLASSES: dict[str, Any] = {
    head.family: getattr(transformers, head.name).config_class for head in HEADS if head.task is Task.FEATURES
}
TEXT = re.compile("(CLIP|Siglip)Text|CLIPModel$")  # classes with a text encoder
# Of PretrainedConfig in transformers 4 (4.57, configuration_utils.py), which wrote most files of the Hub.
OF_TRANSFORMERS_4 = """
    return_dict output_hidden_states torchscript dtype torch_dtype tf_legacy_loss pruned_heads tie_word_embeddings
    chunk_size_feed_forward is_encoder_decoder is_decoder cross_attention_hidden_size add_cross_attention
    tie_encoder_decoder architectures finetuning_task id2label label2id num_labels task_specific_params problem_type
    tokenizer_class prefix bos_token_id pad_token_id eos_token_id sep_token_id decoder_start_token_id use_bfloat16
    output_attentions _name_or_path _commit_hash _attn_implementation _attn_implementation_autoset transformers_version
    gradient_checkpointing auto_map quantization_config model_type loss_type xla_device use_return_dict
"""


def test_the_families_are_those_that_are_supported() -> None:
    assert OF_FAMILY.keys() == FAMILIES.keys()
    assert set(OF_TRANSFORMERS) == CLASSES.keys()


@BY_FAMILY
def test_every_attribute_of_a_configuration_class_is_in_the_table(family: str) -> None:
    config = CLASSES[family]()
    keys = {*config.to_dict(), *vars(config), *(field.name for field in dataclasses.fields(config))}
    assert keys - RULES[family].keys() == set()


@BY_FAMILY
def test_every_key_that_the_models_read_is_in_the_table(family: str) -> None:
    modules = {module_of(head) for head in HEADS if head.family == family}
    sources = [ast.parse(inspect.getsource(module)).body for module in modules if module is not None]
    images = (node for body in sources for node in body if not TEXT.match(getattr(node, "name", "")))
    read = {key for node in images for key in attributes_read(node)}
    assert len(read) > 10
    known = {key for head in HEADS if module_of(head) in modules for key in RULES[head.family]}
    assert read - {"post_init", "get_text_config"} - known == set()


def module_of(head: Head) -> ModuleType | None:
    """With the class's code; an image tower shares it with the model of two towers."""
    return inspect.getmodule(getattr(transformers, head.name))


def attributes_read(tree: ast.AST) -> Iterator[str]:
    """Of `config` and `self.config`, by attribute or by getattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_config(node.value):
            yield node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            where, name, *_ = node.args
            if _is_config(where) and isinstance(name, ast.Constant):
                yield str(name.value)


def _is_config(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "config") or (
        isinstance(node, ast.Attribute) and node.attr == "config"
    )


def test_what_every_version_reads_by_itself_is_in_the_table() -> None:
    source = inspect.getsource(inspect.getmodule(transformers.PretrainedConfig))  # type: ignore[arg-type]
    (initialize,) = [
        node
        for of_class in ast.parse(source).body
        if isinstance(of_class, ast.ClassDef) and of_class.name == "PreTrainedConfig"
        for node in of_class.body
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
    ]
    keys = {
        node.args[0].value
        for node in ast.walk(initialize)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("kwargs.pop", "kwargs.get")
        and isinstance(node.args[0], ast.Constant)
    }
    assert {"torch_dtype", "num_labels", "per_layer_config"} <= keys
    assert keys - {"rope_scaling", "rope_theta"} - COMMON.keys() == set()  # these are of models of text
    generation: Any = GenerationConfig
    assert generation._get_default_generation_params().keys() - COMMON.keys() == set()
    assert set(OF_TRANSFORMERS_4.split()) - COMMON.keys() == set()


@BY_FAMILY
def test_no_other_keys_are_refused(family: str) -> None:
    assert {key for key, rule in RULES[family].items() if rule.effect is Effect.REFUSED} == set(REFUSED.split())


@BY_FAMILY
def test_a_key_has_one_rule(family: str) -> None:
    assert COMMON.keys() & OF_FAMILY[family].keys() == set()


@BY_FAMILY
def test_defaults_are_those_of_transformers(family: str) -> None:
    """A file without a key, such as that of an older version, means the same here and there."""
    written = CLASSES[family]().to_dict()
    assert ViTConfig.from_dict(written) == dataclasses.replace(
        ViTConfig.from_dict({"model_type": family}), pooler_output_size=written.get("pooler_output_size")
    )


# Values that change what is computed, by the heads that show it.
TINY = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 24, "patch_size": 8,
    "num_labels": 3,
}  # fmt: skip
APPLIED_VALUES: dict[str, Any] = {
    "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_act": "relu",
    "layer_norm_eps": 0.1, "image_size": [24, 32], "patch_size": 6, "num_channels": 1, "head_dim": 12,
    "num_labels": 5, "id2label": {0: "a", 1: "b", 2: "c", 3: "d"}, "intermediate_size": 56, "qkv_bias": False,
    "pooler_act": "relu", "pooler_output_size": 7, "encoder_stride": 4, "use_absolute_position_embeddings": True,
    "use_relative_position_bias": True, "use_shared_relative_position_bias": True, "layer_scale_init_value": 0.0,
    "use_mean_pooling": False, "vocab_size": 11, "mlp_ratio": 3, "use_swiglu_ffn": True, "num_register_tokens": 2,
    "query_bias": False, "key_bias": True, "value_bias": False, "proj_bias": False, "mlp_bias": False,
    "use_gated_mlp": True, "rope_theta": 10.0, "projection_dim": 9, "vision_use_head": False,
}  # fmt: skip
OURS = {"position_antialias", "relative_position_interpolation", "embedding_pool", "normalize_embedding", "zero_shot"}
# The keys of a tower have cases of their own.
NOT_COMPUTED = {"model_type", "architectures", "problem_type", "vision_config", "vision_config_dict", *OURS}
NOT_COMPUTED |= {"apply_layernorm"}  # of backbones: see test_dense.py
HEADS_OF_KEY = {
    "pooler_act": Task.FEATURES, "pooler_output_size": Task.FEATURES, "encoder_stride": Task.MASKED_IMAGE_MODELING,
    "vocab_size": Task.MASKED_IMAGE_MODELING, "projection_dim": Task.FEATURES,
    "num_labels": Task.CLASSIFICATION, "id2label": Task.CLASSIFICATION,
}  # fmt: skip


def config_of(head: Head, **keys: Any) -> dict[str, Any]:
    """A tiny configuration of a head."""
    config: dict[str, Any] = {**TINY}
    if head.family not in ("dinov2", "dinov2_with_registers"):
        config["intermediate_size"] = 40
    if head.task is Task.MASKED_IMAGE_MODELING:
        config |= {"use_mask_token": True, "vocab_size": 17} if head.family == "beit" else {"encoder_stride": 8}
    if head.family == "vit_mae":
        config |= {
            key: value for key, value in random_config(head, 0).items() if "decoder" in key or key == "mask_ratio"
        }
    return config | keys


def head_of(family: str, task: Task | None) -> Head:
    heads = [head for head in HEADS if head.family == family and not head.name.endswith(("WithTeacher", "PreTraining"))]
    found = [head for head in heads if head.task is task]
    return found[0] if found else heads[0]


def both(checkpoint: Checkpoint, head: Head, model: VisionTransformer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs of transformers' model and of the reference."""
    peer = head.exported(checkpoint.peer)
    height, width = checkpoint.config.image_size
    pixels = images(2, checkpoint.config.num_channels, height, width)
    options: dict[str, Any] = {}
    if head.task is Task.MASKED_IMAGE_MODELING and head.family == "beit":
        options = {"bool_masked_pos": masks(2, checkpoint.config.num_patches)}
    if head.family == "vit_mae":
        options = {"noise": torch.arange(checkpoint.config.num_patches, dtype=torch.float32).expand(2, -1)}
    want, got = answers(peer, pixels, **options), model(pixels, options.get("bool_masked_pos"))
    return {name: want[name] for name in got}, got


def assert_equal(want: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        assert (got[name] - value).abs().max() <= TOLERANCES[torch.float32] * value.abs().max(), name


APPLIED_CASES = [
    (family, key)
    for family in OF_TRANSFORMERS
    for key, rule in RULES[family].items()
    if rule.effect is Effect.APPLIED and key not in NOT_COMPUTED
    if HEADS_OF_KEY.get(key) in (None, *FAMILIES[family].architectures.values())  # of a head that it has
]


@pytest.mark.parametrize(("family", "key"), APPLIED_CASES)
def test_what_is_applied_is_so_as_in_transformers(write_checkpoint: WriteCheckpoint, family: str, key: str) -> None:
    head = head_of(family, HEADS_OF_KEY.get(key, Task.CLASSIFICATION))
    keys = {"num_labels": None} if key == "id2label" else {}
    value = APPLIED_VALUES[key]
    if key == "image_size" and family.startswith(("dinov2", "clip", "siglip")):
        value = 40  # transformers takes square ones alone there
    config = config_of(head, **keys, **{key: value})
    checkpoint = write_checkpoint(head, {name: value for name, value in config.items() if value is not None})
    want, got = both(checkpoint, head, checkpoint.load())
    assert_equal(want, got)
    usual = write_checkpoint(head, config_of(head))
    plain, _ = both(usual, head, usual.load())
    name = next(iter(want)) if not key.startswith("pooler_") else "pooler_output"
    same = (
        want.keys() == plain.keys() and want[name].shape == plain[name].shape and torch.equal(want[name], plain[name])
    )
    assert not same, f"{key} changes nothing that could show whether it is applied"


# Values that are not the defaults, of keys that change nothing. Those of `OTHER` are no business of a model.
CARRIED_VALUES: dict[str, Any] = {
    "zero_shot_note": "none",
    "label2id": {"x": 0}, "function_to_apply": "sigmoid", "attention_probs_dropout_prob": 0.5,
    "hidden_dropout_prob": 0.5, "drop_path_rate": 0.4, "initializer_range": 1.5, "gradient_checkpointing": True,
    "loss_type": "ForTokenClassification", "name_or_path": "somewhere", "finetuning_task": "x",
    "task_specific_params": {"x": 1}, "tokenizer_class": "X", "prefix": "x",
    "custom_pipelines": {"x": {"impl": "x.X"}}, "output_hidden_states": True, "attn_implementation": "eager",
    "chunk_size_feed_forward": 2, "use_cache": True, "tie_word_embeddings": True, "tie_encoder_decoder": True,
    "cross_attention_hidden_size": 8, "tf_legacy_loss": True, "use_bfloat16": True, "bos_token_id": 1,
    "pad_token_id": 1, "eos_token_id": 1, "sep_token_id": 1, "decoder_start_token_id": 1, "temperature": 0.5,
    "num_beams": 4, "out_indices": [1], "out_features": ["stage1"], "reshape_hidden_states": False,
    "layerscale_value": 0.3, "use_mask_token": False, "pool_scales": [1, 2],
    "use_auxiliary_head": False, "auxiliary_loss_weight": 0.9, "auxiliary_channels": 8, "auxiliary_num_convs": 2,
    "auxiliary_concat_input": True, "semantic_loss_ignore_index": 1, "norm_pix_loss": True, "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 8,
    "attention_dropout": 0.5, "pos_embed_shift": 0.1, "pos_embed_jitter": 1.1, "pos_embed_rescale": 1.5,
    "return_class_token": True, "initializer_factor": 2.0, "vision_config": {"hidden_size": 7},
    "text_config": {"hidden_size": 16}, "text_config_dict": {"hidden_size": 24}, "logit_scale_init_value": 1.5,
    "dropout": 0.5, "pooler_act": "relu", "pooler_output_size": 5,
}  # fmt: skip
# Where files come from, what is returned, how kernels are chosen, and texts: no business of a model of images, and
# transformers sets some of these itself. Written out, so that no key gets here by a change of the table.
OTHER = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _experts_implementation_internal _name_or_path _output_attentions _post_init_done
    assistant_confidence_threshold assistant_lookbehind bad_words_ids base_model_pp_plan base_model_tp_plan
    begin_suppress_tokens distributed_config diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff experts_implementation
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id fusion_config length_penalty
    max_length min_length no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_return_sequences output_attentions output_scores remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate suppress_tokens target_lookbehind top_k top_p
    torch_dtype torchscript transformers_version typical_p use_return_dict xla_device
"""
REFUSED = """
    add_cross_attention auto_map compression_config is_decoder is_encoder_decoder per_layer_config pruned_heads
    quantization_config tie_last_hidden_states transformers_weights
"""
CARRIED_CASES = [
    (family, key)
    for family in OF_TRANSFORMERS
    for key, rule in RULES[family].items()
    if rule.effect is Effect.CARRIED and key not in OTHER.split()
    # of a backbone's or a segmentation's class: not written, or one with another; the others of theirs are here
    if key not in ("_out_features", "_out_indices", "stage_names", "segmentation_indices", "add_fpn", "mask_ratio")
]


@pytest.mark.parametrize(("family", "key"), CARRIED_CASES)
def test_what_is_carried_changes_nothing_in_transformers_either(
    write_checkpoint: WriteCheckpoint, family: str, key: str
) -> None:
    head = head_of(family, Task.CLASSIFICATION)
    checkpoint = write_checkpoint(head, config_of(head))
    kind = type(checkpoint.peer)
    peer = kind(kind.config_class(**head.arguments(config_of(head, **{key: CARRIED_VALUES[key]}))))
    report = peer.eval().load_state_dict(checkpoint.peer.state_dict(), strict=False)
    assert not report.missing_keys or key.startswith("decoder_")
    plain, ours = both(checkpoint, head, checkpoint.load())
    config = ViTConfig.from_dict({**peer.config.to_dict(), key: CARRIED_VALUES[key]})
    _, got = both(checkpoint, head, make_model(config, read_weights(checkpoint.weights), head.task, origin="here"))
    want, _ = both(dataclasses.replace(checkpoint, peer=peer), head, checkpoint.load())
    for answer in (want, ours, got):
        assert_equal(plain, answer)


@pytest.mark.parametrize("key", REFUSED.split())
def test_what_is_not_built_is_refused(key: str) -> None:
    value: Any = {"0": [1]}
    accepted: list[Any] = [None, False, {}]
    for harmless in accepted:
        assert ViTConfig.from_dict({"model_type": "vit", key: harmless}) == ViTConfig()
    with raises(CheckpointError, what=key, where="config.json", found=value):
        ViTConfig.from_dict({"model_type": "vit", key: value})


def test_a_key_of_no_table_is_named_once(write_checkpoint: WriteCheckpoint, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = write_checkpoint(Task.CLASSIFICATION, {**VIT_TINY, "use_rope": True, "mlp_ratio": 2})
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(checkpoint.folder)
    with caplog.at_level(logging.WARNING, logger="vitdeploy"):
        read_checkpoint(checkpoint.folder)
    (record,) = caplog.records
    assert "mlp_ratio, use_rope" in record.getMessage()
    pixels = images(1, 3, 32, 32)
    assert_equal(dict(answers(checkpoint.peer, pixels)), checkpoint.load()(pixels))


def test_real_configurations_have_no_unknown_keys(
    write_checkpoint: WriteCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="vitdeploy"):
        for head in HEADS:
            checkpoint = write_checkpoint(head, config_of(head))
            height, width = checkpoint.config.image_size
            transformers.ViTImageProcessorPil(size={"height": height, "width": width}).save_pretrained(
                checkpoint.folder
            )
            read_checkpoint(checkpoint.folder)
    # `read_checkpoint` itself says that a text encoder is left out
    assert {record.name for record in caplog.records if record.name.startswith("vitdeploy")} == {
        "vitdeploy.sources.read"
    }
