"""What a training step of a generator draws: by seed, iteration and rank, not by the global random state."""
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub
from small_run import ROOT, command

from mmsynth.models.generators import training_randomness

SCRIPT = """
import json, sys
rank, tests, store = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.path.insert(0, tests)
import torch
import torch.distributed as dist
from mmengine.logging import MessageHub
from mmseg.utils import register_all_modules
register_all_modules()
from tiny_generator import images, samples, todsynth
torch.set_num_threads(1)
dist.init_process_group('gloo', init_method='file://' + store, rank=rank, world_size=2)
model = todsynth(prompt_dropout=0.5)
wrapped = torch.nn.parallel.DistributedDataParallel(model.train(), find_unused_parameters=True)
torch.manual_seed(0)  # the host seeds all ranks alike
loss = wrapped(images(), samples(), mode='loss')['loss_velocity']
loss.backward()
gradient = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)

def loss_of_training(seed):  # with a new object, as a process that resumes has
    hub = MessageHub.get_current_instance()
    for key, value in dict(loop_stage='train', seed=seed, iter=7).items():
        hub.update_info(key, value)
    return float(todsynth(prompt_dropout=0.5).loss(images(), samples())['loss_velocity'])

# With diff_rank_seed the host's seed is seed + rank, and after a resume on all ranks that of rank 0's checkpoint.
print('RESULT', json.dumps(dict(loss=float(loss), gradient=gradient, unbroken=loss_of_training(3 + rank),
                                resumed=loss_of_training(3))))
"""


@pytest.fixture
def training() -> Iterator[MessageHub]:
    """A message hub as a runner's training leaves it."""
    hub = MessageHub.get_instance('test_training_rng')
    for key, value in dict(loop_stage='train', seed=3, iter=7).items():
        hub.update_info(key, value)
    yield hub
    hub.pop_info('loop_stage')


def draw() -> torch.Tensor:
    return torch.randn(4, generator=training_randomness.TrainingRandomness()())


def test_in_training_it_follows_from_seed_iteration_and_rank(
        training: MessageHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw()
    torch.randn(100)
    assert torch.equal(draw(), first)  # not of the global state: a resumed run does not have it
    training.update_info('iter', 8)
    other_iteration = draw()
    training.update_info('iter', 7)
    monkeypatch.setattr(training_randomness, 'get_rank', lambda: 1)
    assert not torch.equal(other_iteration, first) and not torch.equal(draw(), first)


def test_dropout_inside_the_network_follows_them_too(training: MessageHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA's, which draws from torch's global generator."""
    def dropped() -> torch.Tensor:
        draw()
        return torch.nn.functional.dropout(torch.ones(64))

    first = dropped()
    torch.manual_seed(5)
    assert torch.equal(dropped(), first)
    training.update_info('iter', 8)
    assert not torch.equal(dropped(), first)
    training.update_info('iter', 7)
    monkeypatch.setattr(training_randomness, 'get_rank', lambda: 1)
    assert not torch.equal(dropped(), first)


def test_a_second_draw_in_one_iteration_is_another(training: MessageHub) -> None:
    """Such as after a training that was broken off, which leaves its stage and iteration standing."""
    rng = training_randomness.TrainingRandomness()
    first, second, third = (torch.randn(4, generator=rng()) for _ in range(3))
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_outside_of_a_training_it_follows_the_global_state_and_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    first, second = draw(), draw()
    torch.manual_seed(0)
    assert torch.equal(draw(), first) and not torch.equal(first, second)
    torch.manual_seed(0)
    monkeypatch.setattr(training_randomness, 'get_rank', lambda: 1)
    assert not torch.equal(draw(), first)


@pytest.mark.process
def test_two_ranks_draw_their_own_share_gradients_and_resume_alike(tmp_path: Path) -> None:
    processes = []
    for rank in range(2):
        line, env = command('-c', SCRIPT, rank, ROOT / 'tests', tmp_path / 'store', on_path=True)
        processes.append(subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    results = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        results.append(json.loads(output.split('RESULT')[1]))
    assert results[0]['loss'] != results[1]['loss']  # the same images and masks, other noise
    assert results[0]['gradient'] == pytest.approx(results[1]['gradient'])
    assert results[0]['unbroken'] != results[1]['unbroken']
    assert all(result['resumed'] == result['unbroken'] for result in results)
