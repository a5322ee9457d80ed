"""Segmentor and rule together: what is measured, what identifies a filter, and what does not belong together."""
import numpy as np
import pytest
import torch
from tiny_generator import segmentor
from toy_critic import LatentReader, ToyCritic

from mmsynth.filtering import ClassLosses, ClassLossFilter, label_hash, segmentor_identity
from mmsynth.guidance import SegmentorCritic

NAMES = ('field', 'road', 'water')
LOSSES = ClassLosses(NAMES, (1.0, 1.1, 1.2), (9, 9, 9))


def critic(seed: int = 0, **changes) -> SegmentorCritic:
    torch.manual_seed(seed)
    return SegmentorCritic(dict(model=segmentor(**changes)))


def samples(count: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, (16, 16), dtype=np.uint8) for _ in range(count)]
    masks[0][:4] = 255
    return [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(count)], masks


def test_losses_are_the_segmentors_cross_entropy() -> None:
    pixel_filter, (images, masks) = ClassLossFilter(critic(), LOSSES), samples()
    logits = pixel_filter.predict_logits(images)
    losses = pixel_filter.losses(logits, masks)
    probability = logits.softmax(1)[1].numpy()
    expected = -np.log(np.take_along_axis(probability, masks[1][None].astype(int), 0)[0])
    assert np.allclose(losses[1], expected, atol=1e-5) and not losses[0][:4].any()


def test_batches_do_not_matter() -> None:
    pixel_filter, (images, masks) = ClassLossFilter(critic(), LOSSES, margin=1.0), samples()
    whole = pixel_filter(images, masks)
    for image, mask, found in zip(images, masks, whole):
        alone = pixel_filter([image], [mask])[0]
        assert np.array_equal(alone.label, found.label) and alone.entry['keep'] == found.entry['keep']
        assert found.entry['filter_sha256'] == pixel_filter.identity
        assert found.entry['labels_sha256'] == label_hash(mask)
    assert any((found.label != mask).any() for found, mask in zip(whole, masks))


def test_the_identity_follows_all_that_decides() -> None:
    same = [ClassLossFilter(critic(), LOSSES).identity for _ in range(2)]
    changed = [ClassLossFilter(critic(1), LOSSES).identity, ClassLossFilter(critic(), LOSSES, margin=2).identity,
               ClassLossFilter(critic(), LOSSES, weak_classes=['road']).identity,
               ClassLossFilter(critic(), ClassLosses(NAMES, (1.0, 1.1, 1.3), (9, 9, 9))).identity]
    assert len({*same, *changed}) == 5
    told = ClassLosses(NAMES, LOSSES.mean_loss, LOSSES.pixels, dict(note='where from does not decide'))
    assert ClassLossFilter(critic(), told).identity == same[0]


def test_a_label_hash_is_of_shape_and_values() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert label_hash(mask) == label_hash(np.asfortranarray(mask)) != label_hash(mask.reshape(4, 3))


def test_losses_of_another_segmentor_are_refused() -> None:
    fitted = ClassLosses(NAMES, LOSSES.mean_loss, LOSSES.pixels, dict(segmentor_sha256=segmentor_identity(critic())))
    ClassLossFilter(critic(), fitted)
    with pytest.raises(ValueError, match='measured with another segmentor .*Fit them again'):
        ClassLossFilter(critic(1), fitted)


def test_another_class_list_is_refused() -> None:
    with pytest.raises(ValueError, match='they are of 2 classes, the segmentor has 3'):
        ClassLossFilter(critic(), ClassLosses(('a', 'b'), (1.0, 1.0), (1, 1)))
    with pytest.raises(ValueError, match='pool p .* road, field, water; .* field, r'):
        ClassLossFilter(critic(), LOSSES).check_classes(('road', 'field', 'water'), 'pool p')


def test_siblings_are_not_decided_on_one_by_one() -> None:
    with pytest.raises(ValueError, match='`sibling_vote`'):
        ClassLossFilter(critic(), LOSSES, sibling_vote='median')(*samples())


def test_a_misspelt_option_fails_with_its_name() -> None:
    from mmsynth.registry import MODELS
    with pytest.raises(TypeError, match='margni'):
        MODELS.build(dict(type='mmsynth.ClassLossFilter', segmentor=critic(), class_losses=LOSSES, margni=2))


def test_any_critic_of_images_filters() -> None:
    """It need not be a segmentor of mmseg."""
    images, masks = samples()
    filters = [ClassLossFilter(ToyCritic(seed=seed), LOSSES, margin=2.0) for seed in (3, 3, 4)]
    first = filters[0](images, masks)
    assert any((found.label != mask).any() for found, mask in zip(first, masks))
    assert filters[0].identity == filters[1].identity != filters[2].identity
    with pytest.raises(ValueError, match='`segmentor` must predict on images'):
        ClassLossFilter(LatentReader(), LOSSES)


def test_soft_and_hard_rules_keep_the_same_samples() -> None:
    """The mean of soft weights alone would hardly ever fall below `min_valid`."""
    images, masks = samples(8)
    filters = [ClassLossFilter(critic(), LOSSES, margin=1.0, mode=mode, min_valid=0.68) for mode in ('hard', 'soft')]
    hard, soft = ([found.entry for found in own(images, masks)] for own in filters)
    assert [entry['keep'] for entry in hard] == [entry['keep'] for entry in soft]
    assert [entry['valid'] for entry in hard] == [entry['valid'] for entry in soft]  # what is selected by later
    assert {entry['keep'] for entry in soft} == {True, False}
