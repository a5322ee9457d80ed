"""What a user calls from Python or a notebook, and the tools from the shell."""
from mmsynth.apis.browse_pool import browse_pool
from mmsynth.apis.evaluate_pool import RealImages, evaluate_pool
from mmsynth.apis.filter_pool import filter_pool
from mmsynth.apis.fit_class_loss import fit_class_loss
from mmsynth.apis.inference import generate, init_critic, init_generator
from mmsynth.apis.report import write_report as report
from mmsynth.apis.select_samples import select_samples
from mmsynth.apis.synthesize import synthesize

__all__ = [
    'RealImages', 'browse_pool', 'evaluate_pool', 'filter_pool', 'fit_class_loss', 'generate', 'init_critic',
    'init_generator', 'report', 'select_samples', 'synthesize'
]
