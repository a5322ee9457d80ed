"""Datasets; their transforms are in :mod:`mmsynth.datasets.transforms`."""
from mmsynth.datasets.dubai import DubaiDataset
from mmsynth.datasets.fusu import FUSUDataset
from mmsynth.datasets.gid import GIDDataset
from mmsynth.datasets.manifest import ManifestDataset

__all__ = ['DubaiDataset', 'FUSUDataset', 'GIDDataset', 'ManifestDataset']
