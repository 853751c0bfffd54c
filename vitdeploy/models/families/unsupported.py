"""Families of transformers that are not built here: why, and an alternative.

optimum-onnx 0.1.0 lists its families in `optimum/exporters/onnx/model_configs.py`, which `tests/test_optimum.py` reads;
samexporter's are on https://pypi.org/project/samexporter. Only NaFlex checkpoints are of `siglip2`; those of a fixed
size are of `siglip`: https://huggingface.co/google/siglip2-base-patch16-224/discussions/5.
"""

from __future__ import annotations

from typing import NamedTuple


class Unsupported(NamedTuple):
    """A family without a row in `FAMILIES`.

    Attributes:
        name: Name of the family.
        reason: Why it is not built, a clause.
        alternative: Another tool or checkpoint; None if none is known.
    """

    name: str
    reason: str
    alternative: str | None = None

    def __str__(self) -> str:
        return f"{self.name} is not supported: {self.reason}"


OPTIMUM = "optimum-onnx 0.1.0 exports it to ONNX (optimum-cli export onnx)"
_SAMEXPORTER = "samexporter (PyPI) exports it to ONNX"
_DENSE = "for a head of your own, export dense features of a DINOv2 or DINOv3 checkpoint: --outputs features"
_TOWER = "for its kind of image features, export a CLIP or SigLIP checkpoint"
_PROMPTED = "its mask decoder takes prompts beside the image"
_BOXES = "its detector is not built, only encoders are"
_PHRASES = "its detector takes texts beside the image"
_WINDOWS = "its attention is in shifted windows, at several resolutions"
_STAGES = "its layers have several resolutions"
_CONVOLUTIONS = "it is a convolutional network"
_MASKS = "its segmentation decoder is not built, only encoders are"
_DEPTH = "its depth decoder is not built, only encoders are"
_FRAMES = "it takes videos"
_TEXT = "it generates text"
_NAFLEX = "it takes patches of grids that differ between images"
_FIXED_SIGLIP = "SigLIP 2 of a fixed size, such as google/siglip2-base-patch16-224, is supported"

