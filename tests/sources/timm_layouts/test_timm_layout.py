"""timm checkpoints: each becomes transformers' model with timm's results, and what has no equivalent is refused.

tests/golden/make_timm.py wrote the checkpoints and the results with timm itself.
"""

from __future__ import annotations

import copy
import json
import math
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sklearn.datasets
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from raising import raises
from torch import Tensor, nn

from vitdeploy.errors import CheckpointError, InputError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.checkpoint import make_model
from vitdeploy.models.config import ViTConfig, json_size
from vitdeploy.sources.timm_layouts.config import num_channels, read_config
from vitdeploy.sources.timm_layouts.layout import from_timm, is_timm, processor_config
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "timm"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
OWN = (  # transformers has no class for them
    *("clip_classifier", "eva", "dynamic_eva", "pe_"),
    *("siglip_2", "siglip_classifier", "gap_1", "gap_2", "gap_features", "pooled"),
)
OF_TRANSFORMERS = [case for case in CASES if not case.startswith(OWN)]
FIXED = [case for case in OF_TRANSFORMERS if not case.startswith("dynamic")]
WITH_TABLES = [case for case in OF_TRANSFORMERS if not case.startswith(("beit", "dinov3"))]  # of positions
# The same float32 arithmetic in another order, over at most three layers, relative to the largest result.
TOLERANCE = 1e-5
ARCHITECTURES = json.loads((GOLDEN / "architectures.json").read_text())
# Written out on purpose: an architecture that timm adds is refused until somebody has looked at it.
ACCEPTED = (
    r"vit_(tiny|small|base|large|huge|giant|gigantic)_patch\d+_\d+"
    r"|vit_base_patch(16_plus_240|32_plus_256)|vit_base_patch16_224_miil|vit_small_patch16_36x1_224"
    r"|vit_(small|base|large|giant)_patch14_(reg4_)?dinov2|vit_(base|large|giant)_patch14_reg1_tipsv2"
    r"|vit_\w+_clip_(quickgelu_)?\d+|vit_\w+_siglip_(gap_)?\d+"
    r"|vit_(wee|little|mediumd?|betwixt|so150m2?|base|huge|giant)_patch\d+_(reg\d_)?(gap|map)_\d+"
    r"|deit3?_\w+|beit(v2)?_(base|large)_patch16_\d+|eva_large_patch14_\d+"
)
TRANSFORMS = json.loads((GOLDEN / "transforms.json").read_text())


def read(case: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, NDArray[np.float32]]]:
    config = json.loads((GOLDEN / case / "config.json").read_text())
    tensors = safetensors.torch.load_file(GOLDEN / case / "model.safetensors")
    with np.load(GOLDEN / case / "expected.npz") as expected:
        return config, tensors, dict(expected)


