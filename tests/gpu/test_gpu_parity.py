"""Every part computes on the device what it computes on the CPU in float32, in float32 and under bfloat16 autocast.

The error is that of whole tensors, ``‖got - expected‖ / ‖expected‖``. float32 differs by the order of sums; bfloat16
has 8 bits, so about 0.4 % in a product and more where several layers follow one another.
"""
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_generator import TRUNK, images, samples, segmentor, todsynth
from tiny_tisynth import referenced, tisynth
from torch import Tensor, nn

from mmsynth.filtering import ClassLosses, ClassLossFilter
from mmsynth.guidance import (
    CRFM,
    AugmentedCritic,
    BestOfN,
    CriticEnsemble,
    Guidance,
    LatentCritic,
    ReducedDecoder,
    ReducibleLossCritic,
    SegmentorCritic,
)
from mmsynth.models import PatchPCACodec
from mmsynth.models.encoders import AutoencoderCodec, LatentCodec, VAECodec
from mmsynth.models.generators import BaseGenerator

TOLERANCE = dict(float32=1e-4, bfloat16=0.04)
LOOSER = dict(
    gradient=dict(float32=1e-3, bfloat16=0.25),  # through batch norms and ReLUs of random weights
    guided=dict(float32=1e-3, bfloat16=0.1))  # latents that have followed such gradients
VAE = dict(
    down_block_types=('DownEncoderBlock2D', ) * 3, up_block_types=('UpDecoderBlock2D', ) * 3, layers_per_block=1,
    block_out_channels=(8, 8, 16), norm_num_groups=4, latent_channels=6, scaling_factor=1.5, shift_factor=0.06)
CONTROLS = ('triple', 'siamese', 'adapter')
Result = dict[str, Tensor]


def critic(seed: int = 0) -> SegmentorCritic:
    torch.manual_seed(seed)
    return SegmentorCritic(dict(model=segmentor()))


def generator(name: str, device: str) -> BaseGenerator:
    """A generator in float32, which is not its default on a GPU, or in the precision of an autocast that is on."""
    dtype = None if torch.is_autocast_enabled(torch.device(device).type) else 'float32'
    if name == 'tisynth':
        return tisynth(dtype=dtype).to(device)
    network = dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=3, control=name, gradient_checkpointing=True)
    return todsynth(network=network, dtype=dtype).to(device)


def training(name: str, device: str) -> Result:
    """Loss and gradient of a training step; noise and sigmas are drawn on the CPU."""
    model = generator(name, device)
    torch.manual_seed(1)
    given = referenced() if name == 'tisynth' else samples()
    for sample in given:
        sample.to(device)
    (loss, ) = model.loss(images().to(device), given).values()
    loss.backward()
    gradient = [parameter.grad.flatten() for parameter in model.network.parameters() if parameter.grad is not None]
    return dict(loss=loss, gradient=torch.cat(gradient))


def synthesis(name: str, device: str, guidance: Callable[[], Guidance] | None = None) -> Result:
    """Generated latents, read at the codec; every sample's noise is drawn on the CPU."""
    model = generator(name, device)
    seen, decode = [], model.latent_codec.decode
    model.latent_codec.decode = lambda latents: seen.append(latents.detach()) or decode(latents)
    given = referenced() if name == 'tisynth' else samples()
    model.synthesize([sample.to(device) for sample in given], [1, 2, 3, 4],
                     guidance=None if guidance is None else guidance().to(device))
    return {'latents' if guidance is None else 'guided': seen[-1]}


def judged(make: Callable[[], nn.Module], device: str, *, latents: bool = False) -> Result:
    """A critic's losses and their gradient."""
    module, masks = make().to(device), torch.stack([sample.gt_sem_seg.data[0] for sample in samples()]).to(device)
    inputs = torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(5)) if latents else images() / 2 + 0.5
    inputs = inputs.to(device).requires_grad_()
    loss = module(inputs, masks).loss
    return dict(loss=loss, gradient=torch.autograd.grad(loss.sum(), inputs)[0])


