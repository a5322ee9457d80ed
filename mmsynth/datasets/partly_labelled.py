"""Labelled and unlabelled images for training a generator: what has no label gets the null mask."""
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.dataset import BaseDataset, InfiniteSampler
from torch.utils.data import Dataset

from mmsynth.datasets.pool_dataset import loads_labels
from mmsynth.datasets.samplers.draws import Draw
from mmsynth.datasets.seeded import SeededItems
from mmsynth.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from mmsynth.utils import derive_seed
from mmsynth.utils.images import IMAGE_SUFFIXES
from mmsynth.utils.labels import IGNORE_INDEX


@TRANSFORMS.register_module()
class NullMask(BaseTransform):
    """Give an image the null mask: every pixel unlabelled, in the place of a transform that loads labels.

    Reads ``img`` (H, W, 3). Writes ``gt_seg_map`` (H, W), uint8, 255 everywhere, and the empty ``prompt`` where there
    is none (``BuildPrompt`` names no class then).
    """

    def transform(self, results: dict) -> dict:
        results['gt_seg_map'] = np.full(results['img'].shape[:2], IGNORE_INDEX, np.uint8)
        results['seg_fields'] = [*results.get('seg_fields', ()), 'gt_seg_map']
        results.setdefault('prompt', '')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@DATASETS.register_module()
class UnlabelledDataset(SeededItems, BaseDataset):
    """The images below a folder, without labels.

    Args:
        data_root: The folder; images in folders below it count too.
        img_suffix: End, or ends, of the images' names.
        pipeline: The transforms, with :class:`NullMask` after the image is loaded.
        metainfo, indices: See :class:`mmengine.dataset.BaseDataset`.
        backend_args: The host's file backend.

    Raises:
        FileNotFoundError: If there is no such folder, or no such image in it.
    """

    def __init__(self,
                 data_root: str,
                 pipeline: Sequence[dict | Callable] = (),
                 *,
                 img_suffix: str | Sequence[str] = IMAGE_SUFFIXES,
                 metainfo: Mapping[str, Any] | None = None,
                 indices: int | Sequence[int] | None = None,
                 backend_args: dict | None = None) -> None:
        self.img_suffix = (img_suffix, ) if isinstance(img_suffix, str) else tuple(img_suffix)
        self.backend_args = backend_args
        super().__init__(data_root=data_root, metainfo=metainfo, indices=indices, pipeline=list(pipeline))

    def load_data_list(self) -> list[dict]:
        """The info of every image, by name."""
        names = sorted(fileio.list_dir_or_file(self.data_root, list_dir=False, suffix=self.img_suffix, recursive=True,
                                               backend_args=self.backend_args)) \
            if fileio.isdir(self.data_root, backend_args=self.backend_args) else []
        if not names:
            raise FileNotFoundError(f'`unlabelled.data_root` {self.data_root} has no file that ends in '
                                    f'{", ".join(self.img_suffix)}; correct it, or `img_suffix`.')
        common = dict(seg_fields=[], classes=self.metainfo.get('classes'))
        return [dict(img_path=fileio.join_path(self.data_root, name), sample_id=name) | common for name in names]


@DATASETS.register_module()
class PartlyLabelledDataset(Dataset):
    """A labelled data set, followed by unlabelled images::

        train_dataloader = dict(
            sampler=dict(type='mmsynth.PartlyLabelledSampler', share=0.5),
            dataset=dict(
                type='mmsynth.PartlyLabelledDataset',
                dataset=dict(type='mmsynth.ManifestDataset', ...),
                unlabelled=dict(data_root='data/raw')))

    A generator learns what images look like from all of them, and from the labelled ones what a mask says. Unlabelled
    images are training samples whose mask was dropped: so the generator is given no ``mask_dropout`` as well, or a
    small one.

    Args:
        dataset: The labelled set, or its config.
        unlabelled: Options of an :class:`UnlabelledDataset` (or the config of any other data set, with its ``type``).
            Without a ``pipeline`` it has that of the labelled set, with :class:`NullMask` for what loads labels.

    Attributes:
        num_labelled: How many of the samples are labelled; they are the first.

    Raises:
        ValueError: If the labelled set's pipeline loads no labels, so that none can be made from it.
    """

    def __init__(self, dataset: BaseDataset | dict, unlabelled: BaseDataset | dict) -> None:
        labelled = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        if isinstance(unlabelled, Mapping):
            options = dict(type='mmsynth.UnlabelledDataset', metainfo=dict(labelled.metainfo)) | dict(unlabelled)
            if 'pipeline' not in options:
                options['pipeline'] = _without_labels(dataset.get('pipeline', ()) if isinstance(dataset, Mapping)
                                                      else ())
            unlabelled = DATASETS.build(options)
        self.datasets = [labelled, unlabelled]
        self.num_labelled = len(labelled)

    @property
    def metainfo(self) -> dict:
        """That of the labelled set."""
        return self.datasets[0].metainfo

    def full_init(self) -> None:
        """As in the host: load what is loaded at first use."""
        for dataset in self.datasets:
            dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """What the pipeline of a sample starts from."""
        dataset, inner = self._locate(index)
        return dataset.get_data_info(int(inner))

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, index: int) -> Any:
        dataset, inner = self._locate(index)
        return dataset[inner]

    def _locate(self, index: int) -> tuple[BaseDataset, int]:
        part = int(index >= self.num_labelled)
        inner = int(index) - part * self.num_labelled
        return self.datasets[part], Draw(inner, index.seed, index.iteration) if isinstance(index, Draw) else inner


