"""Where the masks of synthesis come from, besides files: other masks, changed, combined or chosen."""
from mmsynth.datasets.mask_sources.base import ApplyMaskRecipe
from mmsynth.datasets.mask_sources.chosen import ChosenMasks
from mmsynth.datasets.mask_sources.pasted import PastedMasks
from mmsynth.datasets.mask_sources.transformed import TransformedMasks
from mmsynth.datasets.mask_sources.uncertain import UncertainMasks, mask_uncertainty

__all__ = ['ApplyMaskRecipe', 'ChosenMasks', 'PastedMasks', 'TransformedMasks', 'UncertainMasks', 'mask_uncertainty']
