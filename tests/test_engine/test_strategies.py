"""Trainings by several processes compute what one process computes, and their checkpoints are those of any training."""
import subprocess
from pathlib import Path
from typing import Any

import pytest
import strategy_run
import torch
from mmengine.registry import STRATEGIES
from small_run import ROOT, command
from strategy_run import CASES, STEPS, WORLD, build, reference

from mmsynth.models.backbone import FINGERPRINT
from mmsynth.models.checkpoints import load_generator
from mmsynth.models.lora import plain_name
from mmsynth.utils import read_checkpoint

pytestmark = pytest.mark.process
RELATIVE = dict(fsdp=1e-4, fsdp_lora=1e-4, fsdp_bfloat16=2e-2)  # bfloat16 has 8 bits


@pytest.fixture(scope='module')
def runs(tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have left the results of every case."""
    folder = tmp_path_factory.mktemp('strategies')
    processes = []
    for rank in range(WORLD):
        line, env = command(ROOT / 'tests' / 'strategy_run.py', rank, WORLD, folder, tiny_sd3, *CASES)
        processes.append(subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors[-3000:]
    return folder


def found(runs: Path, case: str) -> list[dict[str, Any]]:
    return [strategy_run.read(runs, case, rank) for rank in range(WORLD)]


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {plain_name(name): value.detach() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize('case', CASES)
def test_losses_norms_and_weights_are_those_of_one_process(runs: Path, tiny_sd3: Path, case: str) -> None:
    losses, model, norms = reference(case, tiny_sd3)
    ranks = found(runs, case)
    for step in range(STEPS):
        assert [own['losses'][step] for own in ranks] == pytest.approx(losses[step], rel=RELATIVE[case])
        assert [own['norms'][step] for own in ranks] == pytest.approx([norms[step]] * WORLD, rel=RELATIVE[case])
        assert norms[step] > strategy_run.MAX_NORM  # or clipping is not tested
        assert abs(losses[step][0] - losses[step][1]) > 1e-3 * losses[step][0]
    stored = read_checkpoint(runs / f'{case}_end.pth')
    for name, value in trained(model).items():
        # AdamW turns the least difference of a gradient near zero into a step of the learning rate
        difference = (stored[name] - value).abs() / (STEPS * strategy_run.LEARNING_RATE)
        assert stored[name].dtype == torch.float32
        assert difference.mean() < 10 * RELATIVE[case] and (case == 'fsdp_bfloat16' or difference.max() < 0.1)
    start = trained(build(case, tiny_sd3))
    assert max((stored[name] - start[name]).abs().max() for name in start) > strategy_run.LEARNING_RATE


@pytest.mark.parametrize('case', CASES)
def test_a_process_holds_its_share(runs: Path, tiny_sd3: Path, case: str) -> None:
    model = build(case, tiny_sd3)
    codec = sum(value.numel() for value in model.latent_codec.parameters())
    whole = sum(value.numel() for value in model.parameters()) - codec
    for own in found(runs, case):
        assert own['held'] - codec == pytest.approx(whole / WORLD, rel=0.1)


@pytest.mark.parametrize('case', CASES)
def test_a_resumed_training_goes_on_as_the_unbroken_one(runs: Path, case: str) -> None:
    for own in found(runs, case):
        assert own['resumed'] == pytest.approx(own['losses'][2:], rel=1e-5)
    unbroken, resumed = (read_checkpoint(runs / f'{case}_{kind}.pth') for kind in ('end', 'resumed'))
    assert unbroken.keys() == resumed.keys()
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0.1 * strategy_run.LEARNING_RATE)


@pytest.mark.parametrize('case', CASES)
def test_the_checkpoint_is_that_of_one_process(runs: Path, tiny_sd3: Path, case: str) -> None:
    """Without the backbone, LoRA under plain names; it loads into one process."""
    model, stored = build(case, tiny_sd3), read_checkpoint(runs / f'{case}_end.pth')
    assert stored.keys() == model.state_dict().keys() and torch.equal(stored[FINGERPRINT],
                                                                      model.state_dict()[FINGERPRINT])
    report = load_generator(model, runs / f'{case}_end.pth')
    assert report.complete and report.from_backbone
    for name, value in trained(model).items():
        assert torch.equal(value, stored[name])


@pytest.mark.parametrize('case', CASES)
def test_all_processes_generate_what_one_does(runs: Path, tiny_sd3: Path, case: str) -> None:
    model = build(case, tiny_sd3).eval()
    load_generator(model, runs / f'{case}_end.pth')
    drawn = model.synthesize(strategy_run.samples(2), [0, 1])
    alone = torch.stack([sample.generated_img.data for sample in drawn]).int()
    for own in found(runs, case):
        assert (own['images'].int() - alone).abs().float().mean() <= (2 if case == 'fsdp_bfloat16' else 0.01)


def test_weights_of_several_dtypes_are_refused(tiny_sd3: Path, tmp_path: Path) -> None:
    strategy = STRATEGIES.build(dict(type='mmsynth.FSDPStrategy', work_dir=str(tmp_path)))
    model = build('fsdp', tiny_sd3)
    model.network.trunk.context_embedder.to(torch.bfloat16)
    with pytest.raises(ValueError, match='`model.dtype`.*bfloat16.*float32'):
        strategy._wrap_model(model)


def test_a_model_without_units_is_refused(tmp_path: Path) -> None:
    strategy = STRATEGIES.build(dict(type='mmsynth.FSDPStrategy', work_dir=str(tmp_path)))
    with pytest.raises(ValueError, match='`strategy`.*sharded_units'):
        strategy._wrap_model(torch.nn.Linear(2, 2))
