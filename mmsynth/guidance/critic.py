"""The critic of choice: a frozen mmseg segmentor, with its own preprocessing and its own way of inference.

Legend: B batch, K classes, H W pixels.
"""
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmsynth.guidance.base import Critic
from mmsynth.host import normalisation_of
from mmsynth.registry import MODELS
from mmsynth.utils.checkpoint import load_state_dict, read_checkpoint
from mmsynth.utils.configs import find_config


@MODELS.register_module()
class SegmentorCritic(Critic):
    """A segmentor that predicts exactly as in mmseg's own test loop.

    Masks must hold the class ids that the segmentor was trained on, which for a data set with ``reduce_zero_label`` are
    those after the reduction; mmsynth's and mmseg's data sets give them so.

    Args:
        config: A segmentation config: a path, or its content as a dict (with a ``model``). The model is built and
            frozen.
        checkpoint: The segmentor's weights, loaded without running code from the file.
        num_classes: The class count that the critic must have, usually the data set's; None checks nothing.
        segmentor: A built segmentor in the place of ``config``. It is borrowed: not frozen, moved or saved with the
            critic. Even if it is in training it predicts in eval mode, and is left as found (modes, ``requires_grad``,
            buffers).

    Raises:
        ValueError: If not exactly one of config and segmentor is given, the config has no model, or the model is no
            segmentor that can guide, or one of another class count.
        FileNotFoundError: If a file does not exist.
    """

    segmentor: Any  # mmseg's EncoderDecoder, whose attributes torch types as tensors or modules

    def __init__(self,
                 config: str | Path | Mapping[str, Any] | None = None,
                 checkpoint: str | None = None,
                 num_classes: int | None = None,
                 *,
                 segmentor: nn.Module | None = None) -> None:
        super().__init__()
        if (config is None) == (segmentor is None):
            raise ValueError('critic: exactly one of `config` and `segmentor` must be given, got '
                             f'{"neither" if config is None else "both"}.')
        if segmentor is not None and checkpoint is not None:
            raise ValueError('critic: `checkpoint` goes with `config`; a `segmentor` has its weights already.')
        if config is not None:
            self.segmentor = _build_segmentor(config)
            _check_segmentor(self.segmentor)
            if checkpoint is not None:
                load_state_dict(self.segmentor, read_checkpoint(checkpoint), source=str(checkpoint))
            self.segmentor.requires_grad_(False).eval()
        elif segmentor is not None:
            _check_segmentor(segmentor)
            self.__dict__['segmentor'] = segmentor  # not as a submodule: it stays its owner's
        self.num_classes: int = self.segmentor.num_classes
        head: Any = self.segmentor.decode_head
        last: Any = head[-1] if isinstance(head, nn.ModuleList) else head
        self.ignore_index: int = last.ignore_index
        self.check_num_classes(num_classes)

    @contextmanager
    def frozen_eval(self) -> Iterator[None]:
        """Eval mode, parameters without gradients, no reentrant checkpointing; afterwards everything as before.

        Gradients must be taken inside, for a backbone that runs its layers again in the backward pass.
        """
        modules, parameters = list(self.segmentor.modules()), list(self.segmentor.parameters())
        found = [(module.training, getattr(module, 'with_cp', None)) for module in modules]
        wanted = [parameter.requires_grad for parameter in parameters]
        try:
            self.segmentor.requires_grad_(False).eval()
            for module, (_, with_cp) in zip(modules, found):
                if with_cp:  # mmseg checkpoints in the reentrant way, which torch.autograd.grad refuses
                    setattr(module, 'with_cp', False)  # noqa: B010  (to torch's types an attribute is a tensor or module)
            yield
        finally:
            for module, (training, with_cp) in zip(modules, found):
                module.training = training
                if with_cp:
                    setattr(module, 'with_cp', with_cp)  # noqa: B010
            for parameter, requires_grad in zip(parameters, wanted):
                parameter.requires_grad = requires_grad

    @property
    def device(self) -> torch.device:
        """Where the segmentor is."""
        return next(self.segmentor.parameters()).device

    def predict_logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) for images (B, 3, H, W), float, [0, 1], RGB, by the segmentor's own inference mode."""
        height, width = images.shape[-2:]
        inputs = self._preprocess(images)
        meta = dict(
            ori_shape=(height, width),
            img_shape=tuple(inputs.shape[-2:]),
            pad_shape=tuple(inputs.shape[-2:]),
            padding_size=[0, inputs.shape[-1] - width, 0, inputs.shape[-2] - height])
        with self.frozen_eval():
            logits = self.segmentor.inference(inputs, [dict(meta) for _ in images])
        return logits[..., :height, :width]

    def _preprocess(self, images: Tensor) -> Tensor:
        """What the segmentor's data preprocessor does at test time, kept differentiable."""
        own = self.segmentor.data_preprocessor
        to_rgb, mean, std = normalisation_of(own)
        pixels = images.float() * 255
        if not to_rgb:  # images on disk are read as BGR; without conversion the segmentor sees BGR
            pixels = pixels.flip(1)
        if mean is not None and std is not None:
            pixels = (pixels - mean) / std
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


def _build_segmentor(given: str | Path | Mapping[str, Any] | Config) -> nn.Module:
    if isinstance(given, (str, Path)):
        given = Config.fromfile(str(find_config(given)))
    config = given if isinstance(given, Config) else Config(dict(given))
    if 'model' not in config:
        raise ValueError('critic: `config` has no `model`; give a complete mmseg config.')
    model = config.model.copy()
    if 'data_preprocessor' not in model and 'data_preprocessor' in config:
        model.data_preprocessor = config.data_preprocessor
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(model)


def _check_segmentor(model: nn.Module) -> None:
    """Raise ValueError for a model that does not predict as mmseg's segmentors do, or has no channel per class."""
    from mmseg.models import EncoderDecoder, SegDataPreProcessor
    if not isinstance(model, EncoderDecoder):
        raise ValueError(f'critic: the model is {type(model).__name__}; it must be an EncoderDecoder of mmseg or a '
                         'class derived from it. Of a model that is wrapped for training, give its `module`.')
    if not isinstance(model.data_preprocessor, SegDataPreProcessor):
        raise ValueError(f'critic: the segmentor\'s `data_preprocessor` is {type(model.data_preprocessor).__name__}, '
                         "which does not say how images are normalised; use mmseg's SegDataPreProcessor.")
    if model.out_channels != model.num_classes:
        raise ValueError(f'critic: a segmentor with {model.out_channels} output channel(s) for {model.num_classes} '
                         'classes (sigmoid) cannot guide; use one channel per class.')