def load(content: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> Any:
    """Transformers' own class with the converted weights, which must be exactly those that it has."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    cls = getattr(transformers, content["architectures"][0])
    model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    pooled = content["architectures"][0] in ("ViTModel", "DeiTModel")
    pooler = {"pooler.dense.weight", "pooler.dense.bias"} if pooled else set()
    assert set(info["missing_keys"]) == pooler  # timm has no such layer; last_hidden_state does not use it
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def check(model: Any, pixels: Tensor, expected: dict[str, NDArray[np.float32]], key: str) -> None:
    with torch.inference_mode():
        results = model(pixels)
    names = [name for name in ("logits", "pooler_output", "image_embeds") if f"{key}/{name}" in expected]
    for name in names or ["last_hidden_state"]:
        want = expected[f"{key}/{name}"]
        np.testing.assert_allclose(results[name].numpy(), want, rtol=0, atol=TOLERANCE * np.abs(want).max())


def inputs(expected: dict[str, Any], size: str) -> Tensor:
    shape = (2, 3, *map(int, size.split("x")))
    return torch.from_numpy(np.random.default_rng(int(expected["seed"])).standard_normal(shape, np.float32))


def sizes(expected: dict[str, Any]) -> list[str]:
    """As HxW, the one that timm evaluates at first."""
    return [key.partition("/")[0] for key in expected if re.fullmatch(r"\d+x\d+/last_hidden_state", key)]


def photographs() -> dict[str, Image.Image]:
    china = Image.fromarray(sklearn.datasets.load_sample_images().images[0])
    return {"china": china, "odd": china.crop((0, 0, 601, 427)), "upright": china.crop((100, 3, 353, 427))}


@pytest.mark.parametrize("case", FIXED)
def test_transformers_computes_what_timm_computes(case: str, tmp_path: Path) -> None:
    config, tensors, expected = read(case)
    assert is_timm(config)
    content, weights = from_timm(config, tensors)
    assert not is_timm(content)
    model = load(content, weights, tmp_path)
    native = sizes(expected)[0]
    check(model, inputs(expected, native), expected, native)


@pytest.mark.parametrize("case", WITH_TABLES)
def test_antialiased_positions_are_those_of_timm_at_other_sizes(case: str, tmp_path: Path) -> None:
    config, tensors, expected = read(case)
    content, weights = from_timm(config, tensors)
    assert content["position_antialias"] is True
    (name,) = [name for name in weights if re.search(r"position_embeddings?(\.weight)?$", name)]
    height, width = np.broadcast_to(content["image_size"], 2)
    patch = content["patch_size"]
    grid = height // patch, width // patch
    prefix = weights[name].shape[-2] - grid[0] * grid[1]
    checked = 0
    for size in sizes(expected)[1:]:
        new_height, new_width = map(int, size.split("x"))
        if new_height != new_width and content["model_type"] not in ("vit", "deit"):
            continue  # transformers cannot have a table of this model that is not square
        table = weights[name].float().reshape(1, *weights[name].shape[-2:])
        patches = table[:, prefix:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
        new_grid = new_height // patch, new_width // patch
        patches = nn.functional.interpolate(patches, new_grid, mode="bicubic", align_corners=False, antialias=True)
        resized = torch.cat([table[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)
        model = load(
            {**content, "image_size": json_size((new_height, new_width))},
            {**weights, name: resized.reshape(*weights[name].shape[:-2], *resized.shape[-2:])},
            tmp_path / size,
        )
        check(model, inputs(expected, size), expected, size)
        checked += 1
    assert checked


@pytest.mark.parametrize("case", CASES)
def test_the_reference_computes_what_timm_computes_at_every_size(case: str) -> None:
    config, tensors, expected = read(case)
    content, weights = from_timm(config, tensors)
    assert len(sizes(expected)) == (6 if "_0" in case else 3)
    outputs = {
        **dict.fromkeys(("last_hidden_state", "pooler_output", "image_embeds"), Task.FEATURES),
        "logits": Task.CLASSIFICATION,
    }
    if "token_norm" in case:
        del outputs["last_hidden_state"]  # timm's is not normalized
    for size in sizes(expected):
        height, width = map(int, size.split("x"))
        for name, task in outputs.items():
            if f"{size}/{name}" not in expected:
                continue  # the model has no head
            if case.startswith("clip_classifier"):  # whose features are another model's
                content, weights = from_timm(config, tensors, task)
            model = make_model(ViTConfig.from_dict(content), weights, task, origin=case)
            model.resize((height, width))
            with torch.inference_mode():
                got = model(inputs(expected, size))[name].numpy()
            want = expected[f"{size}/{name}"]
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max(), err_msg=f"{size} {name}")


@pytest.mark.parametrize(
    ("case", "absolute", "relative"),
    [("beit_0", False, True), ("beit_features_2", True, True), ("without relative positions", True, False)],
)
def test_a_beit_says_how_its_positions_are_resized(case: str, absolute: bool, relative: bool) -> None:
    config, tensors, _ = read(case if relative else "beit_features_2")
    if not relative:
        del tensors["rel_pos_bias.relative_position_bias_table"], config["model_args"]["use_shared_rel_pos_bias"]
    content, _ = from_timm(config, tensors)
    assert content.get("position_antialias", False) is absolute
    assert content.get("relative_position_interpolation") == ("geometric" if relative else None)


@pytest.mark.parametrize("case", [case for case in FIXED if case.endswith("_0")])
def test_photographs_give_what_timm_gives(case: str, tmp_path: Path) -> None:
    config, tensors, expected = read(case)
    model = load(*from_timm(config, tensors), tmp_path)
    processor = ImageProcessor.from_dict(processor_config(config))
    for name, image in photographs().items():
        pixels = processor(image)
        np.testing.assert_array_equal(pixels, expected[f"{name}/pixel_values"])
        check(model, torch.from_numpy(pixels), expected, name)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_processor_is_the_transform_of_timm_to_the_bit(name: str) -> None:
    content = processor_config({"architecture": "vit_base_patch16_224", "pretrained_cfg": TRANSFORMS[name]})
    processor = ImageProcessor.from_dict(content)
    assert ImageProcessor.from_dict(processor.to_dict()) == processor
    with np.load(GOLDEN / "transforms.npz") as expected:
        for photograph, image in photographs().items():
            pixels = processor(image)[0]
            key = f"{name}/{photograph}"
            np.testing.assert_array_equal(pixels[:, :, pixels.shape[2] // 2], expected[f"{key}/column"])
            np.testing.assert_array_equal(pixels[:, pixels.shape[1] // 2], expected[f"{key}/row"])
            np.testing.assert_array_equal(np.stack([pixels[:, 0, 0], pixels[:, -1, -1]]), expected[f"{key}/edges"])
            np.testing.assert_array_equal(pixels.mean(axis=(1, 2), dtype=np.float64), expected[f"{key}/mean"])


def test_transformers_reads_the_processor(tmp_path: Path) -> None:
    content = processor_config({"architecture": "vit_base_patch16_224", "pretrained_cfg": {"crop_pct": 0.9}})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = Image.new("RGB", (300, 300), (10, 200, 90))
    pixels = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pixels, ImageProcessor.from_dict(content)(image))


@pytest.mark.parametrize("length", range(1, 12))
def test_half_even_crops_as_torchvision(length: int) -> None:
    """By torchvision's rule: pad the smaller half before, then crop from int(round((length - crop) / 2.0))."""
    pixels = np.arange(1, length + 1, dtype=np.uint8)
    image = Image.fromarray(np.repeat(pixels[None, :, None], 3, axis=2))
    crop = {"crop_size": {"height": 1, "width": 6}, "crop_rounding": "half_even"}
    off = dict.fromkeys(("do_resize", "do_normalize", "do_rescale"), False)
    processor = ImageProcessor.from_dict({"image_processor_type": "BitImageProcessor", **crop, **off})
    missing = max(6 - length, 0)
    padded = np.pad(pixels, (missing // 2, missing - missing // 2))
    start = int(round((len(padded) - 6) / 2.0))  # noqa: RUF046  # as published
    np.testing.assert_array_equal(processor(image)[0, 0, 0], padded[start : start + 6])


@pytest.mark.parametrize("value", ["ceil", 1, ["floor"], None])
def test_another_crop_rounding_is_refused(value: object) -> None:
    with raises(InputError, what="crop_rounding", found=value):
        ImageProcessor.from_dict({"image_processor_type": "BitImageProcessor", "crop_rounding": value})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_of_timm_is_read_right_or_refused(name: str) -> None:
    row = ARCHITECTURES[name]
    content = {"architecture": name, "num_classes": 1000, "pretrained_cfg": {}}
    if not re.fullmatch(ACCEPTED, name):
        with raises(CheckpointError, what="architecture"):
            read_config(content)
        return
    config = read_config(content)
    assert config.num_heads == row["num_heads"]
    assert (row["block"], row["mlp"]) == ("Block", "GluMlp" if config.gated else "Mlp")
    acts = {"gelu": "GELU", "quick_gelu": "QuickGELU", "gelu_pytorch_tanh": "GELUTanh"}
    assert row["act"] == ("SiLU" if config.gated else acts[config.hidden_act])
    assert row["norms"] == [["LayerNorm", 1e-5 if config.clip else 1e-6]]
    assert (row["pool"], row["late_norm"]) == (config.global_pool, config.late_norm)
    assert row["class_token"] is config.class_token
    registers = re.search(r"_reg(\d)", name)
    assert row["prefix"] == config.class_token + config.distilled + (int(registers[1]) if registers else 0)


def test_the_giant_dinov2_has_the_mlp_of_its_namesake() -> None:
    tensors = real_size(width=1536, depth=40, fc1=8192, fc2=4096)
    config: dict[str, Any] = {"num_classes": 0, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    config["architecture"] = "vit_giant_patch14_dinov2"
    content, weights = from_timm(config, tensors)
    assert content["mlp_ratio"] == 4
    with torch.device("meta"):
        peer = transformers.AutoModel.from_config(transformers.Dinov2Config.from_dict(content))
    assert sum(weight.numel() for weight in peer.parameters()) == sum(weight.numel() for weight in weights.values())
    assert peer.config.num_attention_heads == 24


def real_size(width: int, depth: int, fc1: int, fc2: int) -> dict[str, Tensor]:
    """The names and shapes, without values, of a DINOv2 of patches of 16 pixels for images of 32."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for index in range(depth):
        for name, shape in {
            "norm1": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "norm2": (width,),
            "mlp.fc1": (fc1, width),
            "mlp.fc2": (width, fc2),
        }.items():
            shapes[f"blocks.{index}.{name}.weight"] = shape
            shapes[f"blocks.{index}.{name}.bias"] = shape[:1]
        shapes[f"blocks.{index}.ls1.gamma"] = shapes[f"blocks.{index}.ls2.gamma"] = (width,)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_labels_are_descriptions_then_names_then_numbers() -> None:
    config, tensors, _ = read("vit_1")
    content, _ = from_timm(config, tensors)
    assert content["id2label"] == {"0": "n0000", **{str(i): f"class n{i:04}" for i in range(1, 5)}}
    assert content["label2id"]["class n0002"] == 2
    content, _ = from_timm({**config, "label_names": {"0": "a", "3": "b"}, "label_descriptions": {}}, tensors)
    assert list(content["id2label"].values()) == ["a", "LABEL_1", "LABEL_2", "b", "LABEL_4"]
    content, _ = from_timm(read("vit_0")[0], read("vit_0")[1])
    assert content["num_labels"] == 4


def test_half_precision_stays_and_no_tensor_is_changed() -> None:
    config, tensors, _ = read("reg4_dinov2_0")
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    _, weights = from_timm(config, tensors)
    assert {tensor.dtype for name, tensor in weights.items() if "mask_token" not in name} == {torch.float16}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())


def test_the_stored_index_of_older_versions_is_checked_and_left_out() -> None:
    config, tensors, _ = read("beit_0")
    grid, patches = 4, 16
    index = torch.zeros(patches + 1, patches + 1, dtype=torch.int64)
    for i in range(patches):
        for j in range(patches):
            down, across = i // grid - j // grid + grid - 1, i % grid - j % grid + grid - 1
            index[i + 1, j + 1] = down * (2 * grid - 1) + across
    index[0, :], index[:, 0], index[0, 0] = 49, 50, 51
    stored = {f"blocks.{block}.attn.relative_position_index": index.clone() for block in range(2)}
    content, weights = from_timm(config, {**tensors, **stored})
    assert weights.keys() == from_timm(config, tensors)[1].keys()
    assert content["num_attention_heads"] == 4
    stored["blocks.1.attn.relative_position_index"][3, 3] += 1
    with raises(CheckpointError, what="weights", found="unexpected blocks.1.attn.relative_position_index"):
        from_timm(config, {**tensors, **stored})


def setting(*path: str, value: object) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


def adding(name: str, *shape: int) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda config, tensors: tensors.update({name: torch.zeros(shape)})


def dropping(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return change


def argument(key: str, value: object) -> Any:
    return setting("model_args", key, value=value)


FOREIGN = [
    *(None, "resnet50", "swin_tiny_patch4_window7_224", "vit_relpos_base_patch16_224"),
    *("vit_base_patch16_xp_224", "vit_small_patch16_18x2_224", "vit_pwee_patch16_reg1_gap_256"),
    *("vit_base_patch16_rope_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256"),
]
REFUSED: list[tuple[str, Any, str | re.Pattern[str]]] = [
    *(("vit_0", setting("architecture", value=name), "architecture") for name in FOREIGN),
    ("vit_0", setting("global_pool", value="avg"), "global_pool"),
    ("vit_0", setting("global_pool", value=["avg"]), "global_pool"),
    ("vit_0", argument("global_pool", "map"), "global_pool"),
    ("beit_0", setting("global_pool", value="token"), "global_pool"),
    ("vit_0", argument("global_pool", ""), "global_pool"),
    ("vit_0", argument("class_token", False), "class_token"),
    ("vit_0", argument("qk_norm", True), "qk_norm"),
    ("vit_0", argument("act_layer", "gelu_tanh"), "act_layer"),
    ("vit_0", argument("block_fn", "x"), "block_fn"),
    ("vit_0", argument("layers", 2), "layers"),
    ("vit_0", argument("use_naflex", True), "use_naflex"),
    ("vit_0", argument("dynamic_img_size", "yes"), "dynamic_img_size"),
    ("vit_0", argument("fc_norm", 1), "fc_norm"),
    ("vit_0", setting("pretrained_cfg", "hf_hub_filename", value="other.bin"), "hf_hub_filename"),
    ("vit_0", setting("pretrained_cfg", "label_offset", value="1"), "pretrained_cfg.label_offset"),
    ("vit_0", setting("problem_type", value="multi_class"), "problem_type"),
    ("mean_0", argument("img_size", [32, 40]), re.compile(r"pos_embed must be \(1, 21, 32\)")),
    ("mean_0", adding("reg_token", 1, 4, 32), re.compile(r"pos_embed must be \(1, 21, 32\)")),
    ("mean_0", setting("architecture", value="vit_giant_patch14_dinov2"), re.compile(r"mlp\.fc2\.weight must be")),
    ("siglip_0", argument("class_token", True), re.compile("missing cls_token")),
    ("siglip_0", argument("fc_norm", True), "fc_norm"),
    (
        "siglip_0",
        lambda config, _: config.update(global_pool="", model_args={"num_heads": 3, "fc_norm": True}),
        "fc_norm",
    ),
    ("swiglu_0", argument("act_layer", "gelu"), "act_layer"),
    ("swiglu_0", argument("act_layer", None), "act_layer"),
    ("siglip_0", dropping("attn_pool.kv.bias"), re.compile(r"missing attn_pool\.kv\.bias")),
    ("siglip_0", argument("reg_tokens", 4), "model_args.reg_tokens"),
    ("gap_0", setting("global_pool", value="map"), "global_pool"),
    ("gap_2", dropping("reg_token"), "model_args.reg_tokens"),
    ("pooled_features_1", argument("fc_norm", None), "fc_norm"),
    ("norm_mean_0", argument("num_classes", 0), "num_classes"),
    ("deit_distilled_0", argument("fc_norm", True), "global_pool"),
    ("vit_0", argument("num_heads", 5), "num_heads"),
    ("vit_0", argument("num_heads", "4"), "model_args.num_heads"),
    ("vit_0", argument("embed_dim", 64), "model_args.embed_dim"),
    ("vit_0", argument("depth", 2.0), "model_args.depth"),
    ("vit_0", argument("depth", True), "model_args.depth"),
    ("vit_0", argument("mlp_ratio", 3), "model_args.mlp_ratio"),
    ("vit_0", argument("mlp_ratio", math.inf), "model_args.mlp_ratio"),
    ("vit_0", argument("mlp_ratio", "2"), "model_args.mlp_ratio"),
    ("vit_0", argument("patch_size", [8, 16]), "model_args.patch_size"),
    ("vit_0", argument("patch_size", {}), "model_args.patch_size"),
    ("vit_0", argument("qkv_bias", False), "model_args.qkv_bias"),
    ("vit_0", argument("init_values", 1e-5), "model_args.init_values"),
    ("vit_0", argument("reg_tokens", 4), "model_args.reg_tokens"),
    ("vit_0", argument("no_embed_class", True), "model_args.no_embed_class"),
    ("vit_0", argument("use_rel_pos_bias", True), "model_args.use_rel_pos_bias"),
    ("vit_0", argument("num_classes", 9), "num_classes"),
    ("vit_0", argument("in_chans", 1), "model_args.in_chans"),
    ("vit_0", argument("img_size", 4), "image_size"),
    ("vit_0", argument("img_size", [32, 40]), re.compile(r"pos_embed must be \(1, 21, 32\)")),
    ("vit_0", argument("img_size", 1 << 40), "image_size"),
    ("vit_0", argument("img_size", 1 << 20), re.compile("pos_embed must be")),
    ("beit_0", argument("img_size", [32, 40]), "image_size"),
    ("beit_0", argument("num_heads", 8), re.compile(r"relative_position_bias_table must be \(52, 8\)")),
    ("beit_0", argument("use_fc_norm", False), "use_fc_norm"),
    ("vit_0", setting("model_args", value=[1]), "model_args"),
    ("vit_0", setting("pretrained_cfg", value=None), "pretrained_cfg"),
    ("vit_0", lambda config, tensors: config.pop("pretrained_cfg") and None, "pretrained_cfg.input_size"),
    ("vit_0_wrapped", lambda config, tensors: config.pop("pretrained_cfg") and None, "pretrained_cfg"),
    ("vit_0", setting("pretrained_cfg", "input_size", value=[3, 32]), "pretrained_cfg.input_size"),
    ("vit_0", setting("num_classes", value="4"), "num_classes"),
    ("vit_0", setting("num_classes", value=-1), "num_classes"),
    ("vit_0", setting("num_classes", value=10**9), "num_classes"),
    ("vit_0", setting("label_names", value=["a"]), "label_names"),
    ("vit_0", setting("label_names", value=[1, 2, 3, 4]), "label_names"),
    ("vit_1", setting("label_descriptions", value=["a"]), "label_descriptions"),
    ("vit_0", adding("norm_pre.weight", 32), re.compile(r"unexpected norm_pre\.weight")),
    ("vit_0", adding("blocks.0.attn.q_norm.weight", 8), re.compile(r"unexpected blocks\.0\.attn\.q_norm\.weight")),
    ("vit_0", adding("fc_norm.weight", 32), re.compile(r"unexpected fc_norm\.weight")),
    ("vit_0", adding("attn_pool.latent", 1, 1, 32), re.compile(r"unexpected attn_pool\.latent")),
    ("vit_0", adding("blocks.0.attn.relative_position_bias_table", 52, 4), re.compile("unexpected")),
    ("vit_0", adding("dist_token", 1, 1, 32), re.compile("unexpected dist_token")),
    ("vit_0", adding("blocks.1.ls1.gamma", 32), re.compile(r"unexpected blocks\.1\.ls1\.gamma")),
    (
        "vit_0",
        adding("blocks.9.x", 32),
        re.compile(r"missing blocks\.2\.attn\.qkv\.weight.* and \d+ more; unexpected blocks\.9\.x"),
    ),
    ("vit_0", dropping("cls_token"), re.compile("missing cls_token")),
    ("vit_0", dropping("head.bias"), re.compile(r"missing head\.bias")),
    ("vit_0", dropping("blocks.1.attn.qkv.bias"), re.compile(r"missing blocks\.1\.attn\.qkv\.bias")),
    ("vit_0", dropping("pos_embed"), "pos_embed"),
    ("vit_0", dropping("patch_embed.proj.weight"), "patch_embed.proj.weight"),
    ("vit_0", adding("head.weight", 4, 33), re.compile(r"head\.weight must be \(4, 32\) of floats, is \(4, 33\)")),
    ("vit_0", adding("blocks.0.mlp.fc2.weight", 32, 32), re.compile(r"mlp\.fc2\.weight must be \(32, 64\)")),
    ("vit_0", adding("patch_embed.proj.weight", 32, 192), "patch_embed.proj.weight"),
    ("vit_0", adding("reg_token", 1, 0, 32), "reg_token"),
    ("reg4_dinov2_1", dropping("reg_token"), re.compile(r"pos_embed must be \(1, 17, 24\)")),
    ("reg4_dinov2_1", adding("pos_embed", 1, 18, 24), re.compile(r"pos_embed must be \(1, 21, 24\)")),
    ("reg4_dinov2_1", adding("reg_token", 1, 4, 25), re.compile(r"reg_token must be \(1, 4, 24\)")),
    ("dinov2_0", dropping("blocks.1.ls2.gamma"), re.compile(r"missing blocks\.1\.ls2\.gamma")),
    ("deit_distilled_0", dropping("head_dist.weight"), re.compile(r"missing head_dist\.weight")),
    ("deit_distilled_0", adding("blocks.0.ls1.gamma", 24), re.compile(r"unexpected blocks\.0\.ls1\.gamma")),
    *(
        (
            case,
            setting("architecture", value=f"vit_{size}_patch14_dinov2"),
            re.compile(f"mlp.fc2.weight must be {shape}"),
        )
        for case, size, shape in (("swiglu_0", "base", r"\(24, 128\)"), ("dinov2_0", "giant", r"\(24, 24\)"))
    ),
    ("beit_0", adding("mask_token", 1, 1, 32), re.compile("unexpected mask_token")),
    ("beit_0", dropping("blocks.0.attn.q_bias"), re.compile(r"missing blocks\.0\.attn\.q_bias")),
    ("beit_0", adding("rel_pos_bias.relative_position_bias_table", 9, 4), re.compile(r"must be \(52, 4\)")),
]


def fields(key: str | re.Pattern[str]) -> dict[str, object]:
    """Of the error for a key, or for the weights where it is an expression of their problem."""
    return {"what": key} if isinstance(key, str) else {"what": "weights", "found": key}


@pytest.mark.parametrize(("case", "change", "key"), REFUSED)
def test_what_has_no_equivalent_is_refused(case: str, change: Any, key: str | re.Pattern[str]) -> None:
    config, tensors, _ = read(case)
    change(config, tensors)
    with raises(CheckpointError, **fields(key)) as caught:
        from_timm(config, tensors)
    assert len(str(caught.value)) < 700


def test_weights_that_are_not_floats_are_refused() -> None:
    config, tensors, _ = read("vit_0")
    tensors["head.bias"] = tensors["head.bias"].int()
    with raises(CheckpointError, what="weights", found=re.compile("head.bias .*int32")):
        from_timm(config, tensors)


def test_arguments_without_effect_and_defaults_are_taken() -> None:
    config, tensors, _ = read("beit_0")
    plain, _ = from_timm(config, tensors)
    config["model_args"] |= {"use_fc_norm": None, "drop_path_rate": 0.1, "act_layer": None, "init_values": 0.1}
    assert from_timm(config, tensors)[0] == plain


def test_an_mlp_that_dinov2_cannot_state_is_refused() -> None:
    config, tensors, _ = read("dinov2_0")
    config["model_args"]["mlp_ratio"] = 36 / 24
    for block in range(2):
        tensors[f"blocks.{block}.mlp.fc1.weight"] = torch.zeros(36, 24)
        tensors[f"blocks.{block}.mlp.fc1.bias"] = torch.zeros(36)
        tensors[f"blocks.{block}.mlp.fc2.weight"] = torch.zeros(24, 36)
    with raises(CheckpointError, what="mlp_ratio", found=36):
        from_timm(config, tensors)


@pytest.mark.parametrize(
    ("cfg", "key"),
    [
        ({"crop_mode": "border"}, "pretrained_cfg.crop_mode"),
        ({"crop_mode": ["center"]}, "pretrained_cfg.crop_mode"),
        ({"input_size": [3, 224, 160]}, "pretrained_cfg.crop_mode"),
        ({"input_size": [2, 224, 224]}, "in_chans"),
        ({"input_size": "3"}, "pretrained_cfg.input_size"),
        ({"input_size": [3, 224, 0]}, "image_size"),
        ({"input_size": [3, 224, 224.0]}, "image_size"),
        ({"interpolation": "random"}, "pretrained_cfg.interpolation"),
        ({"interpolation": 3}, "pretrained_cfg.interpolation"),
        ({"crop_pct": "0.9"}, "pretrained_cfg.crop_pct"),
        ({"crop_pct": 1e-300}, "pretrained_cfg.crop_pct"),
        ({"crop_pct": math.nan}, "pretrained_cfg.crop_pct"),
        ({"mean": ["a", "b", "c"]}, "pretrained_cfg.mean"),
        ({"mean": [0.5, 0.5, math.nan]}, "pretrained_cfg.mean"),
        ({"std": {}}, None),
        (7, "pretrained_cfg"),
        (None, "pretrained_cfg"),
    ],
)
def test_transforms_without_an_equivalent_are_refused(cfg: Any, key: str | None) -> None:
    config = {"architecture": "vit_base_patch16_224", "pretrained_cfg": cfg}
    if key is None:  # as in timm, what is empty has the default
        assert processor_config(config)["image_std"] == [0.229, 0.224, 0.225]
        return
    with raises(CheckpointError, what=key):
        processor_config(config)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_mean_stands_for_all_channels(channels: int) -> None:
    config = {"model_args": {"in_chans": channels}, "pretrained_cfg": {"mean": [0.4], "std": 0.3}}
    processor = ImageProcessor.from_dict(processor_config(config), num_channels=channels)
    assert (processor.image_mean, processor.image_std) == ((0.4,) * channels, (0.3,) * channels)


@pytest.mark.parametrize(
    ("cfg", "key"),
    [
        ({"input_size": [1, 224, 224]}, "image_mean"),
        ({"input_size": [1, 224, 224], "mean": 0.5, "std": [0.2] * 3}, "image_std"),
        ({"mean": [0.5, 0.5]}, "image_mean"),
        ({"std": [0.5, 0.5, 0]}, "image_std"),
    ],
)
def test_means_and_deviations_are_read_where_all_settings_are(cfg: dict[str, Any], key: str) -> None:
    """So that stated ones can replace them."""
    channels = num_channels({"pretrained_cfg": cfg})
    with raises(InputError, what=key):
        ImageProcessor.from_dict(processor_config({"pretrained_cfg": cfg}), num_channels=channels)


def test_only_the_configurations_of_timm_are_taken_for_those() -> None:
    assert is_timm({"architecture": "resnet50", "pretrained_cfg": {}})
    assert is_timm({"model_type": "timm_wrapper"})
    assert not is_timm({"model_type": "vit", "architectures": ["ViTModel"]})
    assert not is_timm({})


def test_nothing_but_a_checkpoint_error_comes_of_a_malformed_configuration() -> None:
    """Every value of a configuration replaced by every kind of value, also in pairs."""
    numbers = (-1, 0, 1, 1 << 70, 0.5, math.inf, math.nan)
    junk: list[Any] = [None, True, *numbers, "", "x", [], [1], [[]], {}, {"a": 1}, {"1": []}]
    rng = random.Random(0)
    outcomes = {True: 0, False: 0}
    for case in ("vit_1", "beit_0", "reg4_dinov2_1", "dinov2_0_wrapped"):
        original, tensors, _ = read(case)
        for _ in range(400):
            config = copy.deepcopy(original)
            for _ in range(rng.randint(1, 2)):
                place = rng.choice([config, config.get("model_args"), config.get("pretrained_cfg")])
                if isinstance(place, dict) and place:
                    place[rng.choice(list(place))] = rng.choice(junk)
            for convert in (partial(from_timm, tensors=tensors), processor_config):
                try:
                    convert(config)
                except CheckpointError:
                    outcomes[False] += 1
                else:
                    outcomes[True] += 1
    assert min(outcomes.values()) > 100
