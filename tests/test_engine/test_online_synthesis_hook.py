"""OnlineSynthesisHook: what it leaves alone, what it publishes, and how a resumed training goes on."""
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from online_run import Recorder, files, hook_config, log_of, online_config, random_states, train_online
from small_run import SmallRun
from torch import nn

from mmsynth.engine.hooks import OnlineSynthesisHook
from mmsynth.engine.hooks import online_synthesis_hook as module
from mmsynth.engine.hooks.online_synthesis_hook import (
    STATE_KEY,
    batches_ahead,
    count_replaced,
    live_segmentor,
    real_data,
)
from mmsynth.online import synthesizer
from mmsynth.online.pool import GrowingPool
from mmsynth.online.request import SynthesisRequest, SynthesisResult
from mmsynth.online.synthesizer import RoundSynthesizer
from mmsynth.pool import Pool, store
from mmsynth.pool.rounds import Round, read_rounds

pytestmark = pytest.mark.process

FILTER = dict(num_images=3, margin=1.5, min_valid=0.05)


@pytest.mark.parametrize('critic', ['runner', 'ema'])
def test_a_round_leaves_the_training_bit_identical(small_run: SmallRun, tmp_path: Path, critic: str) -> None:
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


@pytest.mark.process
@pytest.mark.slow
def test_a_worker_process_generates_while_training_goes_on(small_run: SmallRun, tmp_path: Path) -> None:
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
def no_memory(*arguments: object, **options: object) -> None:
    raise RuntimeError('no memory')


def fill_disk(monkeypatch: pytest.MonkeyPatch, id: str) -> None:
    """Let the disk be full when the files of a sample are written."""
    def write(path: Path, data: bytes) -> None:
        if path.stem.startswith(id):
            raise OSError(28, 'No space left on device')
        original(path, data)

    original = store.atomic_write
    monkeypatch.setattr(store, 'atomic_write', write)


def fail_in_rounds(monkeypatch: pytest.MonkeyPatch, *rounds: int) -> None:
    """Let synthesis raise in some rounds, and leave out a sample in the others."""
    def synthesize(self: RoundSynthesizer, request: SynthesisRequest) -> SynthesisResult:
        if request.round in rounds:
            no_memory()
        result = original(self, request)
        return SynthesisResult(request.round, result.samples[1:],
                               dict(result.statistics, failed={'ValueError: odd mask': 1}))

    original = RoundSynthesizer.__call__
    monkeypatch.setattr(RoundSynthesizer, '__call__', synthesize)


