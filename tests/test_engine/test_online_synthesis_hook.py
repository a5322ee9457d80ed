"""OnlineSynthesisHook: what it leaves alone, what it publishes, and how a resumed training goes on."""
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from online_run import Recorder, files, hook_config, log_of, online_config, random_states, train_online
from small_run import SmallRun
from torch import nn

from mmsynth.engine.hooks import OnlineSynthesisHook, online_parts
from mmsynth.engine.hooks.online_parts import batches_ahead, count_replaced, live_segmentor, real_data
from mmsynth.engine.hooks.online_synthesis_hook import STATE_KEY
from mmsynth.online.growing_pool import GrowingPool
from mmsynth.online.orders import Order
from mmsynth.online.refresher import PoolRefresher
from mmsynth.pool import Pool, store
from mmsynth.pool.rounds import Round, read_rounds

FILTER = dict(num_images=3, margin=1.5, min_valid=0.05)


@pytest.mark.parametrize('critic', ['runner', 'ema'])
def test_a_refresh_leaves_the_training_bit_identical(small_run: SmallRun, tmp_path: Path, critic: str) -> None:
    pool = tmp_path / 'pool'
    results = []
    for name, hooks in (('with', [hook_config(small_run, pool, filter=FILTER, critic=critic)]), ('without', [])):
        cfg = online_config(small_run, pool, tmp_path / name, hooks=[*hooks, dict(type='EMAHook')], ratio=0.0,
                            iterations=5,
                            model=dict(decode_head=dict(dropout_ratio=0.5)))
        runner, recorder = train_online(cfg)
        modes = [module.training for module in runner.model.modules()]
        wanted = [parameter.requires_grad for parameter in runner.model.parameters()]
        results.append((recorder.losses, runner.model.state_dict(), modes, wanted, random_states()))
    (losses, weights, *others), (plain_losses, plain_weights, *plain_others) = results
    assert len(read_rounds(pool)) == 2 and len(Pool.open(pool)) == 8
    assert losses == plain_losses and others == plain_others
    assert weights.keys() == plain_weights.keys()
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)


@pytest.mark.parametrize('workers, dropout', [(0, 0.0), (2, 0.0), (0, 0.5)])
def test_a_resumed_training_equals_an_unbroken_one(small_run: SmallRun, tmp_path: Path, workers: int,
                                                   dropout: float) -> None:
    def config(name: str, **changes):
        pool = tmp_path / name / 'pool'
        hook = hook_config(small_run, pool, filter=FILTER, seed_iterations=dropout > 0)
        cfg = online_config(small_run, pool, tmp_path / name, hooks=[hook], workers=workers, **changes)
        cfg.model.decode_head.dropout_ratio = dropout
        return cfg

    runner, unbroken = train_online(config('unbroken'))
    _, broken = train_online(config('broken'), stop_after=7)
    assert (tmp_path / 'broken' / 'iter_4.pth').exists() and len(read_rounds(tmp_path / 'broken' / 'pool')) == 3
    resumed_runner, resumed = train_online(config('broken', resume=True))
    assert '4 samples removed that an earlier run made later than iteration 4' in log_of(tmp_path / 'broken')
    assert sorted(resumed.losses) == [4, 5, 6, 7]
    assert {**broken.losses, **resumed.losses} == unbroken.losses
    assert {**broken.origins, **resumed.origins} == unbroken.origins
    assert any(origin != 'real' for origins in resumed.origins.values() for origin in origins)
    assert dict(files(tmp_path / 'broken' / 'pool')) == dict(files(tmp_path / 'unbroken' / 'pool'))
    weights, expected = resumed_runner.model.state_dict(), runner.model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_training_that_starts_anew_empties_the_pool(small_run: SmallRun, tmp_path: Path) -> None:
    pool = tmp_path / 'pool'
    for name in ('first', 'second'):
        hooks = [hook_config(small_run, pool, guidance=None)]
        train_online(online_config(small_run, pool, tmp_path / name, hooks=hooks, iterations=2))
        assert [round.ids for round in read_rounds(pool)] == [tuple(f'{number:08d}' for number in range(4))]
    assert '4 samples removed that an earlier run made' in log_of(tmp_path / 'second')
    assert 'pool has no usable samples yet' not in log_of(tmp_path / 'second')  # usable from iteration 0
    line = next(line for line in log_of(tmp_path / 'second').splitlines() if 'synthesis round 0' in line)
    assert '4 masks, 4 new samples; 4 live, 0 retired; used from iteration 0; ' in line


