"""A judge that several metrics share: one network for equal configs, one reading of a batch, sizes of their own."""
from pathlib import Path

import pytest
import tiny_generator
import torch
from colour_judges import ColourJudge, Colours, coloured, generated, halves, measure
from mmengine.config import Config
from torch import Tensor

from mmsynth.evaluation import FrechetDistance, Judge, MaskConsistency, SiblingDiversity
from mmsynth.evaluation.segmentor_features import read_with_features
from mmsynth.guidance import LatentCritic, SegmentorCritic
from mmsynth.utils.hashes import file_hash


@pytest.fixture(scope='module')
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The config of a judge with its weights on disk."""
    folder = tmp_path_factory.mktemp('judge')
    Config(dict(model=tiny_generator.segmentor())).dump(folder / 'judge.py')
    torch.save(SegmentorCritic(str(folder / 'judge.py')).segmentor.state_dict(), folder / 'judge.pth')
    return dict(type='mmsynth.SegmentorCritic', config=str(folder / 'judge.py'), checkpoint=str(folder / 'judge.pth'))


def images(count: int, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_equal_configs_share_a_network_while_it_is_in_use(settings: dict) -> None:
    judge = Judge.build(settings, 'cpu')
    assert judge.weights_sha256 == [file_hash(settings['checkpoint'])]
    assert Judge.build(dict(reversed(settings.items())), 'cpu') is judge
    assert Judge.build(judge) is judge
    network = judge.critic
    del judge
    assert Judge.build(settings, 'cpu').critic is not network


def test_other_weights_in_the_same_file_are_another_judge(settings: dict, tmp_path: Path) -> None:
    own = settings | dict(checkpoint=str(tmp_path / 'judge.pth'))
    state = torch.load(settings['checkpoint'], weights_only=True)
    torch.save(state, own['checkpoint'])
    first = Judge.build(own, 'cpu')
    torch.save({name: value + 1 for name, value in state.items()}, own['checkpoint'])
    assert Judge.build(own, 'cpu') is not first


def test_it_sees_what_the_segmentor_sees(settings: dict) -> None:
    judge, pixels = Judge.build(settings, 'cpu'), images(3)
    masks = torch.randint(3, (3, 16, 16), generator=torch.Generator().manual_seed(1))
    views = judge.predict(list(pixels), list(masks))
    _, pooled = read_with_features(judge.critic, pixels.float() / 255, masks)
    with torch.no_grad():
        scores = judge.critic.predict_logits(pixels.float() / 255).sort(1).values
    clear = scores[:, -1] - scores[:, -2] > 1e-3  # elsewhere rounding may decide
    readings = judge.critic.predict_logits(pixels.float() / 255).argmax(1)
    assert torch.equal(torch.stack([view.classes for view in views])[clear], readings[clear])
    for index, view in enumerate(views):
        torch.testing.assert_close(view.features.classes[0], pooled.classes[index], atol=1e-4, rtol=1e-4)
        assert torch.equal(view.features.present[0], pooled.present[index])


def test_a_batch_is_read_once_for_all_metrics() -> None:
    segmentor, calls = ColourJudge(), []
    read = segmentor.predict_logits
    segmentor.predict_logits = lambda pixels: calls.append(len(pixels)) or read(pixels)
    judge, mask = Judge(segmentor), halves(0, 1)
    pixels, masks = [torch.from_numpy(coloured(mask)).permute(2, 0, 1)], [torch.from_numpy(mask)]
    samples, others = [dict()], [dict()]
    first = judge.predict(pixels, masks, batch=samples)
    assert judge.predict(pixels, masks, batch=samples) is first and calls == [1]
    assert torch.equal(first[0].classes, torch.from_numpy(mask).long()) and first[0].features is None
    judge.predict(pixels, masks, batch=others)
    assert calls == [1, 1]


def test_neighbours_of_one_size_are_read_together() -> None:
    judge = Judge(Colours(padded=8).judge())
    pixels = [*images(2, side=4), *images(1, side=8), *images(1, side=4)]
    masks = [torch.zeros(image.shape[-2:], dtype=torch.long) for image in pixels]
    views = judge.predict(pixels, masks)
    assert [tuple(view.classes.shape) for view in views] == [(4, 4), (4, 4), (8, 8), (4, 4)]
    expected = [image.float().mean((1, 2)) / 255 for image in pixels]
    torch.testing.assert_close(torch.cat([view.features.images for view in views]), torch.stack(expected))


def test_what_reads_latents_is_no_judge() -> None:
    with pytest.raises(ValueError, match='`judge` must be.*`input_type`.*got LatentCritic'):
        Judge.build(LatentCritic(channels=4, factor=4, num_classes=3))


def test_any_critic_of_images_judges_without_features() -> None:
    left, right = halves(0, 1), halves(1, 2)
    samples = generated((coloured(left), left), (coloured(left), left), (coloured(right), right))
    assert measure(MaskConsistency(ColourJudge(), guidance={}), samples)['consistency/mIoU'] == 100
    diversity = measure(SiblingDiversity(ColourJudge(), guidance={}), samples)
    assert diversity['diversity/pixels'] == 0 and 'diversity/features' not in diversity
    with pytest.raises(ValueError, match='FrechetDistance: the `judge` ColourJudge'):
        FrechetDistance(ColourJudge(), guidance={})


def test_an_ensemble_judges_with_the_weights_of_its_members(settings: dict) -> None:
    ensemble = dict(type='mmsynth.CriticEnsemble', critics=[settings, settings])
    judge = Judge.build(ensemble, 'cpu')
    assert judge.weights_sha256 == [file_hash(settings['checkpoint'])] * 2 and 'decode head' in judge.no_features
    pixels, masks = list(images(2)), [torch.zeros(16, 16, dtype=torch.long)] * 2
    one = Judge.build(settings, 'cpu').predict(pixels, masks)
    agree = [(own.classes == other.classes).float().mean() for own, other in zip(judge.predict(pixels, masks), one)]
    assert min(agree) > 0.99  # rounding may decide between two classes
    with pytest.raises(ValueError, match='is the critic of this config'):
        MaskConsistency(ensemble, guidance=dict(critic=settings), device='cpu')
