"""Synthetic samples never reach validation or test."""
import re

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmsynth.datasets.validation_guard import check_validation


def config(root, *, name='val_dataloader', wrap=None, **changes):
    dataset = dict(type='BaseSegDataset', data_root=str(root / 'data'),
                   data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val')) | changes
    return Config({name: dict(batch_size=1, dataset=wrap(dataset) if wrap else dataset)})


def wrapped(dataset):
    return dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[dataset]))


@pytest.mark.parametrize('pool', ['work/pool', 'data/pool', 'data/img_dir/train/pool', 'data/img_dir/val2'])
def test_a_pool_beside_real_data_is_fine(tmp_path, pool):
    check_validation(config(tmp_path), tmp_path / pool)
    check_validation(config(tmp_path, wrap=wrapped), tmp_path / pool)


def test_without_validation_there_is_nothing_to_refuse(tmp_path):
    check_validation(Config(dict(val_dataloader=None)), tmp_path)
    check_validation({}, tmp_path)
    check_validation(config(tmp_path, name='train_dataloader', data_root=str(tmp_path)), tmp_path)


@pytest.mark.parametrize('name', ['val_dataloader', 'test_dataloader'])
@pytest.mark.parametrize('pool, changes, place, message', [
    ('data/img_dir/val/pool', {}, 'dataset.data_prefix.img_path', 'has the pool'),
    ('data/img_dir/val', {}, 'dataset.data_prefix.img_path', 'belongs to the pool'),
    ('data/ann_dir/val/a/b', {}, 'dataset.data_prefix.seg_map_path', 'has the pool'),
    ('data/img_dir', {}, 'dataset.data_prefix.img_path', 'belongs to the pool'),
    ('data/pool', dict(data_root='data/pool', data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir')),
     'dataset.data_prefix.img_path', 'belongs to the pool'),
    ('data/pool', dict(data_prefix=dict(img_path='', seg_map_path='')), 'dataset.data_root', 'has the pool'),
    ('data/pool', dict(data_prefix=None, ann_file='pool/kept.txt'), 'dataset.ann_file', 'belongs to the pool'),
])
def test_overlaps_are_refused_by_name(tmp_path, monkeypatch, name, pool, changes, place, message):
    monkeypatch.chdir(tmp_path)
    for wrap, inside in ((None, ''), (wrapped, 'dataset.dataset.datasets[0]')):
        place_there = place.replace('dataset', f'dataset.{inside[8:]}', 1) if wrap else place
        with pytest.raises(ValueError) as caught:
            check_validation(config(tmp_path, name=name, wrap=wrap, **changes), pool)
        text = str(caught.value)
        assert text.startswith('validation and test must see real data only:\n  ')
        assert f'`{name}.{place_there}` {tmp_path}' in text and message in text and str(tmp_path / pool) in text


def test_a_link_to_the_pool_is_seen(tmp_path):
    (tmp_path / 'pool/img_dir').mkdir(parents=True)
    (tmp_path / 'data/img_dir').mkdir(parents=True)
    (tmp_path / 'data/img_dir/val').symlink_to(tmp_path / 'pool/img_dir')
    with pytest.raises(ValueError, match='belongs to the pool'):
        check_validation(config(tmp_path), tmp_path / 'pool')


def test_files_by_name_may_have_the_pool_beside_them(tmp_path):
    listed = dict(type='mmsynth.ManifestDataset', ann_file='val.jsonl', data_prefix=None)
    check_validation(config(tmp_path, **listed), tmp_path / 'data/pool')


@pytest.mark.parametrize('wrap', [None, wrapped])
def test_a_mixed_data_set_is_refused(tmp_path, wrap):
    mixed = config(tmp_path, wrap=wrap, type='mmsynth.SyntheticAugmentDataset')
    with pytest.raises(ValueError, match='is a SyntheticAugmentDataset'):
        check_validation(mixed, tmp_path / 'pool')


def test_built_loaders_tell_the_defaults_of_their_classes(tmp_path):
    class Loader:
        dataset = DATASETS.build(dict(type='BaseSegDataset', data_root=str(tmp_path), lazy_init=True))

    message = f'`test_dataloader.dataset.data_root` {tmp_path} has the pool {tmp_path / "pool"} inside'
    with pytest.raises(ValueError, match=re.escape(message)):
        check_validation(dict(test_dataloader=Loader()), tmp_path / 'pool')
