"""The adapter of the two host stacks: normalisation, quiet imports, and mmengine's checkpoints read as data."""
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as host_checkpoint
from mmseg.models import SegDataPreProcessor
from small_run import ROOT, SmallRun, command, train
from torch import nn

from mmsynth.host import host_script, normalisation_of

pytestmark = pytest.mark.process

UNPICKLE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.marker), )


def trapped(checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """A copy of a checkpoint that would run code, and what that would make."""
    path, marker = folder / 'iter_2.pth', folder / 'marker'
    content = torch.load(checkpoint, weights_only=False)
    torch.save(content | dict(trap=Trap(marker)), path)
    return path, marker


# ---- what differs between the stacks


@pytest.mark.parametrize('settings', [
    dict(mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 8.0], bgr_to_rgb=True),
    dict(mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 8.0]),
    dict(rgb_to_bgr=True),
    dict(),
])
def test_normalisation_is_what_the_preprocessor_does(settings: dict[str, Any]) -> None:
    preprocessor = SegDataPreProcessor(**settings)
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    expected = preprocessor(dict(inputs=[image]))['inputs'][0]
    to_rgb, mean, std = normalisation_of(preprocessor)
    pixels = (image.flip(0) if to_rgb else image).float()
    assert torch.equal(pixels if mean is None else (pixels - mean) / std, expected)


def test_a_preprocessor_that_keeps_it_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match='`data_preprocessor`: Identity'):
        normalisation_of(nn.Identity())


