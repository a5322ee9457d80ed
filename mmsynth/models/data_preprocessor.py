"""From the batch of a data loader to what generators take; the one place where images are normalised.

Legend: B batch, H W pixels, h w pixels of a reference.
"""
from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import PixelData
from torch import Tensor

from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample


@MODELS.register_module()
class SynthDataPreprocessor(BaseDataPreprocessor):
    """Stack images and bring them from [0, 255], BGR, to [-1, 1], RGB; references likewise. Masks stay class ids.

    Nothing is resized or padded: a generator is given exactly what the pipeline gave.

    Args:
        bgr_to_rgb: Images come as BGR, as the host loads them.
        size_divisor: Height and width must be multiples of it, such as latent factor times patch size.
        non_blocking: Copy to the device without waiting.

    Raises:
        ValueError: If ``size_divisor`` is below 1.
    """

    def __init__(self,
                 bgr_to_rgb: bool = True,
                 size_divisor: int | None = None,
                 non_blocking: bool = False) -> None:
        if size_divisor is not None and size_divisor < 1:
            raise ValueError(f'`size_divisor` must be at least 1, or None for any size, got {size_divisor}.')
        super().__init__(non_blocking)
        self.bgr_to_rgb = bgr_to_rgb
        self.size_divisor = size_divisor

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch; ``data`` and its samples are not changed.

        Args:
            data: ``inputs``, B images (3, H, W), [0, 255] (left out where only masks are given), and ``data_samples``.
            training: Makes no difference here.

        Returns:
            ``inputs``: (B, 3, H, W), float32, [-1, 1], RGB, or None; ``data_samples``: the samples on the device, with
            references (3, h, w), float32, [-1, 1], RGB; None if there were none.

        Raises:
            ValueError: If there is neither an image nor a mask, or their sizes do not fit: each other, those of the
                batch, or ``size_divisor``.
        """
        del training
        self._check_sizes(data.get('inputs'), data.get('data_samples'))
        data = self.cast_data(data)  # copies the samples
        images, samples = data.get('inputs'), data.get('data_samples')
        for sample in samples or ():
            if 'reference' in sample:
                sample.reference = PixelData(data=self._normalise(sample.reference.data))
        inputs = None if images is None else self._normalise(torch.stack(tuple(images)))  # (B, 3, H, W)
        return dict(inputs=inputs, data_samples=samples)

    def _normalise(self, images: Tensor) -> Tensor:
        """Images (..., 3, H, W), [0, 255] → float32, [-1, 1], RGB."""
        if self.bgr_to_rgb:
            images = images.flip(-3)
        return images.float() / 127.5 - 1

    def _check_sizes(self, images: Sequence[Tensor] | None, samples: Sequence[SynthDataSample] | None) -> None:
        image_sizes = {} if images is None else {i: _image_size(image, i, samples) for i, image in enumerate(images)}
        mask_sizes = {i: tuple(sample.gt_sem_seg.data.shape[-2:])
                      for i, sample in enumerate(samples or ()) if 'gt_sem_seg' in sample}
        if not image_sizes and not mask_sizes:
            raise ValueError('the batch holds neither images (`inputs`) nor masks (`gt_sem_seg`); end the pipeline '
                             'with PackSynthInputs.')
        for i in image_sizes.keys() & mask_sizes.keys():
            if image_sizes[i] != mask_sizes[i]:
                raise ValueError(f'{_name(samples, i)}: the image is {_shown(image_sizes[i])}, its mask '
                                 f'{_shown(mask_sizes[i])}; resize and crop them together in the pipeline.')
        self._check_batch(image_sizes or mask_sizes, samples)

    def _check_batch(self, sizes: dict[int, tuple[int, int]], samples: Sequence[SynthDataSample] | None) -> None:
        if len(set(sizes.values())) > 1:
            listed = ', '.join(f'{_name(samples, i)} {_shown(size)}' for i, size in sizes.items())
            raise ValueError(f'images and masks of one batch must have one size, got {listed}; add a RandomCrop or '
                             'Resize to the pipeline, or set `batch_size=1`.')
        height, width = next(iter(sizes.values()))
        divisor = self.size_divisor or 1
        if height % divisor or width % divisor:
            nearest = max(height // divisor, 1) * divisor, max(width // divisor, 1) * divisor
            raise ValueError(f'{_name(samples, 0)} is {_shown((height, width))}, but both sides must be multiples of '
                             f'`size_divisor` {divisor}; crop or resize to such a size in the pipeline, for example '
                             f'{_shown(nearest)}.')


def _image_size(image: Tensor, index: int, samples: Sequence[SynthDataSample] | None) -> tuple[int, int]:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f'{_name(samples, index)}: images must be (3, H, W), got {tuple(image.shape)}; load them with '
                         "`color_type='color'`.")
    return image.shape[1], image.shape[2]


def _name(samples: Sequence[SynthDataSample] | None, index: int) -> str:
    """What to call a sample in a message: its file, or its place in the batch."""
    sample = samples[index] if samples else SynthDataSample()
    return next((str(sample.get(key)) for key in ('img_path', 'seg_map_path', 'sample_id') if sample.get(key)),
                f'sample {index} of the batch')


def _shown(size: tuple[int, int]) -> str:
    return f'{size[0]} x {size[1]} (height x width)'
