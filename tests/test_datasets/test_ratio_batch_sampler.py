"""Batches with an exact share of synthetic samples, as a function of their number."""
import functools
import itertools
import json
import multiprocessing
import pickle
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixed_data import mixed_config, mixed_dataset, publish, write_mixed
from mmengine.dataset import InfiniteSampler
from mmengine.registry import DATASETS
from pool_samples import filter_entry, write_pool

from mmsynth.datasets import RatioBatchSampler
from mmsynth.datasets.samplers import align_with_runner
from mmsynth.datasets.samplers import ratio_batch_sampler as module
from mmsynth.datasets.samplers.draws import Draw

REAL, SYNTHETIC = 10, 4


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp('mixed'), real=REAL, synthetic=SYNTHETIC)


mixed = functools.cache(mixed_dataset)  # samplers read the pool themselves


def sampler(root, batch_size=8, ratio=0.3, seed=0, rank=0, world=1, **options):
    found = RatioBatchSampler(InfiniteSampler(mixed(root), seed=seed), batch_size, ratio=ratio, **options)
    found.rank, found.world_size = rank, world
    return found


def batches(found, first, last):
    return [found.batch(iteration) for iteration in range(first, last)]


def count(batch):
    return sum(index >= REAL for index in batch)


def facts(batch):
    return [(int(draw), draw.seed, draw.iteration) for draw in batch]


def test_the_share_is_exact_over_a_thousand_batches(root):
    counts = [count(batch) for batch in batches(sampler(root), 0, 1000)]
    assert set(counts) == {2, 3}
    assert all(abs(total - 2.4 * number) < 1 for number, total in enumerate(itertools.accumulate(counts), start=1))
    assert sum(counts) == 2400


def test_real_samples_come_once_per_epoch_in_an_order_of_its_own(root):
    real = [int(draw) for batch in batches(sampler(root), 0, 200) for draw in batch if draw < REAL]
    assert Counter(real) == dict.fromkeys(range(REAL), 112)  # 200 * 8 * 0.7 = 1120
    alone = [int(draw) for batch in batches(sampler(root, batch_size=5, ratio=0), 0, 4) for draw in batch]
    assert sorted(alone[:REAL]) == sorted(alone[REAL:]) == list(range(REAL))


def test_synthetic_samples_come_equally_often(root):
    numbers = [int(draw) - REAL for batch in batches(sampler(root), 0, 1000) for draw in batch if draw >= REAL]
    assert Counter(numbers) == dict.fromkeys(range(SYNTHETIC), 600)


def test_batches_follow_from_their_number_and_the_seed(root):
    whole = list(map(facts, batches(sampler(root), 0, 40)))
    resumed = sampler(root)
    resumed.set_iteration(17)
    assert list(map(facts, itertools.islice(resumed, 23))) == whole[17:]
    assert list(map(facts, itertools.islice(resumed, 3))) == whole[17:20]  # each iter() starts where it was told
    assert list(map(facts, batches(sampler(root, seed=1), 0, 40))) != whole
    own = RatioBatchSampler(InfiniteSampler(mixed(root), seed=1), 8, ratio=0.3, seed=0)
    assert list(map(facts, batches(own, 0, 40))) == whole


def test_places_in_a_batch_are_shuffled_and_seeds_differ(root):
    found = batches(sampler(root, ratio=0.5), 0, 50)
    assert len({tuple(draw >= REAL for draw in batch) for batch in found}) > 20
    seeds = [draw.seed for batch in found for draw in batch]
    assert len(set(seeds)) == len(seeds)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=st.sampled_from([1, 2, 4]), ratio=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.77, 1.0]),
       start=st.integers(0, 500))
