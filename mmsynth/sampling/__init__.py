"""Sampling over diffusers' schedulers. Pure functions."""
from mmsynth.sampling.classifier_free import Negative, classifier_free
from mmsynth.sampling.loop import Guide, Predict, sample
from mmsynth.sampling.schedulers import SAMPLERS, build_flow_scheduler, build_sampler, complete_schedule
from mmsynth.sampling.step import SamplingStep, noise_of_velocity

__all__ = [
    'SAMPLERS', 'Guide', 'Negative', 'Predict', 'SamplingStep', 'build_flow_scheduler', 'build_sampler',
    'classifier_free', 'complete_schedule', 'noise_of_velocity', 'sample'
]
