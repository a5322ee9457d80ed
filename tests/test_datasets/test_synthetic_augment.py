"""Real and synthetic samples of one data set: what they carry, how they are drawn, and what is refused."""
import copy
import pickle
import random
import re

import numpy as np
import pytest
import torch
from mixed_data import (
    PIPELINE,
    SIZE,
    mixed_config,
    mixed_dataset,
    mixed_loader,
    publish,
    real_config,
    write_mixed,
    write_real,
)
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image
from pool_samples import CLASSES, filter_entry, write_pool

from mmsynth.datasets import SyntheticAugmentDataset
from mmsynth.datasets import synthetic_augment as module
from mmsynth.datasets.samplers.draws import Draw
from mmsynth.utils import isolated_random_state
from mmsynth.utils.files import file_name

REAL, SYNTHETIC = 10, 4
PLAIN = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp('mixed'), real=REAL, synthetic=SYNTHETIC)


@pytest.fixture
def told(monkeypatch):
    """What was logged."""
    messages = []
    monkeypatch.setattr(module, 'print_log', lambda message, **options: messages.append(message))
    return messages


def plain(root, **changes):
    """Without augmentations."""
    return mixed_dataset(root, real=real_config(root / 'real', pipeline=PLAIN), **changes)


def label(sample):
    return sample['data_samples'].gt_sem_seg.data[0].numpy()


def test_samples_are_those_of_the_set_and_of_the_pool(root):
    dataset = plain(root)
    assert len(dataset) == REAL
    for index, (folder, name) in enumerate([('real', f'r{k}') for k in range(REAL)]):
        sample = dataset[index]
        assert sample['data_samples'].origin == 'real' and 'sample_id' not in sample['data_samples']
        np.testing.assert_array_equal(label(sample), np.asarray(Image.open(root / folder / f'ann_dir/{name}.png')))
    for number in range(SYNTHETIC):
        sample = dataset[REAL + number]
        marks = sample['data_samples']
        assert (marks.origin, marks.sample_id, marks.replaced) == ('synthetic', f's{number}', 0)
        image, mask = (np.asarray(Image.open(next((root / 'pool' / folder).glob(f's{number}-*.png'))))
                       for folder in ('img_dir', 'ann_dir'))
        np.testing.assert_array_equal(sample['inputs'].numpy(), image[..., ::-1].transpose(2, 0, 1))
        np.testing.assert_array_equal(label(sample), mask)
    assert dataset.get_data_info(3)['img_path'].endswith('r3.png')
    assert dataset.get_data_info(REAL + 2)['sample_id'] == 's2'
    assert dataset.metainfo['classes'] == CLASSES


def test_a_draw_has_its_own_randomness(root):
    dataset = mixed_dataset(root)
    for index in (2, REAL + 1):
        before = np.random.get_state()[1].copy(), torch.random.get_rng_state()
        first, again, other = (dataset[Draw(index, seed, 0)] for seed in (5, 5, 6))
        assert np.array_equal(before[0], np.random.get_state()[1]) and before[1].equal(torch.random.get_rng_state())
        assert first['inputs'].equal(again['inputs']) and not first['inputs'].equal(other['inputs'])


def test_own_randomness_is_put_back_after_an_error():
    states = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    with pytest.raises(KeyError), isolated_random_state(3, devices=False):
        drawn = random.random(), np.random.random(), torch.rand(1).item()
        raise KeyError
    assert random.getstate() == states[0] and np.array_equal(np.random.get_state()[1], states[1])
    assert torch.random.get_rng_state().equal(states[2])
    with isolated_random_state(3, devices=False):
        assert drawn == (random.random(), np.random.random(), torch.rand(1).item())


