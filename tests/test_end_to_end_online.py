"""Synthesis inside the segmentor's training, by the commands that a user types: mmseg's own tools/train.py.

Each training records what every iteration drew and lost, so that an unbroken one and one that was killed and resumed
can be compared number by number; with two worker processes per rank, alone and as two ranks.
"""
import json
import math
import os
import random
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import NAMES, SmallRun, command

from mmsynth.host import host_script
from mmsynth.pool import Pool
from mmsynth.pool.rounds import read_rounds
from mmsynth.utils import read_checkpoint

ITERATIONS, INTERVAL, CHECKPOINT = 24, 5, 6
BATCH, PER_ROUND, MOST = 5, 3, 6
RATIO = 0.5

ONLINE = """
_base_ = '{folder}/critic.py'
custom_imports = dict(imports=['mmsynth', 'recorder'], allow_failed_imports=False)
log_level = 'INFO'
model = dict(decode_head=dict(dropout_ratio=0.0))  # mmengine's checkpoints have no random state
pool = '{pool}'
train_cfg = dict(max_iters={iterations})
default_hooks = dict(checkpoint=dict(interval={checkpoint}))
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
train_dataloader = dict(
    batch_size={batch},
    num_workers=2,
    persistent_workers=True,
    batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio={ratio}),
    dataset=dict(_delete_=True, type='mmsynth.SyntheticAugmentDataset', dataset=_base_.real, pool=pool))
custom_hooks = [
    dict(
        type='mmsynth.OnlineSynthesisHook',
        pool=pool,
        begin={interval},
        interval={interval},
        num_per_round={per_round},
        max_samples={most},
        critic='runner',
        guidance=dict(type='mmsynth.CRFM', steps=2, step_size=0.3),
        filter=dict(num_images=2, min_valid=0.0),
        process={process},
        generator=dict(config='{folder}/generator.py', checkpoint='{generator}')),
    dict(type='Recorder'),
]
"""

# mmengine sets a GPU before it makes a process group; one that is there already it takes.
RECORDER = '''
import json, os, signal
from pathlib import Path
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmsynth.host import host_script
from mmsynth.pool import Pool
from yapf.yapflib import yapf_api

yapf_api.FormatCode = lambda text, **options: (text, True)  # as in conftest.py

if 'RANK' in os.environ and not torch.distributed.is_initialized():
    torch.distributed.init_process_group('gloo')


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


if 'KILL_AT_SAMPLE' in os.environ:
    add = Pool.add

    def fatal_add(self, id, *args, **kwargs):
        if id == os.environ['KILL_AT_SAMPLE']:
            kill()
        return add(self, id, *args, **kwargs)

    Pool.add = fatal_add


@HOOKS.register_module()
class Recorder(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        samples = data_batch['data_samples']
        drawn = [sample.get('sample_id') or Path(sample.img_path).stem for sample in samples]
        origins = [sample.origin for sample in samples]
        line = dict(iteration=batch_idx, drawn=drawn, origins=origins, loss=float(outputs['loss']))
        with open(f'{runner.work_dir}/rank{get_rank()}.jsonl', 'a') as file:
            file.write(json.dumps(line) + '\\n')
        if str(batch_idx) == os.environ.get('KILL_AT_ITERATION'):
            kill()
        if 'STOP_WHEN_DRAWN' in os.environ and 'synthetic' in origins:
            runner.train_loop.stop_training = True
'''

pytestmark = [pytest.mark.process, pytest.mark.slow]


@dataclass(frozen=True)
class Training:
    """What a training left.

    Attributes:
        folder: Holds its config, its pool and the work folder.
        output: What the last command wrote.
    """

    folder: Path
    output: str = ''

    @property
    def pool(self) -> Path:
        return self.folder / 'pool'

    def records(self, rank: int = 0) -> list[dict[str, Any]]:
        """What every iteration drew and lost; of one that was done twice, the last time."""
        lines = (self.folder / 'work' / f'rank{rank}.jsonl').read_text().splitlines()
        found = {record['iteration']: record for record in map(json.loads, lines)}
        return [found[iteration] for iteration in sorted(found)]

    def logged(self) -> dict[int, float]:
        """Step → loss, from the host's JSON logs; of a step that was logged twice, the last time."""
        lines = [line for path in sorted((self.folder / 'work').glob('*/vis_data/scalars.json'))
                 for line in path.read_text().splitlines()]
        return {entry['step']: entry['loss'] for entry in map(json.loads, lines) if 'loss' in entry}

    def weights(self) -> dict[str, torch.Tensor]:
        return read_checkpoint(self.folder / 'work' / f'iter_{ITERATIONS}.pth')


