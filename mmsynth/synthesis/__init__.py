"""From a config and masks to painted images: what offline and online synthesis share."""
from mmsynth.synthesis.building import build_dataset, build_generator, load_config
from mmsynth.synthesis.painting import PaintedMask, Request, load_batches, load_sample, paint_batch

__all__ = ['PaintedMask', 'Request', 'build_dataset', 'build_generator', 'load_batches', 'load_config', 'load_sample',
           'paint_batch']
