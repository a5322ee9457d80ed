"""The tools as commands: what they say they take, and synthesis on a config of the user's."""
import runpy
import sys
from pathlib import Path

import pytest
from small_run import ROOT, SmallRun, run

from mmsynth.pool import Pool

pytestmark = pytest.mark.slow

TOOLS = ROOT / 'tools'
OPTIONS = dict(
    benchmark=['config', 'checkpoint', '--generator {todsynth,tisynth}', '--shape {demo,mid,full}', '--depth',
               '--count', '--presets', '--size', '--batch-size', '--rounds', '--device', '--cfg-options'],
    benchmark_online=['config', '--pool', '--pool-size', '--pairs', '--iterations', '--num-workers', '--batch-size',
                      '--device', '--cfg-options'],
    benchmark_training=['config', '--iterations', '--warmup', '--cfg-options'],
    compare_samplers=['config', 'checkpoint', '--limit', '--passes', '--seed', '--device', '--cfg-options'],
    browse_pool=['pool', '--port', '--no-open'],
    convert_checkpoint=['config', 'checkpoint', '--out', '--merge-lora', '--to {mmsynth,diffusers,pipeline}',
                        '--cfg-options'],
    benchmark_pool=['--records', '--steps', '--inline', '--no-filter', '--dir'],
    demo=['--generator {todsynth,tisynth}', '--data', '--out-dir', '--preset', '--control {triple,siamese,adapter}',
          '--seed'],
    encode_latents=['config', '--cache-dir', '--batch-size', '--num-workers', '--device', '--cfg-options'],
    encode_prompts=['config', '--cache-dir', '--pretrained', '--batch-size', '--device', '--cfg-options'],
    evaluate_pool=['pool', '--judge-config', '--judge-checkpoint', '--real-config', '--real-split {train,val,test}',
                   '--num-real', '--inception', '--out', '--batch-size', '--device', '--allow-critic'],
    filter_pool=['pool', 'config', '--overwrite', '--batch-size', '--device', '--cfg-options'],
    fit_class_loss=['config', 'checkpoint', '--out', '--split {train,val,test}', '--batch-size', '--device',
                    '--cfg-options'],
    guidance_ablation=['config', 'checkpoint', '--judge-config', '--judge-checkpoint', '--demo-dir', '--out-dir',
                       '--seeds', '--rules', '--steps', '--limit', '--batch-size', '--num-real', '--device'],
    memory=['--size', '--batch-size', '--cards'],
    report=['pool', '--judge-config', '--judge-checkpoint', '--real-config', '--real-masks', '--metrics',
            '--max-samples', '--out'],
    select_samples=['pool', '--weak-classes', '--worst', '--scores', '--min-valid', '--max-repeats'],
    synthesize=['config', 'checkpoint', '--out-dir', '--guidance {crfm,best-of-n,none}', '--candidates',
                '--num-per-mask', '--limit', '--seed', '--batch-size', '--filter', '--shard', '--files-per-folder',
                '--device', '--cfg-options'],
    train_latent_critic=['config', 'checkpoint', '--out', '--iters', '--batch-size', '--lr', '--width', '--seed',
                         '--device', '--cfg-options'],
    test=['config', 'checkpoint'],
    train=['config', '--work-dir', '--resume', '--cfg-options'],
    worth=['config', '--data', '--out-dir', '--seeds', '--places', '--jobs', '--report-only'])


@pytest.mark.parametrize('tool', [pytest.param(path, id=path.stem) for path in
    sorted([*TOOLS.glob('*.py'), *TOOLS.glob('analysis_tools/*.py'), ROOT / 'projects' / 'demo'])
    if path.name not in ('tool_options.py', 'checkout.py')])
def test_help_names_the_options(tool: Path, tmp_path: Path) -> None:
    """Wherever it is called from, and without mmsynth being installed."""
    text = run(tool, '--help', cwd=tmp_path)
    assert f'usage: {tool.name}' in text
    assert [option for option in OPTIONS[tool.stem] if option not in text] == []


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
        f'masks/{name}{repeat}' for repeat in ('', '~2') for name in 'abc']
    assert all(len(pool.load_trace(record)) == 2 for record in pool.records)
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
