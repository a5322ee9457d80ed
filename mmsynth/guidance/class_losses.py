"""How well a segmentor fits each class of real data: the class-wise mean losses that the pixel filter measures by.

The released rule: ``mean_k = sum of the cross entropy over the pixels of class k / (their count + 1e-5)``.

Legend: B batch, K classes, H W pixels.
"""
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsynth.pool.manifest import plain_json, strict_json
from mmsynth.utils.files import atomic_write
from mmsynth.utils.labels import IGNORE_INDEX

FORMAT_VERSION = 1
_EPSILON = 1e-5  # of the release


@dataclass(frozen=True)
class ClassLosses:
    """Class-wise mean losses of a segmentor on real data.

    Args:
        class_names: K different names, in the order of the indices.
        mean_loss: Mean cross entropy per class, finite and not negative; None for a class that never occurs.
        pixels: Labelled pixels per class.
        provenance: Where the numbers come from, JSON values. ``segmentor_sha256`` names the segmentor that they were
            measured with (:func:`segmentor_identity`): a filter holds its own against it.

    Raises:
        ValueError: If a field breaks its rule.
    """

    class_names: tuple[str, ...]
    mean_loss: tuple[float | None, ...]
    pixels: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names, means, pixels = (_listed(self, name) for name in ('class_names', 'mean_loss', 'pixels'))
        if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError(f'`class_names` must be different names, at least one, got {list(names)!r:.200}')
        if not len(names) == len(means) == len(pixels):
            raise ValueError(f'`mean_loss` and `pixels` must have one value per class ({len(names)}), got {len(means)} '
                             f'and {len(pixels)}')
        for name, mean, count in zip(names, means, pixels):
            if mean is not None and not (_is(mean, Real) and math.isfinite(mean) and mean >= 0):
                raise ValueError(f'`mean_loss` of {name!r} must be a finite number >= 0, or null for a class that '
                                 f'never occurs, got {mean!r:.80}')
            if not _is(count, Integral) or count < 0:
                raise ValueError(f'`pixels` of {name!r} must be an integer >= 0, got {count!r:.80}')
        if not isinstance(self.provenance, Mapping):
            raise ValueError(f'`provenance` must be an object, got {self.provenance!r:.80}')
        values = dict(class_names=names, mean_loss=tuple(None if mean is None else float(mean) for mean in means),
                      pixels=tuple(map(int, pixels)), provenance=plain_json(self.provenance))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def write(self, path: str | Path) -> None:
        """Write a JSON file."""
        content = dict(format_version=FORMAT_VERSION) | asdict(self)
        atomic_write(path, (json.dumps(content, indent=2, allow_nan=False) + '\n').encode('utf-8'))

    @classmethod
    def read(cls, path: str | Path) -> 'ClassLosses':
        """Read what :meth:`write` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not one; names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'class losses {path} do not exist; make them with tools/fit_class_loss.py.')
        try:
            return cls(**_content(path.read_text(encoding='utf-8')))
        except (ValueError, RecursionError) as error:
            raise ValueError(f'{path} does not hold class losses: {error}. Make it again with '
                             'tools/fit_class_loss.py.') from error


class ClassLossMeter:
    """Adds up losses per class, in float64: the result does not depend on how images are batched.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self._sums = torch.zeros(num_classes, dtype=torch.float64)
        self._pixels = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, losses: Tensor, labels: Tensor) -> None:
        """Take in losses (..., H, W) and their labels, integer; 255 does not count."""
        sums, pixels = class_sums(losses, labels, len(self._sums))
        self._sums += sums
        self._pixels += pixels

    def compute(self, class_names: Sequence[str], provenance: Mapping[str, Any] | None = None) -> ClassLosses:
        """The means over all that was taken in."""
        means = (self._sums / (self._pixels + _EPSILON)).tolist()
        return ClassLosses(
            class_names=tuple(class_names),
            mean_loss=tuple(mean if count else None for mean, count in zip(means, self._pixels.tolist())),
            pixels=tuple(self._pixels.tolist()),
            provenance=dict(provenance or {}))


def pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every pixel.

    Args:
        logits: (B, K, H, W), float.
        labels: (B, H, W), integer class indices; 255 is unlabelled.

    Returns:
        (B, H, W), float32; 0 where unlabelled.
    """
    return F.cross_entropy(logits.float(), labels.long(), reduction='none', ignore_index=IGNORE_INDEX)


def class_sums(losses: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Per class the sum of the losses (K, float64) and the number of labelled pixels (K, int64), on the CPU."""
    known = labels != IGNORE_INDEX
    classes = labels[known].long()
    sums = torch.bincount(classes, weights=losses[known].double(), minlength=num_classes)
    return sums.cpu(), torch.bincount(classes, minlength=num_classes).cpu()


def _listed(losses: ClassLosses, name: str) -> tuple:
    value = getattr(losses, name)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f'`{name}` must be a list, got {value!r:.80}')
    return tuple(value)


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _content(text: str) -> dict[str, Any]:
    content = strict_json(text)
    known = {'format_version', 'class_names', 'mean_loss', 'pixels', 'provenance'}
    if not isinstance(content, dict) or content.keys() != known:
        raise ValueError(f'it must be an object with exactly the keys {", ".join(sorted(known))}')
    version = content.pop('format_version')
    if version != FORMAT_VERSION:
        raise ValueError(f'`format_version` must be {FORMAT_VERSION}, got {version!r:.80}')
    return content
