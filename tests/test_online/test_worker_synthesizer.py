"""A real refresher in a process of its own, on the smallest trained run."""
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmsynth.guidance import SegmentorCritic
from mmsynth.online.child_painter import FACTORY, build_painter, painter_settings
from mmsynth.online.orders import Answer, InProcess, Order
from mmsynth.online.plan import RefreshPlan
from mmsynth.online.process import RefreshProcess
from mmsynth.online.refresher import PoolRefresher
from mmsynth.pool.manifest import plain_json

if TYPE_CHECKING:
    from small_run import SmallRun

PATIENCE = 300.


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the painting process has: sums are rounded alike then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plan(run: 'SmallRun', **changes) -> dict:
    return dict(
        generator=dict(config=str(run.config_file), checkpoint=str(run.generator)),
        guidance=dict(type='mmsynth.CRFM', steps=2, step_size=0.3),
        filter=dict(num_images=4),
        num_per_round=3,
        seed=1) | changes


def real(run: 'SmallRun') -> dict:
    """Config of the real data set."""
    return Config.fromfile(run.critic_config_file).train_dataloader.dataset.to_dict()


def settings(run: 'SmallRun', **changes) -> dict:
    """Of a painting process for a training by the critic's config."""
    return painter_settings(Config.fromfile(run.critic_config_file), plan(run, **changes), dict(real=real(run)))


def segmentor(run: 'SmallRun') -> nn.Module:
    """Not what the critic's checkpoint holds: a moment later in the training."""
    model = SegmentorCritic(str(run.critic_config_file), str(run.critic)).segmentor
    with torch.no_grad():
        model.decode_head.conv_seg.bias += torch.tensor([0.5, -0.5, 0.])
    return model.train()


def next_answer(painting: RefreshProcess) -> Answer:
    end, answers = time.monotonic() + PATIENCE, []
    while not answers:
        assert time.monotonic() < end
        answers = painting.collect()
        time.sleep(0.01)
    return answers[0]


def test_both_ways_paint_the_same(small_run: 'SmallRun', tmp_path: Path, one_thread: None) -> None:
    critic = segmentor(small_run)
    here = InProcess(PoolRefresher(RefreshPlan(**plan(small_run)), real=real(small_run)))
    there = RefreshProcess(FACTORY, settings(small_run), tmp_path / 'staging', nice=0)
    answers = []
    for painting in (here, there):
        painting.start()
        painting.submit(Order(2, segmentor=critic))
        answers.append(next_answer(painting))
    there.submit(Order(3, segmentor=nn.Linear(1, 1)))  # weights of something else
    wrong = next_answer(there)
    for painting in (here, there):
        painting.close()

    own, other = answers
    assert own.error is None and other.error is None and len(own.samples) == len(other.samples) > 0
    for a, b in zip(own.samples, other.samples):
        assert a.id == b.id and np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
        assert np.array_equal(a.filtered, b.filtered)
        assert plain_json(a.details) == b.details
    assert dict(own.facts) == other.facts
    assert 'of the segmentor in training does not fit' in wrong.error and not wrong.samples


def test_a_refresher_that_cannot_be_built_says_why(small_run: 'SmallRun', tmp_path: Path) -> None:
    damaged = tmp_path / 'iter_2.pth'
    damaged.write_bytes(b'no weights')
    bad = settings(small_run, generator=dict(config=str(small_run.config_file), checkpoint=str(damaged)))
    painting = RefreshProcess(FACTORY, bad, tmp_path / 'staging', nice=0)
    painting.start()
    end = time.monotonic() + PATIENCE
    while painting.ended is None and time.monotonic() < end:
        assert painting.collect() == []
        time.sleep(0.01)
    assert f'cannot start: ValueError: checkpoint {damaged} cannot be read' in painting.ended
    painting.close()


def test_the_weights_of_an_order_guide(small_run: 'SmallRun') -> None:
    paint = build_painter(**settings(small_run, filter=None))
    first = segmentor(small_run)
    second = segmentor(small_run)
    with torch.no_grad():
        second.decode_head.conv_seg.weight *= -1
    images = [paint(Order(0, weights=model.state_dict())).samples[0].image for model in (first, second, first)]
    assert not np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])
    with pytest.raises(ValueError, match='needs the segmentor in training'):
        paint(Order(0))


def test_no_segmentor_is_built_that_nobody_asks(small_run: 'SmallRun') -> None:
    alone = settings(small_run, filter=None, guidance=None, critic=None)
    alone['segmentor'] = dict(model=dict(type='NoSuchModel'))
    assert len(build_painter(**alone)(Order(0)).samples) == 3


def test_settings_are_plain_and_of_the_training(small_run: 'SmallRun') -> None:
    cfg = Config.fromfile(small_run.critic_config_file)
    cfg.custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
    found = painter_settings(cfg, plan(small_run), dict(real=cfg.train_dataloader.dataset))
    assert found['segmentor'].keys() == {'model'} and found['default_scope'] == 'mmseg'
    assert found['imports'] == ['mmsynth']
    assert all(type(value) is dict for value in (*found['segmentor'].values(), found['real'], found['plan']))
