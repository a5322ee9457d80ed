"""Fill the latent cache of a training config: encode every image that its training set can give, once.

What a training asks for is what its pipeline gives: each image, each image flipped where the pipeline flips, and the
control images of the masks where they go through the latent codec. All of it is enumerated; anything else that is
random in the pipeline is refused.
"""
import copy
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmsynth.models.encoders import LatentCache, VAECodec, image_keys
from mmsynth.models.encoders.tensor_cache import CacheReport
from mmsynth.models.generators.base import stack_masks
from mmsynth.models.generators.todsynth import TODSynth
from mmsynth.models.label_codecs import LabelCodec
from mmsynth.registry import MODELS
from mmsynth.synthesis.build import build_dataset, load_config
from mmsynth.utils import isolated_random_state, progress_bar
from mmsynth.utils.batches import batches_of_one_shape
from mmsynth.utils.datasets import leaf_datasets
from mmsynth.utils.files import FolderLock, remove_temporaries
from mmsynth.utils.labels import IGNORE_INDEX

_PLACE = 'train_dataloader.dataset'
_PROBED = 4  # records of each set that are loaded twice, to see whether the pipeline is random


def encode_latents(config: Config | str | Path, *, cache_dir: str | Path | None = None, batch_size: int = 4,
                   num_workers: int = 0, device: str = 'cpu') -> CacheReport:
    """Encode every image that a config's training set can give, into its latent cache.

    Args:
        config: The config of a generator, or its file. ``model.latent_codec`` is the codec, its ``cache_dir`` the
            cache.
        cache_dir: Another folder for the cache.
        batch_size: Images encoded together, where neighbours have one size.
        num_workers: Processes that load images.
        device: Where the codec runs.

    Raises:
        ValueError: If the config names no cache and none is given, its codec keeps none, or its pipeline makes another
            image of a file every time.
        RuntimeError: If another process is filling the cache.
    """
    config = load_config(config)
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f'`batch_size` must be at least 1 and `num_workers` not negative, got {batch_size} and '
                         f'{num_workers}.')
    folder = _cache_folder(config, cache_dir)
    variants = TrainingVariants(config)
    codec: VAECodec = MODELS.build(config.model.latent_codec).to(device)
    preprocessor = MODELS.build(config.model.get('data_preprocessor') or dict(type='mmsynth.SynthDataPreprocessor'))
    preprocessor = preprocessor.to(device)
    label_codec = _control_codec(config, device)
    drops_masks = bool(config.model.get('mask_dropout'))
    cache = codec.open_cache(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        remove_temporaries(folder)
        seen: set[str] = set()
        encoded = 0
        loader = DataLoader(variants, batch_size=None, num_workers=num_workers)
        with progress_bar(loader, total=len(variants), unit='img', title='encode latents') as items:
            for batch in batches_of_one_shape(items, lambda item: item['inputs'].shape, batch_size):
                data = preprocessor(dict(inputs=[item['inputs'] for item in batch],
                                         data_samples=[item['data_samples'] for item in batch]))
                images = [data['inputs']]
                if label_codec is not None:
                    masks = stack_masks(data['data_samples'], torch.device(device))
                    masks = torch.cat([masks, torch.full_like(masks[:1], IGNORE_INDEX)]) if drops_masks else masks
                    images.append(label_codec.encode(masks))
                for part in images:
                    encoded += _encode_missing(cache, codec, part, seen, batch_size)
    finally:
        lock.release()
    size = sum(cache.path(key).stat().st_size for key in seen)
    return CacheReport(folder, cache.identity, 'images', len(seen), encoded, size)


class TrainingVariants(Dataset):
    """What the training set of a config can give: every record, under every combination of flips.

    Args:
        config: With ``train_dataloader.dataset``.

    Raises:
        ValueError: If there is no such data set, or its pipeline is random otherwise than by ``RandomFlip``.
    """

    def __init__(self, config: Config) -> None:
        settings = (config.get('train_dataloader') or {}).get('dataset')
        if settings is None:
            raise ValueError(f'{config.filename}: it has no `{_PLACE}`, whose images are to be encoded; give the '
                             'config of a generator\'s training.')
        self.places: list[tuple[Any, int, list[BaseTransform]]] = []  # data set, record, transforms
        for dataset in leaf_datasets(build_dataset(settings)):
            pipelines = list(_without_chance(dataset.pipeline.transforms))
            for index in range(min(_PROBED, len(dataset))):
                _check_repeats(dataset, index, pipelines[0])
            self.places += [(dataset, index, transforms) for index in range(len(dataset)) for transforms in pipelines]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """A record as the training is given it: ``inputs`` and ``data_samples``."""
        dataset, index, transforms = self.places[place]
        results = dataset.get_data_info(index)
        for transform in transforms:
            results = transform(results)
            if results is None:
                raise ValueError(f'`{_PLACE}`: record {index} is dropped by {type(transform).__name__}; take it out of '
                                 'the data set.')
        if 'inputs' not in results:
            raise ValueError(f'`{_PLACE}`: record {index} has no image; put LoadImageFromFile first in its pipeline.')
        return results


def _without_chance(transforms: Iterable[BaseTransform]) -> Iterator[list[BaseTransform]]:
    """The pipeline with its flips decided: one for each combination of them that can come about."""
    def decided(transform: BaseTransform) -> list[BaseTransform]:
        if type(transform).__name__ != 'RandomFlip':
            return [transform]
        directions = [transform.direction] if isinstance(transform.direction, str) else list(transform.direction)
        shares = transform.prob if isinstance(transform.prob, list) else [
            (transform.prob or 0) / len(directions)] * len(directions)
        possible = [(direction, 1.0) for direction, share in zip(directions, shares) if share > 0]
        if sum(shares) < 1 - 1e-6:
            possible.append((directions[0], 0.0))
        return [_changed(transform, direction=direction, prob=prob) for direction, prob in possible]

    return map(list, product(*map(decided, transforms)))


def _changed(transform: BaseTransform, **settings: Any) -> BaseTransform:
    changed = copy.copy(transform)
    for name, value in settings.items():
        setattr(changed, name, value)
    return changed


def _check_repeats(dataset: Any, index: int, transforms: Iterable[BaseTransform]) -> None:
    """Raise ValueError if image or mask of a record are another when it is loaded again."""
    first, second = dataset.get_data_info(index), dataset.get_data_info(index)
    for transform in transforms:
        with isolated_random_state(0):
            first = transform(first)
        with isolated_random_state(1):
            second = transform(second)
        if first is None or second is None:
            return
        for name in ('img', 'gt_seg_map'):
            if name in first and not np.array_equal(first[name], second[name]):
                what = 'image' if name == 'img' else 'mask'
                raise ValueError(f'`{_PLACE}`: {type(transform).__name__} makes another {what} of record {index} every '
                                 'time, so that there is none to encode beforehand. Cut the images at fixed places '
                                 'first (RandomFlip alone may stay), or train without `latent_codec.cache_dir`.')


def _cache_folder(config: Config, cache_dir: str | Path | None) -> Path:
    codec = (config.get('model') or {}).get('latent_codec') or {}
    kind = str(codec.get('type'))
    if kind.rpartition('.')[2] != 'VAECodec':
        raise ValueError(f'{config.filename}: `model.latent_codec` is {codec.get("type")}; a cache is kept of '
                         'mmsynth.VAECodec only, the others encode in no time and are fitted in training.')
    folder = cache_dir or codec.get('cache_dir')
    if not folder:
        raise ValueError(f'{config.filename} names no latent cache; set `model.latent_codec.cache_dir`, or give '
                         '`cache_dir` (--cache-dir).')
    return Path(folder)


def _control_codec(config: Config, device: str) -> LabelCodec | None:
    """The label codec, where its control images go through the latent codec."""
    codec = MODELS.build(config.model.label_codec).to(device)
    return codec if codec.is_image and issubclass(MODELS.get(config.model.type), TODSynth) else None


def _encode_missing(cache: LatentCache, codec: VAECodec, images: Tensor, seen: set[str], batch_size: int) -> int:
    """Encode those images (B, 3, H, W) that the cache lacks, and note all of them as seen; how many were encoded."""
    rows = {key: row for row, key in enumerate(image_keys(images)) if key not in seen}
    seen.update(rows)
    keys, encoded = list(rows), 0
    for start in range(0, len(keys), batch_size):
        batch = keys[start:start + batch_size]
        missing = [key for key in batch if not cache.has(key)]
        if missing:  # a whole batch after a kill in it too: rounding may depend on what is computed together
            moments = dict(zip(batch, codec.moments(images[[rows[key] for key in batch]])))
            cache.write({key: dict(moments=moments[key]) for key in missing})
        encoded += len(missing)
    return encoded
