"""Filtering of a pool: synthetic images → labels that can be trusted, beside the labels that were generated."""
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from numpy.typing import NDArray

from mmsynth.evaluation.judge_role import CRITIC, check_judge
from mmsynth.filtering import ClassLossFilter, FilteredSample, label_hash
from mmsynth.pool import Pool, Records
from mmsynth.pool.header import read_header
from mmsynth.pool.index import FILTERED
from mmsynth.pool.manifest import MANIFEST_FILE
from mmsynth.pool.records import shard_folders
from mmsynth.registry import MODELS
from mmsynth.utils import progress_bar
from mmsynth.utils.batches import batches_of_one_shape
from mmsynth.utils.hashes import config_hash
from mmsynth.utils.messages import first_few
from mmsynth.utils.shards import Shard

CHUNK = 64  # samples stored together: what a killed run loses at most


@dataclass(frozen=True)
class FilterReport:
    """What :func:`filter_pool` did.

    Attributes:
        pool: The pool.
        filtered: Samples filtered now; the others were.
        kept: Samples that ``kept.txt`` names; None of a shard that was not the last one to finish.
    """

    pool: Pool
    filtered: int
    kept: int | None

    def __str__(self) -> str:
        if self.kept is None:
            return (f'{self.filtered} of {len(self.pool)} samples filtered now; the pool is filtered when the other '
                    'shards have finished too')
        return (f'{len(self.pool)} samples: {self.filtered} filtered now, {len(self.pool) - self.filtered} were; '
                f'{self.kept} kept, {len(self.pool) - self.kept} dropped ({self.pool.root / "kept.txt"})')


def build_filter(cfg: Config, device: torch.device | str = 'cpu') -> ClassLossFilter:
    """Build ``cfg.synthesis.filter``.

    Raises:
        ValueError: If the config has none.
    """
    settings = (cfg.get('synthesis') or {}).get('filter')
    if not settings:
        raise ValueError(f'{cfg.filename}: it has no `synthesis.filter`; add dict(type=\'mmsynth.ClassLossFilter\', '
                         "segmentor=dict(type='mmsynth.SegmentorCritic', config=…, checkpoint=…), class_losses=…), "
                         'whose file tools/fit_class_loss.py makes.')
    pixel_filter = MODELS.build(settings)
    if not isinstance(pixel_filter, ClassLossFilter):
        raise ValueError(f'{cfg.filename}: `synthesis.filter` is {type(pixel_filter).__name__}; it must be an '
                         'mmsynth.ClassLossFilter.')
    return pixel_filter.to(device)


def generator_of(cfg: Config) -> Mapping[str, Any] | None:
    """The config's ``model`` if that is a generator, and not, say, a segmentor that the pool is meant for."""
    model = cfg.get('model')
    kind = None if model is None else MODELS.get(str(model.get('type')))
    return model if hasattr(kind, 'synthesize') else None


def filter_pool(pool_dir: str | Path, pixel_filter: ClassLossFilter, *, generator: Mapping[str, Any] | None = None,
                overwrite: bool = False, batch_size: int = 8, shard: Shard | None = None) -> FilterReport:
    """Filter a whole pool. A run that was killed continues where it was.

    A sample is done if its record holds a result of this filter for its label as it is now. The generated labels stay
    as they are; ``filtered/``, with soft weights ``weights/``, and at the end ``kept.txt`` come beside them.

    Args:
        pool_dir: The pool.
        pixel_filter: The filter, on the device where its segmentor shall run.
        generator: ``model`` of the config that must have generated the pool; None checks nothing.
        overwrite: Replace results of other filters, and of labels that were changed since.
        batch_size: Images read together; the losses depend on it by rounding at most.
        shard: Which of several processes this is that filter the pool together, each the samples of its share of the
            masks; the last one to finish writes ``kept.txt``.

    Raises:
        ValueError: If pool and filter do not fit each other, or the pool holds other results and ``overwrite`` is off;
            or if ``overwrite`` is on for several processes.
        RuntimeError: If another process is writing the pool that is no other shard.
    """
    if overwrite and shard is not None:
        raise ValueError(f'`overwrite` and `shard` {shard} do not go together: results are taken back by one process. '
                         'Filter without --shard, or without --overwrite.')
    if batch_size < 1:
        raise ValueError(f'`batch_size` must be at least 1, got {batch_size}.')
    pixel_filter.check_classes(read_header(Path(pool_dir)).classes, f'pool {pool_dir}')
    with Pool.resume(pool_dir, shard=shard) as pool:
        if len(pool):
            if shard is not None:
                _check_whole(pool)
            if generator is not None:
                _check_generator(pool, config_hash(generator))
            count = filter_open_pool(pool, pixel_filter, overwrite=overwrite, batch_size=batch_size, shard=shard)
            is_complete = shard is None or pool.finish([record.id for record in pool.records], needs=FILTERED)
            return FilterReport(pool, count, len(pool.write_kept()) if is_complete else None)
    raise ValueError(f'pool {pool_dir} is empty; there is nothing to filter.')


