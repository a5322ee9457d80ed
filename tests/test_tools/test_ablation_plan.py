"""What an ablation compares: rules, variants, options, the parts of a demo, and the message of each mistake."""
from functools import partial
from pathlib import Path

import pytest
import torch
from ablation.plan import RULES, AblationOptions, Variant, demo_parts

from mmsynth.guidance import CriticOutput
from mmsynth.guidance.crfm import CRFM, rectify


def test_halves_of_the_released_rule() -> None:
    """Step size 0 leaves the clamp; without `legacy` and trust region the gradient is left."""
    velocity, gradient = 3 * torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)

    def judge(prediction: torch.Tensor) -> CriticOutput:
        """Of one pixel, whose loss has the gradient that is wanted."""
        wrong = torch.ones(1, 1, 1, dtype=torch.bool)
        return CriticOutput((prediction * gradient).sum().view(1, 1, 1), wrong, wrong)

    updated = {}
    for rule in ('clamp', 'gradient', 'released', 'relative'):
        module = CRFM(torch.nn.Identity(), **{key: value for key, value in RULES[rule].items() if key != 'type'})
        updated[rule] = rectify(
            velocity, judge, partial(module.objective, masks=torch.zeros(1, 1, 1)), module.step_size_at(0, 10),
            norm=module.norm, trust_region=module.trust_region, attenuate=module.attenuate,
            legacy=module.legacy).prediction
    assert torch.equal(updated['clamp'], velocity.clamp(-1, 1))
    torch.testing.assert_close(updated['gradient'], velocity - 0.09 * gradient)
    assert torch.equal(updated['released'], updated['gradient'].clamp(-1, 1))
    change = (updated['relative'] - velocity).flatten(1).norm(dim=1) / velocity.flatten(1).norm(dim=1)
    torch.testing.assert_close(change, torch.full((1, ), 0.1))


@pytest.mark.parametrize('options, message', [
    (dict(rules=('crfm', )), "`rules` must be of none, clamp.*got 'crfm'"),
    (dict(steps=(-1, )), "`steps` must hold numbers of at least 0 or 'all', got -1"),
    (dict(steps=('most', )), "got 'most'"),
    (dict(steps=()), r'got \(\)'),
    (dict(limit=1), '`limit` must be at least 2, which a Fréchet distance needs, got 1'),
    (dict(num_real=0), '`num_real` must be at least 2'),
    (dict(batch_size=0), '`batch_size` must be at least 1, got 0'),
])
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AblationOptions(**options)


def test_all_variants_by_default() -> None:
    variants = AblationOptions().variants
    assert len(variants) == 22 and variants[0] == Variant('none') and variants[-1] == Variant('best-of-n')
    assert Variant('released', 4).settings == dict(
        type='mmsynth.CRFM', norm='raw', step_size=0.1, policy='decrease', legacy=True, steps=4)


# ---- the parts of a demo


@pytest.fixture
def demo_dir(tmp_path: Path) -> Path:
    for part in ('seed_0/generator', 'seed_0/judge', 'seed_10/generator', 'seed_10/judge'):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / 'last_checkpoint').write_text(f'/elsewhere/{part}/iter_3.pth\n')
    return tmp_path


def test_demo_parts(demo_dir: Path) -> None:
    first, last = demo_parts(demo_dir)
    assert (first.seeds, last.seeds) == ((0, ), (10, )) and demo_parts(demo_dir, [10]) == [last]
    assert last.checkpoint == demo_dir / 'seed_10' / 'generator' / 'iter_3.pth'  # where it lies now
    assert last.judge_config == demo_dir / 'seed_10' / 'configs' / 'judge.py'


def test_demo_parts_that_are_not_there(demo_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='holds no seed_N'):
        demo_parts(demo_dir / 'seed_0')
    with pytest.raises(ValueError, match='holds 0, 10, got 3'):
        demo_parts(demo_dir, [0, 3])
    (demo_dir / 'seed_0' / 'judge' / 'last_checkpoint').unlink()
    with pytest.raises(FileNotFoundError, match='seed_0/judge'):
        demo_parts(demo_dir)
