"""The benchmark of generators: what is counted against closed forms, that parts sum to the whole, its tables."""
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from benchmarks import presets
from benchmarks.corrected_step import CorrectedStep
from benchmarks.generator import BFLOAT16, KINDS, PARTS, count_generator, count_table, tables, time_generator
from benchmarks.presets import PRESETS, RELEASED, presets_table, time_presets
from benchmarks.shapes import Shape, load_shape
from benchmarks.timing import Spread, paired_ratio, time_in_turn
from small_run import ROOT

from mmsynth.guidance import CRFM

pytestmark = pytest.mark.slow


def tiny(generator: str) -> Shape:
    """The demo's shape with less in it."""
    shape = load_shape(generator, 'demo')
    return replace(shape.at_depth(1), num_steps=2, size=24)


class TestCounts:

    def test_parameters_are_those_of_the_published_networks(self) -> None:
        """Stable Diffusion 3.5 medium and 1.5, as their model cards and their own code have it."""
        with torch.device('meta'):
            counts = [sum(weight.numel() for weight in load_shape(name, 'full').stock().parameters())
                      for name in ('todsynth', 'tisynth')]
        assert counts == [2_243_171_520, 859_520_964]

    def test_operations_of_a_transformer_are_those_of_its_matrices(self) -> None:
        """Of one more plain block: two per weight and token, and two products of attention; backwards twice that."""
        shape = replace(load_shape('todsynth', 'mid'), size=64)
        network = shape.network | dict(dual_attention_layers=())
        one, two = (count_generator(replace(shape, network=network | dict(num_layers=layers)))['diffusers']
                    for layers in (2, 3))
        width, image, text = 384, 16, 77
        # per token q, k, v and out 4 D², feed-forward 8 D²; per sample two modulations of 6 D²; attention over all
        expected = 2 * ((image + text) * 12 * width**2 + 12 * width**2) + 4 * (image + text)**2 * width
        assert two.forward - one.forward == expected
        assert two.training - one.training == pytest.approx(3 * expected, rel=0.02)

    def test_legacy_trains_less_of_tisynth(self) -> None:
        counts = count_generator(tiny('tisynth'))
        own, legacy = counts['mmsynth'], counts['mmsynth, legacy']
        assert own.forward == legacy.forward and own.training > legacy.training
        assert own.parameters > 2 * counts['diffusers'].parameters

    def test_the_table(self) -> None:
        lines = count_table(count_generator(tiny('todsynth'))).splitlines()
        assert len(lines) == 2 + len(KINDS) and lines[2].startswith('| diffusers | ') and lines[2].endswith('| 1 |')


