"""Batch samplers that mix real and synthetic samples."""
from mmsynth.datasets.samplers.align import align_with_runner
from mmsynth.datasets.samplers.ratio_batch_sampler import RatioBatchSampler
from mmsynth.datasets.samplers.schedule import RatioSchedule

__all__ = ['RatioBatchSampler', 'RatioSchedule', 'align_with_runner']
