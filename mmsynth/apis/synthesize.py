"""Synthesis of a pool: masks of a data set → images, with or without the guidance of a critic."""
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from mmsynth.apis.filter_pool import build_filter, check_results, filter_open_pool
from mmsynth.datasets.mask_sources.base import sample_id
from mmsynth.filtering import ClassLossFilter
from mmsynth.guidance import Guidance
from mmsynth.guidance.critic_weights import critic_hashes
from mmsynth.pool import Pool
from mmsynth.pool.records import shard_folders
from mmsynth.synthesis import Generator, Request, generate_batch, load_batches
from mmsynth.synthesis.build import build_dataset, build_generator, load_config
from mmsynth.synthesis.guidance import build_guidance, guidance_settings
from mmsynth.utils import derive_seed, progress_bar
from mmsynth.utils.hashes import config_and_files_hash, config_hash, file_hash
from mmsynth.utils.shards import Shard
from mmsynth.visualization import colorize, draw_grid, pool_report, save_png
from mmsynth.visualization.plots import count_uncorrected

PREVIEW_FILE = 'preview.png'
REPORT_FILE = 'report.html'
_PREVIEW_SAMPLES = 16
_FILES_PER_FOLDER = 10_000


class NotFiniteError(RuntimeError):
    """Some images held values that are no numbers; they were left out of the pool."""


