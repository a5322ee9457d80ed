"""Recompute a parity file's outputs from its inputs with this project's own classes.

    python tests/parity/replay.py FILE [--save OUT.safetensors]

prints the largest absolute error of every output and exits with 1 if one is over its bar: 1e-4 for a single forward and
for the filter's means, 1e-3 after a trajectory, 0 for labels and decisions.
"""
import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmsynth.filtering import ClassLossMeter, PixelRule, pixel_losses
from mmsynth.guidance import CRFM, SegmentorCritic
from mmsynth.models.checkpoints import load_released_todsynth
from mmsynth.models.encoders.latent_codecs import VAECodec
from mmsynth.models.ldm_checkpoints import read_ldm
from mmsynth.models.networks import ControlledUNet, MMDiT
from mmsynth.sampling import build_sampler, sample
from mmsynth.utils.checkpoint import load_state_dict

Tensors = dict[str, Tensor]
POLICIES = {'C': 'constant', 'LI': 'increase', 'LD': 'decrease'}


class ParityFile:
    """The tensors and settings of one parity file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, framework='pt') as file:
            self.settings = {key: _value(text) for key, text in file.metadata().items()}
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}

    def part(self, prefix: str) -> Tensors:
        """The tensors under ``prefix/``, by the rest of their names."""
        return {key.removeprefix(f'{prefix}/'): value for key, value in self._tensors.items()
                if key.startswith(f'{prefix}/')}


def replay_mmdit_forward(file: ParityFile) -> Tensors:
    """The triple-attention network, with and without a mask."""
    io, network = file.part('io'), _network(file, 'weights')
    inputs = [io[key] for key in ('latents', 'timestep', 'prompt_embeds', 'pooled_prompt_embeds')]
    return {
        'velocity': network(*inputs, io['mask_latents']),
        'velocity_without_mask': network(*inputs),
    }


def replay_crfm_trajectory(file: ParityFile) -> Tensors:
    """A whole sampling run, plain and with CRFM's released rule."""
    io, settings, network = file.part('io'), file.settings, _network(file, 'transformer')
    codec = VAECodec(config=settings['vae_config'])
    load_state_dict(codec.vae, file.part('vae'), source=str(file.path))
    critic = SegmentorCritic(dict(model=settings['segmentor_config']))
    load_state_dict(critic.segmentor, file.part('segmentor'), source=str(file.path))
    crfm = CRFM(
        critic,
        steps=settings['rectified_step'],
        step_size=settings['max_step_size'],
        policy=POLICIES[settings['step_scheme']],
        norm='l2' if settings['l2_norm'] else 'raw',
        num_rectified=settings['num_rectified'],
        attenuate=settings['is_synth'],
        legacy=True)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        return network(latents, timestep, io['prompt_embeds'], io['pooled_prompt_embeds'], io['mask_latents'])

    def run(guide: Callable | None) -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler(**settings['scheduler_config'])
        return sample(predict, io['initial_latents'], scheduler, settings['num_inference_steps'], guide)[0]

    corrected = run(crfm.bind(codec.decode, io['label']))
    image = (codec.decode(corrected) / 2 + 0.5).clamp(0, 1)
    return {'final_latents_crfm': corrected, 'final_latents_plain': run(None), 'image_crfm': image}


def replay_tisynth(file: ParityFile) -> Tensors:
    """The network with mask and reference, a whole DDIM run under classifier-free guidance, and the VAE."""
    io = file.part('io')
    network, codec = _tisynth(file)
    hints = network.encode_mask(io['mask_hint']), network.encode_reference(io['reference_latents'])
    moments = codec.vae.encode(io['vae_image']).latent_dist
    return {
        'noise_prediction': network(io['latents'], io['timestep'], io['prompt_embeds'], *hints),
        'ddim_final_latents': tisynth_ddim(file, network, torch.float32),
        'vae_moments': moments.parameters,
        'vae_reconstruction_from_mean': codec.vae.decode(moments.mean).sample,
    }


@torch.no_grad()
def tisynth_ddim(file: ParityFile, network: ControlledUNet, dtype: torch.dtype) -> Tensor:
    """The latents after a DDIM run under guidance, computed in a precision; the network is left in it."""
    io = {name: value.to(dtype) for name, value in file.part('io').items()}
    network = network.to(dtype)
    hints = network.encode_mask(io['mask_hint']), network.encode_reference(io['reference_latents'])

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        noise = network(latents, timestep, io['prompt_embeds'], *hints)
        negative = network(latents, timestep, io['negative_prompt_embeds'], *hints)
        return negative + file.settings['guidance_scale'] * (noise - negative)

    return sample(predict, io['latents'], build_sampler(), file.settings['ddim_steps'])[0]


