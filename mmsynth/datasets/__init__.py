"""Datasets; their transforms are in :mod:`mmsynth.datasets.transforms`."""
from mmsynth.datasets.dubai import DubaiDataset
from mmsynth.datasets.fusu import FUSUDataset
from mmsynth.datasets.gid import GIDDataset
from mmsynth.datasets.manifest import ManifestDataset
from mmsynth.datasets.mask_sources import ChosenMasks, PastedMasks, TransformedMasks, UncertainMasks, mask_uncertainty
from mmsynth.datasets.partly_labelled import NullMask, PartlyLabelledDataset, PartlyLabelledSampler, UnlabelledDataset
from mmsynth.datasets.pool_dataset import PoolDataset
from mmsynth.datasets.samplers import RatioBatchSampler, SeededInfiniteSampler
from mmsynth.datasets.seeded import LoveDADataset
from mmsynth.datasets.synthetic_augment import SyntheticAugmentDataset

__all__ = [
    'ChosenMasks', 'DubaiDataset', 'FUSUDataset', 'GIDDataset', 'LoveDADataset', 'ManifestDataset', 'NullMask',
    'PartlyLabelledDataset', 'PartlyLabelledSampler', 'PastedMasks', 'PoolDataset', 'RatioBatchSampler',
    'SeededInfiniteSampler', 'SyntheticAugmentDataset', 'TransformedMasks', 'UncertainMasks', 'UnlabelledDataset',
    'mask_uncertainty'
]