@DATA_SAMPLERS.register_module()
class PartlyLabelledSampler(InfiniteSampler):
    """Draw from a :class:`PartlyLabelledDataset` with an exact share of unlabelled images in every global batch.

    The share is exact by the largest remainder: among any first draws of all ranks the count is off by at most a half.
    Each kind is gone through in a new order per epoch of its own. A draw is a function of the seed and its number, so
    that ranks draw the parts of one batch, and a resumed training what an unbroken one would have.

    Args:
        dataset: The data set.
        share: Share of unlabelled images, in [0, 1), counted as the decimal number that it is written as.
        seed: Of the order and of the samples' transforms; by default the runner's.

    Raises:
        TypeError: If the data set is no PartlyLabelledDataset.
        ValueError: If the share is out of range.
    """

    def __init__(self, dataset: PartlyLabelledDataset, share: float = 0.5, seed: int | None = None) -> None:
        if not isinstance(dataset, PartlyLabelledDataset):
            raise TypeError('PartlyLabelledSampler needs a PartlyLabelledDataset as the outermost `dataset` of the '
                            f'data loader, got {type(dataset).__name__}.')
        if not 0 <= share < 1:
            raise ValueError(f'`share` must be in [0, 1), got {share}.')
        super().__init__(dataset, shuffle=True, seed=seed)
        self.share = Fraction(str(share))
        self._start = 0
        self._permutation = lru_cache(maxsize=4)(self._permutation_of_epoch)

    def __iter__(self) -> Iterator[Draw]:
        number = self._start * self.world_size + self.rank  # of the draw among those of all ranks
        while True:
            before = self._unlabelled_before(number)
            is_unlabelled = self._unlabelled_before(number + 1) > before
            first = self.dataset.num_labelled if is_unlabelled else 0
            size = len(self.dataset) - first if is_unlabelled else self.dataset.num_labelled
            epoch, place = divmod(before if is_unlabelled else number - before, size)
            yield Draw(first + self._permutation(is_unlabelled, epoch, size)[place],
                       derive_seed(self.seed, 'draw', number), -1)
            number += self.world_size

    def skip(self, num_samples: int) -> None:
        """Start behind the first ``num_samples`` draws of this rank, as a resumed loop asks for."""
        self._start = num_samples

    def _unlabelled_before(self, number: int) -> int:
        return math.floor(number * self.share + Fraction(1, 2))

    def _permutation_of_epoch(self, is_unlabelled: bool, epoch: int, size: int) -> list[int]:
        kind = 'unlabelled' if is_unlabelled else 'labelled'
        return torch.randperm(size, generator=torch.Generator().manual_seed(
            derive_seed(self.seed, kind, epoch))).tolist()


def _without_labels(pipeline: Sequence[Any]) -> list[Any]:
    """The pipeline of a labelled set, as a config, with the null mask in the place of the labels."""
    loads = [isinstance(transform, Mapping) and loads_labels(transform) for transform in pipeline]
    if not any(loads):
        raise ValueError('`dataset.pipeline` loads no labels (LoadSegMap, LoadAnnotations), so that no pipeline for '
                         'unlabelled images follows from it; give `unlabelled` a `pipeline` with '
                         "dict(type='mmsynth.NullMask').")
    return [dict(type='mmsynth.NullMask') if is_label else transform
            for transform, is_label in zip(pipeline, loads)]