def synthesize(cfg: Config | str | Path,
               checkpoint: str | Path | None,
               out_dir: str | Path,
               *,
               guidance: str | None = None,
               candidates: int | None = None,
               latent_critic: str | Path | None = None,
               num_per_mask: int | None = None,
               limit: int | None = None,
               seed: int = 0,
               batch_size: int | None = None,
               filter: bool = False,
               shard: Shard | None = None,
               files_per_folder: int | None = None,
               device: torch.device | str = 'cpu') -> Pool:
    """Generate images for the masks of ``cfg.synthesis.dataset`` and store them as a pool.

    A run that was killed continues where it was: samples that the pool holds are not generated again.

    Args:
        cfg: A config, or its path, with ``model`` (a generator) and ``synthesis``: ``dataset``, and optionally
            ``guidance``, ``filter``, ``num_per_mask`` and ``batch_size``.
        checkpoint: The generator's weights; None for one that comes whole from a backbone.
        out_dir: The pool's folder; new, empty, or a pool of the same settings.
        guidance: 'crfm', 'best-of-n', 'none', or None for what the config has. 'best-of-n' takes the critic of the
            config's guidance, whatever that is.
        candidates: Images generated per sample by best-of-n; None for the config's, or 4.
        latent_critic: What ``tools/train_latent_critic.py`` wrote; guides in the place of the config's critic, without
            decoding.
        num_per_mask: Images per mask; 1 by default.
        limit: Use only so many masks, the first.
        seed: The run's seed; a sample's own follows from it and the mask's id.
        batch_size: Images generated together. They depend on it by rounding at most: on processors whose kernels sum in
            another order for another batch, guided images may differ by a grey level.
        filter: Filter the pool by ``cfg.synthesis.filter`` afterwards, as :func:`filter_pool` would; of several
            processes the last one to finish does it.
        shard: Which of several processes this is that generate one pool, all called with the same arguments but for
            this one. The samples are the same bytes for any number of them, and so is the pool once all have finished;
            a run that was killed may go on with another number.
        files_per_folder: Put the images into ``img_dir/000``, ``001`` …, so many in each; None does so only for more
            than 10,000 images.
        device: Where the generator and the critic run.

    Returns:
        The pool, open for reading.

    Raises:
        ValueError: If options, data set, generator, critic and pool do not fit each other.
        RuntimeError: If the pool is being written by another process that is no other shard.
        NotFiniteError: After everything else is done, if images were not finite.
    """
    cfg = load_config(cfg)
    settings = _synthesis_settings(cfg)
    num_per_mask = settings.get('num_per_mask', 1) if num_per_mask is None else num_per_mask
    batch_size = settings.get('batch_size', 4) if batch_size is None else batch_size
    _check_counts(num_per_mask=num_per_mask, limit=limit, batch_size=batch_size, files_per_folder=files_per_folder)
    chosen = guidance_settings(cfg, guidance, candidates, latent_critic)
    dataset = build_dataset(settings.dataset)
    generator = build_generator(cfg, checkpoint, device)
    guide = build_guidance(chosen, device)
    pixel_filter = build_filter(cfg, device) if filter else None
    _check_fit(dataset, generator, guide, pixel_filter)
    requests = list_requests(dataset, seed, num_per_mask, limit)
    description = _describe(cfg, checkpoint, seed, generator, chosen)
    if files_per_folder is None and len(requests) > _FILES_PER_FOLDER:
        files_per_folder = _FILES_PER_FOLDER
    if shard is None and shard_folders(Path(out_dir)):  # several were killed, and one goes on
        shard = Shard(0, 1)
    with Pool.create(out_dir, description, dataset.metainfo['classes'], dataset.metainfo['palette'],
                     shard=shard) as pool:
        if pixel_filter is not None:
            check_results(pool, pixel_filter, pool.records)
        starts = range(0, len(requests), batch_size) if shard is None else shard.of(
            range(0, len(requests), batch_size))
        own = [request for start in starts for request in requests[start:start + batch_size]]
        missing = [request for request in own if not pool.has(request.id)]
        broken = []
        with progress_bar(total=len(own), initial=len(own) - len(missing), unit='img', title='synthesize') as bar:
            for start in starts:
                block = requests[start:start + batch_size]
                if all(pool.has(request.id) for request in block):
                    continue
                for batch in load_batches(dataset, block, batch_size):
                    wanted = [not pool.has(request.id) for request, _ in batch]
                    if not any(wanted):
                        continue
                    samples = generate_batch(generator, batch, guide=guide, entry=description['generator'])
                    for (request, _), sample in compress(zip(batch, samples), wanted):
                        if sample.finite:
                            pool.add(request.id, sample.image, sample.mask, **sample.details,
                                     subfolder=_subfolder(request, files_per_folder))
                        else:
                            broken.append(request.id)
                    bar.update(sum(wanted))
        _report_uncorrected(pool.load_trace(pool.get(request.id)) for request in missing if pool.has(request.id))
        is_complete = pool.finish([request.id for request in requests])
        if is_complete and pixel_filter is not None and len(pool):
            filter_open_pool(pool, pixel_filter, batch_size=batch_size)
            pool.write_kept()
        if is_complete:
            draw_preview(pool, pool.root / PREVIEW_FILE)
        if is_complete and len(pool):
            pool_report(pool, pool.root / REPORT_FILE, class_counts_before=None)
    print_log(f'{len(missing) - len(broken)} images generated, {len(own) - len(missing)} were there; pool {out_dir}'
              + ('' if is_complete else f', which is complete when the other shards than {shard} have finished too'),
              logger='current')
    if broken:
        raise NotFiniteError(
            f'{len(broken)} of {len(missing)} images were not finite and are left out of {out_dir} (the first is '
            f"{broken[0]!r}); the others are stored. Set `model.dtype='float32'`, guide less, or look at the weights; "
            'the next call tries them again.')
    return Pool.open(out_dir)


def list_requests(dataset: BaseDataset, seed: int, num_per_mask: int, limit: int | None = None) -> list[Request]:
    """The images to generate: the first one of each mask in the data set's order, then the second ones …

    So a run that asks for more images per mask goes on where another ended.

    Raises:
        ValueError: If ``num_per_mask`` or ``limit`` is below 1, or two masks have the same id.
    """
    _check_counts(num_per_mask=num_per_mask, limit=limit)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    infos = (dataset.get_data_info(index) for index in range(count))
    names = [sample_id(info) for info in infos]
    requests = [
        Request(name if repeat == 0 else f'{name}~{repeat + 1}', index, derive_seed(seed, name, repeat), repeat,
                repeat * count + index)
        for repeat in range(num_per_mask) for index, name in enumerate(names)]
    _check_unique(requests)
    return requests


