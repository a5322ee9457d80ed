"""Models: generators, their networks, encoders and codecs, and the data preprocessor."""
from mmsynth.models.data_preprocessor import SynthDataPreprocessor
from mmsynth.models.encoders import PatchPCACodec, VAECodec
from mmsynth.models.generators import BaseGenerator, TODSynth
from mmsynth.models.label_codecs import GreyLevelCodec, OneHotCodec, PaletteCodec
from mmsynth.models.networks import MMDiT

__all__ = [
    'BaseGenerator', 'GreyLevelCodec', 'MMDiT', 'OneHotCodec', 'PaletteCodec', 'PatchPCACodec', 'SynthDataPreprocessor',
    'TODSynth', 'VAECodec'
]