def write_config(run: SmallRun, folder: Path, *, iterations: int = ITERATIONS, process: dict | None = None) -> Training:
    """The config, and the module that it imports to record and to be killed."""
    folder.mkdir(parents=True)
    (folder / 'recorder.py').write_text(RECORDER)
    (folder / 'online.py').write_text(ONLINE.format(
        folder=run.folder.as_posix(), generator=run.generator.as_posix(), pool=(folder / 'pool').as_posix(),
        iterations=iterations, interval=INTERVAL, checkpoint=CHECKPOINT, batch=BATCH, per_round=PER_ROUND, most=MOST,
        ratio=RATIO, process=process))
    return Training(folder)


def train(training: Training, *, ranks: int = 1, resume: bool = False, **environment: object) -> Training:
    """Run mmseg's tools/train.py to its end, or until it is killed as ``KILL_AT_…`` in the environment says."""
    script = host_script('train.py')
    arguments = [script, training.folder / 'online.py', '--work-dir', training.folder / 'work']
    arguments += ['--resume'] if resume else []
    if ranks > 1:
        arguments = ['-m', 'torch.distributed.run', '--nproc_per_node', ranks, '--master_addr', '127.0.0.1',
                     '--master_port', free_port(), *arguments, '--launcher', 'pytorch']
    line, env = command(*arguments, on_path=True)
    env |= {name: str(value) for name, value in environment.items()}
    env['PYTHONPATH'] += os.pathsep + str(training.folder)
    result = subprocess.run(line, cwd=training.folder, env=env, capture_output=True, text=True, timeout=600)
    output = result.stdout + result.stderr
    if any(name.startswith('KILL') for name in environment):
        killed = result.returncode == -signal.SIGKILL if ranks == 1 else result.returncode and 'SIGKILL' in output
        assert killed, output[-3000:]
    else:
        assert result.returncode == 0, output[-3000:]
    return Training(training.folder, output)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture(scope='module', params=[1, 2], ids=['alone', 'two ranks'])
