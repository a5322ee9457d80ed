"""Files of a pool that are broken: the sample is replaced by another live one, counted, and told of once."""
import os
import shutil

import numpy as np
import pytest
from mixed_data import mixed_dataset, publish, real_config, write_mixed
from PIL import Image

from mmsynth.datasets import synthetic_augment as module
from mmsynth.datasets.samplers.draws import Draw

REAL, SYNTHETIC = 3, 5
PLAIN = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp('mixed'), real=REAL, synthetic=SYNTHETIC)


@pytest.fixture
def root(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'mixed')


@pytest.fixture
def told(monkeypatch):
    messages = []
    monkeypatch.setattr(module, 'print_log', lambda message, **options: messages.append(message))
    return messages


def dataset(root, **changes):
    return mixed_dataset(root, real=real_config(root / 'real', pipeline=PLAIN), **changes)


def file_of(root, number, folder):
    return next((root / 'pool' / folder).glob(f's{number}-*.png'))


def truncate(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def swap(path, array):
    Image.fromarray(array).save(path)


DAMAGES = {
    'image truncated': (lambda root, k: truncate(file_of(root, k, 'img_dir')), 'cannot be read'),
    'image empty': (lambda root, k: os.truncate(file_of(root, k, 'img_dir'), 0), 'cannot be read'),
    'image deleted': (lambda root, k: file_of(root, k, 'img_dir').unlink(), 'does not exist'),
    'image no image': (lambda root, k: file_of(root, k, 'img_dir').write_text('x'), 'cannot be read'),
    'image of another size': (lambda root, k: swap(file_of(root, k, 'img_dir'), np.zeros((8, 8, 3), np.uint8)),
                              'is 8 x 8 (height x width)'),
    'label truncated': (lambda root, k: truncate(file_of(root, k, 'ann_dir')), 'cannot be read'),
    'label deleted': (lambda root, k: file_of(root, k, 'ann_dir').unlink(), 'does not exist'),
    'label of another size': (lambda root, k: swap(file_of(root, k, 'ann_dir'), np.zeros((16, 25), np.uint8)),
                              'is 16 x 25'),
    'label in colours': (lambda root, k: swap(file_of(root, k, 'ann_dir'), np.zeros((16, 24, 3), np.uint8)),
                         'must be a single band'),
    'label with a foreign class': (lambda root, k: swap(file_of(root, k, 'ann_dir'), np.full((16, 24), 7, np.uint8)),
                                   'class ids below 3'),
    'label of 16 bits': (lambda root, k: swap(file_of(root, k, 'ann_dir'), np.full((16, 24), 700, np.uint16)),
                         'class ids below 3'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_broken_sample_is_replaced(name, root, told):
    damage, message = DAMAGES[name]
    damage(root, 2)
    found = dataset(root)
    first, again = (found[Draw(REAL + 2, seed=11, iteration=0)]['data_samples'] for _ in range(2))
    assert (first.origin, first.replaced) == ('synthetic', 1) and first.sample_id in ('s0', 's1', 's3', 's4')
    assert again.sample_id == first.sample_id  # a function of the draw
    assert len({found[Draw(REAL + 2, seed, 0)]['data_samples'].sample_id for seed in range(40)}) == 4
    assert len(told) == 1 and "sample 's2' is replaced by another" in told[0] and message in told[0]
    assert found[Draw(REAL + 1, 0, 0)]['data_samples'].replaced == 0


def test_a_file_that_breaks_while_training_runs(root, told):
    found = dataset(root)
    assert found[Draw(REAL, 0, 0)]['data_samples'].replaced == 0
    truncate(file_of(root, 0, 'img_dir'))
    assert found[Draw(REAL, 0, 0)]['data_samples'].replaced == 1
    swap(file_of(root, 0, 'img_dir'), np.zeros((16, 24, 3), np.uint8))  # and is mended
    assert found[Draw(REAL, 0, 0)]['data_samples'].replaced == 0


def test_the_replacement_is_live_at_that_iteration(root, told):
    publish(root, (0, [0, 1], []), (5, [2, 3], [0]), (9, [4], []))
    file_of(root, 1, 'img_dir').unlink()
    found = dataset(root)

    def replacements(iteration):
        return {found[Draw(REAL + 1, seed, iteration)]['data_samples'].sample_id for seed in range(30)}

    assert [replacements(iteration) for iteration in (4, 5, 8)] == [{'s0'}, {'s2', 's3'}, {'s2', 's3'}]
    assert replacements(9) == {'s2', 's3', 's4'}


def test_a_worker_that_knows_the_pool_of_old_chooses_like_the_others(root, told):
    publish(root, (0, [0, 1], []))
    found = dataset(root)
    assert found[Draw(REAL + 1, 0, 0)]['data_samples'].replaced == 0
    publish(root, (0, [0, 1], []), (5, [2, 3, 4], [0]))
    file_of(root, 1, 'img_dir').unlink()
    names = [found[Draw(REAL + 1, seed, 5)]['data_samples'].sample_id for seed in range(20)]
    fresh = dataset(root)
    assert names == [fresh[Draw(REAL + 1, seed, 5)]['data_samples'].sample_id for seed in range(20)]
    assert set(names) == {'s2', 's3', 's4'}


def test_several_broken_ones(root, told):
    for number in (0, 1, 2, 3):
        file_of(root, number, 'ann_dir').unlink()
    found = dataset(root)
    assert {found[Draw(REAL + 2, seed, 0)]['data_samples'].sample_id for seed in range(10)} == {'s4'}
    file_of(root, 4, 'ann_dir').unlink()
    last = found[Draw(REAL + 2, 7, 0)]['data_samples']
    assert (last.origin, last.replaced) == ('real', 1)
    assert len(told) == 5


def test_a_record_that_is_gone_or_torn(root, told):
    publish(root, (0, [0, 1, 2, 3, 4], []))
    manifest = root / 'pool/manifest.jsonl'
    os.truncate(manifest, manifest.stat().st_size - 20)
    found = dataset(root)
    sample = found[Draw(REAL + 4, 0, 0)]['data_samples']
    assert sample.replaced == 1 and sample.sample_id != 's4'
    assert told == [f'pool {root / "pool"}: sample \'4\' is replaced by another: {root / "pool"} has no record of '
                    'sample number 4']
    manifest.unlink()
    assert dataset(root)[Draw(REAL + 1, 0, 0)]['data_samples'].origin == 'real'


def test_a_mistake_of_the_pipeline_is_not_hidden(root):
    broken = [*PLAIN[:2], dict(type='RandomCrop', crop_size=(8, 8), cat_max_ratio='x'), PLAIN[2]]
    with pytest.raises(TypeError):
        dataset(root, synthetic_pipeline=broken)[Draw(REAL, 0, 0)]


def test_a_file_that_goes_while_it_is_read(root, told):
    """The hook deletes files of retired samples: the check may have passed just before."""
    found = dataset(root)
    load = found.pipeline.transforms[0].transform

    def late(results):
        file_of(root, 1, 'img_dir').unlink(missing_ok=True) if results['sample_id'] == 's1' else None
        return load(results)

    found.pipeline.transforms[0].transform = late
    assert found[Draw(REAL + 1, 0, 0)]['data_samples'].replaced == 1
