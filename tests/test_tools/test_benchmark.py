"""The benchmark of guidance: what it counts as memory, which ways it measures, and its table."""
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks import guidance as module
from benchmarks.guidance import WAYS, Cost, Setting, benchmark, table
from benchmarks.parts import SD3_VAE, SEGMENTOR, build_parts
from benchmarks.timing import seconds_of
from small_run import ROOT, SmallRun

from mmsynth.guidance import SegmentorCritic
from mmsynth.models import VAECodec

pytestmark = pytest.mark.slow

MEBIBYTE = 2**20
LINUX = pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the kernel keeps no high-water mark')


@LINUX
class TestMemory:
    """In a process of its own: what tests before these did to the allocator must not count."""

    SCRIPT = f"""
import torch
from benchmarks.guidance import resident_growth

def large(mebibytes):
    for _ in range(3):  # one after the other: the largest counts, not the sum
        torch.ones(mebibytes * {MEBIBYTE} // 4)

def small():  # such blocks stay with the process when they are freed, unless it is told to give them back
    [torch.ones(1024) for _ in range(8 * 1024)]

growth = [resident_growth(lambda: large(64)), resident_growth(lambda: large(256))]
held = torch.ones(64 * {MEBIBYTE} // 4)
growth.append(resident_growth(lambda: held.sum()))
small()
growth.append(resident_growth(small))
print(growth)
"""

    @pytest.fixture(scope='class')
    @staticmethod
    def growth() -> list[float]:
        path = f'{ROOT}{os.pathsep}{ROOT / "tools/analysis_tools"}'
        done = subprocess.run([sys.executable, '-c', TestMemory.SCRIPT], env=os.environ | dict(PYTHONPATH=path),
                              capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    def test_it_is_what_a_step_holds_at_most(self, growth: list[float]) -> None:
        assert growth[:2] == pytest.approx([64, 256], abs=4)

    def test_what_was_held_and_freed_before_does_not_count(self, growth: list[float]) -> None:
        assert growth[2] < 4

    def test_free_memory_that_is_used_again_counts(self, growth: list[float]) -> None:
        assert growth[3] == pytest.approx(32, rel=0.25)


class TestMeasuring:

    @pytest.fixture(scope='class')
    @staticmethod
    def costs(small_run: SmallRun) -> dict[str, Cost]:
        return benchmark(Setting(small_run.config(), size=32), rounds=1)

    def test_every_way_that_the_codec_allows_is_measured(self, costs: dict[str, Cost]) -> None:
        """Linear, the small run's codec has no checkpointing."""
        assert list(costs) == [name for name in WAYS if 'checkpointing' not in name]
        assert all(cost.seconds > 0 for cost in costs.values())

    @LINUX
    def test_memory_is_measured_in_processes_of_their_own(self, costs: dict[str, Cost]) -> None:
        assert all(0 <= cost.mebibytes < 200 for cost in costs.values())
        assert costs['tiny decoder'].mebibytes > costs['latent critic'].mebibytes

    @LINUX
    def test_a_process_that_fails_is_named(self, small_run: SmallRun) -> None:
        with pytest.raises(RuntimeError, match='no such way'):
            module._memory_of_a_process(Setting(small_run.config(), size=32), 'no such way')

    def test_a_decoder_in_a_vaes_layout_can_be_checkpointed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The built-in setting, narrowed; memory is left to the test above."""
        narrow = dict(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=1)
        backbone = dict(SEGMENTOR['backbone'], depth=18, base_channels=4, stem_channels=4)
        head = dict(SEGMENTOR['decode_head'], in_channels=32, channels=8, c1_in_channels=4, c1_channels=4)
        monkeypatch.setattr('benchmarks.parts.SD3_VAE', SD3_VAE | narrow)
        monkeypatch.setattr('benchmarks.parts.SEGMENTOR', SEGMENTOR | dict(
            backbone=backbone, decode_head=head))
        monkeypatch.setattr(module, '_CLEAR', Path('/nowhere'))
        costs = benchmark(Setting(size=64), rounds=2)
        assert list(costs) == list(WAYS) and all(cost.mebibytes is None for cost in costs.values())

    def test_a_way_that_does_not_fit_is_left_out_and_said(self, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture) -> None:
        monkeypatch.setattr(module, '_CLEAR', Path('/nowhere'))
        costs = benchmark(Setting(small_run.config(), size=24), rounds=1)
        assert 'reduced decode, factor 4' not in costs and 'reduced decode, factor 2' in costs
        output = capsys.readouterr().out
        assert 'reduced decode, factor 4 is left out: a latent of (6, 6) cells cannot be reduced by 4' in output
        assert 'full decode, gradient checkpointing is left out: PatchPCACodec has no gradient' in output


class TestParts:

    def test_the_built_in_ones_are_stable_diffusion_3s_and_deeplab(self) -> None:
        with torch.device('meta'):
            codec, critic = VAECodec(config=SD3_VAE), SegmentorCritic(dict(model=SEGMENTOR))
        assert (codec.channels, codec.factor) == (16, 8)
        assert sum(parameter.numel() for parameter in codec.vae.parameters()) == 83_819_683
        assert type(critic.segmentor.decode_head).__name__ == 'DepthwiseSeparableASPPHead'

    def test_a_checkpoint_gives_its_codec(self, small_run: SmallRun) -> None:
        fitted = build_parts(small_run.config(), str(small_run.generator), 32).codec
        on_noise = build_parts(small_run.config(), None, 32)
        assert fitted.fitted and on_noise.codec.fitted and on_noise.latent_shape == (4, 8, 8)
        assert not torch.allclose(fitted.components, on_noise.codec.components)

    def test_the_critics_weights_need_not_be_there(self, small_run: SmallRun) -> None:
        build_parts(small_run.config(synthesis__guidance__critic__checkpoint='gone.pth'), None, 32)

    def test_a_config_without_segmentor_is_named(self, small_run: SmallRun) -> None:
        cfg = small_run.config()
        cfg.synthesis.pop('guidance')
        with pytest.raises(ValueError, match='`synthesis.guidance.critic`'):
            build_parts(cfg, None, 32)
        cfg.synthesis.guidance = dict(critic=dict(type='mmsynth.LatentCritic', checkpoint='head.safetensors'))
        with pytest.raises(ValueError, match='is a LatentCritic; name the segmentor'):
            build_parts(cfg, None, 32)

    def test_a_size_that_does_not_fit_is_named(self, small_run: SmallRun) -> None:
        with pytest.raises(ValueError, match='image size 30x30.* 4'):
            build_parts(small_run.config(), None, 30)


def test_the_table_shows_ratios_to_the_full_decode() -> None:
    costs = {'full decode': Cost(8.0, 400.0), 'latent critic': Cost(0.2, 10.0)}
    assert table(costs).splitlines()[2:] == ['| full decode | 8 | 1 | 400 | 1 |',
                                             '| latent critic | 0.2 | 0.025 | 10 | 0.025 |']
    assert table({'full decode': Cost(8.0, None)}).splitlines()[2] == '| full decode | 8 | 1 | – | – |'


def test_on_a_cpu_what_does_not_compute_takes_no_time() -> None:
    assert seconds_of(lambda: time.sleep(0.2), 'cpu') < 0.1


@pytest.mark.parametrize('wrong', [dict(rounds=0), dict(size=0), dict(batch_size=-1)])
def test_numbers_out_of_range_are_named(wrong: dict) -> None:
    rounds = wrong.pop('rounds', 1)
    with pytest.raises(ValueError, match='`rounds`, `size` and `batch_size`'):
        benchmark(Setting(**wrong), rounds=rounds)


def test_the_tool_prints_the_table(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(module, '_CLEAR', Path('/nowhere'))
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', str(small_run.config_file), str(small_run.generator), '--size',
                                      '16', '--batch-size', '2', '--rounds', '1', '--device', 'cpu'])
    runpy.run_path(str(ROOT / 'tools' / 'analysis_tools' / 'benchmark.py'), run_name='__main__')
    output = capsys.readouterr()
    assert '16 x 16 pixels, batch of 2, cpu' in output.out and '| latent critic |' in output.out
    assert 'benchmark: 100%' in output.err
