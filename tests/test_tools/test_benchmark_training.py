"""Where the time of training goes: parts sum to the whole, what takes longer is seen, nothing is left behind."""
import runpy
import sys
import time
from pathlib import Path

import pytest
from benchmarks.training import PARTS, time_training, training_table
from mmengine.config import Config
from small_run import ROOT, SmallRun

from mmsynth.models.encoders import PatchPCACodec


@pytest.fixture
def cfg(small_run: SmallRun) -> Config:
    return Config.fromfile(small_run.config_file)


def test_parts_of_every_counted_iteration(cfg: Config) -> None:
    seconds = time_training(cfg, iterations=3, warmup=1)
    assert seconds.keys() == {*PARTS, 'iteration'} and {len(values) for values in seconds.values()} == {3}
    for whole, *parts in zip(seconds['iteration'], *(seconds[part] for part in PARTS), strict=True):
        assert 0 < min(parts) and sum(parts) < whole
    assert cfg.train_cfg.max_iters == 2  # the caller's config is left alone


def test_a_codec_that_takes_longer_is_seen(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = PatchPCACodec.encode
    monkeypatch.setattr(PatchPCACodec, 'encode', lambda *inputs, **options: (
        time.sleep(0.05), encode(*inputs, **options))[1])
    seconds = time_training(cfg, iterations=2, warmup=0)
    assert min(seconds['latents']) > 0.05 > max(seconds['preprocessing'])


def test_the_table() -> None:
    seconds = dict.fromkeys(PARTS, [0.1]) | dict(iteration=[1.0])
    rows = training_table(seconds).splitlines()
    assert rows[2] == '| data | 100 [100, 100] | 10.0% |'
    assert rows[-3:] == ['| rest | 400 [400, 400] | 40.0% |', '| outside the network | 800 [800, 800] | 80.0% |',
                         '| whole | 1e+03 [1e+03, 1e+03] | |']


def test_numbers_of_iterations_are_checked(cfg: Config) -> None:
    with pytest.raises(ValueError, match='`iterations` must be at least 1 and `warmup` 0, got 0 and 1'):
        time_training(cfg, iterations=0, warmup=1)


def test_the_tool(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
                  tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['benchmark_training.py', str(small_run.config_file), '--iterations', '1',
                                      '--warmup', '0'])
    runpy.run_path(str(ROOT / 'tools' / 'analysis_tools' / 'benchmark_training.py'), run_name='__main__')
    assert 'mmsynth.TODSynth, batch of 4, 1 iterations' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
