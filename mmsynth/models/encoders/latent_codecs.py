"""Latent codecs: images ↔ latents. The one place that knows a latent's scale and shift.

Legend: B batch, C latent channels, H W pixels, h w latent cells (H / factor, W / factor).
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from mmsynth.models.encoders.latent_cache import LatentCache, image_keys
from mmsynth.models.encoders.text_encoders import fingerprint
from mmsynth.registry import MODELS


class LatentCodec(nn.Module):
    """Interface of a latent codec; frozen, always in eval mode.

    Attributes:
        channels: Latent channels C.
        factor: Pixels per latent cell and side.
        needs_fit: Whether :meth:`fit` has to be called with training images before first use.
    """

    channels: int
    factor: int
    needs_fit: bool = False

    def encode(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Encode images (B, 3, H, W), float, [-1, 1], RGB as latents (B, C, h, w).

        Args:
            images: The images.
            generator: Draws from the posterior of a stochastic codec, as training does; None takes its mode.
        """
        raise TypeError(f'{type(self).__name__} does not encode')

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) → images (B, 3, H, W), nominally [-1, 1], not clamped; differentiable."""
        raise TypeError(f'{type(self).__name__} does not decode')

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (C, h, w) of the latent of an image of that size.

        Raises:
            ValueError: If the size is not a multiple of the codec's factor.
        """
        if height % self.factor or width % self.factor:
            raise ValueError(f'image size {height}x{width}: both sides must be multiples of {self.factor}, the '
                             f'{type(self).__name__}\'s pixels per latent cell. Resize or crop the masks in the '
                             'pipeline of the dataset.')
        return self.channels, height // self.factor, width // self.factor

    def train(self, mode: bool = True) -> 'LatentCodec':
        """Stay in eval mode: the codec is frozen."""
        return super().train(False)


