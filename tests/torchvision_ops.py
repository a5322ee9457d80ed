"""A plugin of pytest (``-p torchvision_ops``) for torchvision of the index beside a CPU build of torch.

That torchvision is linked to CUDA, so that its operators do not load here, and its import, which transformers and
mmagic ask for, fails for want of two of them. They are declared; nothing in the tests calls them.
"""
import torch

for name in ('nms', 'qnms'):
    torch.library.define(f'torchvision::{name}', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
