"""A critic of the clean latent itself, so that guidance decodes nothing.

Legend: B batch, C latent channels, h w latent cells, H W pixels (H = f h), K classes, D width.
"""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmsynth.guidance.base import Critic, CriticOutput
from mmsynth.registry import MODELS
from mmsynth.utils.checkpoint import load_state_dict, read_checkpoint
from mmsynth.utils.files import atomic_write
from mmsynth.utils.labels import IGNORE_INDEX

_METADATA_KEY = 'mmsynth.LatentCritic'
_SETTINGS = ('channels', 'factor', 'num_classes', 'width', 'ignore_index')
_DILATIONS = (1, 2, 4, 1)  # on the latent grid; with stem and head a pixel sees 21 cells across


@MODELS.register_module()
class LatentCritic(Critic):
    """A small convolutional head from clean latents to per-pixel logits.

    Residual blocks on the latent grid, then one convolution to K f² channels, which are shuffled to pixels.
    ``tools/train_latent_critic.py`` distils it from a segmentor that sees the decoded latent; the file that it
    writes holds the settings too, so that ``dict(type='mmsynth.LatentCritic', checkpoint=FILE)`` is all a config needs.

    Args:
        channels: Latent channels C.
        factor: Pixels per latent cell and side f.
        num_classes: Class count K.
        width: Channels D of the hidden layers, a multiple of 8; 64 by default.
        checkpoint: Weights. A setting that is left out is taken from the file.
        ignore_index: Mask value of unlabelled pixels; 255 by default.

    Raises:
        ValueError: If a setting is missing, out of range, or differs from the file's.
        FileNotFoundError: If the file does not exist.
    """

    input_type: Literal['images', 'latents'] = 'latents'

    def __init__(self,
                 channels: int | None = None,
                 factor: int | None = None,
                 num_classes: int | None = None,
                 width: int | None = None,
                 checkpoint: str | None = None,
                 ignore_index: int | None = None) -> None:
        super().__init__()
        given = dict(channels=channels, factor=factor, num_classes=num_classes, width=width, ignore_index=ignore_index)
        stored = {} if checkpoint is None else _read_settings(checkpoint)
        self.settings: dict[str, int] = _merge_settings(given, stored, checkpoint)
        self.channels, self.factor = self.settings['channels'], self.settings['factor']
        self.num_classes, self.ignore_index = self.settings['num_classes'], self.settings['ignore_index']
        width = self.settings['width']
        self.stem = nn.Conv2d(self.channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Residual(width, dilation) for dilation in _DILATIONS))
        self.norm = nn.GroupNorm(8, width)
        self.head = nn.Conv2d(width, self.num_classes * self.factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(self.factor)
        self._start_smooth()
        if checkpoint is not None:
            load_state_dict(self, read_checkpoint(checkpoint), source=str(checkpoint))
        self.requires_grad_(False).eval()

    def predict_logits(self, latents: Tensor) -> Tensor:
        """Logits (B, K, H, W) for clean latents (B, C, h, w), as the transformer has them; differentiable."""
        hidden = self.blocks(self.stem(latents.float()))  # (B, D, h, w)
        logits = self.head(nn.functional.silu(self.norm(hidden)))  # (B, K f f, h, w)
        return self.shuffle(logits)

    def forward(self, latents: Tensor, masks: Tensor) -> CriticOutput:
        """Judge clean latents (B, C, h, w) against masks (B, H, W).

        Raises:
            ValueError: If the masks do not have ``factor`` pixels per latent cell.
        """
        expected = tuple(self.factor * side for side in latents.shape[-2:])
        if tuple(masks.shape[-2:]) != expected:
            raise ValueError(f'LatentCritic: latents of {tuple(latents.shape[-2:])} cells stand for masks of '
                             f'{expected} pixels, got {tuple(masks.shape[-2:])}.')
        return super().forward(latents, masks)

    def check_latents(self, channels: int, factor: int) -> None:
        """Raise ValueError unless the codec has the latent channels and pixels per cell of the head."""
        if (channels, factor) != (self.channels, self.factor):
            raise ValueError(f'LatentCritic: it takes latents of {self.channels} channels and {self.factor} pixels per '
                             f'cell, the generator\'s codec has {channels} and {factor}; train one for this codec with '
                             'tools/train_latent_critic.py.')

    def save(self, path: str | Path, *, origin: Mapping[str, Any] | None = None) -> None:
        """Write weights and settings as safetensors, in full or not at all.

        Args:
            path: The file, ending in .safetensors.
            origin: What to note beside the settings: what it was trained from, how well it agrees; plain values.

        Raises:
            ValueError: If the file has another ending.
        """
        if Path(path).suffix != '.safetensors':
            raise ValueError(f'{path}: the file holds settings beside the weights and must end in .safetensors.')
        metadata = {_METADATA_KEY: json.dumps(self.settings), 'origin': json.dumps(dict(origin or {}))}
        atomic_write(path, save({key: value.cpu().contiguous() for key, value in self.state_dict().items()}, metadata))

    def _start_smooth(self) -> None:
        """Let the pixels of a cell start alike (Aitken et al., arXiv 1707.02937): no checkerboard to unlearn."""
        weight, pixels = self.head.weight.data, self.factor**2
        weight.copy_(weight[::pixels].repeat_interleave(pixels, 0))
        if self.head.bias is not None:
            self.head.bias.data.zero_()


class _Residual(nn.Module):
    """Norm, activation, dilated convolution, twice, beside a skip; starts as the identity."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 1))
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers(hidden)


def _merge_settings(given: Mapping[str, int | None], stored: Mapping[str, int],
                    checkpoint: str | None) -> dict[str, int]:
    """What is given, the file's where it is left out, then the defaults; checked."""
    differing = {name: value for name, value in given.items() if value is not None and stored.get(name, value) != value}
    if differing:
        listed = ', '.join(f'`{name}` {value} (file: {stored[name]})' for name, value in differing.items())
        raise ValueError(f'LatentCritic: {checkpoint} was trained with other settings: {listed}. Leave them out; they '
                         'are taken from the file.')
    known = {name: value for name, value in given.items() if value is not None}
    settings = dict(width=64, ignore_index=IGNORE_INDEX) | dict(stored) | known
    missing = [f'`{name}`' for name in given if name not in settings]
    if missing:
        raise ValueError(f'LatentCritic: {", ".join(missing)} must be given, or `checkpoint` a file written by '
                         'tools/train_latent_critic.py, which holds them.')
    if min(settings['channels'], settings['factor'], settings['num_classes']) < 1 or settings['width'] < 8 or \
            settings['width'] % 8:
        raise ValueError('LatentCritic: `channels`, `factor` and `num_classes` must be at least 1 and `width` a '
                         f'positive multiple of 8, got {settings}.')
    return settings


def _read_settings(checkpoint: str | Path) -> dict[str, int]:
    """The settings that a file holds; none if it is not one of :meth:`LatentCritic.save`."""
    path = Path(checkpoint)
    if path.suffix != '.safetensors' or not path.is_file():
        return {}  # reading the weights says what is wrong, if anything
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f'checkpoint {path} cannot be read as safetensors: {error}.') from error
    return _checked(json.loads(metadata.get(_METADATA_KEY, '{}')), path)


def _checked(settings: Any, path: Path) -> dict[str, int]:
    if not isinstance(settings, dict) or not settings.keys() <= set(_SETTINGS) or \
            not all(type(value) is int for value in settings.values()):
        raise ValueError(f'checkpoint {path}: its settings are {settings!r}, not whole numbers named '
                         f'{", ".join(_SETTINGS)}; train it again with tools/train_latent_critic.py.')
    return settings
