"""Checkpoints from one layout to another: a release's, mmagic's or mmengine's → ours, or a diffusers folder.

The folder that is written of a TODSynth:

    transformer/   the trunk, for SD3Transformer2DModel.from_pretrained and ``mmsynth.MMDiT(pretrained=FOLDER)``
    control/       what the network adds for masks: model.safetensors, and config.json, which says for which network
    vae/           where the latent codec is a VAE
    scheduler/

Of a ControlNet of Stable Diffusion 1.5 it is that of diffusers' ``StableDiffusionControlNetPipeline``, and with its
``controlnet/`` what ``mmsynth.DiffusersControlNet`` takes.
"""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from mmengine.config import Config
from mmengine.registry import DefaultScope
from safetensors.torch import save_file
from torch import Tensor

from mmsynth.models.checkpoints import (
    control_tensors,
    is_released_todsynth,
    load_generator_state,
    own_tensors_outside_network,
)
from mmsynth.models.encoders import CLIPTextEncoder, VAECodec
from mmsynth.models.generators import BaseGenerator, TISynth, TODSynth
from mmsynth.models.generators.controlnet import StableDiffusionControlNet
from mmsynth.models.ldm_checkpoints import is_ldm
from mmsynth.models.networks import MMDiT, UNetControlNet
from mmsynth.registry import MODELS
from mmsynth.utils import LoadReport, read_checkpoint
from mmsynth.utils.files import atomic_path

LAYOUTS = ('mmsynth', 'diffusers')
_FILES = ('.safetensors', '.pth')


@dataclass(frozen=True)
class Conversion:
    """What was read and written.

    Attributes:
        report: Of loading the checkpoint.
        merged: Number of layers whose LoRA was merged.
        written: What stands where, one line each.
        left_out: Parts of the generator for which the layout has no place.
    """

    report: LoadReport
    merged: int
    written: list[str]
    left_out: list[str]

    def __str__(self) -> str:
        lines = [f'read: {self.report}']
        if self.merged:
            lines.append(f'merged: LoRA of {self.merged} layers')
        lines += [f'wrote: {line}' for line in self.written]
        if self.left_out:
            lines.append(f'no place in this layout: {", ".join(self.left_out)}; keep the checkpoint for it')
        return '\n'.join(lines)


def convert_checkpoint(cfg: Config,
                       checkpoint: str | Path,
                       out: str | Path,
                       *,
                       to: str = 'mmsynth',
                       merge_lora: bool = False) -> Conversion:
    """Write a generator's checkpoint in another layout.

    Args:
        cfg: The config that the checkpoint was trained with; its ``pretrained`` backbone is read as well.
        checkpoint: mmengine's .pth, .safetensors, mmagic's, or a release's file or folder (TISynth: in LDM's layout).
        out: A new file for 'mmsynth', a new folder for 'diffusers'.
        to: 'mmsynth': a checkpoint with this package's names: ``.safetensors``, or ``.pth``, which mmengine's
            ``load_from`` wants. 'diffusers': the folder described above.
        merge_lora: Add the low-rank updates to the weights. The checkpoint then fits the same config without LoRA, the
            adapted branches being 'full' or 'frozen'.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        FileExistsError: If ``out`` is there already.
        ValueError: If an option is out of range or has no effect, or the checkpoint does not fit the config.
    """
    out = Path(out)
    check_out(out, to, LAYOUTS)
    generator, report, merged = read_generator(cfg, checkpoint, to, merge_lora=merge_lora)
    with atomic_path(out, folder=to != 'mmsynth') as draft:
        if to == 'mmsynth':
            written = [f'{out}: {_save_tensors(generator.state_dict(), draft)} tensors']
            left_out: list[str] = []
        else:
            write = _write_pipeline if isinstance(generator, StableDiffusionControlNet) else _write_diffusers
            written, left_out = write(generator, draft, out)
    return Conversion(report, merged, written, left_out)


def read_generator(cfg: Config, checkpoint: str | Path, to: str, *,
                   merge_lora: bool) -> tuple[BaseGenerator, LoadReport, int]:
    """Build the generator of a config and load its checkpoint, to write it in the layout ``to``.

    Returns:
        The generator, in eval mode; the report of loading; the number of layers whose LoRA was merged.

    Raises:
        FileNotFoundError, ValueError: As in :func:`convert_checkpoint`.
    """
    generator = _build(cfg, to)
    _check_lora(generator, to, merge_lora)
    report = _load(generator, checkpoint)
    return generator, report, generator.merge_lora() if merge_lora else 0


def check_out(out: Path, to: str, layouts: Sequence[str]) -> None:
    """Raise ValueError if ``to`` is none of the layouts or ``out`` does not fit it, FileExistsError if that exists."""
    if to not in layouts:
        raise ValueError(f'`to` must be one of {", ".join(layouts)}, got {to!r}.')
    if out.exists():
        raise FileExistsError(f'`out`: {out} is there already and is not overwritten; choose another name, or remove '
                              'it first.')
    if (to == 'mmsynth') != (out.suffix in _FILES):
        wanted = f'a file that ends in {" or ".join(_FILES)}' if to == 'mmsynth' else 'a folder'
        raise ValueError(f'`out` must name {wanted} for the layout {to!r}, got {out}.')