def test_a_process_of_its_own_paints_while_training_goes_on(small_run: SmallRun, tmp_path: Path) -> None:
    class Patient(Recorder):
        def after_train_iter(self, runner: Runner, batch_idx: int, **others) -> None:
            super().after_train_iter(runner, batch_idx, **others)
            end = time.monotonic() + 300
            while runner.iter == 0 and not read_rounds(pool) and time.monotonic() < end:
                time.sleep(0.1)
                for hook in runner.hooks:
                    if isinstance(hook, OnlineSynthesisHook):
                        hook.after_train_iter(runner, batch_idx)

    pool = tmp_path / 'pool'
    hooks = [hook_config(small_run, pool, filter=FILTER, interval=100, process=dict(nice=0))]
    runner, recorder = Runner.from_cfg(online_config(small_run, pool, tmp_path, hooks=hooks, iterations=3)), Patient()
    runner.register_hook(recorder)
    runner.train()
    rounds = read_rounds(pool)
    assert [round.usable_from for round in rounds] == [1] and len(rounds[0].ids) == 4
    assert recorder.origins[0] == ['real'] * 4
    assert sum(origin != 'real' for iteration in (1, 2) for origin in recorder.origins[iteration]) == 4
    assert not [path for path in (pool / '.staging').iterdir() if path.is_dir()]


# --------------------------------------------------------------------------------------------------------------- faults
def test_a_full_disk_costs_a_round(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, data: bytes) -> None:
        if path.stem.startswith('00000002'):
            raise OSError(28, 'No space left on device')
        original(path, data)

    original, pool = store.atomic_write, tmp_path / 'pool'
    monkeypatch.setattr(store, 'atomic_write', write)
    hooks = [hook_config(small_run, pool, guidance=None)]
    _, recorder = train_online(online_config(small_run, pool, tmp_path, hooks=hooks, iterations=4))
    assert sorted(recorder.losses) == [0, 1, 2, 3]
    assert 'synthesis round 0 is lost, training goes on: pool' in log_of(tmp_path)
    assert [(round.round, len(round.ids)) for round in read_rounds(pool)] == [(1, 4)]
    assert len(Pool.open(pool)) == 4 and len(list((pool / 'img_dir').iterdir())) == 4


def test_a_round_that_raises_and_masks_that_raise_are_told(small_run: SmallRun, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def paint(painter: PoolRefresher, order: Order) -> object:
        if order.round == 0:
            raise RuntimeError('no memory')
        painted = original(painter, order)
        return type(painted)(painted.samples[1:], painted.facts | dict(failed={'ValueError: odd mask': 1}))

    original, pool = PoolRefresher.__call__, tmp_path / 'pool'
    monkeypatch.setattr(PoolRefresher, '__call__', paint)
    hooks = [hook_config(small_run, pool, guidance=None)]
    train_online(online_config(small_run, pool, tmp_path, hooks=hooks, iterations=4))
    assert 'synthesis round 0 is lost, training goes on: RuntimeError: no memory' in log_of(tmp_path)
    assert log_of(tmp_path).count('synthesis round 1: 1 masks could not be painted: ValueError: odd mask') == 1
    assert [(round.round, len(round.ids), round.dropped) for round in read_rounds(pool)] == [(1, 3, 1)]


def test_what_must_not_start_does_not(small_run: SmallRun, tmp_path: Path) -> None:
    pool = tmp_path / 'pool'
    GrowingPool(pool, dict(seed=5), ('field', 'road', 'water'), [(0, 0, 0)] * 3, 9).close()

    def config(**changes):
        return online_config(small_run, pool, tmp_path / 'work', hooks=[hook_config(small_run, pool, **changes)])

    with pytest.raises(ValueError, match='holds a pool made with other settings:\n  settings.seed: 5 there, 0 here'):
        train_online(config())
    with pytest.raises(ValueError, match="add dict\\(type='EMAHook'\\) to `custom_hooks`"):
        train_online(config(critic='ema'))
    cfg = config()
    cfg.val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                              dataset=cfg.train_dataloader.dataset)
    cfg.val_cfg, cfg.val_evaluator = dict(type='ValLoop'), dict(type='IoUMetric')
    with pytest.raises(ValueError, match='validation and test must see real data only'):
        train_online(cfg)


