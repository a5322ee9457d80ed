"""Which samples to keep, how often to list them, and what is written for training and for a further run."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset

from mmsynth.filtering.identity import label_hash
from mmsynth.filtering.selection import RareClassSelector, keep_sample, mask_id
from mmsynth.pool import Pool, file_name

CLASSES = ('field', 'road', 'water')
SIDE = 10


def label(*columns: int) -> np.ndarray:
    """A label of ten columns, each of one value."""
    return np.tile(np.array(columns, np.uint8), (SIDE, 1))


TWO_IGNORED = label(0, 0, 0, 0, 0, 0, 0, 1, 255, 255)


@pytest.mark.parametrize('weak, min_valid, expected', [
    ({}, 0.79, (True, '80 % valid')),
    ({}, 0.8, (False, '80 % valid, not above 80 %')),
    ({}, 0.805, (False, '80 % valid, below 80.5 %')),
    ({1: 'road'}, 1.0, (True, 'weak class road')),
    ({2: 'water'}, 0.9, (False, '80 % valid, below 90 %')),
    ({2: 'water', 1: 'road'}, 0.9, (True, 'weak class road')),
])
def test_the_released_rule(weak: dict[int, str], min_valid: float, expected: tuple[bool, str]) -> None:
    assert keep_sample(TWO_IGNORED, weak, min_valid) == expected


def test_mistakes_in_the_rule_are_named() -> None:
    with pytest.raises(ValueError, match=r'`min_valid` must be in \[0, 1\], got 80'):
        keep_sample(TWO_IGNORED, {}, 80)
    with pytest.raises(ValueError, match='`filtered_label` must not be empty'):
        keep_sample(TWO_IGNORED[:0], {}, 0.5)


# ---- a pool


def entry(id: str, mask: np.ndarray, *, keep: bool, hardness: float, valid: float = 0.9, roads_left: int = 0) -> dict:
    """What a filter writes; the mask has ten pixels of road."""
    return dict(filter_sha256='f', labels_sha256=label_hash(mask), label=f'filtered/{file_name(id)}.png', weight=None,
                keep=keep, reason='as filtered', valid=valid, pixels=dict(field=70, road=10),
                removed=dict(field=5, road=10 - roads_left), loss=dict(field=0.1, road=0.5), hardness=hardness)


SAMPLES = {
    'a': dict(keep=True, hardness=0.5), 'a~2': dict(keep=False, hardness=0.7, valid=0.3),
    'b': dict(keep=True, hardness=2.0), 'c': dict(keep=False, hardness=1.0, valid=0.5, roads_left=3),
    'd': dict(keep=True, hardness=0.6, valid=0.6)}


def make_pool(root: Path, samples: dict[str, dict] = SAMPLES, **changes: object) -> Pool:
    mask, image = TWO_IGNORED, np.zeros((SIDE, SIDE, 3), np.uint8)
    with Pool.create(root, dict(seed=0), CLASSES, [(0, 0, 0)] * 3) as pool:
        for id, values in samples.items():
            pool.add(id, image, mask, source_mask=f'masks/{id.partition("~")[0]}.png', prompt='', seed=0,
                     generator=dict(type='T', config_sha256='c', weights_sha256=None),
                     filter=entry(id, mask, **values) | changes)
    return Pool.open(root)


def listed(pool: Pool, selector: RareClassSelector) -> list[str]:
    """Ids of the samples, as often as they are selected."""
    ids = {Path(record.image).stem: record.id for record in pool.records}
    return [ids[stem] for stem in selector.select(pool).lines()]


@pytest.mark.parametrize('options, expected', [
    (dict(), ['a', 'b', 'd']),  # as filtered
    (dict(weak_classes=['road']), ['a', 'b', 'c', 'd']),
    (dict(weak_classes=['water']), ['a', 'b', 'd']),
    (dict(min_valid=0.6), ['a', 'b']),
    (dict(min_valid=0.25), ['a', 'a~2', 'b', 'c', 'd']),
    (dict(min_valid=0.6, weak_classes=['water', 'road']), ['a', 'b', 'c']),
])
def test_samples_are_kept_by_weak_classes_or_valid_pixels(options: dict, expected: list[str], tmp_path: Path) -> None:
    assert listed(make_pool(tmp_path), RareClassSelector(**options)) == expected


def test_hard_masks_are_repeated_by_their_rank(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)  # hardness of the masks: a 0.6 (mean), b 2.0, c 1.0, d 0.6
    selection = RareClassSelector(max_repeats=3, min_valid=0.25).select(pool)
    assert selection.images_per_mask == dict(a=1, b=3, c=2, d=1)  # 1 + floor(3 * (0, 3, 2, 0) / 4)
    assert listed(pool, RareClassSelector(max_repeats=3, min_valid=0.25)) == [
        'a', 'a~2', 'b', 'b', 'b', 'c', 'c', 'd']
    assert set(RareClassSelector(max_repeats=1).select(pool).images_per_mask.values()) == {1}
    many = RareClassSelector(max_repeats=100).select(pool).images_per_mask
    assert many == dict(a=1, b=76, c=51, d=1)


def test_reasons_are_given(tmp_path: Path) -> None:
    selection = RareClassSelector(['road'], min_valid=0.7).select(make_pool(tmp_path))
    assert list(selection.reasons.values()) == ['90 % valid', '30 % valid, below 70 %', '90 % valid',
                                                'weak class road', '60 % valid, below 70 %']


def test_masks_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    record = make_pool(tmp_path).records[1]
    assert mask_id(record) == 'a'
    assert mask_id(replace(record, source_mask='masks/a~2.png')) == 'a~2'
    assert mask_id(replace(record, id='a+draw2~3', mask_origin=dict(source='chosen', of='a', mask='a'))) == 'a'
    flipped = dict(source='flip', of='a')
    assert mask_id(replace(record, id='a+flip', mask_origin=flipped)) == 'a+flip'


def test_mmseg_trains_on_the_list(tmp_path: Path) -> None:
    """Repeated names are repeated samples for mmseg's own data set."""
    pool = make_pool(tmp_path)
    RareClassSelector(max_repeats=3).select(pool).write(pool.root)
    init_default_scope('mmseg')
    dataset = BaseSegDataset(
        data_root=str(tmp_path), ann_file='selected.txt', img_suffix='.png', metainfo=dict(classes=CLASSES),
        data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')])
    images = [Path(dataset[index]['img_path']).stem for index in range(len(dataset))]
    assert images == RareClassSelector(max_repeats=3).select(pool).lines() and len(images) == 5
    assert json.loads((tmp_path / 'images_per_mask.json').read_text()) == dict(a=1, b=3, c=2, d=1)


def test_pools_that_cannot_be_selected_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`weak_classes` has 'raod'.* field"):
        RareClassSelector(['raod']).select(make_pool(tmp_path / 'a'))
    with pytest.raises(ValueError, match="5 samples .*other labels.* 'a'"):
        RareClassSelector().select(make_pool(tmp_path / 'b', labels_sha256='0'))
    with pytest.raises(ValueError, match='it is empty'):
        RareClassSelector().select(make_pool(tmp_path / 'c', {}))
    pool = make_pool(tmp_path / 'd')
    manifest = tmp_path / 'd' / 'manifest.jsonl'
    manifest.write_text(manifest.read_text().replace('"filter_sha256": "f"', '"filter_sha256": "g"', 1))
    with pytest.raises(ValueError, match='filtered by different filters'):
        RareClassSelector().select(Pool.open(tmp_path / 'd'))
    lines = [json.dumps(json.loads(line) | dict(filter=None)) for line in manifest.read_text().splitlines()]
    manifest.write_text('\n'.join(lines) + '\n')
    with pytest.raises(ValueError, match="5 samples are not filtered, such as 'a'"):
        RareClassSelector().select(Pool.open(tmp_path / 'd'))
    with pytest.raises(ValueError, match='no sample of .* is selected; lower `min_valid`'):
        RareClassSelector(min_valid=1.0).select(make_pool(tmp_path / 'e')).write(tmp_path / 'e')
    assert not (tmp_path / 'e' / 'selected.txt').exists() and pool


@pytest.mark.parametrize('options, message', [
    (dict(weak_classes='road'), "`weak_classes` must be a sequence of names, got the text 'road'"),
    (dict(min_valid=1.5), r'`min_valid` must be in \[0, 1\], got 1.5'),
    (dict(max_repeats=0), '`max_repeats` must be at least 1, got 0'),
])
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RareClassSelector(**options)
