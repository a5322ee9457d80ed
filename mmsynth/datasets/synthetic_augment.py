"""SyntheticAugmentDataset: a data set of real samples with a pool of synthetic ones behind it."""
import copy
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import DATASETS as HOST_DATASETS

from mmsynth.datasets.pool_dataset import UNUSED_WEIGHTS, loads_weights, pool_pipeline, recolors
from mmsynth.datasets.samplers.draws import Draw
from mmsynth.pool import PoolRecord
from mmsynth.pool.header import PoolHeader
from mmsynth.pool.reader import FileCheck, PoolReader, used_files
from mmsynth.registry import DATASETS
from mmsynth.utils import derive_seed, isolated_random_state
from mmsynth.utils.datasets import leaf_datasets
from mmsynth.utils.labels import IGNORE_INDEX

Info = dict[str, Any]


@DATASETS.register_module()
class SyntheticAugmentDataset:
    """Real samples, and the synthetic samples of a pool that are mixed among them in training.

    Its length and its first indices are those of the real set; the index ``len + number`` is a sample of the pool. Who
    draws decides which come:

    - :class:`RatioBatchSampler` gives every batch its exact share. Prefer it: a resumed training draws what an unbroken
      one would have, with any number of workers.
    - Any other sampler, with ``ratio``: each draw becomes a synthetic sample, picked among those live by then, with
      that probability. Chance is numpy's global generator, as in mmseg's own transforms: repeatable with the same
      seed and number of workers and a pool that does not change, but not through a resume.

    Samples say in their metainfo what they are: ``origin`` 'real' or 'synthetic'; the latter have ``sample_id``, the
    pool's, and ``replaced``: 1 if the sample that was drawn could not be read (a file is missing, truncated, of the
    wrong size or with values that are no class) and another live one came in its place, else 0. Its order among the
    others follows from the draw's seed. A real sample comes if none can be read. Each such file is logged once per
    worker.

    Args:
        dataset: Config of the real set, wrappers such as ConcatDataset included.
        pool: Folder of the pool; may still be missing or empty, its samples count when they are published. Labels are
            those of the filter where one ran; with ``mmsynth.LoadPixelWeights`` in the pipeline, its weights too (set
            ``required=False`` there in a pipeline that real samples share).
        ann_file: A list of file names in the pool, such as ``selected.txt``, instead of all that the filter kept; one
            that stands there twice is drawn twice. The pool must be finished, and is taken as it is now.
        synthetic_pipeline: Transforms of synthetic samples; by default those of the real set, with the options that
            say how its label files are coded (``reduce_zero_label`` …) set to what the pool's are. To be given where
            the real set's hold :class:`ColorTransfer`.
        ratio: Probability of a synthetic sample, for samplers that know nothing of the pool; not with a
            RatioBatchSampler.
        test_mode: Must be False: validation and test see real data only.

    Raises:
        TypeError: If ``dataset`` is no config.
        FileNotFoundError: If there is no such ``ann_file``.
        ValueError: If an option breaks its rule, the pool's classes are not those of the data set, or ``ann_file``
            names nothing or what the pool does not hold.
    """

    def __init__(self,
                 dataset: Mapping[str, Any],
                 pool: str | Path,
                 *,
                 ann_file: str | None = None,
                 synthetic_pipeline: Sequence[dict | Callable] | None = None,
                 ratio: float | None = None,
                 test_mode: bool = False) -> None:
        if not isinstance(dataset, Mapping):
            raise TypeError(f'`dataset` must be the config of a data set, got {type(dataset).__name__}.')
        if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= ratio <= 1):
            raise ValueError(f'`ratio` must be a probability in [0, 1], None with a RatioBatchSampler, got {ratio!r}.')
        transforms = pool_pipeline(_real_pipeline(dataset) if synthetic_pipeline is None else synthetic_pipeline)
        self.dataset = HOST_DATASETS.build(copy.deepcopy(dict(dataset)))
        if test_mode or any(getattr(leaf, 'test_mode', False) for leaf in leaf_datasets(self.dataset)):
            raise ValueError('`test_mode` of SyntheticAugmentDataset and of what it wraps must be False: validation '
                             'and test see real data only. Give them the wrapped data set itself.')
        self.pool = Path(pool)
        self.ann_file = ann_file
        self.ratio = ratio
        self._loads_weights = loads_weights(transforms)
        self.pipeline = Compose(copy.deepcopy(list(transforms)))
        self._reader = PoolReader(pool, ann_file)
        self._classes = _class_names(self.dataset.metainfo, dataset)
        self._files = FileCheck(self.pool, len(self._classes))
        self._is_checked = False
        self._warned: set[str] = set()
        self._check_pool()

    @property
    def metainfo(self) -> Info:
        """That of the real set."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Read the real set's list of files, if that is still to be done."""
        self.dataset.full_init()

    def __len__(self) -> int:
        """Number of real samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """A sample: of the real set below its length, of the pool from there on.

        Raises:
            IndexError: If it is negative.
        """
        if index < 0:
            raise IndexError(f'index {index} is negative')
        if isinstance(index, Draw):
            with isolated_random_state(index.seed, devices=False):
                return self._load(int(index), index.seed, index.iteration)
        if index < len(self):
            index = self._real_or_synthetic(index)
        return self._load(index, derive_seed(index), None)

    def get_data_info(self, index: int) -> Info:
        """What the pipelines start from.

        Raises:
            IndexError: If it is the index of a synthetic sample that is not in the pool.
        """
        if index < len(self):
            return self.dataset.get_data_info(index)
        record = self._reader.record(index - len(self))
        if record is None:
            raise IndexError(f'{self.pool} has no sample number {index - len(self)}')
        return self._info(record)

    def _load(self, index: int, seed: int, iteration: int | None) -> Any:
        if index < len(self):
            return _marked(self.dataset[index], origin='real')
        number = index - len(self)
        for candidate in self._candidates(number, seed, iteration):
            record, sample = self._try(candidate)
            if record is not None and sample is not None:
                return _marked(sample, origin='synthetic', sample_id=record.id, replaced=int(candidate != number))
        return _marked(self.dataset[seed % len(self)], origin='real', replaced=1)

    def _candidates(self, number: int, seed: int, iteration: int | None) -> Iterator[int]:
        """The number that was drawn, then all others that are live, in an order that follows from the seed."""
        yield number
        self._reader.update()  # what this worker knows may be old, and workers must agree
        others = [other for other in self._reader.live(iteration) if other != number]
        yield from random.Random(seed).sample(others, len(others))

    def _try(self, number: int) -> tuple[PoolRecord | None, Any]:
        """A synthetic sample with its record; None for a sample that cannot be had."""
        record = self._reader.record(number)
        self._check_pool()
        if record is None:
            self._warn_once(f"sample '{number}' is replaced by another: {self.pool} has no record of sample number "
                            f'{number}')
            return None, None
        if len(used_files(record)) > 2 and not self._loads_weights:
            self._warn_once(UNUSED_WEIGHTS)
        try:
            fault = self._files.fault(record)
            sample = None if fault else self.pipeline(self._info(record))
        except Exception:
            fault = self._files.fault(record)
            if fault is None:  # the files are whole: the pipeline is to blame
                raise
        if fault is not None:
            self._warn_once(f'sample {record.id!r} is replaced by another: {fault}')
            return record, None
        return record, sample

    def _real_or_synthetic(self, index: int) -> int:
        """The real index, or by chance that of a synthetic sample picked among those live."""
        if self.ratio is None:
            self._warn_once('it is not drawn from: the data loader has no RatioBatchSampler and `ratio` is not set')
        if self.ratio is None or np.random.random() >= self.ratio:
            return index
        self._reader.update()
        live = self._reader.live()
        if not live:
            self._warn_once('it has no usable samples yet; real ones are drawn until it has some')
            return index
        return len(self) + live[np.random.randint(len(live))]

    def _info(self, record: PoolRecord) -> Info:
        """As mmseg's data sets give it; the pool's labels are class indices with 255, whatever the real set's are."""
        image, label = used_files(record)[:2]
        return dict(img_path=str(self.pool / image), seg_map_path=str(self.pool / label), sample_id=record.id,
                    label_map=None, reduce_zero_label=False, seg_fields=[], num_classes=len(self._classes),
                    classes=self._classes, ignore_index=IGNORE_INDEX, prompt=record.prompt)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            print_log(f'pool {self.pool}: {message}', logger='current', level=logging.WARNING)

    def _check_pool(self) -> None:
        """Hold the pool's classes against the data set's, once there is a pool."""
        if not self._is_checked and (header := self._reader.header()) is not None:
            _check_classes(self._classes, self.dataset.metainfo.get('palette'), type(self.dataset).__name__, header,
                           self.pool)
            self._is_checked = True