def ranks(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope='module')
def unbroken(small_run: SmallRun, ranks: int, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return train(write_config(small_run, tmp_path_factory.mktemp('unbroken') / 'run'), ranks=ranks)


@pytest.fixture(scope='module')
def resumed(small_run: SmallRun, ranks: int, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Killed twice, by SIGKILL: after a checkpoint, at a random iteration; then half-way through storing a round."""
    training = write_config(small_run, tmp_path_factory.mktemp('resumed') / 'run')
    train(training, ranks=ranks, KILL_AT_ITERATION=random.randrange(CHECKPOINT, ITERATIONS - INTERVAL - 2))
    rounds = len(read_rounds(training.pool))
    train(training, ranks=ranks, resume=True, KILL_AT_SAMPLE=f'{rounds * PER_ROUND + 1:08d}')
    assert [record.id for record in Pool.open(training.pool).records][-1] == f'{rounds * PER_ROUND:08d}'
    return train(training, ranks=ranks, resume=True)


class TestUnbroken:

    def test_rounds_are_generated_while_it_trains(self, unbroken: Training) -> None:
        rounds = read_rounds(unbroken.pool)
        assert len(rounds) == (ITERATIONS - 1) // INTERVAL
        ids = [id for found in rounds for id in found.ids]
        assert len(set(ids)) == len(ids) and sum(found.dropped for found in rounds) == 0
        assert ids == [f'{number:08d}' for number in range(len(rounds) * PER_ROUND)]
        assert all(record.guidance['name'] == 'CRFM' for record in Pool.open(unbroken.pool).records)

    def test_the_oldest_leave(self, unbroken: Training) -> None:
        live: list[str] = []
        for found in read_rounds(unbroken.pool):
            live = [id for id in live if id not in found.retired] + list(found.ids)
            assert len(live) <= MOST and live == sorted(live)
        assert len(live) == MOST

    def test_every_batch_holds_its_share(self, unbroken: Training, ranks: int) -> None:
        """Real ones only until the first round can be drawn; then the exact share, rounded over the batches."""
        first = read_rounds(unbroken.pool)[0].usable_from
        counts = [[record['origins'].count('synthetic') for record in unbroken.records(rank)] for rank in range(ranks)]
        assert all(len(own) == ITERATIONS and set(own[:first]) <= {0} for own in counts)
        together = [sum(column) for column in zip(*counts)][first:]
        assert set(together) <= {math.floor(BATCH * ranks * RATIO), math.ceil(BATCH * ranks * RATIO)}
        for length in range(1, len(together) + 1):
            assert abs(sum(together[:length]) - RATIO * BATCH * ranks * length) < 1

    def test_only_live_samples_are_drawn(self, unbroken: Training, ranks: int) -> None:
        rounds = read_rounds(unbroken.pool)
        for rank in range(ranks):
            for record in unbroken.records(rank):
                usable = [found for found in rounds if found.usable_from <= record['iteration']]
                live = {id for found in usable for id in found.ids} - {id for found in usable for id in found.retired}
                assert {name for name in record['drawn'] if name.isdigit()} <= live
                assert {name for name in record['drawn'] if not name.isdigit()} <= set(NAMES)

    def test_ranks_share_one_order(self, unbroken: Training, ranks: int) -> None:
        """Together they go through the real samples as one: each is drawn about equally often."""
        drawn = [name for rank in range(ranks) for record in unbroken.records(rank) for name in record['drawn']]
        counts = [drawn.count(name) for name in NAMES]
        assert max(counts) - min(counts) <= 1

    def test_the_log_and_the_pictures(self, unbroken: Training) -> None:
        assert len(unbroken.logged()) == ITERATIONS
        assert 'round 0' in unbroken.output
        pictures = {path.name.rsplit('_', 1)[0] for path in unbroken.folder.glob('work/*/vis_data/vis_image/*.png')}
        assert {'online_samples', 'online_classes'} <= pictures


class TestKilledAndResumed:

    def test_it_draws_the_same_samples(self, unbroken: Training, resumed: Training, ranks: int) -> None:
        for rank in range(ranks):
            assert [record['drawn'] for record in resumed.records(rank)] == [
                record['drawn'] for record in unbroken.records(rank)]

    def test_it_loses_the_same(self, unbroken: Training, resumed: Training, ranks: int) -> None:
        for rank in range(ranks):
            assert [record['loss'] for record in resumed.records(rank)] == pytest.approx(
                [record['loss'] for record in unbroken.records(rank)], rel=1e-5)
        assert resumed.logged() == pytest.approx(unbroken.logged(), rel=1e-4)

    def test_it_ends_with_the_same_weights(self, unbroken: Training, resumed: Training) -> None:
        weights = resumed.weights()
        for name, value in unbroken.weights().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)

    def test_it_has_the_same_pool(self, unbroken: Training, resumed: Training) -> None:
        assert read_rounds(resumed.pool) == read_rounds(unbroken.pool)
        pools = [Pool.open(training.pool) for training in (unbroken, resumed)]
        assert pools[0].records == pools[1].records
        for record in pools[0].records:
            for path in record.files:
                assert (resumed.pool / path).read_bytes() == (unbroken.pool / path).read_bytes()


def test_in_a_worker_process(small_run: SmallRun, tmp_path: Path) -> None:
    """Training does not wait for it; its samples are drawn as soon as they are there, and it ends with the training."""
    training = train(write_config(small_run, tmp_path / 'run', iterations=10**6, process={}), STOP_WHEN_DRAWN=1)
    *before, last = training.records()
    assert len(before) > INTERVAL and all(set(record['origins']) == {'real'} for record in before)
    (first, *_) = read_rounds(training.pool)
    assert first.usable_from == last['iteration']
    assert {name for name in last['drawn'] if name.isdigit()} <= set(first.ids)
    assert all(math.isfinite(record['loss']) for record in training.records())