def test_labels_of_the_pool_are_read_as_they_are_whatever_the_real_ones_mean(root):
    """Real labels where 0 is unlabelled, as LoveDA's; the pool's are class indices already."""
    load = dict(type='LoadAnnotations', reduce_zero_label=True)
    real = real_config(root / 'real', pipeline=[PLAIN[0], load, PLAIN[2]], reduce_zero_label=True)
    dataset = mixed_dataset(root, real=real)
    stored = np.asarray(Image.open(root / 'real/ann_dir/r0.png')).astype(int)
    np.testing.assert_array_equal(label(dataset[0]), np.where(stored == 0, 255, stored - 1))
    assert set(np.unique(label(dataset[REAL + 1]))) == {1, 255}
    own = [PLAIN[0], dict(type='mmsynth.LoadSegMap', num_classes=4, ignore_index=9), PLAIN[2]]
    dataset = mixed_dataset(root, real=real_config(root / 'real', pipeline=own))
    assert set(np.unique(label(dataset[REAL + 1]))) == {1, 255}


def test_a_pipeline_of_its_own(root):
    shown = [*PLAIN[:2], dict(type='RandomFlip', prob=1.0, direction='horizontal'), PLAIN[2]]
    flipped = mixed_dataset(root, real=real_config(root / 'real', pipeline=PLAIN), synthetic_pipeline=shown)
    assert flipped[REAL]['inputs'].equal(plain(root)[REAL]['inputs'].flip(-1))
    assert flipped[0]['inputs'].equal(plain(root)[0]['inputs'])
    unpacked = mixed_dataset(root, real=real_config(root / 'real', pipeline=PLAIN[:2]))
    assert unpacked[0]['origin'] == 'real' and unpacked[REAL]['sample_id'] == 's0'


def test_whether_synthetic_images_are_recoloured_too_is_asked(root):
    recolor = dict(type='mmsynth.ColorTransfer', folder=str(root / 'real/img_dir'), prob=1, amount=(1, 1))
    real = real_config(root / 'real', pipeline=[*PLAIN[:2], recolor, PLAIN[2]])
    with pytest.raises(ValueError, match="`synthetic_pipeline` must be given where .* pipeline holds ColorTransfer"):
        mixed_dataset(root, real=real)
    dataset = mixed_dataset(root, real=real, synthetic_pipeline=PLAIN)
    assert dataset[REAL]['inputs'].equal(plain(root)[REAL]['inputs'])


@pytest.mark.parametrize('soft', [False, True])
def test_the_filters_labels_and_weights_are_used(tmp_path, soft):
    write_real(tmp_path / 'real', 1)
    trusted = np.full(SIZE, 255, np.uint8)
    trusted[2:8] = 0
    weight = np.arange(np.prod(SIZE), dtype=np.uint16).reshape(SIZE).astype(np.uint8)
    write_pool(tmp_path / 'pool', [dict(filter=filter_entry(0, label=None), filtered=trusted,
                                        weight=weight if soft else None)])
    pipeline = [*PLAIN[:2], dict(type='mmsynth.LoadPixelWeights', required=False),
                dict(type='mmsynth.PackWeightedSegInputs')]
    dataset = mixed_dataset(tmp_path, real=real_config(tmp_path / 'real', pipeline=pipeline))
    np.testing.assert_array_equal(label(dataset[1]), trusted)
    np.testing.assert_allclose(dataset[1]['data_samples'].gt_pixel_weight.data[0],
                               weight / 255 if soft else np.ones(SIZE), rtol=1e-6)
    assert (dataset[0]['data_samples'].gt_pixel_weight.data == 1).all()


@pytest.mark.parametrize('wrap', [
    lambda cfg: dict(type='RepeatDataset', times=3, dataset=cfg),
    lambda cfg: dict(type='ConcatDataset', datasets=[cfg, cfg, cfg])])
@pytest.mark.parametrize('kind', ['InfiniteSampler', 'DefaultSampler'])
def test_per_draw_inside_wrappers_with_the_hosts_samplers(root, wrap, kind):
    config = mixed_config(root, ratio=0.5)
    loader = Runner.build_dataloader(dict(batch_size=6, num_workers=0, sampler=dict(type=kind, shuffle=True),
                                          dataset=wrap(config)), seed=0)
    np.random.seed(0)
    origins = [sample.origin for _, batch in zip(range(5), loader) for sample in batch['data_samples']]
    assert len(origins) == 30 and {'real', 'synthetic'} == set(origins)


