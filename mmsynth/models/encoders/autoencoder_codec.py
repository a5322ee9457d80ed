"""A latent codec fitted on the training images: a linear encoder of patches, a decoder that looks beyond them.

Legend: B batch, C latent channels, H W pixels, h w latent cells (H / patch_size, W / patch_size).
"""
from math import log2

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from mmsynth.models.encoders.latent_codecs import PatchPCACodec
from mmsynth.registry import MODELS
from mmsynth.utils import derive_seed, isolated_random_state, progress_bar

_SEED = derive_seed(0, 'autoencoder codec')  # fixed: the same images give the same codec
_REACH = 2  # cells on every side that the linear part sees
_WIDTH = 48
_CROP = 48  # pixels; a step costs the same for images of any size
_BATCH = 16


@MODELS.register_module()
class AutoencoderCodec(PatchPCACodec):
    """:class:`PatchPCACodec` with a decoder that takes latents for disturbed and sees the neighbouring cells.

    A generator's latents are off, and principal components decoded patch by patch show that as edges between patches.
    Here the decoder is fitted on training images whose latents carry white noise of standard deviation ``noise``:

    1. the best linear decoder of 5 x 5 cells under such noise, in closed form (a Wiener filter),
    2. a correction to its image, zero at first, by the decoder of diffusers' ``AutoencoderTiny`` (the network of
       TAESD, narrower).

    More noise gives smoother images and hides more of what a generator does wrong; a round trip of real images loses
    detail too. Encoding is PatchPCACodec's, and so are the statistics of latents.

    Args:
        patch_size: Side of a patch in pixels, 4 or 8; also the codec's factor.
        channels, whitening: See :class:`PatchPCACodec`.
        noise: Standard deviation of the noise on latents, whose own is 1 averaged over channels.
        iterations: Steps of the second part's fit, each on 16 crops of at most 48 pixels.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(self, patch_size: int = 4, channels: int = 16, whitening: float = 0.5, noise: float = 0.8,
                 iterations: int = 1000) -> None:
        if patch_size not in (4, 8):
            raise ValueError(f'`patch_size` must be 4 or 8, got {patch_size}.')
        if noise <= 0 or iterations < 1:
            raise ValueError(f'`noise` must be above 0 and `iterations` at least 1, got {noise} and {iterations}.')
        super().__init__(patch_size, channels, whitening)
        self.noise = noise
        self.iterations = iterations
        self.register_buffer('filter', torch.zeros(3 * patch_size**2, channels, 2 * _REACH + 1, 2 * _REACH + 1))
        self.decoder = self._new_decoder()
        for module in self.decoder.modules():  # buffers, as all that is fitted: no optimizer or sharding sees them
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach())
        self.eval()

    @torch.no_grad()
    def fit(self, images: Tensor) -> float:
        """Fit on images (N, 3, H, W), float, [-1, 1]; the convolutions take a minute or two on one core.

        Returns:
            The share of the images' variance that a round trip keeps, at most 1.
        """
        super().fit(images)
        images = images.float()
        self._fit_filter(images)
        self.decoder.load_state_dict(self._fit_decoder(images).state_dict())
        error = sum((self.decode(self.encode(part)) - part).square().sum() for part in images.split(64))
        return float(1 - error / (images - images.mean((0, 2, 3), keepdim=True)).square().sum().clamp_min(1e-12))

    def _fit_filter(self, images: Tensor) -> None:
        """Solve (E[u uᵀ] + noise² I) w = E[u p] for the cells u around a patch p."""
        gram, cross, count = 0.0, 0.0, 0
        for part in images.split(64):
            cells = F.unfold(self._pad(self.encode(part)), 2 * _REACH + 1).movedim(1, -1).flatten(0, 1).double()
            patches = F.pixel_unshuffle(part, self.factor).movedim(1, -1).flatten(0, 2).double() - self.mean
            gram, cross, count = gram + cells.T @ cells, cross + cells.T @ patches, count + len(cells)
        noise = self.noise**2 * torch.eye(len(gram)).to(gram)
        self.filter.copy_(torch.linalg.solve(gram / count + noise, cross / count).T.reshape(self.filter.shape))

    @torch.enable_grad()
    def _fit_decoder(self, images: Tensor) -> nn.Module:
        decoder = self._new_decoder().to(images.device)
        generator = torch.Generator().manual_seed(_SEED)  # on the CPU, so that devices agree
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, self.iterations + 1, pct_start=0.1)
        for _ in progress_bar(range(self.iterations), title='fit latent codec', unit='step'):
            real = _draw_crops(images, generator)
            latents = self.encode(real)
            latents = latents + self.noise * torch.randn(latents.shape, generator=generator).to(latents)
            error = self._decode(latents, decoder) - real
            loss = error.abs().mean() + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return decoder

    def decode(self, latents: Tensor) -> Tensor:
        self._check_fitted()
        return self._decode(latents.float(), self.decoder)

    def _decode(self, latents: Tensor, decoder: nn.Module) -> Tensor:
        patches = F.conv2d(self._pad(latents), self.filter, self.mean)  # (B, 3 p p, h, w)
        return F.pixel_shuffle(patches, self.factor) + F.pixel_shuffle(decoder(latents), 2)

    def _pad(self, latents: Tensor) -> Tensor:
        return F.pad(latents, (_REACH, ) * 4, mode='replicate')

    def _new_decoder(self) -> nn.Module:
        """Latents (B, C, h, w) → two by two pixels as channels (B, 12, H / 2, W / 2); zeros at first."""
        levels = int(log2(self.factor))
        with isolated_random_state(_SEED):
            decoder = AutoencoderTiny(
                out_channels=12, latent_channels=self.channels, encoder_block_out_channels=(1, ),
                num_encoder_blocks=(0, ), decoder_block_out_channels=(_WIDTH, ) * levels,
                num_decoder_blocks=(2, ) + (1, ) * (levels - 1)).decoder
        last = decoder.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, 0.5)  # diffusers brings [0, 1] to [-1, 1]
        return decoder


def _draw_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops (16, 3, ≤ 48, ≤ 48) of random images."""
    height, width = (min(size, _CROP) for size in images.shape[-2:])
    chosen = torch.randint(len(images), (_BATCH, ), generator=generator)
    top, left = (int(torch.randint(size - part + 1, (), generator=generator))
                 for size, part in zip(images.shape[-2:], (height, width)))
    return images[chosen.to(images.device), :, top:top + height, left:left + width]
