"""Guidance of a sampler by the task."""
from mmsynth.guidance.critic import SegmentorCritic, Verdict
from mmsynth.guidance.crfm import CRFM

__all__ = ['CRFM', 'SegmentorCritic', 'Verdict']
