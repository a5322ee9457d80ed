"""Guidance of a sampler by the task."""
from mmsynth.guidance.augmented import AugmentedCritic
from mmsynth.guidance.base import Critic, CriticOutput, Guidance, GuidanceDecoder
from mmsynth.guidance.best_of_n import BestOfN
from mmsynth.guidance.crfm import CRFM
from mmsynth.guidance.critic import SegmentorCritic
from mmsynth.guidance.decoders import ReducedDecoder, TinyDecoder
from mmsynth.guidance.ensemble import CriticEnsemble
from mmsynth.guidance.latent_critic import LatentCritic
from mmsynth.guidance.module_critic import ModuleCritic, TransformersCritic
from mmsynth.guidance.reducible import ReducibleLossCritic

__all__ = [
    'AugmentedCritic', 'BestOfN', 'CRFM', 'Critic', 'CriticEnsemble', 'CriticOutput', 'Guidance', 'GuidanceDecoder',
    'LatentCritic', 'ModuleCritic', 'ReducedDecoder', 'ReducibleLossCritic', 'SegmentorCritic', 'TinyDecoder',
    'TransformersCritic'
]
