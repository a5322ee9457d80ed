"""The tools as commands: what they say they take, and synthesis on a config of the user's."""
import runpy
import sys
from pathlib import Path

import pytest
from small_run import ROOT, SmallRun, run

from mmsynth.pool import Pool

TOOLS = ROOT / 'tools'
OPTIONS = dict(
    demo=['--data', '--out-dir', '--preset', '--seed'],
    encode_prompts=['config', '--cache-dir', '--pretrained', '--batch-size', '--device', '--cfg-options'],
    synthesize=['config', 'checkpoint', '--out-dir', '--guidance {crfm,none}', '--num-per-mask', '--limit', '--seed',
                '--batch-size', '--device', '--cfg-options'],
    train=['config', '--work-dir', '--resume', '--cfg-options'])


@pytest.mark.parametrize('tool', sorted(path.stem for path in TOOLS.glob('*.py')))
def test_help_names_the_options(tool: str, tmp_path: Path) -> None:
    """Wherever it is called from, and without mmsynth being installed."""
    text = run(TOOLS / f'{tool}.py', '--help', cwd=tmp_path)
    assert f'usage: {tool}.py' in text
    assert [option for option in OPTIONS[tool] if option not in text] == []


def test_synthesize_takes_its_options(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture) -> None:
    """The script itself, in this process; test_end_to_end.py runs it as a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [
        'synthesize.py', str(small_run.config_file), str(small_run.generator), '--out-dir', 'pool', '--limit', '3',
        '--num-per-mask', '2', '--seed', '5', '--batch-size', '2', '--device', 'cpu', '--cfg-options',
        'model.num_steps=2', 'synthesis.guidance.steps=all'])
    runpy.run_path(str(TOOLS / 'synthesize.py'), run_name='__main__')
    output = capsys.readouterr()
    assert '6 samples in pool' in output.out and 'pool/report.html' in output.out
    assert 'synthesize: 100%' in output.err and '6/6' in output.err and 'img/s' in output.err  # progress, time left
    pool = Pool.open(tmp_path / 'pool')
    assert [record.id for record in pool.records] == [
        f'masks/{name}{repeat}' for name in 'abc' for repeat in ('', '~2')]
    assert all(len(record.guidance['trace']) == 2 for record in pool.records)
    assert pool.settings['seed'] == 5
    again = small_run.synthesize(
        tmp_path / 'pool', small_run.config(model__num_steps=2, synthesis__guidance__steps='all'), seed=5, limit=3)
    assert len(again) == 6  # the same settings from Python: nothing to do


@pytest.mark.parametrize('options, message', [
    (['--guidance', 'crmf'], "invalid choice: 'crmf'"),
    (['--num-per-msk', '2'], 'unrecognized arguments: --num-per-msk'),
    (['--limit', 'few'], "invalid int value: 'few'"),
])
def test_synthesize_refuses_unknown_options(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, 'argv', ['synthesize.py', 'config.py', 'checkpoint.pth', '--out-dir', 'pool', *options])
    with pytest.raises(SystemExit, match='2'):
        runpy.run_path(str(TOOLS / 'synthesize.py'), run_name='__main__')
    assert message in capsys.readouterr().err
