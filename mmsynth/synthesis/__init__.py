"""From a config and masks to generated images: what offline and online synthesis share."""
from mmsynth.synthesis.build import build_dataset, build_generator, load_config
from mmsynth.synthesis.generate import GeneratedSample, Generator, Request, generate_batch, load_batches, load_sample

__all__ = ['GeneratedSample', 'Generator', 'Request', 'build_dataset', 'build_generator', 'generate_batch',
           'load_batches', 'load_config', 'load_sample']
