"""Mixed batches through the host's data loader and loop: workers, a pool that grows meanwhile, and a resume."""
import itertools
from pathlib import Path

import pytest
import torch
from mixed_data import mixed_config, mixed_loader, publish, write_mixed
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from pool_samples import write_pool

from mmsynth.datasets.samplers import align_with_runner

pytestmark = pytest.mark.process

REAL, SYNTHETIC = 10, 6


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp('mixed'), real=REAL, synthetic=SYNTHETIC)


def contents(batch):
    """What a batch holds, to the last pixel."""
    return [(sample.origin, sample.get('sample_id') or Path(sample.img_path).stem, image.sum().item(),
             sample.gt_sem_seg.data.sum().item(), sample.get('replaced'))
            for image, sample in zip(batch['inputs'], batch['data_samples'])]


def take(loader, count):
    return list(map(contents, itertools.islice(loader, count)))


@pytest.mark.parametrize('options', [
    dict(workers=1),
    dict(workers=2, loader=dict(persistent_workers=True, prefetch_factor=3)),
    dict(workers=1, loader=dict(multiprocessing_context='spawn'))], ids=['one', 'persistent', 'spawn'])
def test_batches_are_the_same_with_any_workers(root, options):
    found = take(mixed_loader(root, ratio=0.5, **options), 12)
    torch.rand(3)  # nor does it matter what was drawn elsewhere
    assert found == take(mixed_loader(root, ratio=0.5), 12)
    assert {name for batch in found for _, name, *_ in batch} >= {f's{number}' for number in range(SYNTHETIC)}


def test_epochs_with_persistent_workers(root):
    loader = mixed_loader(root, ratio=0.5, endless=False, workers=2, loader=dict(persistent_workers=True))
    assert len(loader) == 2
    found = [contents(batch) for _ in range(3) for batch in loader]
    assert found == take(mixed_loader(root, ratio=0.5), 6)


def test_running_workers_see_a_pool_that_grows(tmp_path):
    write_mixed(tmp_path, real=REAL, synthetic=0)
    loader = mixed_loader(tmp_path, ratio=0.4, workers=2, loader=dict(persistent_workers=True))
    batches = iter(loader)
    found = [contents(next(batches)) for _ in range(3)]
    write_pool(tmp_path / 'pool', [{}] * 4)
    ahead = 2 * 2 + 1  # batches that two workers may have been given already, and the next
    publish(tmp_path, (2 + ahead, [2, 0], []))
    found += [contents(next(batches)) for _ in range(6)]
    publish(tmp_path, (2 + ahead, [2, 0], []), (8 + ahead, [1, 3], [2]))
    found += [contents(next(batches)) for _ in range(12)]
    drawn = [sorted(name for origin, name, *_ in batch if origin == 'synthetic') for batch in found]
    assert list(map(len, drawn)) == [0] * 7 + [2] * 14
    assert drawn[7:13] == [['s0', 's2']] * 6 and set(sum(drawn[13:], [])) == {'s0', 's1', 's3'}
    assert all(replaced in (None, 0) for batch in found for *_, replaced in batch)
    resumed = mixed_loader(tmp_path, ratio=0.4)
    resumed.batch_sampler.set_iteration(5)
    assert take(resumed, 16) == found[5:]


def test_workers_say_what_they_replaced(tmp_path):
    write_mixed(tmp_path, real=REAL, synthetic=3)
    next((tmp_path / 'pool/img_dir').glob('s1-*.png')).unlink()
    found = take(mixed_loader(tmp_path, ratio=0.6, workers=2), 6)
    counts = [replaced for batch in found for origin, *_, replaced in batch if origin == 'synthetic']
    assert (len(counts), sum(counts)) == (18, 6)
    assert {name for batch in found for origin, name, *_ in batch if origin == 'synthetic'} == {'s0', 's2'}
    assert found == take(mixed_loader(tmp_path, ratio=0.6), 6)


class Scale(BaseModel):
    """One weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.weight * sum(image.float().mean() for image in inputs))


class Recorder(Hook):
    """Aligns the sampler, and notes what each iteration gets."""

    def __init__(self, aligned=True):
        self.aligned, self.seen = aligned, {}

    def before_train(self, runner):
        if self.aligned:
            align_with_runner(runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen[runner.iter] = contents(data_batch)


def train(root, work_dir, *, iterations=8, resume=False, aligned=True, workers=0, seed=3):
    recorder = Recorder(aligned)
    runner = Runner(
        Scale(), str(work_dir), train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations),
        train_dataloader=dict(
            batch_size=4, num_workers=workers, dataset=mixed_config(root),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=0.5)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)), randomness=dict(seed=seed), resume=resume,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=5, by_epoch=False)), default_scope='mmseg',
        custom_hooks=[recorder], experiment_name=f'{root.name}-{work_dir.name}-{resume}-{aligned}-{workers}-{seed}')
    runner.train()
    return recorder.seen


@pytest.mark.parametrize('aligned, workers, seed', [(True, 2, 3), (False, 2, 3), (True, 0, None)])
def test_a_resumed_training_draws_what_an_unbroken_one_does(root, tmp_path, aligned, workers, seed):
    """With the hook's help, and by the host's own skipping; a random seed is that of the checkpoint."""
    options = dict(aligned=aligned, workers=workers, seed=seed)
    unbroken = train(root, tmp_path / 'work', iterations=9, **options)
    (tmp_path / 'work/last_checkpoint').write_text(str(tmp_path / 'work/iter_5.pth'))
    resumed = train(root, tmp_path / 'work', iterations=9, resume=True, **options)
    assert sorted(unbroken) == list(range(9)) and sorted(resumed) == list(range(5, 9))
    assert resumed == {iteration: unbroken[iteration] for iteration in range(5, 9)}
