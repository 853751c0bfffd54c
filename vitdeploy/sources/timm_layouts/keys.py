"""Keys of timm's config.json, and their effects.

tests/sources/layouts/test_timm_forms.py compares the tables with timm's `PretrainedCfg` and model constructors, and
with transformers' `TimmWrapperConfig`.
"""

from __future__ import annotations

from typing import Literal

# "applied": affects the bundle's model, labels or image processor. "carried": copied to the bundle's config.json.
# "compared": must agree with the weights. "no effect": changes no result of timm's evaluation. "refused": may change a
# result; only the values in `PLAIN`, which mean a plain model, are accepted.
Fate = Literal["applied", "carried", "compared", "no effect", "refused"]

# At the top level, of timm and of transformers' wrapper around it.
CONFIG: dict[str, Fate] = {
    "architecture": "applied",
    "architectures": "applied",  # TimmWrapperModel has no head
    "model_type": "applied",  # timm_wrapper
    "model_args": "applied",
    "pretrained_cfg": "applied",
    "global_pool": "applied",  # if model_args has none; timm treats it as information only
    "num_classes": "applied",
    "num_labels": "applied",  # if there is no num_classes
    "label_names": "applied",
    "label_descriptions": "applied",  # not by the wrapper
    "labels": "applied",  # the former name of label_names
    "id2label": "applied",  # if there are no label_names, as in the wrapper
    "label2id": "no effect",  # derived from id2label
    "problem_type": "carried",
    "function_to_apply": "no effect",  # transformers reads it only if there are no labels
    "num_features": "no effect",  # the weights' width
    "do_pooling": "no effect",  # a selection of outputs: pooler_output exists if timm pools
    "initializer_range": "no effect",  # of new weights
    "dtype": "no effect",  # a bundle's weights are float32
    "torch_dtype": "no effect",
    "transformers_version": "no effect",
    "_name_or_path": "no effect",
    "chunk_size_feed_forward": "no effect",
    "is_encoder_decoder": "no effect",
    "output_attentions": "no effect",
    "output_hidden_states": "no effect",
    "return_dict": "no effect",
}

# In pretrained_cfg or, in timm's first configurations, at the top level. Other keys are refused, as in timm.
PRETRAINED_CFG: dict[str, Fate] = {
    "input_size": "applied",
    "fixed_input_size": "applied",
    "interpolation": "applied",
    "crop_pct": "applied",
    "crop_mode": "applied",
    "mean": "applied",
    "std": "applied",
    "num_classes": "applied",  # if the top level has none
    "classifier": "applied",  # the layers that label_offset applies to
    "label_offset": "applied",  # not by the wrapper, whose weights already reflect it
    "label_names": "applied",
    "label_descriptions": "applied",
    "labels": "applied",
    "hf_hub_filename": "refused",  # weights other than those read here
    "state_dict": "refused",
    # timm's scripts use the test sizes only on request; its model cards and transformers do not.
    "test_input_size": "no effect",
    "test_crop_pct": "no effect",
    "test_pool_size": "no effect",
    "min_input_size": "no effect",
    "pool_size": "no effect",
    "first_conv": "no effect",  # for weights with another number of channels than the model's
    "custom_load": "no effect",  # files of other formats, named by hf_hub_filename
    "url": "no effect",
    "file": "no effect",
    "hf_hub_id": "no effect",
    "hf_hub": "no effect",  # its former name
    "source": "no effect",
    "architecture": "no effect",  # the top level takes precedence
    "tag": "no effect",
    "license": "no effect",
    "description": "no effect",
    "origin_url": "no effect",
    "source_url": "no effect",  # its former name
    "paper_name": "no effect",
    "paper": "no effect",  # its former name
    "paper_ids": "no effect",
    "notes": "no effect",
}