def replay_filter_resample(file: ParityFile) -> Tensors:
    """The class-wise mean losses on real data, and what the filter makes of synthetic labels by them."""
    io, settings = file.part('io'), file.settings
    names = [f'class {index}' for index in range(settings['num_classes'])]
    labels = [io[f'{kind}_labels'].masked_fill(io[f'{kind}_labels'] == settings['ignore_index'], 255)
              for kind in ('real', 'synthetic')]
    meter = ClassLossMeter(len(names))
    meter.update(pixel_losses(io['real_logits'], labels[0]), labels[0])
    fitted = meter.compute(names)
    rule = PixelRule(
        fitted, margin=settings['tolerance_margin'], min_valid=settings['min_valid_ratio'],
        weak_classes=tuple(names[index] for index in settings['rare_classes']))
    losses = pixel_losses(io['synthetic_logits'], labels[1]).numpy()
    masks = labels[1].numpy().astype(np.uint8)
    samples = [rule.decide([loss], mask)[0] for loss, mask in zip(losses, masks)]
    return {
        'class_mean_loss': torch.tensor([mean or 0.0 for mean in fitted.mean_loss]),  # the release has 0 for None
        'filtered_labels': torch.from_numpy(np.stack([sample.label for sample in samples])).long(),
        'keep': torch.tensor([sample.entry['keep'] for sample in samples]),
    }


KINDS = {'mmdit_forward': replay_mmdit_forward, 'crfm_trajectory': replay_crfm_trajectory, 'tisynth': replay_tisynth,
         'filter_resample': replay_filter_resample}
FORWARD, TRAJECTORY = 1e-4, 1e-3
EXACT = ('filtered_labels', 'keep')
TRAJECTORIES = ('final_latents_crfm', 'final_latents_plain', 'image_crfm', 'ddim_final_latents')


@torch.no_grad()
def replay(path: Path) -> tuple[Tensors, dict[str, float], dict[str, float]]:
    """Recompute a file's outputs.

    Returns:
        The outputs, the largest absolute error of each, and its bar.

    Raises:
        ValueError: If the file is of a kind that is not replayed here.
    """
    file = ParityFile(path)
    kind = file.settings['kind']
    if kind not in KINDS:
        raise ValueError(f'{path}: kind {kind!r} is not replayed; known: {", ".join(KINDS)}.')
    outputs, expected = KINDS[kind](file), file.part('io')
    errors = {name: float((value.double() - expected[name].double()).abs().max()) for name, value in outputs.items()}
    return outputs, errors, {name: _bar(name) for name in outputs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', type=Path, help='a parity file')
    parser.add_argument('--save', type=Path, help='write the recomputed outputs here, as safetensors')
    args = parser.parse_args()
    outputs, errors, bars = replay(args.file)
    if args.save:
        save_file({name: value.contiguous() for name, value in outputs.items()}, args.save)
    for name, error in errors.items():
        print(f'{args.file.name} {name}: largest absolute error {error:.2e} (bar {bars[name]:.0e})')
    return int(any(not error <= bars[name] for name, error in errors.items()))


def _network(file: ParityFile, prefix: str) -> MMDiT:
    network = MMDiT(trunk=file.settings['transformer_config'], legacy=True).eval()
    report = load_released_todsynth(network, file.part(prefix), source=str(file.path))
    if not report.complete:
        raise ValueError(f'{file.path}: {report}')
    return network


def _tisynth(file: ParityFile) -> tuple[ControlledUNet, VAECodec]:
    """Network and codec with the file's settings, which are LDM's, and its weights."""
    io, state, source = file.part('io'), file.part('state_dict'), str(file.path)
    network = ControlledUNet(
        unet=unet_settings(file.settings['unet_config']), mask_channels=io['mask_hint'].shape[1], legacy=True).eval()
    codec = VAECodec(config=vae_settings(file.settings['vae_ddconfig']))
    found = read_ldm(state, network, source=source)
    reports = [load_state_dict(network, found.network, source=source),
               load_state_dict(codec.vae, found.vae, source=source)]
    if found.unknown or not all(report.complete for report in reports):
        raise ValueError(f'{source}: {reports}, unknown: {sorted(found.unknown)}')
    return network, codec


def unet_settings(config: dict) -> dict:
    """diffusers' settings of a U-Net with LDM's ``config``."""
    multipliers = config['channel_mult']
    attends = [2**level in config['attention_resolutions'] for level in range(len(multipliers))]
    return dict(
        sample_size=config['image_size'],
        in_channels=config['in_channels'],
        out_channels=config.get('out_channels', config['in_channels']),
        layers_per_block=config['num_res_blocks'],
        block_out_channels=[config['model_channels'] * multiplier for multiplier in multipliers],
        down_block_types=['CrossAttnDownBlock2D' if attend else 'DownBlock2D' for attend in attends],
        up_block_types=['CrossAttnUpBlock2D' if attend else 'UpBlock2D' for attend in reversed(attends)],
        transformer_layers_per_block=config['transformer_depth'],
        cross_attention_dim=config['context_dim'],
        attention_head_dim=config['num_heads'])  # in diffusers that is the number of heads, for this U-Net


def vae_settings(config: dict) -> dict:
    """diffusers' settings of a VAE with LDM's ``ddconfig``."""
    levels = len(config['ch_mult'])
    return dict(
        in_channels=config['in_channels'],
        out_channels=config['out_ch'],
        latent_channels=config['z_channels'],
        layers_per_block=config['num_res_blocks'],
        block_out_channels=[config['ch'] * multiplier for multiplier in config['ch_mult']],
        down_block_types=['DownEncoderBlock2D'] * levels,
        up_block_types=['UpDecoderBlock2D'] * levels,
        scaling_factor=0.18215)


def _bar(name: str) -> float:
    if name in EXACT:
        return 0.0
    return TRAJECTORY if name in TRAJECTORIES else FORWARD


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == '__main__':
    sys.exit(main())
