"""Tiny segmentors of mmseg's common families, as configs: three classes, batch norm, no weights to download."""
from tiny_generator import segmentor

NORM = dict(type='BN')
SEGFORMER_BACKBONE = dict(
    type='MixVisionTransformer', in_channels=3, embed_dims=8, num_stages=4, num_layers=[1, 1, 1, 1],
    num_heads=[1, 1, 2, 4], patch_sizes=[7, 3, 3, 3], sr_ratios=[4, 2, 1, 1], out_indices=(0, 1, 2, 3), mlp_ratio=2,
    qkv_bias=True, drop_path_rate=0.1)


def head(kind: str, **settings) -> dict:
    """A decode head on the tiny ResNet's stages of 4, 8, 16 and 32 channels."""
    return dict(type=kind, channels=8, num_classes=3, norm_cfg=NORM, align_corners=False, dropout_ratio=0.1,
                loss_decode=dict(type='CrossEntropyLoss')) | settings


FCN = head('FCNHead', in_channels=32, in_index=3, num_convs=1, concat_input=False)
AUXILIARY = head('FCNHead', in_channels=16, in_index=2, num_convs=1, concat_input=False)
STAGES = dict(in_channels=[4, 8, 16, 32], in_index=[0, 1, 2, 3])


def family(decode_head: dict | list[dict], **changes) -> dict:
    """The config of :func:`tiny_generator.segmentor` with another head."""
    return segmentor(**changes) | dict(decode_head=decode_head)


FAMILIES = {
    'FCN with an auxiliary head': family(FCN, auxiliary_head=AUXILIARY),
    'PSPNet': family(head('PSPHead', in_channels=32, in_index=3, pool_scales=(1, 2)), auxiliary_head=[AUXILIARY]),
    'DeepLabV3+': family(head('DepthwiseSeparableASPPHead', in_channels=32, in_index=3, dilations=(1, 2),
                              c1_in_channels=4, c1_channels=4)),
    'UPerNet': family(head('UPerHead', pool_scales=(1, 2), **STAGES)),
    'SegFormer': family(head('SegformerHead', in_channels=[8, 8, 16, 32], in_index=[0, 1, 2, 3])) | dict(
        backbone=SEGFORMER_BACKBONE),
    'OCRNet in a cascade': family([FCN, head('OCRHead', in_channels=32, in_index=3, ocr_channels=8)]) | dict(
        type='CascadeEncoderDecoder', num_stages=2),
}
