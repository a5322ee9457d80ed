"""Where masks to generate for come from, besides files: other masks, changed, combined or chosen."""
from mmsynth.datasets.mask_sources.pasted import PastedMasks
from mmsynth.datasets.mask_sources.recipe import ApplyMaskRecipe
from mmsynth.datasets.mask_sources.transformed import TransformedMasks
from mmsynth.datasets.mask_sources.uncertain import UncertainMasks, mask_uncertainty

__all__ = ['ApplyMaskRecipe', 'PastedMasks', 'TransformedMasks', 'UncertainMasks', 'mask_uncertainty']
