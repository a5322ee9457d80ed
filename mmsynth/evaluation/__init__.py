"""Measures of synthetic samples."""
from mmsynth.evaluation.mask_consistency import Consistency, mask_consistency, read_image

__all__ = ['Consistency', 'mask_consistency', 'read_image']
