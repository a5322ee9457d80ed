"""Which guidance a synthesis run uses: what the config has, or what the caller asks for."""
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmsynth.guidance import CRFM, BestOfN, Guidance
from mmsynth.registry import MODELS

GUIDANCES = {'crfm': CRFM, 'best-of-n': BestOfN}


def guidance_settings(cfg: Config,
                      guidance: str | None,
                      candidates: int | None = None,
                      latent_critic: str | Path | None = None) -> dict[str, Any] | None:
    """The settings of the guidance of a run.

    Args:
        cfg: A config with ``synthesis``, optionally with ``guidance`` in it.
        guidance: 'crfm', 'best-of-n', 'none', or None for what the config has. 'best-of-n' takes critic and decoder
            from the config's guidance, whatever that is.
        candidates: Images generated per sample by best-of-n; None for the config's, or 4.
        latent_critic: Weights of a :class:`LatentCritic` that takes the place of the guidance's critic and decoder.

    Returns:
        What :func:`build_guidance` builds; None for no guidance.

    Raises:
        ValueError: If the guidance asked for is unknown or not in the config, or ``candidates`` or ``latent_critic``
            has no effect.
    """
    if guidance not in (None, 'none', *GUIDANCES):
        raise ValueError(f"`guidance` must be one of {', '.join(GUIDANCES)} and none, got {guidance!r}.")
    own = cfg.synthesis.get('guidance')
    if guidance in GUIDANCES and own is None:
        raise ValueError(f'{cfg.filename}: guidance is asked for, but `synthesis.guidance` is not set; add '
                         "dict(type='mmsynth.CRFM', critic=dict(type='mmsynth.SegmentorCritic', config=…, "
                         'checkpoint=…)).')
    settings: Any = None if guidance == 'none' or own is None else own.to_dict()
    if guidance == 'crfm' and not _is_of(settings, CRFM):
        raise ValueError(f"{cfg.filename}: 'crfm' is asked for, but `synthesis.guidance` is {settings.get('type')}; "
                         "change it to dict(type='mmsynth.CRFM', critic=…), or leave the choice to the config.")
    if guidance == 'best-of-n' and not _is_of(settings, BestOfN):
        shared = {key: settings[key] for key in ('critic', 'decoder') if key in settings}
        settings = dict(type='mmsynth.BestOfN', **shared)
    if candidates is not None:
        if not _is_of(settings, BestOfN):
            raise ValueError("`candidates` has an effect with the guidance 'best-of-n' only; ask for that, or leave it "
                             'out.')
        settings['num_candidates'] = candidates
    if latent_critic is not None:
        if settings is None:
            raise ValueError('`latent_critic` has an effect with a guidance only; ask for one, or leave it out.')
        settings.pop('decoder', None)
        settings['critic'] = dict(type='mmsynth.LatentCritic', checkpoint=str(latent_critic))
    return settings


def build_guidance(settings: dict[str, Any] | None, device: torch.device | str) -> Guidance | None:
    """Build what :func:`guidance_settings` gave."""
    return None if settings is None else MODELS.build(settings).to(device)


def _is_of(settings: dict[str, Any] | None, kind: type[Guidance]) -> bool:
    return settings is not None and MODELS.get(str(settings.get('type'))) is kind
