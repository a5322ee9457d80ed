"""Fits a latent codec that needs it (PatchPCA) on training images, once, before the first iteration."""
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmsynth.registry import HOOKS
from mmsynth.utils import derive_seed, isolated_random_state

_SEED = derive_seed(0, 'fit latent codec')  # fixed: every rank and every resume fits the same components


@HOOKS.register_module()
class FitLatentCodecHook(Hook):
    """Fits the generator's latent codec on images drawn through the training pipeline.

    A codec that is fitted already, from a checkpoint, is left as it is.

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
        model = unwrap(runner.model)
        codec = model.latent_codec
        if not codec.needs_fit or bool(codec.fitted):
            return
        kept = codec.fit(self._draw_images(runner, model))
        self._log(runner, kept)

    @torch.no_grad()
    def _draw_images(self, runner: Runner, model: nn.Module) -> Tensor:
        dataset = runner.train_dataloader.dataset
        with isolated_random_state(_SEED):
            picks = [index * len(dataset) // self.num_images % len(dataset) for index in range(self.num_images)]
            items = [dataset[index] for index in picks]
        batch = dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])
        return model.data_preprocessor(batch, training=True)['inputs']

    @master_only
    def _log(self, runner: Runner, kept: float) -> None:
        runner.logger.info(f'latent codec fitted on {self.num_images} images: its components keep {kept:.1%} of the '
                           'variance')


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a distributed wrapper."""
    return model.module if is_model_wrapper(model) else model
