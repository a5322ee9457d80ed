"""A finished pool as an mmseg data set: which samples, which labels, and the message of each mistake."""
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsynth.datasets import PoolDataset, SyntheticAugmentDataset
from mmsynth.pool import Pool

CLASSES, PALETTE = ('a', 'b'), ((0, 0, 0), (255, 255, 255))
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
WEIGHTS = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='mmsynth.LoadPixelWeights')]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A filtered pool: 'x' is kept with a pixel taken out, 'y' is dropped."""
    with Pool.create(tmp_path / 'pool', {}, CLASSES, PALETTE) as pool:
        for id, keep in (('x', True), ('y', False)):
            mask = np.array([[0, 1], [0, 1]], np.uint8)
            pool.add(id, np.zeros((2, 2, 3), np.uint8), mask, source_mask='m', prompt='', seed=0,
                     filter=dict(keep=keep), filtered=np.array([[0, 255], [0, 255]], np.uint8),
                     weight=np.array([[255, 0], [255, 0]], np.uint8),
                     generator=dict(type='x', config_sha256='', weights_sha256=None))
    return tmp_path / 'pool'


def build(root: Path, pipeline: list[dict] = PIPELINE, **options: Any) -> PoolDataset:
    return PoolDataset(str(root), pipeline, **options)


def label(dataset: PoolDataset, index: int = 0) -> list[int]:
    return dataset[index]['data_samples'].gt_sem_seg.data.flatten().tolist()


def test_what_the_filter_kept_under_its_labels(root: Path) -> None:
    dataset = build(root)
    assert len(dataset) == 1 and label(dataset) == [0, 255] * 2
    assert dataset.metainfo['classes'] == CLASSES and dataset.metainfo['palette'] == [list(c) for c in PALETTE]


def test_all_that_was_generated(root: Path) -> None:
    dataset = build(root, labels='generated')
    assert len(dataset) == 2 and label(dataset, 1) == [0, 1] * 2


def test_a_list_chooses_and_repeats(root: Path) -> None:
    names = [Path(record.image).stem for record in Pool.open(root).records]
    (root / 'selected.txt').write_text('\n'.join([names[1], names[0], names[1]]) + '\n')
    dataset = build(root, ann_file='selected.txt')
    assert [dataset.get_data_info(index)['sample_id'] for index in range(3)] == ['y', 'x', 'y']
    (root / 'selected.txt').write_text('nobody\n')
    with pytest.raises(ValueError, match='`ann_file`'):
        build(root, ann_file='selected.txt')


def test_a_real_sets_coding_of_labels_is_left_out(root: Path) -> None:
    reducing = [PIPELINE[0], dict(type='LoadAnnotations', reduce_zero_label=True), PIPELINE[2]]
    dataset = build(root, reducing, labels='generated')
    assert label(dataset) == [0, 1] * 2 and dataset.metainfo['reduce_zero_label'] is True


def test_weights_reach_the_sample_or_are_refused(root: Path) -> None:
    """mmseg's own last transform would leave them out without a word."""
    packed = build(root, [*WEIGHTS, dict(type='mmsynth.PackWeightedSegInputs')])[0]['data_samples']
    assert packed.gt_pixel_weight.data.flatten().tolist() == [1, 0] * 2
    with pytest.raises(ValueError, match='PackWeightedSegInputs'):
        build(root, [*WEIGHTS, dict(type='PackSegInputs')])
    real = dict(type='mmsynth.PoolDataset', data_root=str(root), pipeline=PIPELINE)
    with pytest.raises(ValueError, match='PackWeightedSegInputs'):
        SyntheticAugmentDataset(real, root, synthetic_pipeline=[*WEIGHTS, dict(type='PackSegInputs')])


def test_weights_that_the_pipeline_does_not_load_are_warned_about(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A soft filter alone leaves nearly every label as it is."""
    told: list[str] = []
    for name in ('pool_dataset', 'synthetic_augment'):
        monkeypatch.setattr(f'mmsynth.datasets.{name}.print_log', lambda message, **options: told.append(message))
    build(root, [*WEIGHTS, dict(type='mmsynth.PackWeightedSegInputs')])
    build(root, labels='generated')
    assert not told
    build(root)
    mixed = SyntheticAugmentDataset(dict(type='mmsynth.PoolDataset', data_root=str(root), pipeline=PIPELINE,
                                         labels='generated'), root)
    for _ in range(2):
        assert mixed[2]['data_samples'].origin == 'synthetic'
    assert len(told) == 2 and all('LoadPixelWeights' in message for message in told)


@pytest.mark.parametrize('options, name', [
    (dict(labels='all'), 'labels'), (dict(test_mode=True), 'test_mode'),
])
def test_options_out_of_range(root: Path, options: dict, name: str) -> None:
    with pytest.raises(ValueError, match=f'`{name}`'):
        build(root, **options)


def test_folders_without_samples(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is not a pool.*pool.json'):
        build(tmp_path)
    with Pool.resume(root) as pool:
        pool.remove(['x'])
    with pytest.raises(ValueError, match='no samples to train on'):
        build(root)
