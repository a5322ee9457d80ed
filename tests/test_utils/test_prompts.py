import numpy as np
import pytest

from mmsynth.datasets.transforms import BuildPrompt, build_prompt

CLASSES = ('land', 'road', 'water')
MASK = np.array([[2, 255], [0, 2]], np.uint8)


def test_names_stand_in_class_order():
    assert build_prompt(MASK, CLASSES) == 'a satellite image of land, water'


def test_separator_template_and_ignore_index():
    assert build_prompt(MASK, CLASSES, '{classes} seen from {above}', separator=' and ') \
        == 'land and water seen from {above}'
    assert build_prompt(np.array([1, 0]), CLASSES, ignore_index=0) == 'a satellite image of road'


@pytest.mark.parametrize('template, text', [
    ('a satellite image of {classes}', 'a satellite image'),
    ('a satellite image with {classes}, from above', 'a satellite image, from above'),
    ('an aerial photo: {classes}', 'an aerial photo'),
    ('{classes} from above', 'from above'),
    ('{classes}', ''),
])
def test_without_classes_nothing_is_left_hanging(template, text):
    assert build_prompt(np.full((2, 2), 255), CLASSES, template) == text


def test_the_transform_takes_names_from_option_or_dataset():
    assert BuildPrompt()(dict(gt_seg_map=MASK, classes=CLASSES))['prompt'] == 'a satellite image of land, water'
    assert BuildPrompt(classes=['a', 'b', 'c'])(dict(gt_seg_map=MASK, classes=CLASSES))['prompt'] \
        == 'a satellite image of a, c'


def test_a_prompt_is_kept_on_request():
    given = dict(gt_seg_map=MASK, classes=CLASSES, prompt='mine')
    assert BuildPrompt(overwrite=False)(dict(given))['prompt'] == 'mine'
    assert BuildPrompt()(dict(given))['prompt'] == 'a satellite image of land, water'
    del given['prompt']
    assert BuildPrompt(overwrite=False)(given)['prompt'] == 'a satellite image of land, water'


@pytest.mark.parametrize('results, message', [
    (dict(gt_seg_map=MASK), 'BuildPrompt has no class names; set its `classes`'),
    (dict(classes=CLASSES), 'needs `gt_seg_map`; put LoadSegMap before it'),
    (dict(gt_seg_map=MASK, classes=('land', ), seg_map_path='a.png'), r'a\.png: values \[2\] have no name among 1'),
])
def test_what_is_missing_is_named(results, message):
    with pytest.raises(ValueError, match=message):
        BuildPrompt()(results)


def test_options_are_checked_at_once():
    with pytest.raises(ValueError, match="`template`.* got 'an image'"):
        BuildPrompt(template='an image')
    with pytest.raises(ValueError, match="`classes`.* 'road'"):
        BuildPrompt(classes='road')
