"""Models: generators, their networks, encoders and codecs, and the data preprocessor."""
from mmsynth.models.data_preprocessor import SynthDataPreprocessor
from mmsynth.models.encoders import AutoencoderCodec, PatchPCACodec, VAECodec
from mmsynth.models.generators import (
    BaseGenerator,
    TISynth,
    TODSynth,
    diffusers_controlnet,
    for_mmagic,
    mmagic_generator,
)
from mmsynth.models.label_codecs import GreyLevelCodec, IdCodec, OneHotCodec, PaletteCodec
from mmsynth.models.networks import ControlledUNet, MMDiT
from mmsynth.models.weighted_segmentor import WeightedCascadeEncoderDecoder, WeightedEncoderDecoder

__all__ = [
    'AutoencoderCodec', 'BaseGenerator', 'ControlledUNet', 'GreyLevelCodec', 'IdCodec', 'MMDiT', 'OneHotCodec',
    'PaletteCodec', 'PatchPCACodec', 'SynthDataPreprocessor', 'TISynth', 'TODSynth', 'VAECodec',
    'WeightedCascadeEncoderDecoder', 'WeightedEncoderDecoder', 'diffusers_controlnet', 'for_mmagic', 'mmagic_generator'
]
