"""Filtering of a pool: synthetic images → labels that can be trusted, beside the labels that were generated."""
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmsynth.evaluation.judge_role import CRITIC, check_judge
from mmsynth.filtering import ClassLossFilter, FilteredSample, label_hash
from mmsynth.pool import Pool, PoolRecord
from mmsynth.registry import MODELS
from mmsynth.utils import progress_bar
from mmsynth.utils.batches import batches_of_one_shape
from mmsynth.utils.hashes import config_hash

CHUNK = 64  # samples stored together: what a killed run loses at most
_SHOWN = 5


@dataclass
class Stopwatch:
    """Where the time of a run went.

    Attributes:
        segmentor: Seconds in which the segmentor read images.
        total: Seconds of the whole run, from reading the pool to its last file.
    """

    segmentor: float = 0.0
    total: float = 0.0

    @contextmanager
    def time(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Add the seconds inside to ``name``; with a GPU, until it is done."""
        start = time.perf_counter()
        yield
        if device is not None and device.type == 'cuda':
            torch.cuda.synchronize(device)
        setattr(self, name, getattr(self, name) + time.perf_counter() - start)

    def __str__(self) -> str:
        share = 100 * self.segmentor / self.total if self.total else 0.0
        return f'{self.total:.1f} s: segmentor {share:.1f} %, everything else {100 - share:.1f} %'


@dataclass(frozen=True)
class FilterReport:
    """What :func:`filter_pool` did.

    Attributes:
        pool: The pool.
        filtered: Samples filtered now; the others were.
        kept: Samples that ``kept.txt`` names.
        stopwatch: Where the time went.
    """

    pool: Pool
    filtered: int
    kept: int
    stopwatch: Stopwatch

    def __str__(self) -> str:
        return (f'{len(self.pool)} samples: {self.filtered} filtered now, {len(self.pool) - self.filtered} were; '
                f'{self.kept} kept, {len(self.pool) - self.kept} dropped ({self.pool.root / "kept.txt"})\n'
                f'{self.stopwatch}')


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
                overwrite: bool = False, batch_size: int = 8) -> FilterReport:
    """Filter a whole pool. A run that was killed continues where it was.

    A sample is done if its record holds a result of this filter for its label as it is now. The generated labels stay
    as they are; ``filtered/``, with soft weights ``weights/``, and at the end ``kept.txt`` come beside them.

    Args:
        pool_dir: The pool.
        pixel_filter: The filter, on the device where its segmentor shall run.
        generator: ``model`` of the config that must have generated the pool; None checks nothing.
        overwrite: Replace results of other filters, and of labels that were changed since.
        batch_size: Images read together; does not change the results.

    Raises:
        ValueError: If pool and filter do not fit each other, or the pool holds other results and ``overwrite`` is off.
        RuntimeError: If another process is writing the pool.
    """
    if batch_size < 1:
        raise ValueError(f'`batch_size` must be at least 1, got {batch_size}.')
    before = Pool.open(pool_dir)
    if not len(before):
        raise ValueError(f'pool {pool_dir} is empty; there is nothing to filter.')
    pixel_filter.check_classes(before.classes, f'pool {pool_dir}')
    watch = Stopwatch()
    with watch.time('total'), Pool.resume(pool_dir) as pool:
        if generator is not None:
            _check_generator(pool, config_hash(generator))
        count = filter_open_pool(pool, pixel_filter, overwrite=overwrite, batch_size=batch_size, watch=watch)
        kept = pool.write_kept()
        return FilterReport(pool, count, len(kept), watch)


def filter_open_pool(pool: Pool, pixel_filter: ClassLossFilter, *, batch_size: int, overwrite: bool = False,
                     watch: Stopwatch | None = None) -> int:
    """Filter what is not filtered yet of a pool that is open for writing; how many samples that was.

    Raises:
        ValueError: As :func:`filter_pool` does.
    """
    _warn_of_critic(pool, pixel_filter)
    hashes = _read_labels(pool, pixel_filter)
    done = check_results(pool, pixel_filter, hashes, overwrite=overwrite)
    groups = [group for group in _groups(pool.records, hashes, pixel_filter) if not done.issuperset(group)]
    records = {record.id: record for record in pool.records}
    waiting = [records[id] for group in groups for id in group]
    if any(record.filter is not None for record in waiting):
        pool.update([replace(record, filter=None) for record in waiting if record.filter is not None])
    losses = _losses(pool, waiting, pixel_filter, batch_size, watch or Stopwatch())
    with progress_bar(total=len(pool), initial=len(pool) - len(waiting), unit='img', title='filter') as bar:
        for chunk in _chunks(_decide(losses, groups, pixel_filter)):
            _store(pool, dict(chunk))
            bar.update(len(chunk))
    return len(waiting)


def check_results(pool: Pool, pixel_filter: ClassLossFilter, label_hashes: Mapping[str, str] | None = None, *,
                  overwrite: bool = False) -> set[str]:
    """Ids of the samples that hold a result of this filter for their label as it is now.

    Args:
        pool: The pool.
        pixel_filter: The filter.
        label_hashes: By id, of the labels as they are; None trusts the labels.
        overwrite: Let samples hold other results.

    Raises:
        ValueError: If there are other results and ``overwrite`` is off.
    """
    results = [record for record in pool.records if record.filter is not None]
    others = [record for record in results if record.filter.get('filter_sha256') != pixel_filter.identity]
    changed = [] if label_hashes is None else [
        record for record in results if record.filter.get('labels_sha256') != label_hashes[record.id]]
    if (others or changed) and not overwrite:
        _refuse(pool, others, changed, pixel_filter)
    return {record.id for record in results} - {record.id for record in (*others, *changed)}


# ------------------------------------------------------------------------------------------------------------- the pass
def _groups(records: Sequence[PoolRecord], hashes: Mapping[str, str],
            pixel_filter: ClassLossFilter) -> list[list[str]]:
    """Ids of samples that are decided on together: each alone, or with all that were generated for the same mask."""
    if not pixel_filter.needs_siblings:
        return [[record.id] for record in records]
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        groups.setdefault((record.source_mask, hashes[record.id]), []).append(record.id)
    return list(groups.values())


def _losses(pool: Pool, records: Sequence[PoolRecord], pixel_filter: ClassLossFilter, batch_size: int,
            watch: Stopwatch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Loss and mask (H, W) of each record, in their order."""
    device = pixel_filter.segmentor.device
    loaded = ((pool.load_image(record), pool.load_mask(record)) for record in records)
    for batch in batches_of_one_shape(loaded, lambda pair: pair[1].shape, batch_size):
        images, masks = zip(*batch)
        with watch.time('segmentor', device):
            logits = pixel_filter.predict_logits(images)
        yield from zip(pixel_filter.losses(logits, masks), masks)


def _decide(losses: Iterator[tuple[np.ndarray, np.ndarray]], groups: Sequence[Sequence[str]],
            pixel_filter: ClassLossFilter) -> Iterator[list[tuple[str, FilteredSample]]]:
    """The results of one group after another."""
    for group in groups:
        measured = [next(losses) for _ in group]
        samples = pixel_filter.decide([loss for loss, _ in measured], measured[0][1])
        yield list(zip(group, samples))


def _chunks(groups: Iterable[list[tuple[str, FilteredSample]]]) -> Iterator[list[tuple[str, FilteredSample]]]:
    """Whole groups, so many that a chunk has at least ``CHUNK`` samples."""
    chunk: list[tuple[str, FilteredSample]] = []
    for group in groups:
        chunk += group
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _store(pool: Pool, samples: Mapping[str, FilteredSample]) -> None:
    records = [replace(pool.get(id), filter=sample.entry) for id, sample in samples.items()]
    pool.update(records, filtered={id: sample.label for id, sample in samples.items()},
                weights={id: sample.weight for id, sample in samples.items() if sample.weight is not None})


# --------------------------------------------------------------------------------------------------------------- checks
def _read_labels(pool: Pool, pixel_filter: ClassLossFilter) -> dict[str, str]:
    """Hash of each sample's label as it is now; every label is checked before the first is filtered."""
    hashes = {}
    for record in progress_bar(pool.records, unit='label', title='check labels'):
        mask = pool.load_mask(record)
        pixel_filter.rule.check_mask(mask, str(pool.root / record.mask))
        hashes[record.id] = label_hash(mask)
    return hashes


def _warn_of_critic(pool: Pool, pixel_filter: ClassLossFilter) -> None:
    """Say so if the filter's segmentor guided the pool; a filter without it would be better, but may not exist."""
    weights = pixel_filter.rule.class_losses.provenance.get('checkpoint_sha256')
    if weights is not None and check_judge(pool, weights, allow_critic=True) == CRITIC:
        print_log(f'the segmentor that filters the pool {pool.root} is the critic that guided it: it finds its own '
                  'wishes in the images, so it trusts more pixels than another segmentor would.', logger='current',
                  level=logging.WARNING)


def _refuse(pool: Pool, others: Sequence[PoolRecord], changed: Sequence[PoolRecord],
            pixel_filter: ClassLossFilter) -> None:
    problems = []
    if changed:
        problems.append(f'{len(changed)} labels were changed since they were filtered: '
                        + _listed([record.mask for record in changed]))
    if others:
        problems.append(f'{len(others)} samples hold the result of another filter or of other settings '
                        f'({others[0].filter.get("filter_sha256")}, this one is {pixel_filter.identity})')
    raise ValueError(f'pool {pool.root}: {"; ".join(problems)}. Filter them again by tools/filter_pool.py with '
                     '--overwrite (`overwrite`), or go back to what they were filtered with.')


def _check_generator(pool: Pool, expected: str) -> None:
    wrong = [record for record in pool.records if record.generator['config_sha256'] != expected]
    if wrong:
        found = wrong[0].generator
        raise ValueError(f'pool {pool.root} was generated by another generator than the config\'s `model`: '
                         f'{found["type"]} {found["config_sha256"]} there, {expected} here ({len(wrong)} of '
                         f'{len(pool)} samples). Give the config that it was generated with, with the same '
                         '--cfg-options, or one that has `synthesis.filter` but no `model`.')


def _listed(names: Sequence[str]) -> str:
    more = f', … ({len(names) - _SHOWN} more)' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more
