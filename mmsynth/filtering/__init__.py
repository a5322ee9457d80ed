"""Which synthetic pixels and samples to trust."""
from mmsynth.filtering.identity import label_hash, segmentor_identity
from mmsynth.filtering.mask_choice import MaskChoice, choose_masks
from mmsynth.filtering.pixel_filter import ClassLossFilter
from mmsynth.filtering.pixel_rule import FilteredSample, PixelRule
from mmsynth.filtering.selection import RareClassSelector, Selection, keep_sample
from mmsynth.guidance.class_losses import ClassLosses, ClassLossMeter, class_sums, pixel_losses

__all__ = [
    'ClassLossFilter', 'ClassLossMeter', 'ClassLosses', 'FilteredSample', 'MaskChoice', 'PixelRule',
    'RareClassSelector', 'Selection', 'choose_masks', 'class_sums', 'keep_sample', 'label_hash', 'pixel_losses',
    'segmentor_identity'
]
