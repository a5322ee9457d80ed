"""Class-wise mean losses of a trained segmentor on the real data of its config: what the pixel filter measures by."""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch.utils.data import Dataset

from mmsynth.apis.config import build_dataset, config_hash, file_hash
from mmsynth.filtering import ClassLosses, ClassLossMeter, pixel_losses, segmentor_identity
from mmsynth.guidance import SegmentorCritic
from mmsynth.utils import progress_bar
from mmsynth.utils.batches import batches_of_one_shape

Pair = tuple[np.ndarray, np.ndarray]


@torch.no_grad()
def fit_class_loss(cfg: Config, checkpoint: str | Path, *, split: str = 'train', batch_size: int = 8,
                   device: torch.device | str = 'cpu') -> ClassLosses:
    """Let a segmentor read all images of a split as it does at test time, whole and in their own size.

    Of the data set's pipeline only what loads is used: no crop, flip or resizing. Of wrappers (ConcatDataset,
    RepeatDataset) the data sets inside count, each image once.

    Args:
        cfg: The segmentor's config.
        checkpoint: Its weights.
        split: 'train', 'val' or 'test': whose dataloader names the data set.
        batch_size: Images read together; does not change the result.
        device: Where the segmentor runs.

    Raises:
        ValueError: If config, data set and segmentor do not fit each other.
        FileNotFoundError: If a file does not exist.
    """
    if batch_size < 1:
        raise ValueError(f'`batch_size` must be at least 1, got {batch_size}.')
    settings = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
    if settings is None:
        raise ValueError(f'{cfg.filename}: it has no `{split}_dataloader.dataset`, on whose images the losses would be '
                         'measured; name another split.')
    segmentor = SegmentorCritic(cfg, str(checkpoint))
    leaves = list(_leaves(build_dataset(settings)))
    classes = _class_names(leaves, segmentor, f'{cfg.filename}, `{split}_dataloader`')
    identity = segmentor_identity(segmentor)
    segmentor.to(device)
    meter = ClassLossMeter(len(classes))
    with progress_bar(total=sum(map(len, leaves)), unit='img', title='fit class losses') as bar:
        for batch in batches_of_one_shape(_pairs(leaves), lambda pair: pair[0].shape, batch_size):
            images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*batch))
            logits = segmentor.read(images.to(device).permute(0, 3, 1, 2).float() / 255)
            meter.update(pixel_losses(logits, labels.to(device)), labels.to(device))
            bar.update(len(batch))
    return meter.compute(classes, dict(
        segmentor_sha256=identity, config_sha256=config_hash(cfg.model), checkpoint_sha256=file_hash(checkpoint),
        dataset=type(leaves[0]).__name__, dataset_sha256=config_hash(settings), split=split,
        num_images=sum(map(len, leaves))))


def _leaves(dataset: Dataset) -> Iterator[Dataset]:
    """The data sets inside wrappers."""
    wrapped = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if wrapped == [None]:
        yield dataset
    else:
        for inner in wrapped:
            yield from _leaves(inner)


def _class_names(leaves: list[Any], segmentor: SegmentorCritic, source: str) -> tuple[str, ...]:
    lists = {tuple(leaf.metainfo.get('classes') or ()) for leaf in leaves}
    if len(lists) > 1:
        raise ValueError(f'{source}: its data sets have different classes; the losses need one list.')
    classes = lists.pop()
    if len(classes) != segmentor.num_classes:
        raise ValueError(f'{source}: the data set has {len(classes)} classes, the segmentor {segmentor.num_classes}; '
                         'give the config that the segmentor was trained with.')
    if not sum(map(len, leaves)):
        raise ValueError(f'{source}: the data set has no images.')
    return classes


def _pairs(leaves: list[Any]) -> Iterator[Pair]:
    """Images (H, W, 3), uint8, RGB, and their labels (H, W), int64, of all data sets."""
    for leaf in leaves:
        loaders = [transform for transform in leaf.pipeline.transforms if type(transform).__name__.startswith('Load')]
        for index in range(len(leaf)):
            results = leaf.get_data_info(index)
            for transform in loaders:
                results = transform(results)
            yield _checked(results, len(leaf.metainfo['classes']))


def _checked(results: dict[str, Any], num_classes: int) -> Pair:
    image, label = results.get('img'), results.get('gt_seg_map')
    source = results.get('seg_map_path') or results.get('img_path')
    if image is None or label is None:
        raise ValueError(f'{source}: its pipeline loads no {"image" if image is None else "label"}; it needs '
                         'LoadImageFromFile and LoadAnnotations.')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'{source}: the image must be (H, W, 3) uint8, got {image.shape} {image.dtype}.')
    label = label.astype(np.int64)
    wrong = label[(label != 255) & ((label < 0) | (label >= num_classes))]
    if wrong.size or label.shape != image.shape[:2]:
        raise ValueError(f'{source}: the label must be {image.shape[:2]}, of class indices below {num_classes} or 255, '
                         f'got {label.shape}' + (f' with {wrong[0]} in it' if wrong.size else '') + '.')
    return np.ascontiguousarray(image[..., ::-1]), label  # loaded as BGR
