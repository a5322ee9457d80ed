"""Sampling loops over diffusers' schedulers."""
from mmsynth.sampling.flow_match import Guide, sample_flow_match
from mmsynth.sampling.step import SamplingStep

__all__ = ['Guide', 'SamplingStep', 'sample_flow_match']
