"""Transforms: labels and references in, prompts made, samples packed."""
from mmsynth.datasets.transforms.colors import ColorTransfer, transfer_colors
from mmsynth.datasets.transforms.cropping import CropSegMap
from mmsynth.datasets.transforms.formatting import PackSynthInputs
from mmsynth.datasets.transforms.loading import LoadReference, LoadSegMap
from mmsynth.datasets.transforms.pixel_weights import LoadPixelWeights, PackWeightedSegInputs
from mmsynth.datasets.transforms.prompts import BuildPrompt, build_prompt
from mmsynth.datasets.transforms.references import FitReference, PickReference, ReferenceAugment, fit_reference

__all__ = [
    'BuildPrompt', 'ColorTransfer', 'CropSegMap', 'FitReference', 'LoadPixelWeights', 'LoadReference', 'LoadSegMap',
    'PackSynthInputs', 'PackWeightedSegInputs', 'PickReference', 'ReferenceAugment', 'build_prompt', 'fit_reference',
    'transfer_colors'
]
