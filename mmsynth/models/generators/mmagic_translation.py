"""Translation models of mmagic (Pix2Pix, CycleGAN) as generators: a mask in colours → an image, in one pass.

Legend: B batch, H W pixels.
"""
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.func import functional_call

from mmsynth.guidance.base import Guidance
from mmsynth.models.generators.base import hand_over, stack_masks
from mmsynth.models.label_codecs import PaletteCodec
from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample
from mmsynth.utils import isolated_random_state


class MMagicTranslation(nn.Module):
    """A translation model of mmagic; see :func:`~mmsynth.models.generators.mmagic.mmagic_generator`.

    mmagic generates with these models in training mode: dropout is their noise, and batch norm counts the batch. Here
    each image is generated alone with the noise of its own seed, and the model is left as it was found.

    Args:
        model: mmagic's config of the model.
        palette: The colours (K, 3), RGB, of the classes; black is unlabelled.
        channel_order: Of the images that the model was trained with.

    Raises:
        ImportError: If mmagic does not import.
        ValueError: If the config is of no translation model, or of one that knows images in another range.
    """

    def __init__(self, model: Mapping[str, Any], palette: Sequence[Sequence[int]],
                 channel_order: Literal['rgb', 'bgr'] = 'bgr') -> None:
        super().__init__()
        if channel_order not in ('rgb', 'bgr'):
            raise ValueError(f"`channel_order` must be 'rgb' or 'bgr', got {channel_order!r}.")
        from mmsynth.models.mmagic_host import import_mmagic
        import_mmagic()
        from mmagic.models import BaseTranslationModel
        from mmagic.registry import MODELS as MMAGIC_MODELS
        with DefaultScope.overwrite_default_scope('mmagic'):
            self.model = MMAGIC_MODELS.build(dict(model, discriminator=None))
        if not isinstance(self.model, BaseTranslationModel):
            raise ValueError(f"`config`: mmagic's {type(self.model).__name__} is no translation model.")
        self.label_codec = PaletteCodec(palette)
        self.data_preprocessor = MODELS.build(dict(type='mmsynth.SynthDataPreprocessor'))
        self.channel_order = channel_order

    @property
    def num_classes(self) -> int:
        return self.label_codec.num_classes

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise ValueError: there are no steps to guide."""
        raise ValueError(f'`guidance`: {type(self.model).__name__} generates in one pass, which has no steps for a '
                         f'{type(guidance).__name__}; leave `synthesis.guidance` out (--guidance none), or use a '
                         'diffusion model.')

    @torch.no_grad()
    def synthesize(self, data_samples: Sequence[SynthDataSample], seeds: Sequence[int], *,
                   guidance: Guidance | None = None) -> list[SynthDataSample]:
        """Generate an image for every sample's mask; prompts are not looked at. As in :class:`BaseGenerator`.

        Raises:
            ValueError: If there is a guidance, counts or sizes differ, or the model does not take masks of that size.
        """
        if guidance is not None:
            self.check_guidance(guidance)
        if len(seeds) != len(data_samples):
            raise ValueError(f'`seeds`: one per sample is needed, got {len(seeds)} for {len(data_samples)} samples.')
        control = self.label_codec.encode(stack_masks(data_samples, next(self.parameters()).device))  # (B, 3, H, W)
        images = torch.cat([self._translate(image[None], seed) for image, seed in zip(control, seeds)])
        return hand_over(data_samples, images, seeds, [[] for _ in data_samples])

    def _translate(self, control: Tensor, seed: int) -> Tensor:
        """Translate one control image (1, 3, H, W), [-1, 1], RGB."""
        swap = 1 if self.channel_order == 'bgr' else ()
        # in copies, into which batch norm counts
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        settings = dict(test_mode=True, target_domain=self.model._default_domain)
        modes = {module: module.training for module in self.model.modules()}
        try:
            with isolated_random_state(seed):
                image = functional_call(self.model, buffers, (control.flip(swap), ), settings)['target']
        except (RuntimeError, ValueError) as error:  # of torch, over sizes
            raise ValueError(f'masks of {control.shape[-2]}x{control.shape[-1]} pixels: {type(self.model).__name__} '
                             f'fails on them ({error}). A U-Net that halves its input n times takes multiples of 2**n; '
                             'resize or crop the masks in the pipeline of the dataset.') from error
        finally:
            for module, mode in modes.items():
                module.training = mode
        if image.shape != control.shape:
            raise ValueError(f'`config`: {type(self.model).__name__} makes an image {tuple(image.shape[1:])} of a mask '
                             f'in colours {tuple(control.shape[1:])}; the shapes must agree.')
        return image.float().flip(swap)
