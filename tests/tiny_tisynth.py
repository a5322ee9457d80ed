"""Tiny parts for the tests of TISynth: one with random weights, one that knows the answer, samples with references."""
import torch
from mmengine.structures import PixelData
from tiny_generator import CHANNELS, SIZE, TEXT, images, samples
from torch import Tensor, nn

from mmsynth.guidance import SegmentorCritic
from mmsynth.models import OneHotCodec, PatchPCACodec, TISynth
from mmsynth.registry import MODELS
from mmsynth.sampling import build_sampler
from mmsynth.structures import SynthDataSample

UNET = dict(
    sample_size=4,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    layers_per_block=1,
    block_out_channels=(8, 16),
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    cross_attention_dim=12,
    attention_head_dim=2,
    norm_num_groups=4)
NETWORK = dict(type='mmsynth.ControlledUNet', unet=UNET, mask_channels=3, mask_factor=4)
CLEAN_DDIM = dict(type='DDIMScheduler', set_alpha_to_one=True)  # the released one leaves a little noise
SEEDS = [10, 11, 12, 13]


def referenced(count: int = 4, size: int = SIZE) -> list[SynthDataSample]:
    """:func:`tiny_generator.samples`, each with a reference (3, size, size) in [-1, 1]."""
    pictures = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(6)) * 2 - 1
    result = samples(count, size)
    for sample, picture in zip(result, pictures):
        sample.reference = PixelData(data=picture)
    return result


def tisynth(**changes) -> TISynth:
    """A tiny generator with random weights everywhere, so that every input makes a difference."""
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='mmsynth.TISynth',
        network=NETWORK,
        latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=4, channels=CHANNELS),
        label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3),
        text_encoder=TEXT,
        guidance_scale=2.0,
        num_steps=4) | changes)
    model.latent_codec.fit(images())
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if 'norm' not in name:
                parameter.normal_(std=0.15)
    return model.eval()


class NoiseOracle(nn.Module):
    """Knows the clean latents, and so the true noise ``(z - alpha z0) / sigma``. Repeats them for guidance."""

    latent_channels, mask_channels, mask_factor = 48, 3, 4

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean = nn.Parameter(clean)
        self.register_buffer('signal', build_sampler().alphas_cumprod)
        self.mask_encodings = self.reference_encodings = self.calls = 0

    def branch_parameters(self, branch: str) -> dict[str, nn.Parameter]:
        return {'clean': self.clean} if branch == 'attention' else {}

    def encode_mask(self, control: Tensor) -> Tensor:
        self.mask_encodings += 1
        return control[:, :, ::4, ::4]

    def encode_reference(self, reference_latents: Tensor) -> Tensor:
        self.reference_encodings += 1
        return reference_latents

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, mask_hint: Tensor,
                reference_hint: Tensor) -> Tensor:
        assert timestep.shape == (len(latents), ) and len(prompt_embeds) == len(mask_hint) == len(reference_hint)
        self.calls += 1
        level = self.signal[timestep.long()][:, None, None, None]
        clean = self.clean.repeat(len(latents) // len(self.clean), 1, 1, 1)
        return (latents - level.sqrt() * clean) / (1 - level).sqrt()


class VelocityOracle(NoiseOracle):
    """Knows the true velocity ``alpha eps - sigma z0``."""

    def forward(self, latents: Tensor, timestep: Tensor, *condition: Tensor) -> Tensor:
        noise = super().forward(latents, timestep, *condition)
        level = self.signal[timestep.long()][:, None, None, None]
        return level.sqrt() * noise - (1 - level).sqrt() * self.clean.repeat(len(latents) // len(self.clean), 1, 1, 1)


def oracle(network: type[NoiseOracle] = NoiseOracle, **changes) -> TISynth:
    """A generator that generates :func:`tiny_generator.images`, whose codec is exact."""
    codec = PatchPCACodec(4, 48)
    codec.fit(images())
    return TISynth(network(codec.encode(images())), codec, OneHotCodec(3), TEXT,
                   **dict(sampler=CLEAN_DDIM) | changes)


def masks() -> Tensor:
    """The masks (4, H, W) of :func:`referenced`."""
    return torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])


def generate(model: TISynth, rows: slice = slice(0, 4), guidance: nn.Module | None = None) -> Tensor:
    """Generated images of the rows, each under its own seed."""
    generated = model.synthesize(referenced()[rows], SEEDS[rows], guidance=guidance)
    return torch.stack([sample.generated_img.data for sample in generated])


def critic(config: dict) -> SegmentorCritic:
    torch.manual_seed(0)
    return SegmentorCritic(dict(model=config))
