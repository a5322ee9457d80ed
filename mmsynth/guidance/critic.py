"""The critic: a frozen mmseg segmentor that says how well an image shows its mask.

Legend: B batch, K classes, H W pixels.
"""
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmsynth.registry import MODELS
from mmsynth.utils.checkpoint import load_state_dict, read_checkpoint


@dataclass(frozen=True)
class Verdict:
    """What a critic says of a batch.

    Attributes:
        loss: Cross entropy per pixel (B, H, W), float32; 0 where ignored.
        wrong: Pixels that are not ignored and are misclassified (B, H, W), bool.
        valid: Pixels that are not ignored (B, H, W), bool.
    """

    loss: Tensor
    wrong: Tensor
    valid: Tensor

    @property
    def wrong_share(self) -> Tensor:
        """Misclassified share of the pixels that are not ignored (B,), in [0, 1]; 0 where all are ignored."""
        return self.wrong.sum((1, 2)) / self.valid.sum((1, 2)).clamp_min(1)

    @property
    def wrong_loss(self) -> Tensor:
        """Mean cross entropy over the misclassified pixels (B,); 0 where there are none."""
        return (self.loss * self.wrong).sum((1, 2)) / self.wrong.sum((1, 2)).clamp_min(1)

    @property
    def mean_loss(self) -> Tensor:
        """Mean cross entropy over the pixels that are not ignored (B,); 0 where all are."""
        return self.loss.sum((1, 2)) / self.valid.sum((1, 2)).clamp_min(1)


@MODELS.register_module()
class SegmentorCritic(nn.Module):
    """A frozen segmentor with its own preprocessing.

    Args:
        config: A segmentation config: a path, or its content as a dict (with a ``model``).
        checkpoint: The segmentor's weights, loaded without running code from the file.
        num_classes: The class count that the critic must have, usually the data set's; None checks nothing.

    Raises:
        ValueError: If the config has no model, or a model of another class count.
        FileNotFoundError: If a file does not exist.
    """

    def __init__(self, config: str | dict, checkpoint: str | None = None, num_classes: int | None = None) -> None:
        super().__init__()
        self.segmentor = _build_segmentor(config)
        if checkpoint is not None:
            load_state_dict(self.segmentor, read_checkpoint(checkpoint), source=str(checkpoint))
        self.segmentor.requires_grad_(False).eval()
        self.num_classes: int = self.segmentor.decode_head.num_classes
        self.ignore_index: int = self.segmentor.decode_head.ignore_index
        self.check_num_classes(num_classes)

    def check_num_classes(self, num_classes: int | None) -> None:
        """Raise ValueError if the segmentor has another class count than ``num_classes`` (None: anything goes)."""
        if num_classes is not None and num_classes != self.num_classes:
            raise ValueError(f'critic: the segmentor has {self.num_classes} classes, the data set has {num_classes}. '
                             'Use a segmentor trained on the same classes.')
        if self.segmentor.out_channels != self.num_classes:
            raise ValueError(f'critic: a segmentor with {self.segmentor.out_channels} output channel(s) for '
                             f'{self.num_classes} classes (sigmoid) cannot guide; use one channel per class.')

    def train(self, mode: bool = True) -> 'SegmentorCritic':
        """Stay in eval mode: the critic is frozen."""
        return super().train(False)

    def forward(self, images: Tensor, masks: Tensor) -> Verdict:
        """Judge images against their masks.

        Args:
            images: (B, 3, H, W), float, [0, 1], RGB; differentiable.
            masks: (B, H, W), integer class ids; the segmentor's ignore index where unlabelled.
        """
        logits = self.read(images).float()
        loss = F.cross_entropy(logits, masks.long(), ignore_index=self.ignore_index, reduction='none')
        valid = masks != self.ignore_index
        return Verdict(loss, valid & (logits.argmax(1) != masks), valid)

    def read(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) for images (B, 3, H, W), float, [0, 1], RGB, by the segmentor's own inference mode."""
        height, width = images.shape[-2:]
        inputs = self._preprocess(images)
        meta = dict(
            ori_shape=(height, width),
            img_shape=tuple(inputs.shape[-2:]),
            pad_shape=tuple(inputs.shape[-2:]),
            padding_size=[0, inputs.shape[-1] - width, 0, inputs.shape[-2] - height])
        logits = self.segmentor.inference(inputs, [dict(meta) for _ in images])
        return logits[..., :height, :width]

    def _preprocess(self, images: Tensor) -> Tensor:
        """What the segmentor's data preprocessor does at test time, kept differentiable."""
        own = self.segmentor.data_preprocessor
        pixels = images.float() * 255
        if not own._channel_conversion:  # images on disk are read as BGR; without conversion the segmentor sees BGR
            pixels = pixels.flip(1)
        if own._enable_normalize:
            pixels = (pixels - own.mean) / own.std
        return _pad(pixels, own.test_cfg or {}, own.pad_val)


def _pad(pixels: Tensor, test_cfg: dict, value: float) -> Tensor:
    height, width = pixels.shape[-2:]
    size, divisor = test_cfg.get('size'), test_cfg.get('size_divisor')
    if size is not None:
        bottom, right = max(size[0] - height, 0), max(size[1] - width, 0)
    elif divisor is not None:
        bottom, right = -height % divisor, -width % divisor
    else:
        return pixels
    return F.pad(pixels, (0, right, 0, bottom), value=value)


def _build_segmentor(config: str | dict) -> nn.Module:
    if isinstance(config, (str, Path)):
        if not Path(config).is_file():
            raise FileNotFoundError(f'critic: `config` {config} does not exist; give the path of an mmseg config.')
        config = Config.fromfile(config)
    config = Config(dict(config)) if not isinstance(config, Config) else config
    if 'model' not in config:
        raise ValueError('critic: `config` has no `model`; give a complete mmseg config.')
    import mmseg.models  # noqa: F401  (fills mmseg's registry)
    model = config.model.copy()
    if 'data_preprocessor' not in model and 'data_preprocessor' in config:
        model.data_preprocessor = config.data_preprocessor
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(model)
