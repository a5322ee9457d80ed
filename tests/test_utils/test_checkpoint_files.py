"""Checkpoints are read as data, and loaded whole or not at all."""
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import CosineAnnealingLR, OneCycleLR
from safetensors.torch import save_file
from torch import nn

from mmsynth.utils import LoadReport, load_state_dict, read_checkpoint
from mmsynth.utils.checkpoint import read_training_state

TENSORS = {'weight': torch.arange(6.).reshape(2, 3), 'bias': torch.ones(2)}


def assert_same(state: dict[str, torch.Tensor]) -> None:
    assert state.keys() == TENSORS.keys()
    assert all(torch.equal(state[key], value) for key, value in TENSORS.items())


@pytest.mark.parametrize('name, write', [
    ('a.safetensors', lambda path: save_file(TENSORS, path)),
    ('a.pth', lambda path: torch.save(TENSORS, path)),
    ('a.ckpt', lambda path: torch.save(dict(state_dict=TENSORS, epoch=3), path)),
    ('nested.pth', lambda path: torch.save(dict(state_dict=dict(state_dict=TENSORS)), path)),
    ('zipless.pth', lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False)),
])
def test_every_layout_reads_the_same(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    assert_same(read_checkpoint(tmp_path / name))
    assert_same(read_checkpoint(str(tmp_path / name)))


def test_a_release_is_a_folder(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / 'model.safetensors')
    assert_same(read_checkpoint(tmp_path))


def test_what_mmengine_stores_beside_the_weights_is_read_over(tmp_path: Path) -> None:
    """Its checkpoints hold the log history, which is a pickled class of its own with numpy arrays and scalars."""
    hub = MessageHub('test_checkpoint_files')
    for step in range(3):
        hub.update_scalar('train/loss', np.float64(step))
        hub.update_scalar('train/lr', 0.1)
    hub.update_info('iter', np.int64(3))
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(meta=dict(epoch=1, seed=0), message_hub=hub.state_dict(), state_dict=TENSORS), path)
    with pytest.raises(Exception, match='HistoryBuffer'):  # the file is one that torch alone refuses
        torch.load(path, weights_only=True)
    assert_same(read_checkpoint(path))


def test_scheduler_state_beside_the_weights_is_read_over(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    schedulers = [OneCycleLR(optimizer, eta_max=1e-3, total_steps=10, by_epoch=False),
                  CosineAnnealingLR(optimizer, T_max=10, by_epoch=False)]
    path = tmp_path / 'iter_1.pth'
    torch.save(dict(state_dict=TENSORS, param_schedulers=[scheduler.state_dict() for scheduler in schedulers],
                    optimizer=optimizer.state_dict()), path)
    assert_same(read_checkpoint(path))


class Reduced:
    """Calls a function when it is unpickled."""

    def __init__(self, call: Callable, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call, self.arguments


@pytest.mark.parametrize('call', [os.system, os.mkdir])
@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_file_is_not_run(call: Callable, zipped: bool, tmp_path: Path) -> None:
    path, marker = tmp_path / 'trap.pth', tmp_path / 'marker'
    content = dict(state_dict=TENSORS, meta=Reduced(call, f'mkdir {marker}' if call is os.system else str(marker)))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match='posix.* run code') as caught:
        read_checkpoint(path)
    assert not marker.exists() and 'weights_only' not in str(caught.value)  # torch advises to read it unsafely


def test_an_unknown_class_in_a_file_is_named(tmp_path: Path) -> None:
    torch.save(dict(state_dict=TENSORS, hook=nn.ReLU()), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='torch.nn.modules.activation.ReLU'):
        read_checkpoint(tmp_path / 'a.pth')


def test_getattr_in_a_file_reaches_nothing(tmp_path: Path) -> None:
    """numpy's pickles name ``getattr``, so its name must be read over; it must not become the function."""

    torch.save(dict(weight=TENSORS['weight'], reached=Reduced(getattr, TENSORS['weight'], 'shape')), tmp_path / 'a.pth')
    with torch.serialization.safe_globals([]):
        assert read_checkpoint(tmp_path / 'a.pth').keys() == {'weight'}


@pytest.mark.parametrize('name, content, message', [
    ('a.pth', b'', 'cannot be read as plain weights'),
    ('a.pth', b'no checkpoint at all', 'cannot be read as plain weights'),
    ('a.safetensors', b'no checkpoint at all', 'cannot be read as safetensors'),
])
def test_damaged_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f'{name} {message}'):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize('kept', [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_truncated_file_is_named(kept: float, tmp_path: Path) -> None:
    path = tmp_path / 'cut.pth'
    torch.save(dict(TENSORS, large=torch.zeros(100_000)), path)
    content = path.read_bytes()
    path.write_bytes(content[:int(kept * len(content))])
    with pytest.raises(ValueError, match='cut.pth cannot be read'):
        read_checkpoint(path)


@pytest.mark.parametrize('zipped', [True, False])
def test_any_damage_is_a_value_error(zipped: bool, tmp_path: Path) -> None:
    """torch's reader raises what it stumbles over: IndexError, KeyError, struct.error, AssertionError."""
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=TENSORS, meta=dict(epoch=1)), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for place in range(0, len(content), 29):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1:])
        try:
            read_checkpoint(path)
        except ValueError as error:
            assert 'a.pth' in str(error)


