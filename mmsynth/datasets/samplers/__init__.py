"""Samplers: mixing real and synthetic samples, and draws with seeds of their own."""
from mmsynth.datasets.samplers.align import align_with_runner
from mmsynth.datasets.samplers.ratio_batch_sampler import RatioBatchSampler
from mmsynth.datasets.samplers.schedule import RatioSchedule
from mmsynth.datasets.samplers.seeded_infinite_sampler import SeededInfiniteSampler

__all__ = ['RatioBatchSampler', 'RatioSchedule', 'SeededInfiniteSampler', 'align_with_runner']
