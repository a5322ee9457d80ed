"""Label codecs: class map → control image, the form in which a generator is given its mask.

Class ids stay integers until here. An 'image' codec makes an RGB picture that goes through the latent codec like any
image; a 'grid' codec makes maps that are pooled onto the latent grid, by area where they are finer than it.

Legend: B batch, K classes, H W pixels.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsynth.registry import MODELS
from mmsynth.utils.labels import IGNORE_INDEX


class LabelCodec(nn.Module):
    """Interface of a label codec.

    Args:
        num_classes: Classes K; valid ids are 0 … K - 1.
        ignore_index: The id of unlabelled pixels.

    Attributes:
        is_image: True if the control image goes through the latent codec, False if it is pooled onto the latent grid.
        channels: Channels of the control image.
        patch_size: Pixels per cell and side of the control image.

    Raises:
        ValueError: If ``num_classes`` is below 1 or ``ignore_index`` is a class id.
    """

    is_image: bool
    channels: int
    patch_size: int = 1

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f'`num_classes` must be at least 1, got {num_classes}.')
        if 0 <= ignore_index < num_classes:
            raise ValueError(f'`ignore_index` {ignore_index} is the id of a class (0 … {num_classes - 1}); '
                             f'choose a value that no class has, such as {IGNORE_INDEX}.')
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def encode(self, masks: Tensor) -> Tensor:
        """Masks (B, H, W), integer → control images (B, channels, H / patch_size, W / patch_size), float32.

        Raises:
            ValueError: If a mask holds an id that is neither a class nor the ignore index.
        """
        ignored = masks == self.ignore_index
        wrong = ~ignored & ((masks < 0) | (masks >= self.num_classes))
        if wrong.any():
            raise ValueError(f'mask value {int(masks[wrong][0])}: must be below the class count {self.num_classes} or '
                             f'the ignore index {self.ignore_index}. Check the labels and `num_classes`.')
        return self._control_image(masks.masked_fill(ignored, 0).long(), ignored)

    def _control_image(self, ids: Tensor, ignored: Tensor) -> Tensor:
        raise TypeError(f'{type(self).__name__} does not encode')


@MODELS.register_module()
class GreyLevelCodec(LabelCodec):
    """Class k → grey level ``k * 255 / K`` cut to an integer, three equal channels in [-1, 1] (TODSynth as released).

    Ignored pixels are white (255), which no class has.
    """

    is_image = True
    channels = 3

    def _control_image(self, ids: Tensor, ignored: Tensor) -> Tensor:
        grey = torch.div(ids * 255, self.num_classes, rounding_mode='floor').masked_fill(ignored, 255)
        return (grey.float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1).contiguous()


@MODELS.register_module()
class IdCodec(LabelCodec):
    """Class k → ``k / 255``, three equal channels in [0, 1] (TISynth as released); ignored pixels are 1.

    No picture for a latent codec: the classes are hardly apart. TISynth's mask branch reads it pixel by pixel.
    """

    is_image = False
    channels = 3

    def _control_image(self, ids: Tensor, ignored: Tensor) -> Tensor:
        values = ids.masked_fill(ignored, 255).float() / 255
        return values[:, None].expand(-1, 3, -1, -1).contiguous()


@MODELS.register_module()
class PaletteCodec(LabelCodec):
    """Class k → its palette colour, RGB in [-1, 1]; ignored pixels are black.

    Args:
        palette: K colours, RGB in [0, 255].
        ignore_index: The id of unlabelled pixels.

    Raises:
        ValueError: If two classes share a colour, or one has that of ignored pixels.
    """

    is_image = True
    channels = 3
    colours: Tensor

    def __init__(self, palette: Sequence[Sequence[int]], ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__(len(palette), ignore_index)
        colours = [tuple(int(value) for value in colour) for colour in palette]
        for index, colour in enumerate(colours):
            if colour in colours[:index] or colour == (0, 0, 0):
                raise ValueError(f'`palette`: class {index} has the colour {colour}, which '
                                 f'{"ignored pixels have" if colour == (0, 0, 0) else "an earlier class has too"}. '
                                 'Give every class a colour of its own, none of them black.')
        self.register_buffer('colours', torch.tensor(colours).float() / 127.5 - 1, persistent=False)

    def _control_image(self, ids: Tensor, ignored: Tensor) -> Tensor:
        return self.colours[ids].masked_fill(ignored[..., None], -1.0).permute(0, 3, 1, 2).contiguous()


@MODELS.register_module()
class OneHotCodec(LabelCodec):
    """Class k → channel k, in {0, 1}; ignored pixels are zero in every channel.

    Args:
        num_classes: Classes K.
        ignore_index: The id of unlabelled pixels.
        patch_size: Pixels per cell and side of the control image: each pixel of a cell has K channels of its own. With
            the pixels of a latent cell nothing of the mask is lost on the latent grid; with 1 TODSynth is given the
            area that each class has in a latent cell, and cannot know where in it a thin road lies.

    Raises:
        ValueError: As in :class:`LabelCodec`, or if ``patch_size`` is below 1.
    """

    is_image = False

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX, patch_size: int = 1) -> None:
        super().__init__(num_classes, ignore_index)
        if patch_size < 1:
            raise ValueError(f'`patch_size` must be at least 1, got {patch_size}.')
        self.patch_size = patch_size
        self.channels = num_classes * patch_size**2

    def _control_image(self, ids: Tensor, ignored: Tensor) -> Tensor:
        maps = F.one_hot(ids, self.num_classes).float().masked_fill(ignored[..., None], 0.0)
        return F.pixel_unshuffle(maps.permute(0, 3, 1, 2), self.patch_size).contiguous()
