"""Sampling loops over diffusers' schedulers."""
from mmsynth.sampling.denoise import SAMPLERS, build_sampler, complete_schedule, noise_of_velocity, sample_denoising
from mmsynth.sampling.flow_match import Guide, build_flow_scheduler, sample_flow_match
from mmsynth.sampling.step import SamplingStep

__all__ = [
    'SAMPLERS', 'Guide', 'SamplingStep', 'build_flow_scheduler', 'build_sampler', 'complete_schedule', 'noise_of_velocity',
    'sample_denoising', 'sample_flow_match'
]
