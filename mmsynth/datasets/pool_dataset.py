"""PoolDataset: a finished pool as an ordinary mmseg data set, to be mixed with the real one."""
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from operator import index as as_index
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset

from mmsynth.pool import Records, read_list, read_records
from mmsynth.pool.header import read_header
from mmsynth.pool.index import DROPPED, FILTERED, WEIGHTED
from mmsynth.registry import DATASETS

UNUSED_WEIGHTS = ('a soft filter gave its pixels weights, and the pipeline does not load them, so that doubtful labels '
                  "count in full; add dict(type='mmsynth.LoadPixelWeights'), or filter with `mode='hard'`")


@DATASETS.register_module()
class PoolDataset(BaseSegDataset):
    """The samples of a pool, under the real set's own pipeline::

        train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[
            dict(type='LoveDADataset', data_root=..., pipeline=train_pipeline),
            dict(type='mmsynth.PoolDataset', data_root='data/loveda_pool', pipeline=train_pipeline)]))

    The labels of a pool are class indices with 255, whatever the real set's files hold. So what the pipeline says of
    the coding of label files (``reduce_zero_label`` of LoadAnnotations) is left out here: with a plain BaseSegDataset
    mmseg would reduce them a second time. Class names and colours come from the pool. A sample's record is read when it
    is drawn, so that a million samples open in seconds and workers share the little that is in memory.

    Args:
        data_root: The pool's folder.
        pipeline: Transforms, those of the real set.
        labels: 'filtered' takes the filter's labels of samples that it has seen, and leaves out those that it dropped;
            'generated' takes every sample with the mask that it was generated for.
        ann_file: A list of file names in the pool, such as ``selected.txt``, instead of all; one that stands there
            twice is drawn twice.
        reduce_zero_label: What the metainfo says, which ConcatDataset compares with the real set's; by default what
            the pipeline says.
        metainfo: Takes the place of the pool's classes and palette.
        test_mode: Must be False: validation and test see real data only.
        lazy_init, indices, max_refetch: See :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: If the folder is no pool, an option is out of range, a listed sample is not there, or nothing is
            left.
    """

    def __init__(self,
                 data_root: str,
                 pipeline: Sequence[dict | Callable],
                 *,
                 labels: Literal['filtered', 'generated'] = 'filtered',
                 ann_file: str | None = None,
                 reduce_zero_label: bool | None = None,
                 metainfo: Mapping[str, Any] | None = None,
                 test_mode: bool = False,
                 lazy_init: bool = False,
                 indices: int | Sequence[int] | None = None,
                 max_refetch: int = 1000) -> None:
        if labels not in ('filtered', 'generated'):
            raise ValueError(f"`labels` must be 'filtered' or 'generated', got {labels!r}.")
        if test_mode:
            raise ValueError('`test_mode` of PoolDataset must be False: validation and test see real data only.')
        header = read_header(Path(data_root))
        self.labels, self._listed, self._loads_weights = labels, ann_file, loads_weights(pipeline)
        if reduce_zero_label is None:
            reduce_zero_label = any(transform.get('reduce_zero_label') for transform in pipeline
                                    if isinstance(transform, Mapping) and loads_labels(transform))
        own = dict(classes=header.classes, palette=[list(colour) for colour in header.palette])
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir'),
            img_suffix='.png',
            metainfo=own | dict(metainfo or {}),
            pipeline=pool_pipeline(pipeline),
            reduce_zero_label=reduce_zero_label,
            serialize_data=False,  # it is an array already
            lazy_init=lazy_init,
            indices=indices,
            max_refetch=max_refetch)

    def load_data_list(self) -> Sequence[dict]:
        """Load what the pipeline starts from, in the manifest's order or that of ``ann_file``."""
        records = read_records(self.data_root)
        flags = records.rows['flags']
        if self._listed is not None:
            chosen = read_list(self.data_root, self._listed, records)
        elif self.labels == 'filtered':
            chosen = np.flatnonzero(~flags & DROPPED)
        else:
            chosen = np.arange(len(records))
        if not len(chosen):
            raise ValueError(f'pool {self.data_root} has no samples to train on, of {len(records)}; generate more, or '
                             "filter less (`labels='generated'` takes all).")
        unfiltered = np.count_nonzero(~flags[chosen] & FILTERED)
        if self.labels == 'filtered' and 0 < unfiltered < len(chosen):
            raise ValueError(f'pool {self.data_root}: {unfiltered} of {len(chosen)} samples are not filtered yet; '
                             "run tools/filter_pool.py, or take `labels='generated'`.")
        if self.labels == 'filtered' and (flags & WEIGHTED).any() and not self._loads_weights:
            print_log(f'pool {self.data_root}: {UNUSED_WEIGHTS}', logger='current', level=logging.WARNING)
        return _Infos(records[chosen], self.data_root, self.labels)


class _Infos(Sequence[Any]):
    """What the pipeline starts from, of each of some records."""

    def __init__(self, records: Records, root: str, labels: str) -> None:
        self._records, self._root, self._labels = records, root, labels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _Infos(self._records[index], self._root, self._labels)
        record = self._records[as_index(index)]
        label = (record.filter or {}).get('label') if self._labels == 'filtered' else None
        return dict(img_path=os.path.join(self._root, record.image),
                    seg_map_path=os.path.join(self._root, label or record.mask), sample_id=record.id,
                    label_map=None, reduce_zero_label=False, seg_fields=[])


def pool_pipeline(transforms: Sequence[Any]) -> list[Any]:
    """Make a real set's pipeline fit a pool's files: what it says of the coding of labels holds for its own only.

    Raises:
        ValueError: If weights of pixels are loaded that the last transform would leave out.
    """
    if loads_weights(transforms) and 'PackSegInputs' in map(_name, transforms):
        raise ValueError('`pipeline`: mmseg\'s PackSegInputs leaves out the weights that LoadPixelWeights loads, so '
                         "they would have no effect; end it with dict(type='mmsynth.PackWeightedSegInputs').")
    coding = ('reduce_zero_label', 'num_classes', 'ignore_index')
    return [{key: value for key, value in transform.items() if key not in coding}
            if isinstance(transform, Mapping) and loads_labels(transform) else transform for transform in transforms]


def loads_labels(transform: Mapping[str, Any]) -> bool:
    """Whether a transform's config is one that loads label files."""
    return _name(transform) in ('LoadAnnotations', 'LoadSegMap')


def loads_weights(transforms: Sequence[Any]) -> bool:
    """Whether a pipeline loads the weights of pixels."""
    return 'LoadPixelWeights' in map(_name, transforms)


def recolors(transforms: Sequence[Any]) -> bool:
    """Whether a pipeline gives images the colours of others."""
    return 'ColorTransfer' in map(_name, transforms)


def _name(transform: Any) -> str:
    """The class of a transform, or of its config, without the scope."""
    return str(transform.get('type')).split('.')[-1] if isinstance(transform, Mapping) else type(transform).__name__