UNSUPPORTED: dict[str, Unsupported] = {
    "sam": Unsupported("SAM", _PROMPTED, OPTIMUM),
    "sam_hq": Unsupported("SAM-HQ", _PROMPTED, _DENSE),
    "sam2": Unsupported("SAM 2", _PROMPTED, _SAMEXPORTER),
    "sam2_video": Unsupported("SAM 2", _PROMPTED, _SAMEXPORTER),
    "sam3": Unsupported("SAM 3", _PROMPTED, _SAMEXPORTER),
    "detr": Unsupported("DETR", _BOXES, OPTIMUM),
    "conditional_detr": Unsupported("Conditional DETR", _BOXES, _DENSE),
    "deformable_detr": Unsupported("Deformable DETR", _BOXES, _DENSE),
    "rt_detr": Unsupported("RT-DETR", _BOXES, OPTIMUM),
    "rt_detr_v2": Unsupported("RT-DETRv2", _BOXES, OPTIMUM),
    "rf_detr": Unsupported("RF-DETR", _BOXES, _DENSE),
    "d_fine": Unsupported("D-FINE", _BOXES, OPTIMUM),
    "table-transformer": Unsupported("Table Transformer", _BOXES, OPTIMUM),
    "yolos": Unsupported("YOLOS", _BOXES, OPTIMUM),
    "vitdet": Unsupported("ViTDet", "its attention is in windows", _DENSE),
    "vitpose": Unsupported("ViTPose", "its keypoint head is not built, only encoders are", OPTIMUM),
    "owlvit": Unsupported("OWL-ViT", _PHRASES, OPTIMUM),
    "owlv2": Unsupported("OWLv2", _PHRASES, OPTIMUM),
    "grounding-dino": Unsupported("Grounding DINO", _PHRASES, _DENSE),
    "mm-grounding-dino": Unsupported("MM Grounding DINO", _PHRASES, _DENSE),
    "clipseg": Unsupported("CLIPSeg", "its decoder takes texts beside the image", _TOWER),
    "groupvit": Unsupported("GroupViT", "its layers merge patches into groups", OPTIMUM),
    "segformer": Unsupported("SegFormer", _STAGES, OPTIMUM),
    "maskformer": Unsupported("MaskFormer", _MASKS, OPTIMUM),
    "mask2former": Unsupported("Mask2Former", _MASKS, _DENSE),
    "oneformer": Unsupported("OneFormer", _MASKS, _DENSE),
    "upernet": Unsupported("UPerNet", _MASKS, _DENSE),
    "eomt": Unsupported("EoMT", _MASKS, _DENSE),
    "eomt_dinov3": Unsupported("EoMT", _MASKS, _DENSE),
    "dpt": Unsupported("DPT", _DEPTH, OPTIMUM),
    "depth_anything": Unsupported("Depth Anything", _DEPTH, _DENSE),
    "prompt_depth_anything": Unsupported("Prompt Depth Anything", _DEPTH, _DENSE),
    "zoedepth": Unsupported("ZoeDepth", _DEPTH, _DENSE),
    "depth_pro": Unsupported("Depth Pro", _DEPTH, _DENSE),
    "glpn": Unsupported("GLPN", _DEPTH, OPTIMUM),
    "swin": Unsupported("Swin", _WINDOWS, OPTIMUM),
    "swinv2": Unsupported("Swin V2", _WINDOWS, OPTIMUM),
    "swin2sr": Unsupported("Swin2SR", _WINDOWS, OPTIMUM),
    "donut-swin": Unsupported("Donut's Swin", _WINDOWS, OPTIMUM),
    "hiera": Unsupported("Hiera", _STAGES, OPTIMUM),
    "pvt": Unsupported("PVT", _STAGES, OPTIMUM),
    "pvt_v2": Unsupported("PVT v2", _STAGES),
    "cvt": Unsupported("CvT", _STAGES, OPTIMUM),
    "levit": Unsupported("LeViT", _STAGES, OPTIMUM),
    "mobilevit": Unsupported("MobileViT", _STAGES, OPTIMUM),
    "mobilevitv2": Unsupported("MobileViTv2", _STAGES),
    "poolformer": Unsupported("PoolFormer", "it has no attention", OPTIMUM),
    "convnext": Unsupported("ConvNeXt", _CONVOLUTIONS, OPTIMUM),
    "convnextv2": Unsupported("ConvNeXt V2", _CONVOLUTIONS, OPTIMUM),
    "dinov3_convnext": Unsupported("DINOv3's ConvNeXt", _CONVOLUTIONS, "DINOv3's ViT (dinov3_vit) is supported"),
    "resnet": Unsupported("ResNet", _CONVOLUTIONS, OPTIMUM),
    "regnet": Unsupported("RegNet", _CONVOLUTIONS, OPTIMUM),
    "efficientnet": Unsupported("EfficientNet", _CONVOLUTIONS, OPTIMUM),
    "mobilenet_v1": Unsupported("MobileNet V1", _CONVOLUTIONS, OPTIMUM),
    "mobilenet_v2": Unsupported("MobileNet V2", _CONVOLUTIONS, OPTIMUM),
    "bit": Unsupported("BiT", _CONVOLUTIONS),
    "siglip2": Unsupported("SigLIP 2 NaFlex", _NAFLEX, _FIXED_SIGLIP),
    "siglip2_vision_model": Unsupported("SigLIP 2 NaFlex", _NAFLEX, _FIXED_SIGLIP),
    "aimv2": Unsupported("AIMv2", "its norms are RMS norms, and it has a text tower", _TOWER),
    "aimv2_vision_model": Unsupported("AIMv2", "its norms are RMS norms", _TOWER),
    "blip": Unsupported("BLIP", _TEXT, _TOWER),
    "blip-2": Unsupported("BLIP-2", _TEXT, _TOWER),
    "llava": Unsupported("LLaVA", _TEXT, _TOWER),
    "paligemma": Unsupported("PaliGemma", _TEXT, _TOWER),
    "florence2": Unsupported("Florence-2", _TEXT),
    "vision-encoder-decoder": Unsupported("A vision encoder-decoder", _TEXT, OPTIMUM),
    "videomae": Unsupported("VideoMAE", _FRAMES),
    "vivit": Unsupported("ViViT", _FRAMES),
    "timesformer": Unsupported("TimeSformer", _FRAMES),
    "vjepa2": Unsupported("V-JEPA 2", _FRAMES),
    "data2vec-vision": Unsupported("Data2Vec's image model", "no test holds it to transformers yet", OPTIMUM),
}


def family_in(name: str) -> Unsupported | None:
    """The family at the start of an architecture's name, such as "swin_base_patch4_window7_224"; None if none is.

    The longest one: "convnextv2_tiny" is not a "convnext".
    """
    known = [key for key in UNSUPPORTED if name == key or name.startswith(f"{key}_")]
    return UNSUPPORTED[max(known, key=len)] if known else None