def _marked(sample: Any, **marks: Any) -> Any:
    """A sample with marks in its metainfo; in the dict itself if the pipeline does not pack samples."""
    if isinstance(sample, dict) and hasattr(sample.get('data_samples'), 'set_metainfo'):
        sample['data_samples'].set_metainfo(marks)
    elif isinstance(sample, dict):
        sample.update(marks)
    return sample


def _real_pipeline(dataset: Mapping[str, Any]) -> Sequence[Any]:
    """The pipeline of the real set, below wrappers; of several sets the first one's."""
    while 'pipeline' not in dataset and ('dataset' in dataset or dataset.get('datasets')):
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    if 'dataset' in dataset:
        raise ValueError(f'`synthetic_pipeline` must be given where `dataset` is a {dataset.get("type")}, whose '
                         'pipeline is for several images.')
    transforms = dataset.get('pipeline') or ()
    if recolors(transforms):
        raise ValueError('`synthetic_pipeline` must be given where the real images\' pipeline holds ColorTransfer: '
                         'images that were generated in the target\'s look lose it there, so give them that pipeline '
                         'without ColorTransfer; with it, if the generator makes the look of the labelled images.')
    return transforms


def _class_names(metainfo: Info, dataset: Mapping[str, Any]) -> tuple[str, ...]:
    classes = metainfo.get('classes')
    if not classes:
        raise ValueError(f'`dataset` {dataset.get("type")} has no class names to hold the pool\'s against; give it '
                         '`metainfo=dict(classes=...)`.')
    return tuple(classes)


def _check_classes(classes: tuple[str, ...], palette: Any, name: str, header: PoolHeader, pool: Path) -> None:
    """Raise ValueError unless the pool has these classes in this order; warn of other colours."""
    if header.classes != classes:
        index = next((index for index, pair in enumerate(zip(header.classes, classes)) if pair[0] != pair[1]),
                     min(len(header.classes), len(classes)))
        raise ValueError(f'`pool` {pool} and `dataset` {name} must have the same classes in the same order; from class '
                         f'{index} on they differ:\n  pool:    {", ".join(header.classes)}\n  dataset: '
                         f'{", ".join(classes)}\nSynthesize the pool with masks of this data set.')
    if palette is not None and np.shape(palette) == np.shape(header.palette) and np.any(
            np.asarray(palette) != np.asarray(header.palette)):
        print_log(f'the colours of pool {pool} are not those of {name}; this concerns pictures only.',
                  logger='current', level=logging.WARNING)