def test_wrappers_inside(root):
    inner = dict(type='RepeatDataset', times=2, dataset=real_config(root / 'real', pipeline=PLAIN))
    dataset = mixed_dataset(root, real=dict(type='ConcatDataset', datasets=[inner, inner]))
    assert len(dataset) == 4 * REAL
    assert dataset[4 * REAL + 1]['data_samples'].sample_id == 's1'
    assert dataset[25]['inputs'].equal(dataset[5]['inputs'])


def test_the_ratio_per_draw(root):
    np.random.seed(1)
    dataset = plain(root, ratio=0.25)
    names = [dataset[k % REAL]['data_samples'].get('sample_id') for k in range(600)]
    share = sum(name is not None for name in names) / len(names)
    assert abs(share - 0.25) < 3 * np.sqrt(0.25 * 0.75 / 600)
    assert set(names) == {None, *(f's{k}' for k in range(SYNTHETIC))}
    assert all(plain(root, ratio=0.0)[k]['data_samples'].origin == 'real' for k in range(REAL))


def test_per_draw_a_pool_may_come_later(tmp_path, told):
    write_mixed(tmp_path, synthetic=0)
    dataset = plain(tmp_path, ratio=1.0, pool=str(tmp_path / 'later'))
    assert [dataset[k]['data_samples'].origin for k in range(3)] == ['real'] * 3
    assert len(told) == 1 and 'it has no usable samples yet' in told[0]
    write_pool(tmp_path / 'later', [{}] * 2)
    assert dataset[0]['data_samples'].origin == 'synthetic'


def test_a_pool_that_is_not_drawn_from_is_told_of_once(root, told):
    dataset = plain(root)
    [dataset[k] for k in range(3)]
    assert told == [f'pool {root / "pool"}: it is not drawn from: the data loader has no RatioBatchSampler and '
                    '`ratio` is not set']
    told.clear()
    plain(root)[Draw(0, 0, 0)]
    assert told == []


def test_rounds_give_numbers(tmp_path):
    write_mixed(tmp_path, synthetic=5)
    publish(tmp_path, (0, [3, 1], []), (4, [4, 0], [3]))
    dataset = plain(tmp_path)
    assert [dataset[REAL + k]['data_samples'].sample_id for k in range(4)] == ['s3', 's1', 's4', 's0']


def test_a_list_chooses_and_repeats(tmp_path):
    """As PoolDataset's ``ann_file``; with the batch sampler every line comes once per epoch of the synthetic ones."""
    pool = write_mixed(tmp_path, synthetic=4) / 'pool'
    (pool / 'selected.txt').write_text(''.join(f'{file_name(id)}\n' for id in ('s3', 's1', 's3')))
    config = mixed_config(tmp_path, ann_file='selected.txt')
    dataset = pickle.loads(pickle.dumps(DATASETS.build(config)))
    assert [dataset.get_data_info(REAL + k)['sample_id'] for k in range(3)] == ['s3', 's1', 's3']
    with pytest.raises(IndexError, match='no sample number 3'):
        dataset.get_data_info(REAL + 3)
    batches = iter(mixed_loader(tmp_path, batch_size=3, dataset=config, ratio=1.0))
    for _ in range(3):
        assert sorted(sample.sample_id for sample in next(batches)['data_samples']) == ['s1', 's3', 's3']
    np.random.seed(0)
    by_chance = plain(tmp_path, ratio=1.0, ann_file='selected.txt')
    drawn = [by_chance[0]['data_samples'].sample_id for _ in range(60)]
    assert {'s1', 's3'} == set(drawn) and 30 < drawn.count('s3') < 50


@pytest.mark.parametrize('content, error, message', [
    (None, FileNotFoundError, 'selected.txt'), ('', ValueError, '`ann_file` selected.txt.*no samples'),
    ('nobody', ValueError, "`ann_file` .*selected.txt names 'nobody'")])
