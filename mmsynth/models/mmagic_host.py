"""mmagic beside this package: what its import needs, and its data samples of our generators' images.

mmagic 1.2 imports a module of diffusers by the name that it had before 0.29, this package needs 0.33. Importing this
module makes the old name known; import it before mmagic.
"""
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffusers.models.unets import unet_2d_condition
from torch import Tensor, nn

from mmsynth.structures import SynthDataSample

if TYPE_CHECKING:
    from mmagic.structures import DataSample

sys.modules.setdefault('diffusers.models.unet_2d_condition', unet_2d_condition)


def import_mmagic() -> None:
    """Import mmagic's models, which fills its registries.

    Raises:
        ImportError: If it is not installed, or does not import with the versions that are.
    """
    try:
        import mmagic.models  # noqa: F401
    except Exception as error:  # whatever its modules and theirs raise: a package is missing, a version refused
        reason = f'{type(error).__name__}: {error}'
        raise ImportError(f'mmagic does not import here ({reason}). Versions that go together are in '
                          'requirements/mmagic.txt; a ControlNet of mmagic runs without it.') from error


def to_mmagic(samples: Sequence[SynthDataSample], real: Tensor | None = None) -> list['DataSample']:
    """mmagic's data samples of samples with images.

    Args:
        samples: With ``generated_img``.
        real: The images that were given with the masks (B, 3, H, W), float, [-1, 1], RGB; None if there were none.

    Returns:
        One per sample, with ``fake_img`` and, where there was one, ``gt_img``: (3, H, W), float32, [0, 255], BGR, as
        mmagic's metrics and visualizers want; metainfo as ours.
    """
    from mmagic.structures import DataSample
    found = []
    for row, sample in enumerate(samples):
        images = dict(fake_img=sample.generated_img.data.flip(0).float())
        if real is not None:
            images['gt_img'] = (real[row].flip(0).float().cpu() + 1) * 127.5
        found.append(DataSample(metainfo=sample.metainfo, **images))
    return found


def predict_for_mmagic(generator: nn.Module, args: tuple, settings: Mapping[str, Any], output: object) -> object:
    """Forward hook: predictions become mmagic's data samples; losses stay."""
    del generator
    if not isinstance(output, list):
        return output
    return to_mmagic(output, settings.get('inputs', args[0] if args else None))
