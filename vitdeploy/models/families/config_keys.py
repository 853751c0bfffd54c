"""Keys in the `config.json` of supported families, and their effects.

The keys are those of transformers 4 and 5: `PretrainedConfig` and each family's configuration class. A key that a
family does not have in transformers has no effect there or here; `note_unknown_keys` logs it.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from vitdeploy.errors import UsageError, shown
from vitdeploy.models.families.table import FAMILIES

logger = logging.getLogger(__name__)


class Effect(enum.Enum):
    APPLIED = "changes the computation, as in transformers"
    CARRIED = "stays in the bundle's config.json, without effect on the computation"
    REFUSED = "would change the computation, and is not built: only null, false or an empty value is accepted"


class KeyRule(NamedTuple):
    """The effect of a key, and its purpose, or the remedy if it is refused."""

    effect: Effect
    why: str


def _rules(*groups: tuple[Effect, str, str]) -> dict[str, KeyRule]:
    """The rule of each key, from groups of space-separated keys."""
    return {key: KeyRule(effect, why) for effect, why, keys in groups for key in keys.split()}


_APPLIED, _CARRIED, _REFUSED = Effect

ENCODER = _rules(
    (_APPLIED, "the architecture", """hidden_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps
        image_size patch_size num_channels"""),
    (_APPLIED, "how positions are resized: keys of vitdeploy's own", """position_antialias
        relative_position_interpolation"""),
    (_APPLIED, "the output image_embeds: keys of vitdeploy's own", "embedding_pool normalize_embedding"),
    (_APPLIED, "a head of class embeddings: a key of vitdeploy's own", "zero_shot"),
)  # fmt: skip
COMMON = _rules(
    (_APPLIED, "the family, the class of the model and with it the task", "model_type architectures"),
    (_APPLIED, "the names of the outputs", "id2label num_labels"),
    (_APPLIED, "the scores of a classifier", "problem_type"),
    (_CARRIED, "for readers: what a zero-shot classifier is", "zero_shot_note"),
    (_CARRIED, "the inverse of id2label", "label2id"),
    (_CARRIED, "read by the pipeline only where a model has no labels", "function_to_apply"),
    (_CARRIED, "weights are read as float32, whatever their type", "dtype torch_dtype use_bfloat16"),
    (_CARRIED, "training", """attention_probs_dropout_prob hidden_dropout_prob initializer_range gradient_checkpointing
        loss_type"""),
    (_CARRIED, "where the file came from", """_name_or_path name_or_path _commit_hash transformers_version
        finetuning_task task_specific_params tokenizer_class prefix custom_pipelines"""),
    (_CARRIED, "which outputs are returned, and as what: `--outputs` chooses them here", """output_attentions
        output_hidden_states return_dict use_return_dict torchscript"""),
    (_CARRIED, "which kernels run the same formulas, and where", """_attn_implementation attn_implementation
        _attn_implementation_autoset _attn_implementation_internal _experts_implementation experts_implementation
        _experts_implementation_internal _output_attentions chunk_size_feed_forward xla_device base_model_tp_plan
        base_model_pp_plan fusion_config distributed_config"""),
    (_CARRIED, "text", """tie_word_embeddings tie_encoder_decoder cross_attention_hidden_size tf_legacy_loss use_cache
        bos_token_id pad_token_id eos_token_id sep_token_id decoder_start_token_id"""),
    (_CARRIED, "text generation", """max_length min_length do_sample early_stopping num_beams num_beam_groups
        diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
        encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
        forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
        begin_suppress_tokens epsilon_cutoff eta_cutoff encoder_repetition_penalty num_assistant_tokens
        num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind target_lookbehind"""),
    (_CARRIED, "internal to transformers", "_post_init_done"),
    (_REFUSED, "the weights are quantized; export the checkpoint that they were made from, and quantize it here: "
        "--int8, --fp8", "quantization_config compression_config"),
    (_REFUSED, "the model is code in the checkpoint's folder, which is not run; if transformers gives the same without "
        "trust_remote_code, remove the key", "auto_map"),
    (_REFUSED, "attention heads were removed; save the model with zeros in their place", "pruned_heads"),
    (_REFUSED, "layers differ in their configuration, which no layer here does", "per_layer_config"),
    (_REFUSED, "the weights are in a file of another name; rename it to model.safetensors, and remove the key",
        "transformers_weights"),
    (_REFUSED, "decoders and cross-attention are not built; only the encoder is", "is_decoder is_encoder_decoder "
        "add_cross_attention"),
    (_REFUSED, "the last hidden state is given before the final norm; remove the key", "tie_last_hidden_states"),
)  # fmt: skip

_HEAD_DIM = (_APPLIED, "the width of an attention head", "head_dim")
_MLP = (_APPLIED, "the width of the MLP", "intermediate_size")
_BIAS = (_APPLIED, "the bias of queries, keys and values", "qkv_bias")
_POOLER = (_APPLIED, "the pooler", "pooler_act pooler_output_size")
_DECODED = (_APPLIED, "how large a patch masked image modeling decodes a token to", "encoder_stride")
_BACKBONE = (_CARRIED, "the maps of a backbone: `--outputs` chooses dense features here", """out_features out_indices
    _out_features _out_indices stage_names reshape_hidden_states""")  # fmt: skip
_FEATURE_NORM = (_APPLIED, "whether dense features have the final norm", "apply_layernorm")
_STOCHASTIC_DEPTH = (_CARRIED, "training", "drop_path_rate")
_DINOV2 = _rules(
    _HEAD_DIM,
    _BIAS,
    _BACKBONE,
    _FEATURE_NORM,
    _STOCHASTIC_DEPTH,
    (_APPLIED, "the MLP's form and width", "mlp_ratio use_swiglu_ffn"),
    (_CARRIED, "what the scales of layers are before training", "layerscale_value"),
)
_TIMM = _rules(
    _MLP,
    _BIAS,
    (_APPLIED, "tokens and positions", "class_token absolute_positions rotary"),
    (_APPLIED, "norms and scales", "attention_norm mlp_norm final_norm layer_scale"),
    (_APPLIED, "the pooler", "pooling pooler_attention_heads pooler_intermediate_size"),
    (_APPLIED, "the width of image_embeds", "projection_size"),
)
_CLIP = _rules(
    _MLP,
    (_APPLIED, "the width of image_embeds", "projection_dim"),
    (_CARRIED, "training", "attention_dropout dropout initializer_factor"),
    (_CARRIED, "the image encoder in a checkpoint of two encoders", "vision_config"),
)
_CLIP_TOWERS = _rules(
    (_APPLIED, "the image tower: the keys of a clip_vision_model", "vision_config vision_config_dict"),
    (_APPLIED, "the width of image_embeds", "projection_dim"),
    (_CARRIED, "the text tower, which is not exported", "text_config text_config_dict"),
    (_CARRIED, "training", "initializer_factor logit_scale_init_value"),
)
OF_FAMILY: dict[str, dict[str, KeyRule]] = {
    "vit": _rules(_MLP, _HEAD_DIM, _BIAS, _POOLER, _DECODED),
    "deit": _rules(_MLP, _HEAD_DIM, _BIAS, _POOLER, _DECODED),
    "beit": _rules(
        _MLP,
        _HEAD_DIM,
        _BACKBONE,
        _STOCHASTIC_DEPTH,
        (_APPLIED, "positions", "use_absolute_position_embeddings use_relative_position_bias "
            "use_shared_relative_position_bias"),
        (_APPLIED, "whether layers have scales: whether it is above 0", "layer_scale_init_value"),
        (_APPLIED, "the pooling of the classifier", "use_mean_pooling"),
        (_APPLIED, "the number of visual tokens", "vocab_size"),
        (_CARRIED, "whether there is a mask token, which only masked image modeling uses", "use_mask_token"),
        (_CARRIED, "segmentation", """pool_scales use_auxiliary_head auxiliary_loss_weight auxiliary_channels
            auxiliary_num_convs auxiliary_concat_input semantic_loss_ignore_index segmentation_indices add_fpn"""),
    ),
    "vit_mae": _rules(
        _MLP,
        _HEAD_DIM,
        _BIAS,
        (_CARRIED, "pretraining: nothing is masked here, and features are those of the whole image", """mask_ratio
            norm_pix_loss decoder_num_attention_heads decoder_hidden_size decoder_num_hidden_layers
            decoder_intermediate_size"""),
    ),
    "vit_msn": _rules(_MLP, _HEAD_DIM, _BIAS),
    "ijepa": _rules(
        _MLP,
        _HEAD_DIM,
        _BIAS,
        (_CARRIED, "a pooler that no class of a checkpoint has", "pooler_act pooler_output_size"),
    ),
    "dinov2": _DINOV2 | _rules((_CARRIED, "whether there is a mask token, for pretraining alone", "use_mask_token")),
    "dinov3_vit": _rules(
        _MLP,
        _BACKBONE,
        _FEATURE_NORM,
        _STOCHASTIC_DEPTH,
        (_APPLIED, "the biases of linear layers", "query_bias key_bias value_bias proj_bias mlp_bias"),
        (_APPLIED, "the form of the MLP", "use_gated_mlp"),
        (_APPLIED, "tokens", "num_register_tokens"),
        (_APPLIED, "the base of the frequencies of the rotary positions", "rope_theta"),
        (_CARRIED, "what the scales of layers are before training", "layerscale_value"),
        (_CARRIED, "training", "attention_dropout pos_embed_shift pos_embed_jitter pos_embed_rescale"),
        (_CARRIED, "whether a backbone returns the class token", "return_class_token"),
    ),
    "dinov2_with_registers": _DINOV2 | _rules((_APPLIED, "tokens", "num_register_tokens")),
    "clip_vision_model": _CLIP,
    "timm_clip": _CLIP,
    "clip": _CLIP_TOWERS,
    "metaclip_2_vision_model": _CLIP,
    "metaclip_2": _CLIP_TOWERS,
    "chinese_clip": _CLIP_TOWERS,
    "altclip": _CLIP_TOWERS,
    "siglip_vision_model": _rules(
        _MLP,
        (_APPLIED, "whether features are pooled", "vision_use_head"),
        (_CARRIED, "training", "attention_dropout"),
    ),
    "siglip": _rules(
        (_APPLIED, "the image tower: the keys of a siglip_vision_model", "vision_config"),
        (_CARRIED, "the text tower, which is not exported", "text_config"),
        (_CARRIED, "training", "initializer_factor"),
    ),
    "timm_vit": _TIMM
    | _rules((_APPLIED, "tokens", "num_register_tokens"), (_APPLIED, "the form of the MLP", "swiglu")),
    **dict.fromkeys(("timm_eva", "timm_eva02", "timm_perception_encoder"), _TIMM),
}  # fmt: skip

# For every key of a `config.json`; a model with two towers nests the encoder's.
RULES = {
    model_type: COMMON | ({} if FAMILIES[model_type].tower else ENCODER) | rules
    for model_type, rules in OF_FAMILY.items()
}


def check_keys(model_type: str, config: Mapping[str, Any]) -> None:
    """Raise UsageError if a key would change the computation in an unsupported way."""
    for key, rule in RULES[model_type].items():
        if rule.effect is Effect.REFUSED and config.get(key):
            raise UsageError(f"{key} {shown(config[key])} is not supported: {rule.why}", what=key, found=config[key])


def note_unknown_keys(config: Mapping[str, Any]) -> None:
    """Log keys that the family does not have in transformers; they have no effect there or here."""
    model_type = config["model_type"]
    unknown = sorted(config.keys() - RULES[model_type].keys())
    tower = FAMILIES[model_type].tower
    if tower is not None:
        unknown += sorted(config.get(tower.key(config), {}).keys() - RULES[tower.model_type].keys())
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        logger.warning(
            "config.json has keys that a %s model does not have in transformers; like there, they have no effect: %s",
            model_type,
            ", ".join(key[:40] for key in unknown[:8]) + more,
        )