def test_a_full_disk_costs_a_round(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = tmp_path / 'pool'
    fill_disk(monkeypatch, '00000006')
    hooks = [hook_config(small_run, pool, guidance=None, max_samples=100)]
    _, recorder = train_online(online_config(small_run, pool, tmp_path, hooks=hooks, iterations=7))
    assert sorted(recorder.losses) == list(range(7))
    assert 'synthesis round 1 failed: pool' in log_of(tmp_path)
    assert [(round.round, len(round.ids)) for round in read_rounds(pool)] == [(0, 4), (2, 4)]
    assert len(Pool.open(pool)) == 8 and len(list((pool / 'img_dir').iterdir())) == 8


@pytest.mark.parametrize('what', ['the round', 'every mask', 'the disk'])
def test_a_first_round_that_fails_ends_the_training(small_run: SmallRun, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    pool = tmp_path / 'pool'
    if what == 'the round':
        fail_in_rounds(monkeypatch, *range(9))
    elif what == 'every mask':
        monkeypatch.setattr(synthesizer, 'generate_batch', no_memory)
    else:
        fill_disk(monkeypatch, '00000002')
    cfg = online_config(small_run, pool, tmp_path, hooks=[hook_config(small_run, pool, begin=1)], iterations=9)
    runner = Runner.from_cfg(cfg)
    with pytest.raises(RuntimeError, match='No space left' if what == 'the disk' else 'no memory'):
        runner.train()
    assert runner.iter == 0  # at the end of the first iteration
    assert ('Traceback' in log_of(tmp_path)) == (what != 'the disk')


def test_later_rounds_that_fail_end_the_training_when_there_are_too_many_in_a_row(
        small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = tmp_path / 'pool'
    fail_in_rounds(monkeypatch, 1, 3, 4, 5)
    hooks = [hook_config(small_run, pool, guidance=None, interval=1, max_failures=2)]
    runner = Runner.from_cfg(online_config(small_run, pool, tmp_path, hooks=hooks, iterations=9))
    with pytest.raises(RuntimeError, match='`max_failures`=2'):
        runner.train()
    assert [(round.round, len(round.ids), round.dropped) for round in read_rounds(pool)] == [(0, 3, 1), (2, 3, 1)]
    log = log_of(tmp_path)
    assert [f'synthesis round {number} failed: RuntimeError: no memory' in log for number in range(6)] == [
        False, True, False, True, True, False]
    assert log.count('synthesis round 2: 1 masks failed: ValueError: odd mask') == 1


class Raiser(Hook):
    """Ends a training in the middle."""

    priority = 'LOWEST'

    def __init__(self, where: str, error: BaseException) -> None:
        self.where, self.error = where, error

    def before_train(self, runner: Runner) -> None:
        if self.where == 'before_train':
            raise self.error

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None,
                         outputs: object = None) -> None:
        if self.where == 'iteration':
            raise self.error


@pytest.mark.parametrize('process', [None, pytest.param(dict(nice=0), marks=pytest.mark.process)])
@pytest.mark.parametrize('where, error', [
    ('before_train', OSError('odd')), ('iteration', RuntimeError('odd')), ('iteration', KeyboardInterrupt())])
def test_a_training_that_raises_leaves_no_process_and_no_lock(
        small_run: SmallRun, tmp_path: Path, process: dict | None, where: str, error: BaseException) -> None:
    pool = tmp_path / 'pool'
    for _ in range(2):  # the second one starts with the same pool, in the same interpreter
        hooks = [hook_config(small_run, pool, guidance=None, num_per_round=1, process=process)]
        runner = Runner.from_cfg(online_config(small_run, pool, tmp_path, hooks=hooks, iterations=3))
        runner.register_hook(Raiser(where, error))
        with pytest.raises(type(error)) as caught:
            runner.train()
        assert caught.value is error
        assert not multiprocessing.active_children()
    Pool.resume(pool).close()


@pytest.mark.process
@pytest.mark.slow
def test_a_worker_process_that_cannot_start_ends_the_training(small_run: SmallRun, tmp_path: Path) -> None:
    class Slow(Hook):
        def after_train_iter(self, runner: Runner, *arguments: object, **options: object) -> None:
            time.sleep(0.05)

    checkpoint, pool = tmp_path / 'generator.pth', tmp_path / 'pool'
    checkpoint.write_bytes(b'no weights')
    generator = dict(config=str(small_run.config_file), checkpoint=str(checkpoint))
    hooks = [hook_config(small_run, pool, generator=generator, process=dict(nice=0))]
    runner = Runner.from_cfg(online_config(small_run, pool, tmp_path, hooks=hooks, iterations=10**5))
    runner.register_hook(Slow())
    with pytest.raises(RuntimeError, match='cannot start: ValueError: checkpoint'):
        runner.train()
    assert not multiprocessing.active_children()


class EndedWorker:
    """In the place of a worker process: one that gives up in the first iteration."""

    idle = False

    def __init__(self, *arguments: object, **options: object) -> None:
        self.ended, self._asked = None, 0

    def collect(self) -> list:
        self._asked += 1
        self.ended = 'the worker process failed 4 times in a row' if self._asked > 1 else None
        return []

    def start(self) -> None:
        pass

    close = start


def _train_rank(rank: int, small_run: SmallRun, folder: Path, process: dict | None) -> None:
    torch.set_num_threads(1)
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        fail_in_rounds(patch, *range(9))
        patch.setattr(module, 'WorkerProcess', EndedWorker)
        pool = folder / 'pool'
        hooks = [hook_config(small_run, pool, guidance=None, begin=1, interval=30, process=process)]
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
        cfg = online_config(small_run, pool, folder / 'work', hooks=hooks, iterations=50, launcher='pytorch',
                            model_wrapper_cfg=wrapper)
        runner = Runner.from_cfg(cfg)
        with pytest.raises(RuntimeError, match='OnlineSynthesisHook') as caught:
            runner.train()
    (folder / f'{rank}.txt').write_text(f'{runner.iter} {caught.value}')


@pytest.mark.process
@pytest.mark.parametrize('process, iteration, message', [
    (None, 0, 'RuntimeError: no memory'), ({}, 2, 'failed 4 times in a row')], ids=['in process', 'worker process'])
def test_ranks_end_together(small_run: SmallRun, tmp_path: Path, process: dict | None, iteration: int,
                            message: str) -> None:
    context = multiprocessing.get_context('fork')  # nothing to import again
    ranks = [context.Process(target=_train_rank, args=(rank, small_run, tmp_path, process)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for number, rank in enumerate(ranks):
        rank.join(120)
        hangs = rank.is_alive()
        rank.kill()
        assert not hangs and rank.exitcode == 0
        found, error = (tmp_path / f'{number}.txt').read_text().split(' ', 1)
        assert int(found) == iteration and message in error


def test_what_must_not_start_does_not(small_run: SmallRun, tmp_path: Path) -> None:
    pool = tmp_path / 'pool'
    GrowingPool(pool, dict(seed=5), ('field', 'road', 'water'), [(0, 0, 0)] * 3, 9).close()

    def config(**changes):
        return online_config(small_run, pool, tmp_path / 'work', hooks=[hook_config(small_run, pool, **changes)])

    with pytest.raises(ValueError, match='settings.seed: 5 there, 0 here'):
        train_online(config())
    with pytest.raises(ValueError, match="add dict\\(type='EMAHook'\\) to `custom_hooks`"):
        train_online(config(critic='ema'))
    cfg = config()
    cfg.model.decode_head.ignore_index = 254  # its loss would take the 255 of synthetic labels for a class
    with pytest.raises(ValueError, match='`decode_head.ignore_index` is 254'):
        train_online(cfg)
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
    hook._last_request, hook._rounds = last, [Round(0, 0, tuple(map(str, range(live))))] if live else []
    runner = SimpleNamespace(max_iters=31)
    asked = [2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 30, 31, 99]
    assert [done for done in asked if hook._is_due(runner, done) and done >= (last or 0)] == [
        done for done in due if done >= (last or 0)]


def test_retired_files_stay_until_the_last_whole_checkpoint_needs_them_no_more(tmp_path: Path) -> None:
    swept = []
    hook = OnlineSynthesisHook('pool', dict(config='c', checkpoint='c'))
    hook._growing = SimpleNamespace(sweep=swept.append)
    runner, marker = SimpleNamespace(work_dir=tmp_path), tmp_path / 'last_checkpoint'
    hook._rounds, hook._next_round, hook._last_request = [Round(0, 0, ('a', ))], 2, 7

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
    monkeypatch.setattr(module, 'get_world_size', lambda: world)
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
        assert real_data(ConfigDict(dataset)) == real_data(dataset) == expected


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match='`interval`.* got 0; `max_samples`.* 64'):
        OnlineSynthesisHook('pool', dict(config='c', checkpoint='c'), interval=0, max_samples=10)


def test_replaced_samples_are_counted() -> None:
    assert count_replaced(dict(data_samples=[dict(replaced=2), dict(), dict(replaced=1)])) == 3
    assert count_replaced(dict(inputs=[])) == count_replaced(None) == 0
