"""The report of a finished pool, written anew: with a judge's predictions, the class balance, and measures."""
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import LoadAnnotations

from mmsynth.datasets.transforms.loading import LoadSegMap
from mmsynth.evaluation import read_image
from mmsynth.evaluation.judge import Judge, choose_judge
from mmsynth.evaluation.judge_role import check_judge
from mmsynth.guidance import Critic
from mmsynth.pool import Pool
from mmsynth.synthesis.build import build_dataset, load_config
from mmsynth.utils import progress_bar
from mmsynth.utils.datasets import leaf_datasets
from mmsynth.utils.labels import check_labels, read_label
from mmsynth.visualization.pool_report import pool_report
from mmsynth.visualization.sample_cards import ShownJudge

REPORT_FILE = 'report.html'
METRICS_FILE = 'metrics.json'


def write_report(pool_dir: str | Path,
                 out: str | Path | None = None,
                 *,
                 judge_config: str | Path | None = None,
                 judge_checkpoint: str | Path | None = None,
                 judge: Critic | Mapping[str, Any] | None = None,
                 real_config: str | Path | None = None,
                 real_masks: str | Path | None = None,
                 metrics: str | Path | None = None,
                 max_samples: int = 16) -> Path:
    """Write the report of a pool; the pool's own files are only read.

    Args:
        pool_dir: The pool's folder.
        out: The HTML file; None for ``report.html`` in the pool.
        judge_config: Segmentation config of a segmentor that reads the samples shown. The page says so if it guided.
        judge_checkpoint: Its weights.
        judge: In their place, any critic of images or its config.
        real_config: Segmentation config whose ``train_dataloader`` has the real set, for the class balance.
        real_masks: In its place, a folder of masks: PNG files of class ids, 255 unlabelled, in subfolders too.
        metrics: JSON file with measures of the pool; None for ``metrics.json`` in the pool, if there is one.
        max_samples: Number of samples shown, spread evenly over the pool.

    Returns:
        The HTML file.

    Raises:
        ValueError: If the pool is damaged, an option is missing its partner, or pool, judge and real set have
            different classes.
        FileNotFoundError: If a file or folder does not exist.
    """
    if real_config is not None and real_masks is not None:
        raise ValueError('`real_config` and `real_masks` both name the real set; give one of them.')
    pool = Pool.open(pool_dir)
    shown, details = _build_judge(pool, choose_judge(judge, judge_config, judge_checkpoint), judge_config)
    measures = _read_metrics(pool.root, metrics)
    counts = None
    if real_config is not None:
        counts = count_real_config(real_config, pool.classes)
    elif real_masks is not None:
        counts = count_mask_folder(real_masks, pool.classes)
    path = pool.root / REPORT_FILE if out is None else Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    pool_report(pool, path, class_counts_before=counts, judge=shown, metrics=measures, details=details,
                max_samples=max_samples)
    return path


def count_real_config(config: str | Path, classes: tuple[str, ...]) -> list[int]:
    """Labelled pixels per class of the training set of a segmentation config, as its own pipeline loads the masks.

    Repetitions by wrappers do not count.

    Raises:
        ValueError: If the config has no training set, one of other classes, or one that loads no masks; or if a mask
            holds another value than a class or 255.
    """
    cfg = load_config(config)
    loader = cfg.get('train_dataloader')
    if not loader or 'dataset' not in loader:
        raise ValueError(f'{config}: it has no `train_dataloader.dataset`; give the config that the segmentor is '
                         'trained with, or a folder of masks (`real_masks`).')
    counts = np.zeros(256, dtype=np.int64)
    for dataset in leaf_datasets(build_dataset(loader.dataset)):
        found = tuple(dataset.metainfo['classes'])
        if found != tuple(classes):
            raise ValueError(f'{config}: its training set has the classes {", ".join(found)}; the pool has '
                             f'{", ".join(classes)}. Give the set that the pool is to be mixed with.')
        load = _mask_loader(dataset, config)
        for index in progress_bar(range(len(dataset)), unit='mask', title='counting real classes'):
            info = dataset.get_data_info(index)
            counts += _count(load(info)['gt_seg_map'], info['seg_map_path'], len(classes))
    return counts[:len(classes)].tolist()


def count_mask_folder(folder: str | Path, classes: tuple[str, ...]) -> list[int]:
    """Labelled pixels per class of all PNG masks in a folder and its subfolders.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no mask, or a file is none of these classes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'`real_masks` {folder} is no folder; give the one with the masks of the real set.')
    paths = sorted(folder.rglob('*.png'))
    if not paths:
        raise ValueError(f'`real_masks` {folder} holds no PNG file; give the folder of the real set\'s masks.')
    counts = np.zeros(256, dtype=np.int64)
    for path in progress_bar(paths, unit='mask', title='counting real classes'):
        counts += _count(read_label(str(path)), path, len(classes))
    return counts[:len(classes)].tolist()


def _build_judge(pool: Pool, settings: Critic | Mapping[str, Any] | None,
                 config: str | Path | None) -> tuple[ShownJudge | None, dict[str, Any]]:
    """The judge, and what the table of provenance says of it."""
    if settings is None:
        return None, {}
    judge = Judge.build(settings, 'cpu')
    if judge.num_classes != len(pool.classes):
        raise ValueError(f'the judge has {judge.num_classes} classes, the pool {pool.root} has {len(pool.classes)}; '
                         'give one trained on the same classes.')
    role = check_judge(pool, judge.weights_sha256, allow_critic=True)  # only shown, and the page says what it is
    details = {} if config is None or not isinstance(settings, Mapping) else {
        'judge.config': config, 'judge.checkpoint': settings['checkpoint']}
    hashes = ', '.join(map(str, judge.weights_sha256 or [None]))
    name = type(judge.critic).__name__ if config is None else Path(config).name
    return (ShownJudge(partial(read_image, judge.critic), name, f'Its part in guidance: {role}.'),
            details | {'judge.weights_sha256': hashes, 'judge.part_in_guidance': role})


def _read_metrics(root: Path, path: str | Path | None) -> dict[str, Any] | None:
    if path is None:
        path = root / METRICS_FILE
        if not path.is_file():
            return None
    if not Path(path).is_file():
        raise FileNotFoundError(f'`metrics` {path} does not exist; give the JSON file that the evaluation wrote.')
    try:
        values = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'`metrics` {path} is not JSON: {error}.') from error
    if not isinstance(values, dict):
        raise ValueError(f'`metrics` {path} must be a JSON object, got a {type(values).__name__}.')
    return values


def _mask_loader(dataset: BaseDataset, config: str | Path) -> BaseTransform:
    for transform in dataset.pipeline.transforms:
        if isinstance(transform, (LoadAnnotations, LoadSegMap)):
            return transform
    raise ValueError(f'{config}: the pipeline of {type(dataset).__name__} loads no masks (LoadAnnotations or '
                     'mmsynth.LoadSegMap); give a folder of masks (`real_masks`).')


def _count(mask: np.ndarray, path: str | Path, num_classes: int) -> np.ndarray:
    """Pixels per value (256,)."""
    check_labels(mask, num_classes, path)
    return np.bincount(mask.ravel().astype(np.int64), minlength=256)
