"""Reading configs, and building what they name."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

from mmsynth.models import BaseGenerator
from mmsynth.models.checkpoints import load_generator
from mmsynth.registry import DATASETS, MODELS
from mmsynth.synthesis.generate import GENERATOR_MEMBERS, Generator
from mmsynth.utils.configs import find_config


def load_config(config: str | Path | Mapping[str, Any] | Config,
                overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, apply ``--cfg-options``, and import what it asks for.

    Args:
        config: The file, see :func:`~mmsynth.utils.configs.find_config`, or what it holds, which is not changed.
        overrides: Values by dotted key.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if isinstance(config, Config):
        cfg = config.copy()
    elif isinstance(config, Mapping):
        cfg = Config(ConfigDict(config).to_dict())
    else:
        cfg = Config.fromfile(str(find_config(config)))
    if overrides:
        cfg.merge_from_dict(dict(overrides))
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    return cfg


def build_dataset(cfg: Mapping[str, Any]) -> Any:
    """Build a data set; names without a scope are mmseg's."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(cfg)


def build_generator(cfg: Config, checkpoint: str | Path | None, device: torch.device | str = 'cpu') -> Generator:
    """Build the config's generator with a checkpoint's weights, in eval mode.

    A generator that comes whole from a backbone, such as ``mmsynth.DiffusersControlNet``, needs no checkpoint. It need
    not be one of mmsynth's, see :class:`~mmsynth.synthesis.generate.Generator`.

    Raises:
        ValueError: If the config's model is no generator, or the checkpoint does not fit or is missing.
    """
    with DefaultScope.overwrite_default_scope('mmseg'):
        generator = MODELS.build(cfg.model)
    lacking = [name for name in GENERATOR_MEMBERS if not hasattr(generator, name)]
    if lacking:
        raise ValueError(f'{cfg.filename}: `model` is {type(generator).__name__}, not a generator (it has no '
                         f"{', '.join(lacking)}); use a config whose model is one, such as type='mmsynth.TODSynth' or "
                         "'mmsynth.TISynth'.")
    if checkpoint is not None:
        load_generator(generator, checkpoint)
    elif isinstance(generator, BaseGenerator) and not getattr(generator.network, 'is_pretrained', False):
        raise ValueError(f'{cfg.filename}: `checkpoint` is missing, and {type(generator).__name__} has to be trained '
                         'before it generates; give its weights.')
    if isinstance(generator, BaseGenerator):
        generator.cast_network(torch.device(device))
    return generator.to(device).eval()
