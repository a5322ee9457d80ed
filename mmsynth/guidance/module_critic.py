"""Critics of any torch model: torchvision's, segmentation_models_pytorch's, transformers', one of your own.

Legend: B batch, K classes, H W pixels, h w cells of a model's output.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.utils import get_object_from_string
from torch import Tensor, nn

from mmsynth.guidance.base import Critic
from mmsynth.registry import MODELS
from mmsynth.utils.checkpoint import load_state_dict, read_checkpoint
from mmsynth.utils.labels import IGNORE_INDEX

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@MODELS.register_module()
class ModuleCritic(Critic):
    """A model that gives logits for RGB images, frozen.

    Masks must hold the class ids that the model was trained on.

    Args:
        module: The model, or a config of it: ``type`` is the dotted path of a class or function, the rest its
            arguments, as in ``dict(type='segmentation_models_pytorch.Unet', encoder_weights=None, classes=6)``.
        num_classes: Its classes K.
        checkpoint: Its weights, loaded without running code from the file; None for those that it has.
        mean, std: By which images in [0, 1], RGB, are normalised; ImageNet's by default.
        logits: Takes the logits (B, K, h, w) out of what the model returns. By default a tensor is taken as it is,
            torchvision's ``['out']`` or transformers' ``.logits``. They are enlarged to the size of the image.
        size_divisor: Images are padded by repeating their edge to multiples of it.
        ignore_index: Mask value of pixels that do not count, beside 255.

    Raises:
        ValueError: If the config names nothing that makes a model, or a number is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self,
                 module: nn.Module | Mapping[str, Any],
                 num_classes: int,
                 checkpoint: str | None = None,
                 *,
                 mean: Sequence[float] = IMAGENET_MEAN,
                 std: Sequence[float] = IMAGENET_STD,
                 logits: Callable[[Any], Tensor] | None = None,
                 size_divisor: int = 1,
                 ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        if num_classes < 1 or size_divisor < 1 or min(std) <= 0:
            raise ValueError('`num_classes` and `size_divisor` must be at least 1 and `std` positive, got '
                             f'{num_classes}, {size_divisor} and {tuple(std)}.')
        self.module = module if isinstance(module, nn.Module) else _build(module)
        if checkpoint is not None:
            load_state_dict(self.module, read_checkpoint(checkpoint), source=str(checkpoint))
        self.requires_grad_(False).eval()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.logits = logits or find_logits
        self.size_divisor = size_divisor
        self.register_buffer('mean', torch.tensor(mean).float()[:, None, None], persistent=False)
        self.register_buffer('std', torch.tensor(std).float()[:, None, None], persistent=False)

    def predict_logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) for images (B, 3, H, W), float, [0, 1], RGB."""
        height, width = images.shape[-2:]
        bottom, right = -height % self.size_divisor, -width % self.size_divisor
        inputs = F.pad((images.float() - self.mean) / self.std, (0, right, 0, bottom), mode='replicate')
        logits = self.logits(self.module(inputs))
        if logits.ndim != 4 or logits.shape[1] != self.num_classes:
            raise ValueError(f'critic: {type(self.module).__name__} gave logits of the shape {tuple(logits.shape)}; '
                             f'(B, {self.num_classes}, h, w) is needed. Set `num_classes` to its classes, or `logits` '
                             'to what takes them out of its output.')
        if logits.shape[-2:] != inputs.shape[-2:]:
            logits = F.interpolate(logits, size=inputs.shape[-2:], mode='bilinear', align_corners=False)
        return logits[..., :height, :width]


@MODELS.register_module()
class TransformersCritic(ModuleCritic):
    """A semantic segmentation model of transformers that gives logits per pixel, such as SegFormer, UPerNet or DPT.

    Classes and normalisation are those in its folder.

    Args:
        pretrained: A folder or hub id for ``AutoModelForSemanticSegmentation``, with a ``preprocessor_config.json``.
        size_divisor, ignore_index: As in :class:`ModuleCritic`.
    """

    def __init__(self, pretrained: str, size_divisor: int = 1, ignore_index: int = IGNORE_INDEX) -> None:
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation  # it imports for seconds
        module = AutoModelForSemanticSegmentation.from_pretrained(pretrained)
        processor = AutoImageProcessor.from_pretrained(pretrained)
        super().__init__(module, module.config.num_labels, mean=processor.image_mean, std=processor.image_std,
                         size_divisor=size_divisor, ignore_index=ignore_index)


def find_logits(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, a dict with 'out', or an object with ``logits``.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get('out') if isinstance(output, Mapping) and 'out' in output else getattr(output, 'logits', None)
    if isinstance(found, Tensor):
        return found
    raise ValueError(f"critic: the model returned {type(output).__name__}, which is no tensor, has no 'out' and no "
                     '`logits`; give `logits`, a function that takes them out of it.')


def _build(config: Mapping[str, Any]) -> nn.Module:
    arguments = dict(config)
    path = arguments.pop('type', None)
    if not isinstance(path, str) or '.' not in path:
        raise ValueError("critic: `module` must be a model, or a config whose `type` is the dotted path of what makes "
                         f"one, such as 'segmentation_models_pytorch.Unet', got type={path!r}.")
    module = get_object_from_string(path)(**arguments)
    if not isinstance(module, nn.Module):
        raise ValueError(f'critic: {path} made {type(module).__name__}, not a torch module.')
    return module
