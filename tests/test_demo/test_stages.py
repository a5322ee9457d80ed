"""Stages of a demo: side by side in processes of one thread each, no more of them than there are processors."""
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from projects.demo import stages
from projects.demo.stages import Stages

CONFIGS = Path(__file__).resolve().parents[2] / 'projects' / 'demo' / 'configs'


def meet(folder: Path, name: str) -> tuple[int, int]:
    """Wait for the other stage, which must run at the same time; the process and its threads."""
    (folder / name).touch()
    end = time.monotonic() + 200
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert len(list(folder.iterdir())) == 2
    return os.getpid(), torch.get_num_threads()


def fail() -> None:
    raise ValueError('no such config')


@pytest.mark.process
def test_stages_run_at_once_in_processes_of_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, 'available_cpus', lambda: 2)
    with Stages() as workers:
        found = workers.run({name: partial(meet, tmp_path, name) for name in ('one', 'other')})
        again = workers.run(dict(last=os.getpid))
    assert again['last'] in {process for process, _ in found.values()}  # starting one takes seconds
    assert list(found) == ['one', 'other'] and {threads for _, threads in found.values()} == {1}
    assert len({os.getpid(), *(process for process, _ in found.values())}) == 3


def test_with_one_processor_they_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, 'available_cpus', lambda: 1)
    with Stages() as workers:
        assert set(workers.run(dict(one=os.getpid, other=os.getpid)).values()) == {os.getpid()}


@pytest.mark.process
def test_a_stage_that_fails_ends_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match='no such config'), Stages(2) as workers:
        workers.run(dict(endless=partial(time.sleep, 400), broken=fail))
    assert time.monotonic() - start < 300 and not multiprocessing.active_children()


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_configs_train_in_one_thread_by_themselves_too(path: Path) -> None:
    cfg = Config.fromfile(path)
    if 'model' in cfg:
        assert cfg.default_hooks.threads == dict(type='mmsynth.NumThreadsHook', num_threads=1)