def test_a_list_that_names_no_samples(tmp_path, content, error, message):
    pool = write_mixed(tmp_path, synthetic=1) / 'pool'
    if content is not None:
        (pool / 'selected.txt').write_text(content)
    with pytest.raises(error, match=message):
        plain(tmp_path, ann_file='selected.txt')


def test_a_list_of_a_pool_that_grows(tmp_path):
    write_mixed(tmp_path, synthetic=1)
    publish(tmp_path, (0, [0], []))
    with pytest.raises(ValueError, match='`ann_file`.*grows by rounds'):
        plain(tmp_path, ann_file='selected.txt')


def test_it_can_be_pickled_with_what_it_knows(root):
    dataset = plain(root)
    dataset[REAL + 1]
    copied = pickle.loads(pickle.dumps(dataset))
    assert copied[REAL + 1]['inputs'].equal(dataset[REAL + 1]['inputs'])
    assert copy.deepcopy(dataset).metainfo == dataset.metainfo


@pytest.mark.parametrize('options, error, message', [
    (dict(ratio=1.5), ValueError, '`ratio` must be a probability in [0, 1], None with a RatioBatchSampler, got 1.5.'),
    (dict(ratio=True), ValueError, 'got True.'),
    (dict(test_mode=True), ValueError, '`test_mode` of SyntheticAugmentDataset and of what it wraps must be False'),
    (dict(dataset='x'), TypeError, '`dataset` must be the config of a data set, got str.'),
    (dict(real=dict(test_mode=True)), ValueError, '`test_mode` of SyntheticAugmentDataset and of what it wraps'),
    (dict(real=dict(metainfo=None)), ValueError, '`dataset` BaseSegDataset has no class names to hold the pool\'s'),
    (dict(mix=True), ValueError, '`synthetic_pipeline` must be given where `dataset` is a MultiImageMixDataset'),
])
def test_messages(root, options, error, message):
    real = real_config(root / 'real', **options.pop('real', {}))
    if options.pop('mix', False):
        real = dict(type='MultiImageMixDataset', dataset=dict(real, pipeline=PIPELINE[:2]), pipeline=PIPELINE[2:])
    with pytest.raises(error, match=re.escape(message)):
        SyntheticAugmentDataset(**dict(dataset=real, pool=root / 'pool') | options)


def test_a_misspelt_option_is_named(root):
    with pytest.raises(TypeError, match='rato'):
        DATASETS.build(mixed_config(root, rato=0.3))


def test_other_classes_are_refused(tmp_path, told):
    write_mixed(tmp_path, synthetic=0)
    write_pool(tmp_path / 'swapped', [{}], classes=('ground', 'water', 'house'))
    message = re.escape(f'`pool` {tmp_path / "swapped"} and `dataset` BaseSegDataset must have the same classes in the '
                        'same order; from class 1 on they differ:\n  pool:    ground, water, house\n  dataset: ground, '
                        'house, water\n')
    with pytest.raises(ValueError, match=message):
        plain(tmp_path, pool=str(tmp_path / 'swapped'))
    late = plain(tmp_path, pool=str(tmp_path / 'late'))
    write_pool(tmp_path / 'late', [{}], classes=('ground', 'house'), palette=((0, 0, 0), (1, 1, 1)))
    with pytest.raises(ValueError, match='from class 2 on they differ'):
        late[REAL]
    assert told == []


def test_other_colours_are_told_of(tmp_path, told):
    write_mixed(tmp_path, synthetic=0)
    write_pool(tmp_path / 'other', [{}], palette=((0, 0, 0), (255, 0, 0), (0, 0, 254)))
    plain(tmp_path, pool=str(tmp_path / 'other'))
    assert told == [f'the colours of pool {tmp_path / "other"} are not those of BaseSegDataset; this concerns pictures '
                    'only.']


def test_indices_out_of_range(root):
    with pytest.raises(IndexError, match='index -1 is negative'):
        plain(root)[-1]
    with pytest.raises(IndexError, match=f'{root / "pool"} has no sample number 99'):
        plain(root).get_data_info(REAL + 99)
