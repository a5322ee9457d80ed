"""What the tools and notebooks call."""
from mmsynth.apis.config import build_dataset, build_generator, load_config
from mmsynth.apis.filter_pool import build_filter, filter_pool
from mmsynth.apis.fit_class_loss import fit_class_loss
from mmsynth.apis.synthesize import synthesize

__all__ = [
    'build_dataset', 'build_filter', 'build_generator', 'filter_pool', 'fit_class_loss', 'load_config', 'synthesize'
]
