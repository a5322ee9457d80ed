"""The benchmark of mixing: what it computes from its blocks, what the two kinds differ in, and its table."""
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import online as module
from benchmarks.online import (
    MIXED,
    REAL,
    IterationTimes,
    LoadingSetting,
    benchmark_online,
    build_loaders,
    table,
    write_stand_in,
)
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from small_run import CLASSES, ROOT, SIDE, SmallRun
from torch.utils.data import DataLoader

from mmsynth.pool import Pool
from mmsynth.synthesis.build import load_config

pytestmark = pytest.mark.slow

ONLINE = """
_base_ = '{critic}'
custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
train_dataloader = dict(
    batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=0.5),
    dataset=dict(_delete_=True, type='mmsynth.SyntheticAugmentDataset', dataset=_base_.real, pool='nowhere'))
"""


@pytest.fixture(scope='module')
def config_file(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('benchmark_online') / 'online.py'
    path.write_text(ONLINE.format(critic=small_run.critic_config_file.as_posix()))
    return path


@pytest.fixture
def cfg(config_file: Path) -> Config:
    return load_config(config_file)


def read_image(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def origins(batch: dict[str, Any]) -> list[str | None]:
    return [sample.get('origin') for sample in batch['data_samples']]


class TestFigures:

    def test_the_ratio_is_that_of_the_medians(self) -> None:
        assert IterationTimes(real=(1.0, 2.0, 9.0), mixed=(3.0, 1.0, 50.0)).ratio == 1.5

    def test_the_spread_is_that_of_the_pairs(self) -> None:
        """Blocks of a pair are compared with each other, however the machine's speed changes."""
        assert IterationTimes(real=(1.0, 4.0, 2.0), mixed=(1.5, 6.0, 3.0)).spread == (1.5, 1.5)
        assert IterationTimes(real=(1.0, ) * 5, mixed=(1.0, 1.1, 1.2, 1.3, 1.4)).spread == pytest.approx((1.1, 1.3))

    def test_table(self) -> None:
        text = table(dict(wall=IterationTimes((0.1, 0.1, 0.1), (0.1, 0.104, 0.2))))
        assert text.splitlines()[-1] == '| wall | 100.0 | 104.0 | 1.040 | 1.020 to 1.520 |'


class TestStandIn:

    def test_it_holds_real_crops(self, cfg: Config, small_run: SmallRun, tmp_path: Path) -> None:
        """The small run's images are not cropped: the stand-in's are the files themselves, labels too."""
        pool = Pool.open(write_stand_in(cfg, tmp_path / 'pool', 6))
        assert len(pool) == 6 and pool.classes == CLASSES
        for record in pool.records:
            real = Path(record.source_mask)
            assert np.array_equal(pool.load_mask(record), read_image(real))
            assert np.array_equal(pool.load_image(record), read_image(real.parents[1] / 'images' / real.name))
            assert pool.load_image(record).shape == (SIDE, SIDE, 3)


class TestLoaders:

    @pytest.fixture
    def loaders(self, cfg: Config, tmp_path: Path) -> dict[str, DataLoader]:
        pool = write_stand_in(cfg, tmp_path / 'pool', 4)
        with DefaultScope.overwrite_default_scope('mmseg'):
            return build_loaders(LoadingSetting(cfg, batch_size=8, num_workers=0), pool)

    def test_one_mixes_and_the_other_does_not(self, loaders: dict[str, DataLoader]) -> None:
        assert set(origins(next(iter(loaders[REAL])))) == {None}
        assert sorted(origins(next(iter(loaders[MIXED])))) == ['real'] * 4 + ['synthetic'] * 4

    def test_the_rest_is_alike(self, loaders: dict[str, DataLoader]) -> None:
        batches = {kind: next(iter(loader)) for kind, loader in loaders.items()}
        assert {len(batch['inputs']) for batch in batches.values()} == {8}
        assert loaders[MIXED].num_workers == loaders[REAL].num_workers == 0
        assert loaders[MIXED].dataset.dataset.metainfo == loaders[REAL].dataset.metainfo


class TestMeasuring:

    def test_blocks_of_both_kinds_in_pairs(self, cfg: Config) -> None:
        times = benchmark_online(LoadingSetting(cfg, pool_size=4), pairs=3, iterations=2)
        assert list(times) == ['wall', 'processor']
        for found in times.values():
            assert len(found.real) == len(found.mixed) == 3 and min(found.real + found.mixed) > 0

    def test_a_slower_kind_shows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Clocks that count batches, of which the mixed kind takes three a time."""
        passed = dict(seconds=0.0)

        class Step(module._Step):
            def __init__(self) -> None:
                self._cuda = False

            def __call__(self, batches: Any) -> None:
                passed['seconds'] += float(next(batches))

        monkeypatch.setattr(module, 'CLOCKS', dict(wall=lambda: passed['seconds']))
        loaders = {REAL: DataLoader([1.0]), MIXED: DataLoader([3.0])}
        (found, ) = module._measure(loaders, Step(), pairs=2, iterations=5).values()
        assert found == IterationTimes((1.0, 1.0), (3.0, 3.0)) and found.ratio == 3

    def test_the_command_prints_the_table(self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [
            'benchmark_online.py', str(config_file), '--pool-size', '2', '--pairs', '1', '--iterations', '1',
            '--num-workers', '1', '--batch-size', '2', '--device', 'cpu'])
        runpy.run_path(str(ROOT / 'tools' / 'analysis_tools' / 'benchmark_online.py'), run_name='__main__')
        output = capsys.readouterr().out
        assert 'batch of 2, 1 workers, 1 pairs of 1 iterations, cpu' in output
        assert '| wall | ' in output and '| processor | ' in output


class TestMistakes:

    def test_numbers(self, cfg: Config) -> None:
        with pytest.raises(ValueError, match='`pairs`.* got 0 and `pool_size`'):
            benchmark_online(LoadingSetting(cfg, pool_size=0), pairs=0)

    def test_a_config_that_mixes_nothing(self, small_run: SmallRun) -> None:
        with pytest.raises(ValueError, match='`train_dataloader.dataset` is BaseSegDataset'):
            benchmark_online(LoadingSetting(load_config(small_run.critic_config_file)))
