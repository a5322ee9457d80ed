"""Fits a latent codec that needs it on training images, once, before the first iteration."""
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsynth.engine.hooks.training_samples import draw_training_batch, unwrap
from mmsynth.registry import HOOKS
from mmsynth.utils import derive_seed

_SEED = derive_seed(0, 'fit latent codec')  # fixed: every run on the same data draws the same images


@HOOKS.register_module()
class FitLatentCodecHook(Hook):
    """Fits the generator's latent codec on images drawn through the training pipeline.

    The first process fits, the others take over what it found. A codec that is fitted already, from a checkpoint, is
    left as it is.

    Args:
        num_images: Images to fit on; drawn evenly over the data set, repeatedly if it has fewer.

    Raises:
        ValueError: If ``num_images`` is below 1.
    """

    priority = 'VERY_HIGH'  # before anything that runs the model

    def __init__(self, num_images: int = 256) -> None:
        if num_images < 1:
            raise ValueError(f'`num_images` must be at least 1, got {num_images}.')
        self.num_images = num_images

    def before_train(self, runner: Runner) -> None:
        """Fit, unless the codec needs no fit or has one."""
        codec = unwrap(runner.model).latent_codec
        if not codec.needs_fit or bool(codec.fitted):
            return
        if is_main_process():
            kept = codec.fit(draw_training_batch(runner, self.num_images, _SEED)['inputs'])
            runner.logger.info(f'latent codec fitted on {self.num_images} images: it keeps {kept:.1%} of the variance')
        for buffer in codec.buffers():
            broadcast(buffer)
