"""Recompute a parity file's outputs from its inputs with this project's own classes.

    python tests/parity/replay.py FILE [--save OUT.safetensors]

prints the largest absolute error of every output and exits with 1 if one is over its bar: 1e-4 for a single forward,
1e-3 after a trajectory.
"""
import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmsynth.guidance import CRFM, SegmentorCritic
from mmsynth.models.checkpoints import load_released_todsynth
from mmsynth.models.encoders.latent_codecs import VAECodec
from mmsynth.models.networks import MMDiT
from mmsynth.sampling import sample_flow_match
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
        return sample_flow_match(predict, io['initial_latents'], scheduler, settings['num_inference_steps'], guide)[0]

    corrected = run(crfm.bind(codec.decode, io['label']))
    image = (codec.decode(corrected) / 2 + 0.5).clamp(0, 1)
    return {'final_latents_crfm': corrected, 'final_latents_plain': run(None), 'image_crfm': image}


KINDS = {'mmdit_forward': (replay_mmdit_forward, 1e-4), 'crfm_trajectory': (replay_crfm_trajectory, 1e-3)}


@torch.no_grad()
def replay(path: Path) -> tuple[Tensors, dict[str, float], float]:
    """Recompute a file's outputs.

    Returns:
        The outputs, the largest absolute error of each, and the bar.

    Raises:
        ValueError: If the file is of a kind that is not replayed here.
    """
    file = ParityFile(path)
    kind = file.settings['kind']
    if kind not in KINDS:
        raise ValueError(f'{path}: kind {kind!r} is not replayed; known: {", ".join(KINDS)}.')
    recompute, bar = KINDS[kind]
    outputs, expected = recompute(file), file.part('io')
    errors = {name: float((value - expected[name]).abs().max()) for name, value in outputs.items()}
    return outputs, errors, bar


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', type=Path, help='a parity file')
    parser.add_argument('--save', type=Path, help='write the recomputed outputs here, as safetensors')
    args = parser.parse_args()
    outputs, errors, bar = replay(args.file)
    if args.save:
        save_file({name: value.contiguous() for name, value in outputs.items()}, args.save)
    for name, error in errors.items():
        print(f'{args.file.name} {name}: largest absolute error {error:.2e} (bar {bar:.0e})')
    return int(max(errors.values()) > bar)


def _network(file: ParityFile, prefix: str) -> MMDiT:
    network = MMDiT(trunk=file.settings['transformer_config'], legacy=True).eval()
    report = load_released_todsynth(network, file.part(prefix), source=str(file.path))
    if not report.complete:
        raise ValueError(f'{file.path}: {report}')
    return network


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == '__main__':
    sys.exit(main())