@pytest.mark.parametrize('content', [{'epoch': 3}, [1, 2], torch.ones(2)])
def test_a_file_without_named_tensors_is_no_checkpoint(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='holds no tensors'):
        read_checkpoint(tmp_path / 'a.pth')


def test_missing_files_say_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='b.pth does not exist'):
        read_checkpoint(tmp_path / 'b.pth')
    with pytest.raises(FileNotFoundError, match='model.safetensors does not exist'):
        read_checkpoint(tmp_path)


class TestTrainingState:
    """All that mmengine stores, rebuilt without calling anything in the file; tests/test_host.py resumes from it."""

    @pytest.mark.parametrize('value', [
        np.arange(6.).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)), np.array([]),
        np.array([True, False]), np.array(['road', 'water']), np.array(3, '>i2'), np.zeros((2, 0, 3), np.float32),
        np.float32(0.1), np.int64(-3), np.bool_(True), np.dtype('uint8'),
    ], ids=repr)  # yapf: disable
    def test_numpy_values(self, value: Any, tmp_path: Path) -> None:
        torch.save(dict(meta=[(value, )], state_dict=TENSORS), tmp_path / 'a.pth')
        (found, ), = read_training_state(tmp_path / 'a.pth')['meta']
        assert type(found) is type(value) and getattr(found, 'dtype', None) == getattr(value, 'dtype', None)
        assert np.array_equal(found, value) and np.shape(found) == np.shape(value)

    def test_containers_keep_their_types(self, tmp_path: Path) -> None:
        content = dict(state_dict=nn.Linear(3, 2).state_dict(), meta=ConfigDict(a=dict(b=[np.int64(1)])), size=(1, 'a'))
        torch.save(content, tmp_path / 'a.pth')
        found = read_training_state(tmp_path / 'a.pth')
        assert list(map(type, found.values())) == list(map(type, content.values()))
        assert found['meta'] == content['meta'] and found['size'] == content['size']
        assert found['state_dict']._metadata == content['state_dict']._metadata

    def test_a_file_object(self, tmp_path: Path) -> None:
        torch.save(dict(value=np.int64(3)), tmp_path / 'a.pth')
        with open(tmp_path / 'a.pth', 'rb') as file:
            assert read_training_state(file) == dict(value=3)

    @pytest.mark.parametrize('value, message', [
        (Reduced(os.mkdir, '{marker}'), 'mkdir'),
        (Reduced(eval, 'open("{marker}", "w")'), 'eval'),
        (Reduced(getattr, HistoryBuffer, 'register_statistics'), 'getattr'),
        (np.array(['road', 3], dtype=object), 'numpy'),
        (MessageHub('test_training_state'), 'MessageHub'),
        (HistoryBuffer, 'HistoryBuffer'),
    ])
    def test_anything_else_is_refused_and_the_way_out_named(self, value: Any, message: str, tmp_path: Path) -> None:
        marker = tmp_path / 'marker'
        if isinstance(value, Reduced):
            value = Reduced(value.call, *(str(argument).format(marker=marker) if isinstance(argument, str) else argument
                                          for argument in value.arguments))
        torch.save(dict(state_dict=TENSORS, value=value), tmp_path / 'a.pth')
        with pytest.raises(ValueError, match=f'a.pth .*{message}.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1'):
            read_training_state(tmp_path / 'a.pth')
        assert not marker.exists()

    def test_a_file_does_not_say_how_a_log_is_averaged(self, tmp_path: Path) -> None:
        buffer = HistoryBuffer([1., 3.], [1, 1])
        buffer._statistics_methods = {'mean': HistoryBuffer.max}  # pickled with the buffer
        torch.save(dict(log=buffer), tmp_path / 'a.pth')
        assert read_training_state(tmp_path / 'a.pth')['log'].statistics('mean') == 2

    def test_damage_is_a_value_error(self, tmp_path: Path) -> None:
        path = tmp_path / 'a.pth'
        torch.save(dict(log=HistoryBuffer([1., 3.], [1, 1]), value=np.arange(3)), path)
        content = path.read_bytes()
        for place in range(0, len(content), 13):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1:])
            try:
                read_training_state(path)
            except ValueError as error:
                assert 'a.pth' in str(error)