def test_importing_prints_nothing_and_fills_the_registries() -> None:
    code = ('import mmsynth, sys\n'
            'assert "diffusers" not in sys.modules\n'
            'from mmengine.registry import DATASETS, HOOKS, MODELS, TRANSFORMS\n'
            'assert all("mmsynth" in parent.children for parent in (DATASETS, HOOKS, MODELS, TRANSFORMS))\n'
            'assert MODELS.get("mmseg.EncoderDecoder") and DATASETS.get("mmseg.LoveDADataset")')
    line, env = command('-c', code, on_path=True)
    result = subprocess.run(line, env=env, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_host_script(name: str) -> None:
    assert host_script(name).is_file() and host_script(name).name == name
    with pytest.raises(SystemExit, match='without its tools .*no_such.py'):
        host_script('no_such.py')


# ---- checkpoints that mmengine loads


class TestHostileCheckpoint:

    @pytest.mark.parametrize('stage', ['generator', 'critic'])
    @pytest.mark.parametrize('resume', [False, True])
    def test_its_code_is_not_run(self, small_run: SmallRun, tmp_path: Path, stage: str, resume: bool) -> None:
        """By a training of TODSynth, and by one of a plain segmentor with a hook of ours."""
        path, marker = trapped(getattr(small_run, stage), tmp_path)
        hooks = {} if stage == 'generator' else {'custom_hooks': [dict(type='mmsynth.ProgressBarHook')]}
        with pytest.raises(ValueError, match=f'iter_2.pth .*mkdir.*{UNPICKLE}=1'):
            train(small_run.folder / f'{stage}.py', tmp_path / 'work', hooks | dict(load_from=str(path), resume=resume))
        assert not marker.exists()

    def test_nor_as_pretrained_weights(self, small_run: SmallRun, tmp_path: Path) -> None:
        path, marker = trapped(small_run.critic, tmp_path)
        init_cfg = {'model.init_cfg': dict(type='Pretrained', checkpoint=str(path))}
        with pytest.raises(ValueError, match='iter_2.pth .*mkdir'):
            train(small_run.critic_config_file, tmp_path / 'work', init_cfg)
        assert not marker.exists()

    def test_nor_from_the_net(self, small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, marker = trapped(small_run.critic, tmp_path)
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
        monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, to, *_, **__: shutil.copy(path, to))
        with pytest.raises(ValueError, match='iter_2.pth .*mkdir'):
            CheckpointLoader.load_checkpoint('https://example.org/iter_2.pth')
        assert not marker.exists()

    def test_nor_from_other_storage(self, small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, marker = trapped(small_run.critic, tmp_path)
        backend = SimpleNamespace(get=lambda url: path.read_bytes())
        monkeypatch.setattr(host_checkpoint, 'get_file_backend', lambda *_, **__: backend)
        with pytest.raises((ValueError, UnpicklingError)):  # mmengine 0.10 leaves these to torch
            CheckpointLoader.load_checkpoint('s3://bucket/iter_2.pth')
        assert not marker.exists()

    def test_nor_the_config_in_it(self, small_run: SmallRun, tmp_path: Path) -> None:
        """mmengine's resume runs ``meta['config']`` as Python."""
        content, marker = torch.load(small_run.critic, weights_only=False), tmp_path / 'marker'
        content['meta']['config'] = f'import os\nos.mkdir({str(marker)!r})\n'
        torch.save(content, tmp_path / 'iter_2.pth')
        train(small_run.critic_config_file, tmp_path, dict(load_from=str(tmp_path / 'iter_2.pth'), resume=True))
        assert not marker.exists()

    @pytest.mark.slow
    @pytest.mark.process
    def test_nor_by_the_tool_with_a_config_that_does_not_name_mmsynth(self, small_run: SmallRun,
                                                                      tmp_path: Path) -> None:
        path, marker = trapped(small_run.critic, tmp_path)
        line, env = command(ROOT / 'tools/train.py', small_run.critic_config_file, '--work-dir', tmp_path / 'work',
                            '--cfg-options', f'load_from={path}')
        result = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode and f'{UNPICKLE}=1' in result.stderr and not marker.exists()

    def test_the_way_out(self, small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, marker = trapped(small_run.critic, tmp_path)
        monkeypatch.setenv(UNPICKLE, '1')
        assert 'trap' in CheckpointLoader.load_checkpoint(str(path), map_location='cpu') and marker.is_dir()


def test_weights_come_through_mmengine_as_before(small_run: SmallRun, tmp_path: Path) -> None:
    layer, twin = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(dict(state_dict=layer.state_dict(), meta=dict(epoch=1)), tmp_path / 'a.pth')
    load_checkpoint(twin, str(tmp_path / 'a.pth'), map_location='cpu', strict=True)
    assert torch.equal(layer.weight, twin.weight)
    with pytest.raises(FileNotFoundError, match='b.pth'):
        load_checkpoint(twin, str(tmp_path / 'b.pth'))


def assert_same(value: Any, other: Any) -> None:
    """Compare what checkpoints hold, with tensors, arrays and mmengine's log buffers in it."""
    assert type(value) is type(other)
    if isinstance(value, dict):
        assert value.keys() == other.keys()
        for key in value:
            assert_same(value[key], other[key])
    elif isinstance(value, (list, tuple)):
        assert len(value) == len(other)
        for one, another in zip(value, other):
            assert_same(one, another)
    elif isinstance(value, HistoryBuffer):
        assert value.max_length == other.max_length
        assert_same(value.data, other.data)
    elif isinstance(value, (torch.Tensor, np.ndarray)):
        assert value.dtype == other.dtype and value.shape == other.shape and bool((value == other).all())
    else:
        assert value == other


@pytest.mark.parametrize('stage', ['generator', 'critic'])
def test_a_training_resumes_with_equal_state(small_run: SmallRun, tmp_path: Path, stage: str) -> None:
    settings = {
        'custom_hooks': [dict(type='EMAHook', momentum=0.3)] + (
            [dict(type='mmsynth.FitLatentCodecHook', num_images=8)] if stage == 'generator' else []),
        'param_scheduler': [dict(type='OneCycleLR', eta_max=0.02, total_steps=4, by_epoch=False),
                            dict(type='MultiStepLR', milestones=[1], by_epoch=False)],
        'train_dataloader.dataset.metainfo.bands': dict(red=1, green=2),  # stored as a ConfigDict
    }  # yapf: disable
    config, path = small_run.folder / f'{stage}.py', tmp_path / 'iter_2.pth'
    train(config, tmp_path, settings)
    stored = torch.load(path, weights_only=False)
    assert {'optimizer', 'param_schedulers', 'message_hub', 'ema_state_dict'} <= stored.keys()
    assert_same(CheckpointLoader.load_checkpoint(str(path)), torch.load(path, weights_only=False))

    runner = train(config, tmp_path, settings | dict(resume=True))  # nothing left to do: as it was saved
    assert runner.iter == 2
    assert_same(runner.optim_wrapper.state_dict(), stored['optimizer'])
    assert_same([scheduler.state_dict() for scheduler in runner.param_schedulers], stored['param_schedulers'])
    assert_same(dict(runner.message_hub.log_scalars), dict(stored['message_hub']['log_scalars']))
    runner.save_checkpoint(str(tmp_path), 'again.pth', by_epoch=False)
    again = torch.load(tmp_path / 'again.pth', weights_only=False)
    assert_same({key: again[key] for key in ('state_dict', 'ema_state_dict')},
                {key: stored[key] for key in ('state_dict', 'ema_state_dict')})


@pytest.mark.parametrize('whole, length', [('iter_4.pth', 0), ('iter_4.pth', -6), ('iter_4.pth', -11)])
def test_a_cut_note_of_the_last_checkpoint(whole: str, length: int, tmp_path: Path) -> None:
    """Empty, cut in the name, and cut at a folder that exists: the last that was saved is gone on with."""
    for name in ('iter_2.pth', whole):
        (tmp_path / name).touch()
    path = str(tmp_path / whole)
    (tmp_path / 'last_checkpoint').write_text(path[:length])
    assert host_checkpoint.find_latest_checkpoint(str(tmp_path)) == path


@pytest.mark.parametrize('noted', ['iter_2.pth', 'iter_9.pth'])
def test_a_whole_note_of_the_last_checkpoint_counts(noted: str, tmp_path: Path) -> None:
    """Also where what it names is gone, which the resume then says."""
    for name in ('iter_2.pth', 'iter_4.pth'):
        (tmp_path / name).touch()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / noted))
    assert host_checkpoint.find_latest_checkpoint(str(tmp_path)) == str(tmp_path / noted)


@pytest.mark.parametrize('group, output', [(True, 'work done\nleft\n'), (False, 'work done\ngoes on\nleft\n')])
def test_a_process_of_a_gloo_group_ends(group: bool, output: str, tmp_path: Path) -> None:
    """By itself, when its work is done, and what is to happen at its end happens; one without a group goes on."""
    result = subprocess.run([sys.executable, '-c', f'''
import atexit, torch.distributed
from mmsynth.host import end_distributed
atexit.register(print, 'left')
if {group}:
    torch.distributed.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=0, world_size=1)
print('work done')
end_distributed()
print('goes on')
'''], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, output), result.stderr