# --------------------------------------------------------------------------------------------------- parts, closed form
@pytest.mark.parametrize('options, last, live, due', [
    (dict(interval=10, begin=5), None, 0, [5, 6, 7, 8, 9, 15, 16, 30]),
    (dict(interval=10), 5, 0, [15, 16, 30]),
    (dict(interval=30, min_live=4), 5, 3, [8, 9, 15, 16, 30]),
    (dict(interval=30, min_live=4), 5, 4, []),
    (dict(interval=4, min_live=9), 5, 3, [6, 7, 8, 9, 15, 16, 30]),
])
def test_when_a_round_is_due(options: dict, last: int | None, live: int, due: list[int]) -> None:
    hook = OnlineSynthesisHook('pool', dict(config='c', checkpoint='c'), **options)
    hook._last_order, hook._rounds = last, [Round(0, 0, tuple(map(str, range(live))))] if live else []
    runner = SimpleNamespace(max_iters=31)
    asked = [2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 30, 31, 99]
    assert [done for done in asked if hook._is_due(runner, done) and done >= (last or 0)] == [
        done for done in due if done >= (last or 0)]


def test_retired_files_stay_until_the_last_whole_checkpoint_needs_them_no_more(tmp_path: Path) -> None:
    swept = []
    hook = OnlineSynthesisHook('pool', dict(config='c', checkpoint='c'))
    hook._growing = SimpleNamespace(sweep=swept.append)
    runner, marker = SimpleNamespace(work_dir=tmp_path), tmp_path / 'last_checkpoint'
    hook._rounds, hook._next_round, hook._last_order = [Round(0, 0, ('a', ))], 2, 7

    def save(iteration: int) -> dict:
        checkpoint = dict(meta=dict(iter=iteration))
        hook.before_save_checkpoint(runner, checkpoint)
        return checkpoint[STATE_KEY]

    assert save(10) == dict(published=1, next_round=2, last_order=7)  # killed while it is written: resumes from 0
    save(20)
    assert swept == [0, 0]
    marker.write_text('iter_20.pth')
    save(25)  # a best checkpoint, which no resume finds
    save(30)
    assert swept == [0, 0, 20, 20]
    marker.write_text('iter_30.pth')
    save(40)
    assert swept[-1] == 30


@pytest.mark.parametrize('workers, prefetch, together, world, ahead', [
    (0, None, True, 1, 0), (2, 2, True, 4, 4), (3, 5, True, 1, 15), (2, 2, False, 1, 4), (2, 2, False, 2, 6)])
def test_rounds_count_from_the_first_batch_that_nobody_has_drawn(monkeypatch: pytest.MonkeyPatch, workers: int,
                                                                 prefetch: int | None, together: bool, world: int,
                                                                 ahead: int) -> None:
    monkeypatch.setattr(online_parts, 'get_world_size', lambda: world)
    loader = SimpleNamespace(num_workers=workers, prefetch_factor=prefetch)
    assert batches_ahead(SimpleNamespace(train_dataloader=loader, optim_wrapper=None), together=together) == ahead


def test_the_critic_is_the_model_itself_or_its_average() -> None:
    model, hook = nn.Linear(1, 1), EMAHook()
    hook.ema_model = SimpleNamespace(module=nn.Linear(1, 1))
    runner = SimpleNamespace(model=model, hooks=[hook])
    assert live_segmentor(runner, 'runner') is model and live_segmentor(runner, None) is model
    assert live_segmentor(runner, 'ema') is hook.ema_model.module


def test_the_filter_measures_on_real_data_alone() -> None:
    real = dict(type='LoveDADataset', pipeline=[dict(type='LoadImageFromFile')])
    mixed = dict(type='mmsynth.SyntheticAugmentDataset', dataset=real, pool='pool')
    for dataset, expected in ((mixed, real), (real, real), (dict(type='ConcatDataset', datasets=[mixed, real]),
                                                            dict(type='ConcatDataset', datasets=[real, real]))):
        runner = SimpleNamespace(cfg=SimpleNamespace(train_dataloader=SimpleNamespace(dataset=dataset)))
        assert real_data(runner) == expected


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match='`interval` must be at least 1, got 0; `max_samples` must be at least 64'):
        OnlineSynthesisHook('pool', dict(config='c', checkpoint='c'), interval=0, max_samples=10)


def test_replaced_samples_are_counted() -> None:
    assert count_replaced(dict(data_samples=[dict(replaced=2), dict(), dict(replaced=1)])) == 3
    assert count_replaced(dict(inputs=[])) == count_replaced(None) == 0
