"""Weight maps move with their labels through mmseg's own transforms, and are packed beside them."""
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import TRANSFORMS
from numpy.typing import NDArray
from PIL import Image

from mmsynth.datasets.transforms import LoadPixelWeights, PackWeightedSegInputs

SIZE = (24, 30)
FILL = 255


def weight_of(label: NDArray) -> NDArray:
    """A weight that follows from the label, so that the two can be compared wherever they went."""
    return (label.astype(int) * 37 % 256).astype(np.uint8)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Two samples of distinct label values per pixel block, with weight maps; a third without one."""
    rng = np.random.default_rng(0)
    for folder in ('img_dir', 'filtered', 'weights'):
        (tmp_path / folder).mkdir()
    for name in ('a', 'b', 'c'):
        label = rng.integers(1, 200, SIZE, dtype=np.uint8)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / f'img_dir/{name}.png')
        Image.fromarray(label).save(tmp_path / f'filtered/{name}.png')
        if name != 'c':
            Image.fromarray(weight_of(label)).save(tmp_path / f'weights/{name}.png')
    return tmp_path


def dataset(pool: Path, *transforms: dict, names: tuple[str, ...] = ('a', 'b'), load: dict | None = None,
            pack: bool = True) -> BaseSegDataset:
    """mmseg's own data set on the pool."""
    init_default_scope('mmseg')
    (pool / 'kept.txt').write_text('\n'.join(names) + '\n')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                dict(type='mmsynth.LoadPixelWeights') | (load or {}), *transforms]
    if pack:
        pipeline.append(dict(type='mmsynth.PackWeightedSegInputs'))
    return BaseSegDataset(
        ann_file='kept.txt', data_root=str(pool), img_suffix='.png', pipeline=pipeline,
        metainfo=dict(classes=[str(index) for index in range(200)]),
        data_prefix=dict(img_path='img_dir', seg_map_path='filtered'))


@pytest.mark.parametrize('transform', [
    dict(type='RandomCrop', crop_size=(10, 12)),
    dict(type='RandomCrop', crop_size=(10, 12), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=1.0, direction='horizontal'),
    dict(type='RandomFlip', prob=1.0, direction='diagonal'),
    dict(type='Resize', scale=(41, 33), keep_ratio=False),
    dict(type='Resize', scale_factor=0.5),
    dict(type='RandomResize', scale=(40, 40), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomChoiceResize', scales=[(20, 20), (50, 50)], resize_type='Resize'),
    dict(type='ResizeToMultiple', size_divisor=16),
    dict(type='RandomRotate', prob=1.0, degree=(30, 60), pad_val=0, seg_pad_val=FILL),
    dict(type='RandomRotFlip', rotate_prob=0.0, flip_prob=1.0),
    dict(type='RandomCutOut', prob=1.0, n_holes=2, cutout_shape=(5, 5), seg_fill_in=FILL),
    dict(type='RandomMosaic', prob=1.0, img_scale=SIZE, seg_pad_val=FILL),
], ids=lambda transform: '-'.join(map(str, transform.values())))
def test_weights_go_where_their_labels_go(transform: dict, pool: Path) -> None:
    if transform['type'] == 'RandomMosaic':
        init_default_scope('mmseg')
        plain = dataset(pool, pack=False)
        results = plain[0] | dict(mix_results=[copy.deepcopy(plain[1]) for _ in range(3)])
        moved = PackWeightedSegInputs()(TRANSFORMS.build(transform)(results))
    else:
        moved = dataset(pool, transform)[0]
    label = moved['data_samples'].gt_sem_seg.data[0].numpy()
    weight = moved['data_samples'].gt_pixel_weight.data[0]
    labelled = label != FILL
    assert weight.shape == label.shape and weight.dtype == torch.float32 and labelled.any()
    np.testing.assert_allclose(weight.numpy()[labelled], weight_of(label)[labelled] / 255, atol=1e-6)


def test_weights_are_packed_in_unit_range_beside_what_mmseg_packs(pool: Path) -> None:
    sample = dataset(pool)[1]['data_samples']
    stored = np.asarray(Image.open(pool / 'weights/b.png'))
    assert torch.equal(sample.gt_pixel_weight.data, torch.from_numpy(stored)[None].float() / 255)
    np.testing.assert_array_equal(sample.gt_sem_seg.data[0], np.asarray(Image.open(pool / 'filtered/b.png')))
    assert sample.metainfo['seg_map_path'].endswith('filtered/b.png') and sample.metainfo['img_shape'] == SIZE


def test_data_without_weight_maps_counts_in_full_where_that_is_asked_for(pool: Path) -> None:
    sample = dataset(pool, names=('c', ), load=dict(required=False))[0]['data_samples']
    assert sample.gt_pixel_weight.data.shape == (1, *SIZE) and bool((sample.gt_pixel_weight.data == 1).all())
    with pytest.raises(FileNotFoundError, match='filtered/c.png .*weights/c.png'):
        dataset(pool, names=('c', ))[0]


def test_a_pipeline_without_weights_packs_as_mmseg(pool: Path) -> None:
    loaded = dataset(pool, pack=False)[0]
    del loaded['gt_pixel_weight']
    assert 'gt_pixel_weight' not in PackWeightedSegInputs()(loaded)['data_samples']


def test_mistakes_are_named(pool: Path) -> None:
    with pytest.raises(ValueError, match='LoadPixelWeights.* LoadAnnotations'):
        LoadPixelWeights()(dict(seg_map_path='a'))
    with pytest.raises(ValueError, match="`folder`.* got 'a/b'"):
        LoadPixelWeights(folder='a/b')
    with pytest.raises(ValueError, match='32 x 40, its weights 24 x 30 .*`data_preprocessor`'):
        dataset(pool, dict(type='Pad', size=(40, 32)))[0]
    with pytest.raises(ValueError, match='`swap_seg_labels` of RandomFlip'):
        dataset(pool, dict(type='RandomFlip', prob=1.0, swap_seg_labels=[(1, 2)]))[0]
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(pool / 'weights/a.png')
    with pytest.raises(ValueError, match='weights/a.png is 3 x 4, its label 24 x 30'):
        dataset(pool)[0]
    Image.fromarray(np.full(SIZE, 300, np.uint16)).save(pool / 'weights/a.png')
    with pytest.raises(ValueError, match='must have 8 bits, found values up to 300'):
        dataset(pool)[0]