def _subfolder(request: Request, files_per_folder: int | None) -> str | None:
    return None if files_per_folder is None else f'{request.place // files_per_folder:03d}'


def draw_preview(pool: Pool, path: Path) -> None:
    """A grid of the pool's first masks and images."""
    records = pool.records[:_PREVIEW_SAMPLES]
    if records:
        masks = [colorize(pool.load_mask(record), pool.palette) for record in records]
        images = [pool.load_image(record) for record in records]
        half = (len(records) + 1) // 2
        columns: dict[str, list[Any]] = {'mask': [*masks[:half]], 'synthetic': [*images[:half]]}
        if len(records) > 1:
            blank = [None] * (len(records) % 2)
            columns |= {'mask ': [*masks[half:], *blank], 'synthetic ': [*images[half:], *blank]}
        save_png(draw_grid(columns), path)


def _check_counts(**counts: int | None) -> None:
    wrong = {name: count for name, count in counts.items()
             if count is not None and (not isinstance(count, int) or count < 1)}
    if wrong:
        listed = ' and '.join(f'`{name}` must be {"at least 1" if isinstance(count, int) else "an integer"}, got '
                              f'{count!r:.60}' for name, count in wrong.items())
        raise ValueError(f'{listed}.')


def _check_unique(requests: Sequence[Request]) -> None:
    names: set[str] = set()
    for request in requests:
        if request.id in names:
            raise ValueError(f'two masks have the id {request.id!r}; give their files different names, or use '
                             'mmsynth.ManifestDataset, whose ids hold the folder too.')
        names.add(request.id)


def _synthesis_settings(cfg: Config) -> Any:
    settings = cfg.get('synthesis')
    if not settings or 'dataset' not in settings:
        raise ValueError(f'{cfg.filename}: it has no `synthesis.dataset`; name there the data set of the masks to '
                         'generate images for, as projects/demo/configs/todsynth.py does.')
    known = {'dataset', 'filter', 'guidance', 'num_per_mask', 'batch_size'}
    if settings.keys() - known:
        raise ValueError(f'{cfg.filename}: `synthesis` does not know {", ".join(sorted(settings.keys() - known))}; it '
                         f'takes {", ".join(sorted(known))}.')
    return settings


def _check_fit(dataset: BaseDataset, generator: Generator, guide: Guidance | None,
               pixel_filter: ClassLossFilter | None) -> None:
    count = len(dataset.metainfo['classes'])
    if count != generator.num_classes:
        raise ValueError(f'the data set has {count} classes, the generator {generator.num_classes} '
                         '(`model.label_codec`); use a generator trained on the same classes.')
    if guide is not None:
        generator.check_guidance(guide)
    if pixel_filter is not None:
        pixel_filter.check_classes(dataset.metainfo['classes'], 'the data set of `synthesis.dataset`')


def _describe(cfg: Config, checkpoint: str | Path | None, seed: int, generator: Generator,
              guidance: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that decides what a sample looks like."""
    return dict(
        generator=dict(
            type=type(generator).__name__, config_sha256=config_hash(cfg.model),
            weights_sha256=None if checkpoint is None else file_hash(checkpoint)),
        seed=seed,
        masks_sha256=config_and_files_hash(cfg.synthesis.dataset),
        guidance=None if guidance is None else dict(
            settings={key: value for key, value in guidance.items() if key != 'batch_size'},  # changes no image
            critic_weights_sha256=critic_hashes(guidance['critic'])))


def _report_uncorrected(traces: Iterable[Sequence[Mapping[str, float | None]]]) -> None:
    """Say so if guidance could not do its work; silence means that it could."""
    samples, steps = count_uncorrected(traces)
    if steps:
        print_log(f'guidance left {steps} steps of {samples} samples uncorrected, because the gradient of the '
                  "critic's loss was not finite there, or 0 although pixels are misread; the manifest marks them as "
                  'skipped. A decoder or critic that was compiled may give no gradient.', logger='current',
                  level=logging.WARNING)
