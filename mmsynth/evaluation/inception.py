"""The Inception network of the FID (Heusel et al., arXiv 1706.08500), with weights from a file that the user has.

The layers of Szegedy et al. (arXiv 1512.00567) as in the TensorFlow graph of 2015-12-05 that published FIDs were
measured with: average pooling leaves padding out, and the last of the two widest blocks pools by maximum. The names of
the weights are those of the two files in use, ``weights-inception-2015-12-05-6726825d.pth`` (torch-fidelity) and
``pt_inception-2015-12-05-6726825d.pth`` (pytorch-fid). Written out here because every library that has the network
needs torchvision.

Legend: B batch, C channels, H W pixels.
"""
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsynth.evaluation.segmentor_features import PooledFeatures
from mmsynth.utils import load_state_dict, read_checkpoint

WIDTH = 2048
_SIDE = 299
_CLASSIFIER = ('fc.weight', 'fc.bias', 'AuxLogits')


class Inception(nn.Module):
    """Images to the 2048 features of the last pooling.

    Args:
        checkpoint: File of the weights, read without running code from it.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it does not hold this network.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _Mixed5(192, 32)
        self.Mixed_5c = _Mixed5(256, 64)
        self.Mixed_5d = _Mixed5(288, 64)
        self.Mixed_6a = _Mixed6a()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (
            _Mixed6(inner) for inner in (128, 160, 160, 192))
        self.Mixed_7a = _Mixed7a()
        self.Mixed_7b = _Mixed7(1280)
        self.Mixed_7c = _Mixed7(2048, max_pool=True)
        state = {key: value for key, value in read_checkpoint(checkpoint).items() if not key.startswith(_CLASSIFIER)}
        counters = [key for key in self.state_dict() if key.endswith('num_batches_tracked')]
        load_state_dict(self, state, source=str(checkpoint), optional=counters)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of images (B, 3, H, W), uint8, RGB, of any size."""
        x = resize_as_tensorflow(images.float(), _SIDE)  # (B, 3, 299, 299)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)  # (B, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, 2)  # (B, 192, 35, 35)
        for name, module in self.named_children():
            if name.startswith('Mixed'):
                x = module(x)  # 288 at 35 x 35, 768 at 17 x 17, 2048 at 8 x 8
        return x.mean((2, 3))

    def features(self, images: Tensor) -> PooledFeatures:
        """As :meth:`forward`, in the form of a segmentor's features, without any of classes."""
        rows = self(images).cpu()
        return PooledFeatures(rows, rows.new_zeros(len(rows), 0, WIDTH), torch.zeros(len(rows), 0, dtype=torch.bool))


def resize_as_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear resize of images (B, C, H, W) to a square, with pixel corners at whole numbers.

    Pixel i of the result is looked up at i·H/side, without the half pixel that torch's resize adds and without a filter
    for smaller sizes: TensorFlow 1's way, which the FID inherited.
    """
    rows, columns = (_taps(size, side).to(images) for size in images.shape[-2:])
    return torch.einsum('yh,bchw,xw->bcyx', rows, images, columns)


def _taps(size: int, side: int) -> Tensor:
    """The weights (side, size) of the source pixels in each pixel of the result."""
    # in float32 as in TensorFlow: i·size/side of a whole number can fall below it
    position = torch.arange(side, dtype=torch.float32) * torch.tensor(size / side, dtype=torch.float32)
    below = position.floor().long().clamp(max=size - 1)
    share = position - below
    taps = torch.zeros(side, size)
    taps.scatter_add_(1, below[:, None], (1 - share)[:, None])
    return taps.scatter_add_(1, (below + 1).clamp(max=size - 1)[:, None], share[:, None])


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out_channels: int, kernel: int | tuple[int, int], *, stride: int = 1,
                 padding: int | tuple[int, int] = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed5(nn.Module):
    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(channels, 64, 1)
        self.branch5x5_1 = _Conv(channels, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average(x))], 1)


class _Mixed6a(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = _Conv(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(288, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class _Mixed6(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        wide: dict[str, Any] = dict(kernel=(1, 7), padding=(0, 3))
        tall: dict[str, Any] = dict(kernel=(7, 1), padding=(3, 0))
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, inner, 1)
        self.branch7x7_2 = _Conv(inner, inner, **wide)
        self.branch7x7_3 = _Conv(inner, 192, **tall)
        self.branch7x7dbl_1 = _Conv(768, inner, 1)
        self.branch7x7dbl_2 = _Conv(inner, inner, **tall)
        self.branch7x7dbl_3 = _Conv(inner, inner, **wide)
        self.branch7x7dbl_4 = _Conv(inner, inner, **tall)
        self.branch7x7dbl_5 = _Conv(inner, 192, **wide)
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return torch.cat([
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_average(x))], 1)


class _Mixed7a(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(768, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(long), F.max_pool2d(x, 3, 2)], 1)


class _Mixed7(nn.Module):
    def __init__(self, channels: int, max_pool: bool = False) -> None:
        super().__init__()
        wide: dict[str, Any] = dict(kernel=(1, 3), padding=(0, 1))
        tall: dict[str, Any] = dict(kernel=(3, 1), padding=(1, 0))
        self.max_pool = max_pool
        self.branch1x1 = _Conv(channels, 320, 1)
        self.branch3x3_1 = _Conv(channels, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, **wide)
        self.branch3x3_2b = _Conv(384, 384, **tall)
        self.branch3x3dbl_1 = _Conv(channels, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, **wide)
        self.branch3x3dbl_3b = _Conv(384, 384, **tall)
        self.branch_pool = _Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else _average(x)
        return torch.cat([
            self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single), self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double), self.branch_pool(pooled)], 1)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
