"""From a config and masks to generated images: what offline and online synthesis share."""
from mmsynth.synthesis.build import build_dataset, build_generator, load_config
from mmsynth.synthesis.generate import GeneratedSample, Request, generate_batch, load_batches, load_sample

__all__ = ['GeneratedSample', 'Request', 'build_dataset', 'build_generator', 'load_batches', 'load_config',
           'load_sample', 'generate_batch']
