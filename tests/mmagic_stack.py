"""mmagic for the tests, where it imports; elsewhere they are skipped with the reason."""
from importlib.util import find_spec

import pytest
import torch


def need_mmagic() -> None:
    """Import mmagic, or skip the test."""
    if find_spec('mmagic') is None:
        pytest.skip('mmagic is not installed; see docs/en/mmagic.md')
    _declare_ops()
    from mmsynth.models.mmagic_host import import_mmagic
    try:
        import_mmagic()
    except ImportError as error:
        pytest.skip(str(error))


def _declare_ops() -> None:
    """Declare the operators that torchvision's import asks for, where torch is a CPU build.

    The torchvision of the index is linked to CUDA; beside a CPU build of torch its operators do not load, and its
    import fails for want of them. Nothing here calls them.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ('nms', 'qnms'):
            torch.library.define(f'torchvision::{name}', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
