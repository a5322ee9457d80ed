"""Checkpoints with anything changed, or that would run code: an error that names the file, or tensors; nothing runs."""
import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mutations import edits, examples, no_hang, nothing_runs
from pool_samples import CLASSES
from safetensors.torch import save

from mmsynth.utils import read_checkpoint
from mmsynth.utils.checkpoint import read_training_state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('no_fsync')]


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def dangers(marker: str) -> list[Calls]:
    """What leaves a file or starts a process if a checkpoint is unpickled; by detours too."""
    from mmengine import fileio
    from mmengine.registry import FUNCTIONS

    from mmsynth.utils.files import atomic_write
    return [
        Calls(os.mkdir, marker), Calls(os.system, f'touch {marker}'), Calls(exec, f'open({marker!r}, "w")'),
        Calls(eval, f'open({marker!r}, "w")'), Calls(open, marker, 'w'), Calls(shutil.copy, '/etc/hostname', marker),
        Calls(getattr, Calls(__import__, 'os'), 'mkdir'), Calls(partial, os.mkdir, marker),
        Calls(np.save, marker, np.zeros(1)), Calls(torch.save, 1, marker), Calls(atomic_write, marker, b'x'),
        Calls(fileio.put_text, 'x', marker), Calls(fileio.dump, {}, f'{marker}.json'),
        Calls(FUNCTIONS.build, dict(type='x')), Calls(Config.fromfile, marker), Calls(np.load, marker),
        Calls(torch.hub.load, marker, 'x'), Calls(torch.utils.cpp_extension.load, marker, marker)
        if hasattr(torch.utils, 'cpp_extension') else Calls(print, marker)]


def checkpoint() -> dict[str, Any]:
    """What mmengine saves, of a tiny model."""
    history = HistoryBuffer()
    for value in (1.0, 0.5):
        history.update(value)
    weight = torch.arange(6.0).reshape(2, 3)
    return dict(
        meta=dict(iter=2, epoch=0, seed=3, time='20260101_000000', dataset_meta=dict(classes=CLASSES)),
        state_dict={'layer.weight': weight, 'layer.bias': torch.zeros(2), 'layer.half': weight.half()},
        optimizer=dict(state={0: dict(step=torch.tensor(2.0), exp_avg=weight)},
                       param_groups=[dict(lr=0.1, params=[0])]),
        message_hub=dict(log_scalars=dict(loss=history), runtime_info=dict(scalar=np.float64(2), array=np.arange(3))))


def read_as_data(path: Path) -> None:
    """Read a checkpoint by both readers; nothing runs, and errors name it."""
    marker = path.with_name('marker')
    for read in (read_checkpoint, read_training_state):
        with no_hang(), nothing_runs(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                found = read(path)
            except ValueError as error:
                assert str(path) in str(error), error
                continue
        if read is read_checkpoint:
            assert found and all(isinstance(value, torch.Tensor) for value in found.values())
    assert not marker.exists()


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('checkpoints')
    torch.save(checkpoint(), folder / 'whole.pth')
    (folder / 'whole.safetensors').write_bytes(save(checkpoint()['state_dict']))
    read_training_state(folder / 'whole.pth')  # imports what it needs
    return folder


@examples(30, 600)
@given(edit=edits(), suffix=st.sampled_from(['.pth', '.safetensors']))
def test_bytes_of_a_checkpoint(edit: Callable, suffix: str, checkpoints: Path, survived: Callable) -> None:
    path = checkpoints / f'edited{suffix}'
    path.write_bytes(edit((checkpoints / f'whole{suffix}').read_bytes()))
    read_as_data(path)
    survived('mutated: checkpoint')


@examples(30, 400)
@given(edit=edits(), entry=st.integers(0, 20))
def test_bytes_inside_a_checkpoint(edit: Callable, entry: int, checkpoints: Path, survived: Callable) -> None:
    """In a zip file that is whole again; half of them in the pickle."""
    path = checkpoints / 'inside.pth'
    with zipfile.ZipFile(checkpoints / 'whole.pth') as whole, zipfile.ZipFile(path, 'w') as edited:
        names = whole.namelist()
        chosen = names[entry % len(names)] if entry % 2 else next(name for name in names if name.endswith('data.pkl'))
        for name in names:
            edited.writestr(name, edit(whole.read(name)) if name == chosen else whole.read(name))
    read_as_data(path)
    survived('mutated: checkpoint')


@examples(20, 200)
@given(which=st.integers(0, 17), seed=st.integers(0, 2**16), protocol=st.integers(2, 5))
def test_a_checkpoint_that_would_run_code(which: int, seed: int, protocol: int, checkpoints: Path,
                                           survived: Callable) -> None:
    """At any place in it, in torch's format, the one before it, or as a bare pickle."""
    import pickle
    path, rng, content = checkpoints / 'trapped.pth', random.Random(seed), checkpoint()
    danger = dangers(str(checkpoints / 'marker'))[which]
    node = content
    while rng.random() < 0.6 and (below := [value for value in node.values() if isinstance(value, dict)]):
        node = rng.choice(below)
    node[rng.choice(list(node))] = rng.choice([danger, [danger], (danger, 1), {'x': danger}])
    match seed % 3:
        case 0:
            torch.save(content, path, pickle_protocol=protocol)
        case 1:
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
        case _:
            path.write_bytes(pickle.dumps(dict(state_dict=danger), protocol))
    read_as_data(path)  # weights may be read beside what is left unread
    with nothing_runs(), pytest.raises(ValueError, match=str(path)):
        read_training_state(path)
    survived('checkpoint that would run code')
