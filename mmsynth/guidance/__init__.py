"""Guidance of a sampler by the task."""
from mmsynth.guidance.crfm import CRFM
from mmsynth.guidance.critic import SegmentorCritic, Verdict

__all__ = ['CRFM', 'SegmentorCritic', 'Verdict']