def _build(cfg: Config, to: str) -> BaseGenerator:
    with DefaultScope.overwrite_default_scope('mmseg'):
        generator = MODELS.build(cfg.model)
    if not isinstance(generator, (TODSynth, TISynth, StableDiffusionControlNet)):
        raise ValueError(f'{cfg.filename}: `model` is {type(generator).__name__}; only a TODSynth, a TISynth or a '
                         'ControlNet can be converted.')
    if to == 'diffusers' and not isinstance(generator.network, (MMDiT, UNetControlNet)):
        raise ValueError(f"`to`: the layout 'diffusers' has no place for the {type(generator.network).__name__} of a "
                         f"{type(generator).__name__}; use 'mmsynth'.")
    return generator.eval()


def _check_lora(generator: BaseGenerator, to: str, merge_lora: bool) -> None:
    if merge_lora and not generator.has_lora:
        raise ValueError("`merge_lora` has no effect: no branch of the config's `model.trainable` is 'lora'. Leave it "
                         'out, or give the config that the checkpoint was trained with.')
    if to != 'mmsynth' and generator.has_lora and not merge_lora:
        raise ValueError(f'`merge_lora`: the {to} layout holds plain weights; merge the LoRA into them '
                         '(--merge-lora).')


def _load(generator: BaseGenerator, checkpoint: str | Path) -> LoadReport:
    state = read_checkpoint(checkpoint)
    report = load_generator_state(generator, state, source=str(checkpoint))
    lacking = _lacking(generator, state, report)
    if lacking:
        shown = ', '.join(lacking[:5]) + (f', … ({len(lacking) - 5} more)' if len(lacking) > 5 else '')
        raise ValueError(f'checkpoint {checkpoint} is a release, which leaves to its backbone what it did not train. '
                         f'The config builds these from nothing: {shown}. Set `model.network.pretrained` and the '
                         'codecs of the release.')
    return report


def _lacking(generator: BaseGenerator, state: dict[str, Tensor], report: LoadReport) -> list[str]:
    """The weights that neither the file nor a backbone has; what else is missing follows from settings."""
    if is_ldm(state):  # the branches that such a file lacks start as new ones do
        weights = {name for name, _ in generator.named_parameters() if not name.startswith('network.')}
        return [name for name in report.missing if name in weights]
    weights = {name for name, _ in generator.network.named_parameters()}
    lacking = [name for name in report.missing if name in weights]
    return lacking + (own_tensors_outside_network(generator) if is_released_todsynth(state) else [])


def _write_diffusers(generator: TODSynth, folder: Path, out: Path) -> tuple[list[str], list[str]]:
    """Write the parts into a folder that will be called ``out``; what was written, and what has no place there."""
    network = generator.network
    assert isinstance(network, MMDiT)
    network.trunk.save_pretrained(folder / 'transformer')
    (folder / 'control').mkdir()
    count = _save_tensors(control_tensors(network), folder / 'control' / 'model.safetensors')
    (folder / 'control' / 'config.json').write_text(json.dumps(_describe_control(generator), indent=2) + '\n')
    generator.scheduler.save_pretrained(folder / 'scheduler')
    written = [f'{out}/transformer: {type(network.trunk).__name__}, {len(network.trunk.state_dict())} tensors',
               f'{out}/control: {count} tensors', f'{out}/scheduler: {type(generator.scheduler).__name__}']
    outside = own_tensors_outside_network(generator)
    if isinstance(generator.latent_codec, VAECodec):
        generator.latent_codec.vae.save_pretrained(folder / 'vae')
        written.append(f'{out}/vae: {type(generator.latent_codec.vae).__name__}')
        outside = [name for name in outside if name != 'latent_codec']
    return written, outside


def _write_pipeline(generator: StableDiffusionControlNet, folder: Path, out: Path) -> tuple[list[str], list[str]]:
    """As :func:`_write_diffusers`, of a ControlNet: all parts of diffusers' pipeline of its kind."""
    from diffusers import StableDiffusionControlNetPipeline  # here: pipelines take long to import
    network, text = generator.network, generator.text_encoder
    clip = isinstance(text, CLIPTextEncoder)
    predicts = 'v_prediction' if generator.predicts_velocity else 'epsilon'
    StableDiffusionControlNetPipeline(
        vae=generator.latent_codec.vae, unet=network.unet, controlnet=network.controlnet,
        text_encoder=text.text_encoder if clip else None, tokenizer=text.tokenizer if clip else None,
        scheduler=DDPMScheduler.from_config(generator.scheduler.config, prediction_type=predicts),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False).save_pretrained(folder)
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return [f'{out}/{part}' for part in parts], [] if clip else ['text_encoder']


def _describe_control(generator: TODSynth) -> dict[str, Any]:
    """The settings of the network that the control tensors fit."""
    network = generator.network
    return dict(
        network=type(network).__name__,
        control=network.control,
        mask_channels=network.mask_channels,
        legacy=network.legacy,
        label_codec=type(generator.label_codec).__name__,
        num_classes=generator.num_classes)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> int:
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if path.suffix == '.pth':
        torch.save(dict(meta={}, state_dict=tensors), path)
    else:
        save_file(tensors, path, {'format': 'pt'})
    return len(tensors)
