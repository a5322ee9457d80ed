"""A tiny ControlNet as mmagic has it: its config, its modules and what it would save, without mmagic."""
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from tiny_backbone import write_tiny_sd15
from tiny_generator import perturb
from torch import nn
from transformers import CLIPTextModel


class Wrapper(nn.Module):
    """As mmagic's wrappers of diffusers and transformers: the module below ``model.``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Layout(nn.Module):
    """The modules of mmagic's ``ControlStableDiffusion`` by their names, on a folder of Stable Diffusion 1.5."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.vae = Wrapper(AutoencoderKL.from_pretrained(folder, subfolder='vae'))
        self.unet = Wrapper(UNet2DConditionModel.from_pretrained(folder, subfolder='unet'))
        self.text_encoder = Wrapper(CLIPTextModel.from_pretrained(folder, subfolder='text_encoder'))
        self.controlnet = Wrapper(ControlNetModel.from_unet(self.unet.model))


def trained(folder: Path) -> Layout:
    """The modules with weights all of which differ from the folder's."""
    layout = Layout(folder)
    return perturb(layout.requires_grad_(True)).eval()


def write_base(folder: Path) -> Path:
    """Write the folder that :func:`config` takes, and return it."""
    write_tiny_sd15(folder)
    ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(folder, subfolder='unet')
                              ).save_config(folder / 'controlnet')
    return folder


def save(layout: nn.Module, path: Path) -> Path:
    """Write a checkpoint as mmengine's runner does."""
    torch.save(dict(meta=dict(iter=10), state_dict=layout.state_dict(), optimizer={}), path)
    return path


def config(folder: Path, **changes) -> dict:
    """The config of a ControlStableDiffusion, in the form of those that mmagic ships.

    Args:
        folder: Of Stable Diffusion 1.5, with the config of a ControlNet in ``controlnet``; the ControlNet's weights are
            random.
        **changes: Of the model.
    """
    source = str(folder)
    return dict(model=dict(
        type='ControlStableDiffusion',
        vae=dict(type='AutoencoderKL', from_pretrained=source, subfolder='vae'),
        unet=dict(type='UNet2DConditionModel', subfolder='unet', from_pretrained=source),
        text_encoder=dict(type='ClipWrapper', clip_type='huggingface', pretrained_model_name_or_path=source,
                          subfolder='text_encoder'),
        tokenizer=source,
        controlnet=dict(type='ControlNetModel', from_config=f'{source}/controlnet'),
        scheduler=dict(type='DDPMScheduler', from_pretrained=source, subfolder='scheduler'),
        test_scheduler=dict(type='DDIMScheduler', from_pretrained=source, subfolder='scheduler'),
        data_preprocessor=dict(type='DataPreprocessor'),
        init_cfg=dict(type='init_from_unet')) | changes)