def latent_critic() -> LatentCritic:
    torch.manual_seed(0)
    built = LatentCritic(channels=6, factor=4, num_classes=3, width=8)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built


def coded(make: Callable[[], LatentCodec], device: str) -> Result:
    """Latents, and the images that they decode to; fitted on the CPU."""
    codec = make()
    if codec.needs_fit:
        with torch.autocast('cpu', enabled=False):
            codec.fit(images())
    latents = codec.to(device).encode(images().to(device))
    return dict(latents=latents, images=codec.decode(latents))


def vae() -> VAECodec:
    torch.manual_seed(0)
    return VAECodec(config=VAE)


def filtered(device: str) -> Result:
    """The losses that the pixel filter decides by."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(4)]
    masks = [rng.integers(0, 3, (16, 16), dtype=np.uint8) for _ in range(4)]
    pixel_filter = ClassLossFilter(critic(), ClassLosses(('a', 'b', 'c'), (1.0, 1.1, 1.2), (9, 9, 9))).to(device)
    assert len(pixel_filter(pictures, masks)) == 4
    return dict(losses=torch.from_numpy(pixel_filter.losses(pixel_filter.predict_logits(pictures), masks)))


BODIES: dict[str, Callable[[str], Result]] = {
    **{f'training {name}': lambda device, name=name: training(name, device) for name in (*CONTROLS, 'tisynth')},
    **{f'synthesis {name}': lambda device, name=name: synthesis(name, device) for name in (*CONTROLS, 'tisynth')},
    'CRFM': lambda device: synthesis('triple', device, lambda: CRFM(critic(), steps='all', step_size=0.3)),
    'CRFM, as released': lambda device: synthesis(
        'triple', device, lambda: CRFM(critic(), steps=2, step_size=0.3, norm='raw', legacy=True)),
    'CRFM, TISynth': lambda device: synthesis('tisynth', device, lambda: CRFM(critic(), steps=2, step_size=0.3)),
    'CRFM, reduced decode': lambda device: synthesis(
        'triple', device, lambda: CRFM(critic(), steps=2, step_size=0.3, decoder=ReducedDecoder(factor=2))),
    'CRFM, latent critic': lambda device: synthesis(
        'triple', device, lambda: CRFM(latent_critic(), steps=2, step_size=0.3)),
    'best of n': lambda device: synthesis('triple', device, lambda: BestOfN(critic(), num_candidates=2)),
    'segmentor critic': lambda device: judged(critic, device),
    'critic ensemble': lambda device: judged(lambda: CriticEnsemble([critic(), critic(1)]), device),
    'augmented critic': lambda device: judged(lambda: AugmentedCritic(critic()), device),
    'reducible loss critic': lambda device: judged(lambda: ReducibleLossCritic(critic(), critic(1)), device),
    'latent critic': lambda device: judged(latent_critic, device, latents=True),
    'PCA codec': lambda device: coded(lambda: PatchPCACodec(4, 48), device),
    'VAE codec': lambda device: coded(vae, device),
    'autoencoder codec': lambda device: coded(lambda: AutoencoderCodec(iterations=20), device),
    'filter': filtered,
}


@pytest.fixture(scope='module')
def expected() -> dict[str, Result]:
    """What the CPU computes, filled as the tests need it."""
    return {}


@pytest.mark.parametrize('precision', TOLERANCE)
@pytest.mark.parametrize('body', BODIES)
def test_the_device_computes_what_the_cpu_computes(body: str, precision: str, device: str,
                                                   expected: dict[str, Result]) -> None:
    if body not in expected:
        expected[body] = BODIES[body]('cpu')
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == 'bfloat16'):
        result = BODIES[body](device)
    for name, value in expected[body].items():
        got, value = result[name].detach().double().cpu(), value.detach().double()
        assert got.isfinite().all() and value.norm() > 0
        error = float((got - value).norm() / value.norm())
        print(f'{body}: {name}, {precision} on {device}: {error:.1e}')
        assert error <= LOOSER.get(name, TOLERANCE)[precision]
