"""Generators: models that generate images for masks."""
from mmsynth.models.generators.base import BaseGenerator
from mmsynth.models.generators.controlnet import diffusers_controlnet
from mmsynth.models.generators.mmagic import for_mmagic, mmagic_generator
from mmsynth.models.generators.tisynth import TISynth
from mmsynth.models.generators.todsynth import TODSynth

__all__ = ['BaseGenerator', 'TISynth', 'TODSynth', 'diffusers_controlnet', 'for_mmagic', 'mmagic_generator']