class TestTiming:

    @pytest.mark.parametrize('generator', ['todsynth', 'tisynth'])
    def test_everything_is_measured_in_every_round(self, generator: str) -> None:
        seconds = time_generator(tiny(generator), rounds=2)
        measures = {f'{what}, {kind}' for what in ('network', 'training step') for kind in (*KINDS, BFLOAT16)}
        measures |= {'image, diffusers', 'image, mmsynth', f'image, {BFLOAT16}'}
        assert measures | {'corrected step', *PARTS} == set(seconds)
        assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())
        for whole, *parts in zip(seconds['corrected step'], *(seconds[part] for part in PARTS)):
            assert 0.5 * whole < sum(parts) <= whole
        text = tables(seconds)
        assert '| training step |' in text and '| rest |' in text and '| whole |' in text

    def test_a_part_that_takes_longer_is_seen_forwards_and_backwards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A decode that takes 20 ms more: once forwards, and once on the way back."""
        class Slow(torch.autograd.Function):
            @staticmethod
            def forward(ctx, images):
                _burn()
                return images.clone()

            @staticmethod
            def backward(ctx, gradient):
                _burn()
                return gradient

        step = CorrectedStep(lambda latents: latents * 0.5, tiny('todsynth'), 'cpu')
        step()
        decode = step.codec.decode
        monkeypatch.setattr(step.codec, 'decode', lambda latents: Slow.apply(decode(latents)))
        step()
        before, after = step.records
        assert after['decode'] - before['decode'] > 0.03 > after['critic'] - before['critic']

    def test_steps_are_made_in_turn_and_the_first_round_warms_up(self) -> None:
        made = []
        steps = {name: lambda name=name: made.append(name) for name in 'ab'}
        seconds = time_in_turn(steps, 2, 'cpu', lambda: None)
        assert ''.join(made) in ('baabba', 'abbaab') and [len(values) for values in seconds.values()] == [2, 2]

    def test_ratios_are_taken_within_a_round(self) -> None:
        """The machine is ten times slower in the second round."""
        assert paired_ratio([2, 20, 2], [1, 10, 1]) == Spread(2, 2, 2)
        assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4) and str(Spread.of([0.5])) == '0.5 [0.5, 0.5]'


class TestMistakes:

    @pytest.mark.parametrize('depth', [0, 5])
    def test_depths_that_cannot_be(self, depth: int) -> None:
        with pytest.raises(ValueError, match=rf'`depth` must be in \[1, 4\] for this shape, got {depth}'):
            load_shape('todsynth', 'demo').at_depth(depth)

    def test_no_rounds(self) -> None:
        with pytest.raises(ValueError, match='`rounds` must be at least 1, got 0'):
            time_generator(tiny('todsynth'), rounds=0)

    @pytest.mark.parametrize('options, message', [
        (['--generator', 'todsynth', '--size', '64'], '`size` has no effect with `--generator`'),
        (['--generator', 'todsynth', 'config.py'], '`config` has no effect'),
        (['--presets'], '`--presets` is for a generator'),
        (['--depth', '2', '--shape', 'mid'], '`--depth`, `--shape` is for a generator'),
        (['--generator', 'tisynth', '--shape', 'full', '--device', 'cpu'], '`--shape full` takes hours'),
    ])
    def test_options_without_effect(self, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SystemExit, match=message):
            _tool(options, monkeypatch)


def test_a_reduced_depth_keeps_the_share_of_dual_blocks() -> None:
    shape = load_shape('todsynth', 'full')
    assert shape.at_depth(2).network['dual_attention_layers'] == (0, 1)
    assert shape.at_depth(6).network['dual_attention_layers'] == (0, 1, 2, 3)
    assert shape.at_depth(24).network == shape.network


class TestPresets:

    @pytest.mark.parametrize('generator', ['todsynth', 'tisynth'])
    def test_each_makes_its_steps_and_guides_its_share(self, generator: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Passes of the network and looks of the critic are those that the preset names."""
        counted, passes, looks = {}, [], []
        build, correct = presets.network_forward, CRFM.correct

        def counting_forward(*args: object, **options: object) -> Callable:
            forward = build(*args, **options)
            return lambda *inputs: passes.append(1) or forward(*inputs)

        monkeypatch.setattr(presets, 'network_forward', counting_forward)
        monkeypatch.setattr(CRFM, 'correct', lambda self, *inputs: looks.append(1) or correct(self, *inputs))

        def in_turn(steps: dict[str, Callable], *_: object) -> dict[str, list[float]]:
            for name, step in steps.items():
                step()
                counted[name] = len(passes), len(looks)
                passes.clear(), looks.clear()
            return {name: [1.0] for name in steps}

        monkeypatch.setattr(presets, 'time_in_turn', in_turn)
        seconds = time_presets(tiny(generator), rounds=1)
        assert seconds.keys() == PRESETS[generator].keys()
        assert counted == {name: (preset.num_steps, preset.guided) for name, preset in PRESETS[generator].items()}

    def test_the_table_compares_within_a_round(self) -> None:
        """The second round is ten times slower, which changes no ratio."""
        seconds = {name: [1.0, 10.0] for name in PRESETS['todsynth']}
        seconds[RELEASED], seconds['DPM-Solver++, 7 steps'] = [4.0, 40.0], [0.75, 7.5]
        rows = presets_table('todsynth', seconds).splitlines()
        assert rows[2] == '| as released | 22 [13, 31] | 1 [1, 1] | 75.0% [75.0%, 75.0%] |'
        assert '| fast preset | 5.5 [3.25, 7.75] | 4 [4, 4] | 25.0% [25.0%, 25.0%] |' in rows


def test_the_tool_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    _tool(['--generator', 'todsynth', '--shape', 'full', '--depth', '1', '--count', '--device', 'cpu'], monkeypatch)
    output = capsys.readouterr().out
    assert output.startswith('todsynth, full shape, 512 x 512 pixels, batch of 1, depth 1')
    assert '| diffusers | 90.3 M | 1 |' in output


def _burn(seconds: float = 0.02) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def _tool(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *options])
    runpy.run_path(str(ROOT / 'tools' / 'analysis_tools' / 'benchmark.py'), run_name='__main__')
