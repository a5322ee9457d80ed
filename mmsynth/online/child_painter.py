"""What a painting process builds: a refresher, and a segmentor that takes the weights of the one in training."""
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import nn

from mmsynth.guidance import SegmentorCritic
from mmsynth.online.masks import plain
from mmsynth.online.orders import Order, Painted, Painter
from mmsynth.online.plan import RefreshPlan
from mmsynth.online.refresher import PoolRefresher
from mmsynth.utils.checkpoint import load_state_dict

FACTORY = f'{__name__}:build_painter'


def painter_settings(cfg: Config, plan: Mapping[str, Any], refresher: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with which a painting process is started, as plain values.

    Args:
        cfg: The training's config; of it the segmentor is built, and what it imports is imported.
        plan: Arguments of :class:`~mmsynth.online.plan.RefreshPlan`.
        refresher: The other arguments of :class:`~mmsynth.online.refresher.PoolRefresher`; ``device`` is the
            process's.
    """
    return plain(dict(
        refresher,
        plan=plan,
        segmentor={key: cfg[key] for key in ('model', 'data_preprocessor') if cfg.get(key) is not None},
        imports=(cfg.get('custom_imports') or {}).get('imports', ()),
        default_scope=cfg.get('default_scope', 'mmseg')))


def build_painter(plan: Mapping[str, Any], *, segmentor: Mapping[str, Any] | None, imports: str | Sequence[str] = (),
                  default_scope: str = 'mmseg', real: Mapping[str, Any] | None = None, batch_size: int = 4,
                  device: torch.device | str = 'cpu') -> Painter:
    """Build what paints; called in the painting process.

    Args:
        plan: Arguments of :class:`~mmsynth.online.plan.RefreshPlan`.
        segmentor: A segmentation config, at least its ``model``: the segmentor in training. It is built only where the
            plan needs one.
        imports: Modules that the training's config imports.
        default_scope: The training's.
        real, batch_size, device: See :class:`~mmsynth.online.refresher.PoolRefresher`.

    Returns:
        A painter for orders that bring weights.

    Raises:
        ValueError, FileNotFoundError: As plan and refresher do, or if the segmentor cannot guide.
    """
    import mmseg.datasets
    import mmseg.models  # noqa: F401  (they fill mmseg's registries)
    init_default_scope(default_scope)
    names = [imports] if isinstance(imports, str) else list(imports)
    import_modules_from_strings(names, allow_failed_imports=True)  # what the training has done without, this can too
    paint = PoolRefresher(RefreshPlan(**plan), real=real, batch_size=batch_size, device=device)
    if not paint.needs_segmentor:
        return paint
    critic = SegmentorCritic(segmentor)
    paint.check(critic.segmentor)
    return _WithWeights(paint, critic.segmentor.to(device))


class _WithWeights:
    """A painter that puts the weights of an order into a segmentor of its own."""

    def __init__(self, painter: Painter, segmentor: nn.Module) -> None:
        self._painter = painter
        self._segmentor = segmentor

    def __call__(self, order: Order) -> Painted:
        if order.weights is not None:
            load_state_dict(self._segmentor, order.weights, source='of the segmentor in training')
            order = replace(order, segmentor=self._segmentor, weights=None)
        return self._painter(order)
