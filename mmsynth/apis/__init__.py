"""What the tools and notebooks call."""
from mmsynth.apis.filter_pool import build_filter, filter_pool
from mmsynth.apis.fit_class_loss import fit_class_loss
from mmsynth.apis.synthesize import synthesize
from mmsynth.synthesis.build import build_dataset, build_generator, load_config

__all__ = [
    'build_dataset', 'build_filter', 'build_generator', 'filter_pool', 'fit_class_loss', 'load_config', 'synthesize'
]
