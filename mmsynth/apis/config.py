"""Reading configs for the tools, and building what they name."""
from mmsynth.synthesis.building import build_dataset, build_generator, load_config
from mmsynth.utils.hashes import config_hash, file_hash

__all__ = ['build_dataset', 'build_generator', 'config_hash', 'file_hash', 'load_config']
