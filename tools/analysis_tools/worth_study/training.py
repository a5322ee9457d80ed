"""Training the networks of a case, and letting segmentors read images.

Legend: I images, K classes, H W pixels.
"""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mmsynth.guidance import SegmentorCritic
from mmsynth.pool import Pool
from mmsynth.utils.labels import IGNORE_INDEX, read_label
from worth_study.statistics import Counts

_WEIGHTED = {'EncoderDecoder': 'mmsynth.WeightedEncoderDecoder',
             'CascadeEncoderDecoder': 'mmsynth.WeightedCascadeEncoderDecoder'}


def prepare(cfg: Config, work_dir: Path, iterations: int) -> None:
    """Change a config in place: train for so many iterations, from the start, without validation on the way."""
    cfg.work_dir, cfg.experiment_name = str(work_dir), '_'.join(work_dir.parts[-3:])
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations + 1)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key, None)
    for scheduler in cfg.param_scheduler:
        scheduler.total_steps = max(iterations, 30)  # OneCycleLR needs a few for each of its phases
    cfg.default_hooks.checkpoint.update(interval=iterations, save_optimizer=False, save_param_scheduler=False)
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', ())
                        if not str(hook['type']).endswith(('ProgressBarHook', 'PreviewHook'))]


def scale_learning_rate(cfg: Config, factor: float) -> None:
    """Change a config in place: the optimizer's rate and the peak of a one-cycle schedule, times a factor."""
    cfg.optim_wrapper.optimizer.lr *= factor
    for scheduler in cfg.param_scheduler:
        if 'eta_max' in scheduler:
            scheduler.eta_max *= factor


def weight_pixels(cfg: Config) -> None:
    """Change a segmentor's config in place: its loss is weighted by what a soft filter left beside the labels.

    Raises:
        ValueError: If its model or pipeline is not one of mmseg's usual ones.
    """
    pipeline = cfg.train_dataloader.dataset.pipeline
    names = [transform.type for transform in pipeline]
    if cfg.model.type not in _WEIGHTED or 'LoadAnnotations' not in names or names[-1] != 'PackSegInputs':
        raise ValueError(f"`filter.mode` 'soft' needs a segmentor of type {' or '.join(_WEIGHTED)} and a pipeline with "
                         f'LoadAnnotations that ends with PackSegInputs, got {cfg.model.type} and {", ".join(names)}.')
    cfg.model.type = _WEIGHTED[cfg.model.type]
    pipeline[-1].type = 'mmsynth.PackWeightedSegInputs'
    pipeline.insert(names.index('LoadAnnotations') + 1, dict(type='mmsynth.LoadPixelWeights', required=False))


def train(cfg: Config) -> nn.Module:
    """Train what a config that :func:`prepare` has changed describes; the model."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.model


@torch.no_grad()
def read_images(model: nn.Module, folder: Path) -> Iterator[tuple[Path, NDArray[np.uint8], Tensor]]:
    """Let a segmentor read the images of a folder: file, image (H, W, 3), RGB, and logits (K, H, W)."""
    critic = SegmentorCritic(segmentor=model.eval())
    for path in sorted(folder.glob('*.png')):
        with Image.open(path) as file:
            image = np.array(file.convert('RGB'))
        yield path, image, critic.predict_logits(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]


def count_images(model: nn.Module, data: Path, part: str, num_classes: int) -> Counts:
    """Count intersection and union (I, 2, K) of a segmentor's predictions in the images of a part."""
    found = []
    for path, _, logits in read_images(model, data / 'img_dir' / part):
        label = torch.from_numpy(read_label(str(data / 'ann_dir' / part / path.name)).astype(np.int64))
        areas: Any = IoUMetric.intersect_and_union(logits.argmax(0), label, num_classes, IGNORE_INDEX)
        found.append(np.stack([areas[0].numpy(), areas[1].numpy()]).astype(np.int64))
    return np.stack(found)


def pseudo_label(model: nn.Module, images: Path, out: Path, meta: dict[str, Any], confidence: float) -> None:
    """Write a segmentor's own labels of unlabelled images as a pool, 255 where its probability is below ``confidence``.

    Images without any label are left out.
    """
    generator = dict(type='pseudo labels', config_sha256='none', weights_sha256=None)
    with Pool.create(out, dict(generator=generator, confidence=confidence), meta['classes'], meta['palette']) as pool:
        for path, image, logits in read_images(model, images):
            probability, label = logits.softmax(0).max(0)
            label = torch.where(probability < confidence, IGNORE_INDEX, label).numpy().astype(np.uint8)
            if (label != IGNORE_INDEX).any():
                pool.add(path.stem, image, label, source_mask=path.name, prompt='', seed=0, generator=generator)