def filter_open_pool(pool: Pool, pixel_filter: ClassLossFilter, *, batch_size: int, overwrite: bool = False,
                     shard: Shard | None = None) -> int:
    """Filter what is not filtered yet of a pool that is open for writing; return how many samples that was.

    Raises:
        ValueError: As :func:`filter_pool` does.
    """
    _warn_of_critic(pool, pixel_filter)
    records = pool.records
    if shard is not None:  # by masks, in their order, whose samples may be decided on together
        masks: dict[str, int] = {}
        numbers = (masks.setdefault(record.source_mask, len(masks)) for record in records)
        records = records[np.fromiter(numbers, np.int64, len(records)) % shard.count == shard.index]
    hashes: list[str] = []
    groups: dict[Hashable, list[int]] = {}  # decided on together: each alone, or all of one mask
    for number, record in enumerate(progress_bar(records, unit='label', title='check labels')):
        mask = pool.load_mask(record)
        pixel_filter.rule.check_mask(mask, str(pool.root / record.mask))
        hashes.append(label_hash(mask))
        key = (record.source_mask, hashes[-1]) if pixel_filter.needs_siblings else number
        groups.setdefault(key, []).append(number)
    done = check_results(pool, pixel_filter, records, hashes, overwrite=overwrite)
    waiting = [group for group in groups.values() if not done[group].all()]
    order = np.array([number for group in groups.values() for number in group], np.int64)
    is_waiting = np.zeros(len(records), bool)
    is_waiting[[number for group in waiting for number in group]] = True
    losses = _losses(pool, records[order], is_waiting[order], pixel_filter, batch_size)
    total, records = len(records), records[order[is_waiting[order]]]
    pool.update(replace(record, filter=None) for record in records if record.filter is not None)

    found: list[FilteredSample] = []
    stored = iter(records)
    with progress_bar(total=total, initial=total - len(records), unit='img', title='filter') as bar:
        for group in waiting:
            measured = [next(losses) for _ in group]
            found += pixel_filter.decide([loss for loss, _ in measured], measured[0][1])
            if len(found) >= CHUNK or group is waiting[-1]:
                results = {record.id: (record, sample) for record, sample in zip(islice(stored, len(found)), found)}
                pool.update([replace(record, filter=sample.entry) for record, sample in results.values()],
                            filtered={id: sample.label for id, (_, sample) in results.items()},
                            weights={id: sample.weight for id, (_, sample) in results.items()
                                     if sample.weight is not None})
                bar.update(len(found))
                found = []
    return len(records)


def check_results(pool: Pool, pixel_filter: ClassLossFilter, records: Records,
                  label_hashes: Sequence[str] | None = None, *, overwrite: bool = False) -> NDArray[np.bool_]:
    """Which samples hold a result of this filter for their label as it is now.

    Args:
        pool: The pool.
        pixel_filter: The filter.
        records: Of the samples.
        label_hashes: Of their labels as they are; None trusts the labels.
        overwrite: Let samples hold other results.

    Raises:
        ValueError: If there are other results and ``overwrite`` is off.
    """
    done = (records.rows['flags'] & FILTERED) > 0
    others: list[str] = []
    changed: list[str] = []
    for number in np.flatnonzero(done).tolist():
        record = records[number]
        assert record.filter is not None
        if record.filter.get('filter_sha256') != pixel_filter.identity:
            others.append(str(record.filter.get('filter_sha256')))
            done[number] = False
        if label_hashes is not None and record.filter.get('labels_sha256') != label_hashes[number]:
            changed.append(record.mask)
            done[number] = False
    problems = []
    if changed:
        problems.append(f'{len(changed)} labels were changed since they were filtered: {first_few(changed)}')
    if others:
        problems.append(f'{len(others)} samples hold the result of another filter or of other settings ({others[0]}, '
                        f'this one is {pixel_filter.identity})')
    if problems and not overwrite:
        raise ValueError(f'pool {pool.root}: {"; ".join(problems)}. Filter them again by tools/filter_pool.py with '
                         '--overwrite (`overwrite`), or go back to what they were filtered with.')
    return done


def _losses(pool: Pool, records: Records, is_waiting: NDArray[np.bool_], pixel_filter: ClassLossFilter,
            batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Loss and mask (H, W) of each record that is waiting, in their order.

    What is read together does not depend on what is done already: on some processors an image's logits differ by it in
    their last digits, and a run that goes on has to end as an unbroken one.
    """
    for start in range(0, len(records), batch_size):
        numbers = np.arange(start, min(start + batch_size, len(records)))
        if not is_waiting[numbers].any():
            continue
        loaded = ((pool.load_image(record), pool.load_mask(record)) for record in records[numbers])
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for batch in batches_of_one_shape(loaded, lambda pair: pair[1].shape, batch_size):
            images, masks = zip(*batch)
            found += zip(pixel_filter.losses(pixel_filter.predict_logits(images), masks), masks)
        yield from (pair for pair, own in zip(found, is_waiting[numbers]) if own)


def _warn_of_critic(pool: Pool, pixel_filter: ClassLossFilter) -> None:
    """Say so if the filter's segmentor guided the pool; a filter without it would be better, but may not exist."""
    weights = pixel_filter.rule.class_losses.provenance.get('checkpoint_sha256')
    if weights is not None and check_judge(pool, weights, allow_critic=True) == CRITIC:
        print_log(f'the segmentor that filters the pool {pool.root} is the critic that guided it: the images '
                  'were optimised for it, so it trusts more pixels than another segmentor would.', logger='current',
                  level=logging.WARNING)


def _check_whole(pool: Pool) -> None:
    if any((folder / MANIFEST_FILE).is_file() for folder in shard_folders(pool.root)):
        raise ValueError(f'pool {pool.root} is not finished: it has lists of a synthesis by several processes. Call '
                         'tools/synthesize.py again until all have finished, or filter without `shard` (--shard), '
                         'which takes what is there.')


def _check_generator(pool: Pool, expected: str) -> None:
    wrong = [record.generator for record in pool.records if record.generator['config_sha256'] != expected]
    if wrong:
        found = wrong[0]
        raise ValueError(f'pool {pool.root} was generated by another generator than the config\'s `model`: '
                         f'{found["type"]} {found["config_sha256"]} there, {expected} here ({len(wrong)} of '
                         f'{len(pool)} samples). Give the config that it was generated with, with the same '
                         '--cfg-options, or one that has `synthesis.filter` but no `model`.')
