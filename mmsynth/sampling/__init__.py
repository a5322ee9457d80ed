"""Sampling over diffusers' schedulers. Pure functions."""
from mmsynth.sampling.classifier_free import Negative, classifier_free
from mmsynth.sampling.loop import Guide, Predict, StepEnd, sample
from mmsynth.sampling.schedulers import (
    FLOW_SAMPLERS,
    SAMPLERS,
    build_flow_sampler,
    build_flow_scheduler,
    build_sampler,
    check_flow_sampler,
    check_sampler,
    complete_schedule,
)
from mmsynth.sampling.step import SamplingStep, noise_of_velocity

__all__ = [
    'FLOW_SAMPLERS', 'SAMPLERS', 'Guide', 'Negative', 'Predict', 'SamplingStep', 'StepEnd', 'build_flow_sampler',
    'build_flow_scheduler', 'build_sampler', 'check_flow_sampler', 'check_sampler', 'classifier_free',
    'complete_schedule', 'noise_of_velocity', 'sample'
]
