"""Datasets; their transforms are in :mod:`mmsynth.datasets.transforms`."""
from mmsynth.datasets.chosen_masks import ChosenMasks
from mmsynth.datasets.dubai import DubaiDataset
from mmsynth.datasets.fusu import FUSUDataset
from mmsynth.datasets.gid import GIDDataset
from mmsynth.datasets.manifest import ManifestDataset
from mmsynth.datasets.mask_sources import PastedMasks, TransformedMasks, UncertainMasks, mask_uncertainty
from mmsynth.datasets.samplers import RatioBatchSampler
from mmsynth.datasets.synthetic_augment import SyntheticAugmentDataset

__all__ = [
    'ChosenMasks', 'DubaiDataset', 'FUSUDataset', 'GIDDataset', 'ManifestDataset', 'PastedMasks',
    'RatioBatchSampler', 'SyntheticAugmentDataset', 'TransformedMasks', 'UncertainMasks', 'mask_uncertainty'
]
