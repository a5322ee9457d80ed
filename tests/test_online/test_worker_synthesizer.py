"""The synthesizer that a worker process builds, on the smallest trained run."""
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
from mmsynth.online.request import InProcess, SynthesisRequest, SynthesisResult
from mmsynth.online.settings import RoundSettings
from mmsynth.online.synthesizer import (
    BUILD_SYNTHESIZER,
    RoundSynthesizer,
    build_synthesizer,
    synthesizer_arguments,
)
from mmsynth.online.worker import WorkerProcess
from mmsynth.pool.manifest import plain_json

pytestmark = pytest.mark.process

if TYPE_CHECKING:
    from small_run import SmallRun

PATIENCE = 300.


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the worker process has: sums are rounded alike then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def options(run: 'SmallRun', **changes) -> dict:
    return dict(
        generator=dict(config=str(run.config_file), checkpoint=str(run.generator)),
        guidance=dict(type='mmsynth.CRFM', steps=2, step_size=0.3),
        filter=dict(num_images=4),
        num_per_round=3,
        seed=1) | changes


def real(run: 'SmallRun') -> dict:
    """Config of the real data set."""
    return Config.fromfile(run.critic_config_file).train_dataloader.dataset.to_dict()


def arguments(run: 'SmallRun', **changes) -> dict:
    """Of a worker process for a training by the critic's config."""
    return synthesizer_arguments(Config.fromfile(run.critic_config_file), options(run, **changes), real=real(run))


def segmentor(run: 'SmallRun') -> nn.Module:
    """Not what the critic's checkpoint holds: a moment later in the training."""
    model = SegmentorCritic(str(run.critic_config_file), str(run.critic)).segmentor
    with torch.no_grad():
        model.decode_head.conv_seg.bias += torch.tensor([0.5, -0.5, 0.])
    return model.train()


def next_result(backend: WorkerProcess) -> SynthesisResult:
    end, results = time.monotonic() + PATIENCE, []
    while not results:
        assert time.monotonic() < end
        results = backend.collect()
        time.sleep(0.01)
    return results[0]


@pytest.mark.process
@pytest.mark.slow
def test_both_ways_generate_the_same(small_run: 'SmallRun', tmp_path: Path, one_thread: None) -> None:
    critic = segmentor(small_run)
    here = InProcess(RoundSynthesizer(RoundSettings(**options(small_run)), real=real(small_run)))
    there = WorkerProcess(BUILD_SYNTHESIZER, arguments(small_run), tmp_path / 'staging', nice=0)
    results = []
    for backend in (here, there):
        backend.start()
        backend.submit(SynthesisRequest(2, segmentor=critic))
        results.append(next_result(backend))
    there.submit(SynthesisRequest(3, segmentor=nn.Linear(1, 1)))  # weights of something else
    wrong = next_result(there)
    for backend in (here, there):
        backend.close()

    own, other = results
    assert own.error is None and other.error is None and len(own.samples) == len(other.samples) > 0
    for a, b in zip(own.samples, other.samples):
        assert a.id == b.id and np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
        assert np.array_equal(a.filtered, b.filtered)
        assert plain_json(a.details) == b.details
    assert dict(own.statistics) == other.statistics
    assert 'of the segmentor in training does not fit' in wrong.error and not wrong.samples


def test_the_weights_of_a_request_guide(small_run: 'SmallRun') -> None:
    synthesize = build_synthesizer(**arguments(small_run, filter=None))
    first = segmentor(small_run)
    second = segmentor(small_run)
    with torch.no_grad():
        second.decode_head.conv_seg.weight *= -1
    images = [synthesize(SynthesisRequest(0, weights=model.state_dict())).samples[0].image
              for model in (first, second, first)]
    assert not np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_no_segmentor_is_built_that_nobody_asks(small_run: 'SmallRun') -> None:
    alone = arguments(small_run, filter=None, guidance=None, critic=None)
    alone['segmentor'] = dict(model=dict(type='NoSuchModel'))
    assert len(build_synthesizer(**alone)(SynthesisRequest(0)).samples) == 3


def test_the_arguments_are_plain_and_of_the_training(small_run: 'SmallRun') -> None:
    cfg = Config.fromfile(small_run.critic_config_file)
    cfg.custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
    found = synthesizer_arguments(cfg, options(small_run), real=cfg.train_dataloader.dataset)
    assert found['segmentor'].keys() == {'model'} and found['default_scope'] == 'mmseg'
    assert found['imports'] == ['mmsynth']
    assert all(type(value) is dict for value in (*found['segmentor'].values(), found['real'], found['settings']))