# Arguments of the constructors and the factory. Other keys are refused, as in timm.
MODEL_ARGS: dict[str, Fate] = {
    **dict.fromkeys(
        ("img_size", "num_classes", "num_heads", "global_pool", "fc_norm", "use_fc_norm", "class_token",
         "dynamic_img_size"),
        "applied",
    ),
    **dict.fromkeys(
        ("in_chans", "embed_dim", "depth", "patch_size", "mlp_ratio", "qkv_bias", "init_values", "reg_tokens",
         "no_embed_class", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias"),
        "compared",
    ),
    **dict.fromkeys(
        ("weight_init", "fix_init", "head_init_scale", "drop_rate", "pos_drop_rate", "patch_drop_rate",
         "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
        "no effect",  # on an evaluation
    ),
    **dict.fromkeys(
        ("pos_embed", "pre_norm", "final_norm", "pool_include_prefix", "qk_norm", "scale_attn_norm",
         "scale_mlp_norm", "scale_mlp", "swiglu_mlp", "proj_bias", "dynamic_img_pad", "norm_layer", "embed_norm_layer",
         "act_layer", "embed_layer", "block_fn", "mlp_layer", "attn_layer", "use_naflex", "pruned", "features_only",
         "out_indices", "feature_cls", "device", "dtype"),
        "refused",
    ),
}  # fmt: skip
# The same for timm's class `Eva`.
EVA_ARGS: dict[str, Fate] = {
    **dict.fromkeys(
        ("img_size", "num_classes", "num_heads", "global_pool", "use_fc_norm", "use_post_transformer_norm",
         "dynamic_img_size", "use_rot_pos_emb", "ref_feat_shape", "rope_grid_offset", "rope_grid_indexing",
         "rope_temperature", "rope_rotate_half", "attn_pool_num_heads"),
        "applied",
    ),
    **dict.fromkeys(
        ("in_chans", "embed_dim", "depth", "patch_size", "mlp_ratio", "qkv_bias", "qkv_fused", "init_values",
         "class_token", "no_embed_class", "use_abs_pos_emb", "attn_type", "swiglu_mlp", "scale_mlp",
         "scale_attn_inner", "use_pre_transformer_norm", "attn_pool_mlp_ratio"),
        "compared",
    ),
    **dict.fromkeys(
        ("head_init_scale", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
         "drop_path_rate", "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"),
        "no effect",  # on an evaluation
    ),
    **dict.fromkeys(
        ("num_kv_heads", "qk_norm", "swiglu_align_to", "norm_layer", "attn_only_layer_scale", "num_reg_tokens",
         "rope_type", "rope_mrope_section", "use_post_norm", "dynamic_img_pad", "use_naflex", "pruned",
         "features_only", "out_indices", "feature_cls", "device", "dtype"),
        "refused",
    ),
}  # fmt: skip
# The same for its DINOv3: other values of their registered arguments would be another model.
DINOV3_ARGS: dict[str, Fate] = {
    **EVA_ARGS,
    **dict.fromkeys(("num_reg_tokens",), "compared"),
    **dict.fromkeys(("swiglu_align_to", "no_embed_class", "ref_feat_shape"), "no effect"),
    **dict.fromkeys(
        ("class_token", "use_abs_pos_emb", "use_rot_pos_emb", "rope_rotate_half", "rope_grid_offset",
         "rope_grid_indexing", "use_fc_norm", "use_post_transformer_norm", "qkv_fused", "attn_type", "scale_mlp",
         "scale_attn_inner", "use_pre_transformer_norm", "attn_pool_num_heads", "attn_pool_mlp_ratio"),
        "refused",
    ),
}  # fmt: skip
# Arguments for which null means the default.
NULLABLE = {"fc_norm", "use_fc_norm", "init_values", "norm_layer", "embed_norm_layer", "act_layer", "use_naflex"}
# Not those that timm's registry sets for an architecture.
EVA_NULLABLE = {"num_kv_heads", "rope_mrope_section", "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"}
# Values of "refused" arguments that are accepted: those of a plain model.
PLAIN: dict[str, tuple[object, ...]] = {
    "pos_embed": ("learn",),
    "pre_norm": (False,),
    "final_norm": (True,),
    "pool_include_prefix": (False,),
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "scale_mlp": (False,),
    "swiglu_mlp": (False,),
    "proj_bias": (True,),
    "dynamic_img_pad": (False,),
    "act_layer": ("gelu",),
    "use_naflex": (False,),
    "pruned": (False,),
    "features_only": (False,),
}
EVA_PLAIN: dict[str, tuple[object, ...]] = {
    "qk_norm": (False,),
    "swiglu_align_to": (0,),
    "attn_only_layer_scale": (False,),
    "num_reg_tokens": (0,),
    "rope_type": ("cat",),
    "use_post_norm": (False,),
    "dynamic_img_pad": (False,),
    "use_naflex": (False,),
    "pruned": (False,),
    "features_only": (False,),
}
DINOV3_PLAIN: dict[str, tuple[object, ...]] = {
    **{key: plain for key, plain in EVA_PLAIN.items() if DINOV3_ARGS[key] == "refused"},
    "rope_type": ("dinov3",),
    "class_token": (True,),
    "use_abs_pos_emb": (False,),
    "use_rot_pos_emb": (True,),
    "rope_rotate_half": (True,),
    "rope_grid_offset": (0.0,),
    "rope_grid_indexing": ("ij",),
    "use_fc_norm": (False,),
    "use_post_transformer_norm": (True,),
    "qkv_fused": (True,),
    "attn_type": ("eva",),
    "scale_mlp": (False,),
    "scale_attn_inner": (False,),
    "use_pre_transformer_norm": (False,),
}
