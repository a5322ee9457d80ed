"""Class-wise mean losses of a trained segmentor on the real data of its config: what the pixel filter measures by."""
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from mmsynth.filtering import ClassLosses, ClassLossMeter, pixel_losses, segmentor_identity
from mmsynth.filtering.real_pairs import class_names, real_pairs
from mmsynth.guidance import SegmentorCritic
from mmsynth.synthesis.build import build_dataset, load_config
from mmsynth.utils import progress_bar
from mmsynth.utils.batches import batches_of_one_shape
from mmsynth.utils.datasets import leaf_datasets
from mmsynth.utils.hashes import config_hash, file_hash


@torch.no_grad()
def fit_class_loss(cfg: Config | str | Path, checkpoint: str | Path, *, split: str = 'train',
                   batch_size: int = 8, device: torch.device | str = 'cpu') -> ClassLosses:
    """Let a segmentor read all images of a split as it does at test time, whole and in their own size.

    Of the data set's pipeline only what loads is used: no crop, flip or resizing. Of wrappers (ConcatDataset,
    RepeatDataset) the data sets inside count, each image once.

    Args:
        cfg: The segmentor's config, or its path.
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
    cfg = load_config(cfg)
    settings = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
    if settings is None:
        raise ValueError(f'{cfg.filename}: it has no `{split}_dataloader.dataset`, on whose images the losses would be '
                         'measured; name another split.')
    segmentor = SegmentorCritic(cfg, str(checkpoint))
    leaves = leaf_datasets(build_dataset(settings))
    classes = class_names(leaves, segmentor.num_classes, f'{cfg.filename}, `{split}_dataloader`')
    identity = segmentor_identity(segmentor)
    segmentor.to(device)
    meter = ClassLossMeter(len(classes))
    with progress_bar(total=sum(map(len, leaves)), unit='img', title='fit class losses') as bar:
        for batch in batches_of_one_shape(real_pairs(leaves), lambda pair: pair[0].shape, batch_size):
            images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*batch))
            logits = segmentor.predict_logits(images.to(device).permute(0, 3, 1, 2).float() / 255)
            meter.update(pixel_losses(logits, labels.to(device)), labels.to(device))
            bar.update(len(batch))
    return meter.compute(classes, dict(
        segmentor_sha256=identity, config_sha256=config_hash(cfg.model), checkpoint_sha256=file_hash(checkpoint),
        dataset=type(leaves[0]).__name__, dataset_sha256=config_hash(settings), split=split,
        num_images=sum(map(len, leaves))))
