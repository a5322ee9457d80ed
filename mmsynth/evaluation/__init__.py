"""Measures of synthetic samples."""
from mmsynth.evaluation.class_color_spread import ClassColorSpread
from mmsynth.evaluation.class_histogram import ClassHistogram
from mmsynth.evaluation.frechet import Gaussian, frechet_distance
from mmsynth.evaluation.frechet_metric import FrechetDistance
from mmsynth.evaluation.generated_metric import pool_sample
from mmsynth.evaluation.judge import Judge
from mmsynth.evaluation.judge_role import check_judge, check_judge_of_guidance
from mmsynth.evaluation.mask_consistency import (
    Consistency,
    ConsistencyMeter,
    MaskConsistency,
    mask_consistency,
    read_image,
)
from mmsynth.evaluation.segmentor_features import FeatureSet, class_distances, feature_distance, read_with_features
from mmsynth.evaluation.sibling_diversity import SiblingDiversity

__all__ = [
    'ClassColorSpread', 'ClassHistogram', 'Consistency', 'ConsistencyMeter', 'FeatureSet', 'FrechetDistance',
    'Gaussian', 'Judge', 'MaskConsistency', 'SiblingDiversity', 'check_judge', 'check_judge_of_guidance',
    'class_distances', 'feature_distance', 'frechet_distance', 'mask_consistency', 'pool_sample', 'read_image',
    'read_with_features'
]
