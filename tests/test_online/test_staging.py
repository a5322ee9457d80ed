"""The folder through which samples and weights are handed over."""
import numpy as np
import pytest
import torch
from torch import nn
from toy_generators import sample

from mmsynth.online.worker_main import MARKER, check_staging, open_staging, read_samples, stage_samples, stage_weights
from mmsynth.pool import Pool


def test_samples_come_back_as_they_were(tmp_path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (4, 6), dtype=np.uint8)
    details = sample('a').details | dict(
        filter=dict(keep=np.bool_(False), loss=np.float32(0.5)), guidance=dict(name='CRFM', trace=[dict(loss=np.nan)]))
    first = sample('0', image=rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), filtered=label, details=details)
    stage_samples([first, sample('1', 9)], tmp_path / 'round-0')
    back = read_samples(tmp_path / 'round-0')
    assert [s.id for s in back] == ['0', '1'] and back[0].details['filter']['keep'] is False
    for name in ('image', 'mask', 'filtered'):
        assert getattr(back[0], name).dtype == np.uint8
        assert np.array_equal(getattr(back[0], name), getattr(first, name))
    assert back[0].weight is None and back[1].filtered is None
    assert back[0].details['filter'] == dict(keep=False, loss=0.5)
    assert back[0].details['guidance']['trace'] == [dict(loss=None)]


def test_the_pool_takes_what_came_back(tmp_path) -> None:
    stage_samples([sample('00000000', 1)], tmp_path / 'round')
    [back] = read_samples(tmp_path / 'round')
    with Pool.create(tmp_path / 'pool', {}, ('a', 'b', 'c'), [(0, 0, 0)] * 3) as pool:
        record = back.add_to(pool)
        assert np.array_equal(pool.load_image(record), sample('x', 1).image) and record.seed == 1


def test_no_samples_are_a_round_too(tmp_path) -> None:
    stage_samples([], tmp_path / 'round')
    assert read_samples(tmp_path / 'round') == []


def test_arrays_that_hide_code_are_not_read(tmp_path) -> None:
    stage_samples([sample('a')], tmp_path / 'round')
    np.savez(tmp_path / 'round' / '0.npz', image=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match='allow_pickle'):
        read_samples(tmp_path / 'round')


def test_weights_leave_the_module_and_randomness_alone(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    stage_weights(model, tmp_path / 'w.safetensors')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert [path.name for path in tmp_path.iterdir()] == ['w.safetensors']


def test_weights_that_cannot_be_written_leave_nothing(tmp_path) -> None:
    with pytest.raises(OSError):
        stage_weights(nn.Linear(1, 1), tmp_path / 'gone' / 'w.safetensors')
    (tmp_path / 'w').mkdir()  # in the place of the file
    (tmp_path / 'w' / 'x').touch()
    with pytest.raises(OSError):
        stage_weights(nn.Linear(1, 1), tmp_path / 'w')
    assert [path.name for path in tmp_path.iterdir()] == ['w']


def test_what_a_killed_run_left_is_cleared(tmp_path) -> None:
    root = tmp_path / 'work' / 'staging'
    assert open_staging(root) == []
    stage_samples([sample('a')], root / 'process-1' / 'round-0')
    (root / 'process-1.log').write_text('…')
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / 'precious').touch()
    (root / 'link').symlink_to(outside)
    assert open_staging(root) == ['link', 'process-1', 'process-1.log']
    assert [path.name for path in root.iterdir()] == [MARKER] and (outside / 'precious').exists()


def test_a_folder_of_others_is_refused(tmp_path) -> None:
    (tmp_path / 'thesis.tex').touch()
    for refuse in (check_staging, open_staging):
        with pytest.raises(ValueError, match="'thesis.tex'"):
            refuse(tmp_path)
        with pytest.raises(ValueError, match='must be a folder, it is a file'):
            refuse(tmp_path / 'thesis.tex')
    assert (tmp_path / 'thesis.tex').exists()
