"""Measures of synthetic samples."""
from mmsynth.evaluation.frechet import Gaussian, frechet_distance
from mmsynth.evaluation.mask_consistency import Consistency, ConsistencyMeter, mask_consistency, read_image
from mmsynth.evaluation.segmentor_features import FeatureSet, class_distances, feature_distance, read_with_features

__all__ = [
    'Consistency', 'ConsistencyMeter', 'FeatureSet', 'Gaussian', 'class_distances', 'feature_distance',
    'frechet_distance', 'mask_consistency', 'read_image', 'read_with_features'
]
