"""A small convolutional autoencoder as a latent codec, fitted on the training images: no weights to download, no tiles.

Legend: B batch, C latent channels, H W pixels, h w latent cells (H / factor, W / factor).
"""
from math import log2

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from mmsynth.models.encoders.latent_codecs import LatentCodec
from mmsynth.registry import MODELS
from mmsynth.utils import derive_seed, isolated_random_state, progress_bar

_SEED = derive_seed(0, 'autoencoder codec')  # fixed: the same images give the same codec
_WIDTH = 48
_CROP = 48  # pixels; a step costs the same for images of any size
_BATCH = 16


@MODELS.register_module()
class AutoencoderCodec(LatentCodec):
    """diffusers' ``AutoencoderTiny`` (the network of TAESD; narrower, on two by two pixels), fitted on training images.

    Latents have zero mean per channel and, averaged over channels, unit variance. They have so in training too, and the
    decoder sees them under white noise: it learns to make images of latents that are off, as a generator's are, and the
    encoder gives the more variance to what matters the more, so that noise hides fine detail first and a generator
    generates from coarse to fine.

    Args:
        factor: Pixels per latent cell and side, 4 or 8.
        channels: Latent channels.
        noise: Largest standard deviation of the noise on latents; each crop's is drawn evenly from 0 on.
        iterations: Steps of the fit, each on 16 crops of at most 48 pixels.

    Raises:
        ValueError: If an option is out of range.
    """

    needs_fit = True
    mean: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, factor: int = 4, channels: int = 16, noise: float = 0.5, iterations: int = 1000) -> None:
        super().__init__()
        if factor not in (4, 8):
            raise ValueError(f'`factor` must be 4 or 8, got {factor}.')
        if channels < 1 or noise < 0 or iterations < 1:
            raise ValueError('`channels` and `iterations` must be at least 1 and `noise` not negative, got '
                             f'{channels}, {iterations} and {noise}.')
        self.factor = factor
        self.channels = channels
        self.noise = noise
        self.iterations = iterations
        self.vae = self._new_network()
        for module in self.vae.modules():  # buffers, as all that is fitted: no optimizer or sharding sees them
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach())
        self.register_buffer('mean', torch.zeros(channels, 1, 1))
        self.register_buffer('scale', torch.ones(()))
        self.register_buffer('fitted', torch.tensor(False))
        self.eval()

    @torch.no_grad()
    def fit(self, images: Tensor) -> float:
        """Fit on images (N, 3, H, W), float, [-1, 1]; about two minutes on one core.

        Returns:
            The share of the images' variance that a round trip keeps, at most 1.

        Raises:
            ValueError: If a side of the images is not a multiple of the factor.
        """
        self.latent_shape(*images.shape[-2:])
        images = images.float()
        self.vae.load_state_dict(self._train_network(images).state_dict())
        latents = torch.cat([_encode(self.vae, part) for part in images.split(64)])
        self.mean.copy_(latents.mean((0, 2, 3))[:, None, None])
        self.scale.copy_((latents - self.mean).square().mean().sqrt().clamp_min(1e-6))
        self.fitted.fill_(True)
        error = sum((self.decode(self.encode(part)) - part).square().sum() for part in images.split(64))
        return float(1 - error / (images - images.mean((0, 2, 3), keepdim=True)).square().sum().clamp_min(1e-12))

    @torch.enable_grad()
    def _train_network(self, images: Tensor) -> nn.Module:
        vae = self._new_network().to(images.device)
        generator = torch.Generator().manual_seed(_SEED)  # on the CPU, so that devices agree
        optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, self.iterations + 1, pct_start=0.1)
        for _ in progress_bar(range(self.iterations), title='fit latent codec', unit='step'):
            real = _draw_crops(images, generator)
            latents = _encode(vae, real)
            latents = latents - latents.mean((0, 2, 3), keepdim=True)
            latents = latents / latents.square().mean().sqrt().clamp_min(1e-6)
            sigma = self.noise * torch.rand(len(latents), 1, 1, 1, generator=generator)
            noise = sigma * torch.randn(latents.shape, generator=generator)
            loss = _loss(_decode(vae, latents + noise.to(latents)) - real)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return vae

    @torch.no_grad()
    def encode(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        del generator  # the codec is deterministic
        self._check_fitted()
        self.latent_shape(*images.shape[-2:])
        return (_encode(self.vae, images.float()) - self.mean) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        self._check_fitted()
        return _decode(self.vae, latents.float())

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError('AutoencoderCodec is not fitted: load a trained checkpoint, or train with '
                             "`dict(type='mmsynth.FitLatentCodecHook')` in `custom_hooks`.")

    def _new_network(self) -> AutoencoderTiny:
        levels = int(log2(self.factor))
        with isolated_random_state(_SEED):
            return AutoencoderTiny(
                in_channels=12, out_channels=12, latent_channels=self.channels,
                encoder_block_out_channels=(_WIDTH, ) * levels, num_encoder_blocks=(1, ) * levels,
                decoder_block_out_channels=(_WIDTH, ) * levels, num_decoder_blocks=(2, ) + (1, ) * (levels - 1))


def _encode(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    return vae.encoder(F.pixel_unshuffle(images, 2))


def _decode(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    return F.pixel_shuffle(vae.decoder(latents), 2)


def _loss(error: Tensor) -> Tensor:
    """Mean absolute error of images, and of their steps between pixels at full and at half size."""
    loss = error.abs().mean()
    for scaled in (error, F.avg_pool2d(error, 2)):
        loss = loss + 0.5 * (scaled.diff(dim=-1).abs().mean() + scaled.diff(dim=-2).abs().mean())
    return loss


def _draw_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops (16, 3, ≤ 48, ≤ 48) of random images."""
    height, width = (min(size, _CROP) for size in images.shape[-2:])
    chosen = torch.randint(len(images), (_BATCH, ), generator=generator)
    top, left = (int(torch.randint(size - part + 1, (), generator=generator))
                 for size, part in zip(images.shape[-2:], (height, width)))
    return images[chosen.to(images.device), :, top:top + height, left:left + width]