def test_ranks_draw_the_parts_of_one_batch(root, world, ratio, start):
    one = sampler(root, 8, ratio)
    parts = [sampler(root, 8 // world, ratio, rank=rank, world=world) for rank in range(world)]
    totals = Counter()
    for iteration in range(start, start + 5):
        drawn = [part.batch(iteration) for part in parts]
        assert all(len(batch) == 8 // world for batch in drawn)
        assert sorted(sum(map(facts, drawn), [])) == sorted(facts(one.batch(iteration)))
        totals.update({rank: count(batch) for rank, batch in enumerate(drawn)})
        assert max(map(count, drawn)) - min(map(count, drawn)) <= 1
    assert max(totals.values()) - min(totals[rank] for rank in range(world)) <= 1


def test_schedules(root):
    found = sampler(root, ratio=0.5, warmup=3, ramp=4, stop=9)
    assert [count(batch) for batch in batches(found, 0, 11)] == [0, 0, 0, 1, 2, 3, 4, 4, 4, 0, 0]


def test_an_empty_pool_means_real_samples_and_one_warning(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(module, 'print_log', lambda message, **options: told.append(message))
    found = sampler(write_mixed(tmp_path, synthetic=0), ratio=0.5)
    assert [count(batch) for batch in itertools.islice(found, 20)] == [0] * 20
    assert told == [f'the pool {tmp_path / "pool"} has no usable samples yet; batches are real until it has some.']
    told.clear()
    list(itertools.islice(sampler(tmp_path, ratio=0), 2))
    assert told == []


def test_a_pool_that_grows_is_drawn_from_when_its_rounds_say_so(tmp_path):
    found = sampler(write_mixed(tmp_path, synthetic=6), ratio=0.5)
    publish(tmp_path, (5, [0, 1, 2, 3], []))
    running = iter(found)
    early = [next(running) for _ in range(7)]
    assert [count(batch) for batch in early] == [0] * 5 + [4] * 2  # exact from there on, nothing made up for
    publish(tmp_path, (5, [0, 1, 2, 3], []), (10, [4, 5], [0, 1]))
    late = [next(running) for _ in range(8)]
    numbers = [{int(draw) - REAL for draw in batch if draw >= REAL} for batch in early + late]
    assert numbers[5:] == [{0, 1, 2, 3}] * 5 + [{2, 3, 4, 5}] * 5
    assert list(map(facts, early + late)) == list(map(facts, batches(sampler(tmp_path, ratio=0.5), 0, 15)))


def test_samples_that_a_filter_dropped_are_not_drawn(tmp_path):
    write_mixed(tmp_path, synthetic=0)
    entries = [dict(filter=filter_entry(index, keep=index != 1, label=None)) for index in range(3)]
    write_pool(tmp_path / 'other', [*entries, {}])
    found = RatioBatchSampler(InfiniteSampler(DATASETS.build(mixed_config(tmp_path, pool=str(tmp_path / 'other')))),
                              8, ratio=0.5)
    assert {int(draw) - REAL for batch in batches(found, 0, 10) for draw in batch if draw >= REAL} == {0, 2, 3}


def test_epochs(root):
    found = sampler(root, batch_size=3, ratio=0.5, endless=False)
    assert len(found) == 4  # ten real samples
    first, second = list(found), list(found)
    assert [len(first), len(second)] == [4, 4]
    assert list(map(facts, first + second)) == list(map(facts, batches(found, 0, 8)))
    found.sampler.set_epoch(1)  # as DistSamplerSeedHook does
    assert list(map(facts, found)) == list(map(facts, second))
    endless = sampler(root, batch_size=3)
    endless.sampler.set_epoch(1)
    assert facts(next(iter(endless))) == facts(endless.batch(0))


def test_a_draw_is_an_index_that_travels():
    draw = Draw(3, seed=2**62, iteration=7)
    copy = pickle.loads(pickle.dumps(draw))
    assert copy == 3 and (copy.seed, copy.iteration) == (2**62, 7) and [0, 1, 2, 'x'][copy] == 'x'
    assert repr(copy) == f'Draw(3, seed={2**62}, iteration=7)'


class _Loop:
    """A loop of the host, as far as it matters here."""

    def __init__(self, iterator):
        if iterator is not None:
            self.dataloader_iterator = iterator


class Loader:
    """A data loader that loads nothing."""

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        return iter(self.batch_sampler)


class _Skipping:
    def skip_iter(self, num_iters):
        raise AssertionError('the host\'s own iterator is not to be used')


@pytest.mark.parametrize('host, skip', [(_Skipping(), lambda loop: loop.dataloader_iterator.skip_iter(9)),
                                        (object(), lambda loop: [next(loop.dataloader_iterator) for _ in range(9)])])
def test_a_resumed_loop_goes_on_at_its_iteration_however_it_skips(root, host, skip):
    loop = _Loop(host)
    loader = Loader(sampler(root, seed=4))
    align_with_runner(SimpleNamespace(train_loop=loop, train_dataloader=loader, iter=9, seed=0))
    skip(loop)
    expected = batches(sampler(root, seed=0), 9, 12)  # the runner's seed: a resume may have brought another
    assert [facts(next(loop.dataloader_iterator)) for _ in range(3)] == list(map(facts, expected))


def test_a_loop_that_starts_takes_nothing_that_was_drawn_before_it_did(root):
    found = sampler(root)
    loop = _Loop(iter(found))  # as versions of the host have it that start workers at once
    next(loop.dataloader_iterator)
    align_with_runner(SimpleNamespace(train_loop=loop, train_dataloader=Loader(found), iter=0, seed=0))
    assert [facts(next(loop.dataloader_iterator)) for _ in range(3)] == list(map(facts, batches(found, 0, 3)))


def _draw_an_epoch(rank, folder):
    """What mmengine does on a rank with ``randomness=dict(seed=7, diff_rank_seed=True)``."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    found = RatioBatchSampler(InfiniteSampler(mixed(folder), seed=None), 5, ratio=0)
    runner = SimpleNamespace(train_loop=_Loop(object()), train_dataloader=Loader(found), iter=0, seed=7 + rank)
    align_with_runner(runner)
    drawn = [int(draw) for iteration in range(REAL) for draw in found.batch(iteration)]
    (folder / f'{rank}.json').write_text(json.dumps([found.seed, drawn]))
    torch.distributed.destroy_process_group()


def test_ranks_with_seeds_of_their_own_draw_one_global_batch(tmp_path):
    write_mixed(tmp_path, real=REAL, synthetic=1)
    mixed(tmp_path)
    context = multiprocessing.get_context('fork')  # nothing to import again
    ranks = [context.Process(target=_draw_an_epoch, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    (seed, first), (other_seed, second) = (json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2))
    assert seed == other_seed == 7  # rank 0's, which a checkpoint holds
    assert Counter(first + second) == dict.fromkeys(range(REAL), 10)  # each sample once per epoch


def test_other_loaders_are_left_alone():
    loop = _Loop('host')
    align_with_runner(SimpleNamespace(train_loop=loop, train_dataloader=Loader([]), iter=5, seed=0))
    assert loop.dataloader_iterator == 'host'


@pytest.mark.parametrize('endless, host, message', [
    (True, None, '`endless` of RatioBatchSampler must be False with _Loop, got True.'),
    (False, object(), '`endless` of RatioBatchSampler must be True with _Loop, got False.')])
def test_the_loop_must_go_with_the_sampler(root, endless, host, message):
    loader = Loader(sampler(root, endless=endless))
    with pytest.raises(ValueError, match=re.escape(message)):
        align_with_runner(SimpleNamespace(train_loop=_Loop(host), train_dataloader=loader, iter=0, seed=0))


@pytest.mark.parametrize('change, error, message', [
    (dict(batch_size=0), ValueError, '`batch_size` must be a whole number, at least 1, got 0.'),
    (dict(ratio=2), ValueError, '`ratio` must be a number in [0, 1]'),
    (dict(dataset=dict(ratio=0.5)), ValueError, '`ratio` 0.5 of SyntheticAugmentDataset is for data loaders without'),
    (dict(shuffle=False), ValueError, '`sampler.shuffle` must be True'),
    (dict(wrapped=True), TypeError, 'as the outermost `dataset` of the data loader, got RepeatDataset. Put other'),
])
def test_messages(root, change, error, message):
    dataset = mixed_dataset(root, **change.get('dataset', {}))
    if 'wrapped' in change:
        dataset = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=mixed_config(root)))
    inner = InfiniteSampler(dataset, shuffle=change.get('shuffle', True), seed=0)
    with pytest.raises(error, match=re.escape(message)):
        RatioBatchSampler(inner, change.get('batch_size', 4), ratio=change.get('ratio', 0.3))


def test_a_negative_iteration_is_refused(root):
    with pytest.raises(ValueError, match='`iteration` must be 0 or more, got -1'):
        sampler(root).set_iteration(-1)
