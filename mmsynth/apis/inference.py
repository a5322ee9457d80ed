"""Generators and critics for scripts and notebooks."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmsynth.guidance import Critic, SegmentorCritic
from mmsynth.synthesis import Generator, build_generator, load_config


def init_generator(config: str | Path | Config, checkpoint: str | Path,
                   device: torch.device | str = 'cpu') -> Generator:
    """Build a generator and load its weights.

    Args:
        config: A config whose ``model`` is a generator, or its path.
        checkpoint: Its weights: a .pth or .safetensors file, or a folder that a release wrote.
        device: Where it runs.

    Returns:
        The generator, in eval mode.

    Raises:
        ValueError: If the model is no generator, or the weights do not fit.
        FileNotFoundError: If a file does not exist.
    """
    return build_generator(load_config(config), checkpoint, device)


def init_critic(config: str | Path | Config | Mapping[str, Any], checkpoint: str | Path | None = None,
                device: torch.device | str = 'cpu') -> Critic:
    """Build a critic, which guides, filters or judges, of an mmseg segmentor.

    Args:
        config: A segmentation config, or its path.
        checkpoint: The segmentor's weights; None for random ones.
        device: Where it runs.

    Returns:
        The critic, frozen, with ``predict_logits(images)`` and ``num_classes``.

    Raises:
        ValueError: If the model cannot be a critic, or the weights do not fit.
        FileNotFoundError: If a file does not exist.
    """
    config = str(config) if isinstance(config, (str, Path)) else config
    return SegmentorCritic(config, None if checkpoint is None else str(checkpoint)).to(device)