@MODELS.register_module()
class VAECodec(LatentCodec):
    """diffusers' ``AutoencoderKL`` with its scale and shift: ``(vae.encode(x) - shift_factor) * scaling_factor``.

    Args:
        pretrained: A folder or hub id in the diffusers layout whose ``vae`` is loaded.
        config: Settings of an ``AutoencoderKL`` built from scratch (tests).
        gradient_checkpointing: Keep only the inputs of the decoder's blocks for the backward pass and compute the
            rest again: less memory, more time, where guidance asks for the gradient of a decode. Changes nothing else.
        cache_dir: Folder of what ``tools/encode_latents.py`` encoded. In training mode images are read from there
            instead of being encoded, each posterior sampled as ever; outside of training it is not looked at.
        subfolder: Of ``pretrained``, in which the VAE is; None where that is the VAE's own folder or id.
        vae: A built one in the place of ``pretrained``; it is frozen. Images and latents are cast to its dtype.

    Raises:
        ValueError: If not exactly one of pretrained, config and vae is given, or the folder holds no ``vae``.
    """

    def __init__(self,
                 pretrained: str | None = None,
                 config: dict | None = None,
                 gradient_checkpointing: bool = False,
                 cache_dir: str | None = None,
                 subfolder: str | None = 'vae',
                 *,
                 vae: AutoencoderKL | None = None) -> None:
        super().__init__()
        if [pretrained, config, vae].count(None) != 2:
            raise ValueError('`pretrained` and `config`: exactly one must be given, or a built `vae`, got '
                             f'pretrained={pretrained!r}, config={config!r}, vae={type(vae).__name__}.')
        if vae is not None:
            self.vae = vae
        elif config is not None:
            self.vae = AutoencoderKL(**config)
        else:
            assert pretrained is not None
            if Path(pretrained).is_dir() and not (Path(pretrained) / (subfolder or '')).is_dir():
                raise ValueError(f'`pretrained`: the folder {pretrained} has no `{subfolder}` in it; it must be in the '
                                 'diffusers layout.')
            self.vae = AutoencoderKL.from_pretrained(pretrained, subfolder=subfolder)
        self.set_gradient_checkpointing(gradient_checkpointing)
        self.cache_dir = cache_dir
        self._cache: LatentCache | None = None
        self.requires_grad_(False).eval()
        self.channels = self.vae.config.latent_channels
        self.factor = 2**(len(self.vae.config.block_out_channels) - 1)
        self.scale = self.vae.config.scaling_factor
        self.shift = self.vae.config.shift_factor or 0.0  # SD1.5 has none

    @torch.no_grad()
    def encode(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """As in :class:`LatentCodec`.

        Raises:
            ValueError: If the size does not fit, or a training image (one with a ``generator``) is not in the cache.
                Others that are not there, such as references, are encoded.
        """
        self.latent_shape(*images.shape[-2:])
        cached = self._cached_moments(images, required=generator is not None) if self._reads_cache else None
        posterior = DiagonalGaussianDistribution(self.moments(images) if cached is None else cached)
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """The posterior of images (B, 3, H, W): mean and log variance, (B, 2 C, h, w), before scale and shift."""
        return self.vae.encode(images.to(self.vae.dtype)).latent_dist.parameters

    def open_cache(self, folder: str | Path) -> LatentCache:
        """The cache in a folder, with the identity of this codec: that of its encoder's weights."""
        parts = [part for part in (self.vae.encoder, self.vae.quant_conv) if part is not None]
        return LatentCache(folder, f'vae-{fingerprint((), parts)[:16]}')

    def _cached_moments(self, images: Tensor, *, required: bool) -> Tensor | None:
        assert self.cache_dir is not None
        if self._cache is None:
            self._cache = self.open_cache(self.cache_dir)
        keys = image_keys(images)
        missing = [row for row, key in enumerate(keys) if not self._cache.has(key)]
        if missing and required:
            others = [name for name in LatentCache.identities(self.cache_dir) if name != self._cache.identity]
            of_others = f' The folder holds images of {", ".join(others)}.' if others else ''
            raise ValueError(
                f'`latent_codec.cache_dir`: training image {missing[0]} of the batch is not in the latent cache '
                f'{self.cache_dir} (codec {self._cache.identity}).{of_others} If data or pipeline have changed since, '
                f'run: {LatentCache.command}. A random crop, resize or change of colour makes another image every '
                'time, which no cache can hold: cut the images at fixed places first, or leave `cache_dir` out.')
        if missing:
            return None
        return torch.stack([self._cache.read(key)['moments'] for key in keys]).to(images.device)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode((latents / self.scale + self.shift).to(self.vae.dtype)).sample

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Switch the option of that name on or off."""
        self.gradient_checkpointing = enabled
        if enabled:
            self.vae.enable_gradient_checkpointing()
        else:
            self.vae.disable_gradient_checkpointing()
        self.vae.decoder.training = enabled  # as below

    def train(self, mode: bool = True) -> 'VAECodec':
        """Stay in eval mode: the codec is frozen. Only the cache is for training."""
        super().train(False)
        self._reads_cache = mode and self.cache_dir is not None
        # some versions of diffusers checkpoint only a decoder in training mode; the flag is the decoder's own, its
        # blocks stay in eval mode
        self.vae.decoder.training = self.gradient_checkpointing
        return self


@MODELS.register_module()
class PatchPCACodec(LatentCodec):
    """Square patches → whitened principal components: a linear codec with no weights to download.

    Fitted in closed form on training images; a training latent has zero mean and, averaged over its channels, unit
    variance.

    Args:
        patch_size: Side of a patch in pixels; also the codec's factor.
        channels: Components kept, at most ``3 * patch_size ** 2``.
        whitening: How far the components' variances are made equal, in [0, 1]. With 1 every channel has unit variance,
            so that fine texture weighs as much as brightness; with less, noise hides the fine components first and an
            image is sampled from coarse to fine.

    Raises:
        ValueError: If more components are asked for than a patch has values, or ``whitening`` is out of range.
    """

    needs_fit = True
    mean: Tensor
    components: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, patch_size: int = 4, channels: int = 16, whitening: float = 1.0) -> None:
        super().__init__()
        values = 3 * patch_size**2
        if not 1 <= channels <= values:
            raise ValueError(f'`channels` must be in [1, {values}] for `patch_size` {patch_size}, got {channels}.')
        if not 0 <= whitening <= 1:
            raise ValueError(f'`whitening` must be in [0, 1], got {whitening}.')
        self.factor = patch_size
        self.channels = channels
        self.whitening = whitening
        self.register_buffer('mean', torch.zeros(values))
        self.register_buffer('components', torch.zeros(channels, values))
        self.register_buffer('scale', torch.ones(channels))
        self.register_buffer('fitted', torch.tensor(False))

    @torch.no_grad()
    def fit(self, images: Tensor) -> float:
        """Fit the components on images (N, 3, H, W), float, [-1, 1].

        Returns:
            The share of the patches' variance that the components keep, in [0, 1].
        """
        patches = F.pixel_unshuffle(images.double(), self.factor)  # (N, 3 p p, h, w)
        patches = patches.movedim(1, -1).flatten(0, -2)  # (patches, 3 p p)
        mean = patches.mean(0)
        covariance = (patches - mean).T @ (patches - mean) / max(len(patches) - 1, 1)
        variance, vectors = torch.linalg.eigh(covariance)  # ascending
        variance = variance.clamp_min(0)  # of a direction without any, rounding can leave it below
        kept = variance.flip(0)[:self.channels]
        components = vectors.flip(1)[:, :self.channels].T
        # eigenvectors have no sign of their own: make the largest entry positive so that every machine agrees
        components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        self.mean.copy_(mean)
        self.components.copy_(components)
        scale = kept.clamp_min(1e-12)**(self.whitening / 2)
        self.scale.copy_(scale * (kept.clamp_min(1e-12) / scale**2).mean().sqrt())  # unit variance over all channels
        self.fitted.fill_(True)
        return float(kept.sum() / variance.sum().clamp_min(1e-12))

    @torch.no_grad()
    def encode(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        del generator  # the codec is deterministic
        self._check_fitted()
        self.latent_shape(*images.shape[-2:])
        patches = F.pixel_unshuffle(images.float(), self.factor) - self.mean[:, None, None]
        return torch.einsum('bvhw,cv->bchw', patches, self.components) / self.scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        self._check_fitted()
        scaled = latents.float() * self.scale[:, None, None]
        patches = torch.einsum('bchw,cv->bvhw', scaled, self.components) + self.mean[:, None, None]
        return F.pixel_shuffle(patches, self.factor)

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError('PatchPCACodec is not fitted: load a trained checkpoint, or train with '
                             "`dict(type='mmsynth.FitLatentCodecHook')` in `custom_hooks`.")
