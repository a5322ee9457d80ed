"""Transforms: labels and references in, prompts made, samples packed."""
from mmsynth.datasets.transforms.cropping import CropSegMap
from mmsynth.datasets.transforms.formatting import PackSynthInputs
from mmsynth.datasets.transforms.loading import LoadReference, LoadSegMap, read_label
from mmsynth.datasets.transforms.prompts import BuildPrompt, build_prompt

__all__ = ['BuildPrompt', 'CropSegMap', 'LoadReference', 'LoadSegMap', 'PackSynthInputs', 'build_prompt', 'read_label']