class TestLoadStateDict:

    def test_all_is_taken_over(self) -> None:
        layer = nn.Linear(3, 2)
        report = load_state_dict(layer, TENSORS, source='a.pth')
        assert report == LoadReport(loaded=2) and report.complete and str(report) == '2 tensors loaded'
        assert_same(layer.state_dict())

    @pytest.mark.parametrize('state, message', [
        ({'weight': TENSORS['weight']}, r'1 tensors loaded; 1 missing in the file: bias'),
        ({**TENSORS, 'scale': torch.ones(1)}, r'1 unexpected in the file: scale'),
        ({**TENSORS, 'bias': torch.ones(4)}, r'1 of another shape: bias \(file \(4,\), model \(2,\)\)'),
    ])
    def test_a_misfit_is_named_and_nothing_is_changed(self, state: dict, message: str) -> None:
        layer = nn.Linear(3, 2)
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        with pytest.raises(ValueError, match=rf'a\.pth .*Linear: .*{message}'):
            load_state_dict(layer, state, source='a.pth')
        assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())

    def test_an_optional_key_may_be_missing_and_is_reported(self) -> None:
        layer = nn.Linear(3, 2)
        bias = layer.bias.clone()
        report = load_state_dict(layer, {'weight': TENSORS['weight']}, source='a.pth', optional=['bias'])
        assert report == LoadReport(loaded=1, missing=['bias']) and not report.complete
        assert torch.equal(layer.weight, TENSORS['weight']) and torch.equal(layer.bias, bias)

    @pytest.mark.parametrize('state', [{'weight': TENSORS['weight'], 'bias': torch.ones(4)}, {'bias': TENSORS['bias']}])
    def test_an_optional_key_must_still_fit_and_others_be_there(self, state: dict) -> None:
        with pytest.raises(ValueError, match='does not fit Linear'):
            load_state_dict(nn.Linear(3, 2), state, source='a.pth', optional=['bias'])

    def test_what_the_backbone_has_is_only_counted(self) -> None:
        layer = nn.Linear(3, 2)
        backbone = dict(bias=layer.bias, elsewhere=torch.zeros(4))  # 'elsewhere' is left out of the state dict
        report = load_state_dict(layer, {'weight': TENSORS['weight']}, source='a.pth', backbone=backbone)
        assert report == LoadReport(loaded=1, from_backbone=2) and report.complete
        assert str(report) == '1 tensors loaded; 2 frozen tensors from the backbone'
        with pytest.raises(ValueError, match=r'elsewhere \(file \(5,\), model \(4,\)\)'):
            load_state_dict(layer, {**TENSORS, 'elsewhere': torch.zeros(5)}, source='a.pth', backbone=backbone)

    def test_what_is_ignored_is_not_reported(self) -> None:
        state = {**TENSORS, 'note': torch.ones(1)}
        assert load_state_dict(nn.Linear(3, 2), state, source='a.pth', ignored=['note']) == LoadReport(loaded=2)

    def test_a_long_list_is_cut(self) -> None:
        report = LoadReport(missing=[f'layer{i}' for i in range(8)])
        assert str(report).endswith('8 missing in the file: layer0, layer1, layer2, layer3, layer4, … (3 more)')
