"""Data samples."""
from mmsynth.structures.synth_data_sample import SynthDataSample

__all__ = ['SynthDataSample']
