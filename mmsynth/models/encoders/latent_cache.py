"""The latent cache: the posterior of each training image, encoded once and read from a folder while training.

An image is known by its pixels as the codec is given them, after the whole pipeline. So an image that was flipped has a
place of its own, and one that was cropped, resized or coloured otherwise than when the cache was filled is not found,
instead of being taken for the one in the same file.

Legend: B batch, C latent channels, H W pixels, h w latent cells.
"""
import hashlib

import torch
from torch import Tensor

from mmsynth.models.encoders.tensor_cache import TensorCache


class LatentCache(TensorCache):
    """Posteriors of images by one codec, in a folder: ``moments`` (2 C, h, w), mean above log variance."""

    kind, fields, command = 'image', ('moments', ), 'python tools/encode_latents.py CONFIG'


def image_keys(images: Tensor) -> list[str]:
    """What images (B, 3, H, W), float, [-1, 1], are known by: hashes of their pixels in 8 bits.

    Whole grey levels come out the same on every device, which float32 images do not: devices divide differently.

    Raises:
        ValueError: If a pixel is no whole grey level.
    """
    levels = (images.float() + 1) * 127.5
    pixels = levels.round()
    if bool(((levels - pixels).abs() > 1e-3).any()):
        raise ValueError('`cache_dir` of the latent codec takes images of whole grey levels, 0 … 255, as files hold '
                         'them; something in the pipeline makes others. Take it out, or leave `cache_dir` out.')
    rows = pixels.to(torch.uint8).cpu().numpy()
    size = 'x'.join(map(str, images.shape[1:]))
    return [f'{size}-{hashlib.sha256(row.tobytes()).hexdigest()}' for row in rows]
