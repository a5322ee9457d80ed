"""What the tools and notebooks call."""
from mmsynth.apis.config import build_dataset, build_generator, load_config
from mmsynth.apis.synthesize import synthesize

__all__ = ['build_dataset', 'build_generator', 'load_config', 'synthesize']
