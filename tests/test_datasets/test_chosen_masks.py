"""ChosenMasks: chosen or repeated masks under ids of their own, told in the manifest, painted by the tool."""
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image
from small_run import SmallRun

from mmsynth.apis.synthesize import list_requests
from mmsynth.datasets import ChosenMasks
from mmsynth.registry import DATASETS

CLASSES = ('field', 'road', 'water')
ROADS = dict(a=0, b=10, c=20, d=40)  # rows of 100, in masks of 100 x 2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Masks with known shares of road."""
    (tmp_path / 'masks').mkdir()
    for name, rows in ROADS.items():
        mask = np.zeros((100, 2), np.uint8)
        mask[100 - rows:] = 1
        Image.fromarray(mask).save(tmp_path / 'masks' / f'{name}.png')
    (tmp_path / 'meta.json').write_text(json.dumps(dict(classes=CLASSES, palette=[[0] * 3] * 3)))
    lines = [json.dumps(dict(source=f'masks/{name}.png')) for name in ROADS]
    (tmp_path / 'masks.jsonl').write_text('\n'.join(lines))
    return tmp_path


def masks_of(data: Path) -> dict:
    return dict(type='mmsynth.ManifestDataset', data_root=str(data), ann_file='masks.jsonl', meta_file='meta.json',
                pipeline=[dict(type='mmsynth.LoadSegMap'), dict(type='mmsynth.PackSynthInputs')])


def chosen(data: Path, **options: object) -> ChosenMasks:
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(dict(dataset=masks_of(data)) | options | dict(type='mmsynth.ChosenMasks'))


def ids(dataset: ChosenMasks) -> list[str]:
    return [dataset.get_data_info(index)['sample_id'] for index in range(len(dataset))]


def test_masks_are_chosen_for_the_target(data: Path) -> None:
    dataset = chosen(data, target=dict(road=0.25), count=2, report_file=str(data / 'out' / 'report.json'))
    assert ids(dataset) == ['masks/b', 'masks/d']  # (10 + 40) / 200
    assert dataset.metainfo['classes'] == CLASSES and dataset.choice.reached[1] == pytest.approx(0.25)
    report = json.loads((data / 'out' / 'report.json').read_text())
    assert report['shares']['road'] == pytest.approx(dict(before=0.175, wanted=0.25, reached=0.25))
    sample = dataset[1]['data_samples']
    assert sample.gt_sem_seg.data.sum() == 80
    assert sample.mask_origin == dict(source='chosen', of='masks/d', mask='masks/d', rule='target shares')


def test_repeats_get_ids_of_their_own_after_all_first_draws(data: Path) -> None:
    dataset = chosen(data, target=dict(road=0.4), count=3, max_repeats=3)
    assert ids(dataset) == ['masks/d', 'masks/d+draw2', 'masks/d+draw3']
    assert [dataset[index]['data_samples'].sample_id for index in range(3)] == ids(dataset)
    requests = list_requests(dataset, seed=0, num_per_mask=2)  # no clash with the tool's own repeats
    assert [request.id for request in requests[:4]] == [
        'masks/d', 'masks/d~2', 'masks/d+draw2', 'masks/d+draw2~2']
    assert len({request.seed for request in requests}) == 6


def test_masks_are_taken_as_often_as_a_file_says(data: Path) -> None:
    (data / 'numbers.json').write_text(json.dumps({'masks/c': 3, 'masks/a': 1, 'masks/b': 0}))
    dataset = chosen(data, images_per_mask=str(data / 'numbers.json'))
    assert ids(dataset) == ['masks/a', 'masks/c', 'masks/c+draw2', 'masks/c+draw3']
    assert dataset.choice is None
    assert dataset[3]['data_samples'].mask_origin['rule'] == 'images per mask'


def test_it_chooses_among_changed_masks_and_several_data_sets(data: Path) -> None:
    flips = dict(type='mmsynth.TransformedMasks', dataset=masks_of(data), keep_original=False)
    joined = dict(type='ConcatDataset', datasets=[masks_of(data), flips])
    dataset = chosen(data, dataset=joined, target=dict(road=0.4), count=2)
    plain, changed = (dataset[index]['data_samples'] for index in range(2))
    assert plain.sample_id == 'masks/d' and plain.mask_origin['of'] == 'masks/d'
    assert changed.sample_id.startswith('masks/d+') and changed.sample_id == changed.mask_origin['mask']
    assert changed.mask_origin['source'] == 'chosen' and changed.mask_origin['of']['of'] == 'masks/d'


def test_classes_are_counted_in_the_masks_that_are_painted(data: Path) -> None:
    config = masks_of(data)
    config['pipeline'].insert(1, dict(type='mmsynth.CropSegMap', crop_size=(40, 2)))
    dataset = chosen(data, dataset=config, target=dict(road=0.5), count=1)
    with DefaultScope.overwrite_default_scope('mmseg'):
        cropped = [sample['data_samples'].gt_sem_seg.data for sample in DATASETS.build(config)]
    assert dataset[0]['data_samples'].gt_sem_seg.shape == (40, 2)
    assert dataset.choice.before[1] == pytest.approx(sum(int(mask.sum()) for mask in cropped) / (4 * 80))
    assert dataset.choice.before[1] != pytest.approx(0.175)  # that of the whole masks


def test_the_tool_paints_the_chosen_masks(small_run: SmallRun, tmp_path: Path) -> None:
    cfg = small_run.config()
    cfg.synthesis.dataset = dict(type='mmsynth.ChosenMasks', target=dict(road=0.34), count=3, max_repeats=2,
                                 dataset=cfg.synthesis.dataset)
    pool = small_run.synthesize(tmp_path / 'pool', cfg, guidance='none')
    assert len(pool) == 3 and all(record.mask_origin['source'] == 'chosen' for record in pool.records)
    assert {record.mask_origin['mask'] for record in pool.records} <= {f'masks/{name}' for name in 'abcd'}


@pytest.mark.parametrize('options, message', [
    (dict(), 'exactly one of `target` and `images_per_mask` must be given, got neither'),
    (dict(target=dict(road=0.1), images_per_mask='x'), 'got both'),
    (dict(target=dict(road=0.1)), '`target` needs `count`'),
    (dict(images_per_mask='x', count=3), 'go with `target`'),
    (dict(target=dict(road=10), count=1), r"`target` must give at least one class a share in \[0, 1\], got .*10"),
    (dict(target={}, count=1), 'at least one class'),
    (dict(target=dict(raod=0.1), count=1), "`target` has 'raod', which .* its classes are field, road, water"),
    (dict(target=dict(water=0.1), count=1), '`target` wants water, which no mask shows; .* mmsynth.PastedMasks'),
    (dict(target=dict(road=0.1), count=5), '`count` = 5 masks cannot be chosen from 4'),
    (dict(target=dict(road=0.1), cuont=5), 'cuont'),
])
def test_mistakes_are_named(options: dict, message: str, data: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        chosen(data, **options)


@pytest.mark.parametrize('text, message', [
    ('{', 'is not valid JSON'),
    ('{"masks/a": 1.5}', 'must hold an object of mask ids and numbers of images'),
    ('{"masks/a": 0}', 'asks for no image at all'),
    ('{"masks/x": 1, "masks/a": 1}', "names 1 masks that the data set does not have, such as 'masks/x'"),
])
def test_wrong_files_are_named(text: str, message: str, data: Path) -> None:
    (data / 'numbers.json').write_text(text)
    with pytest.raises(ValueError, match=message):
        chosen(data, images_per_mask=str(data / 'numbers.json'))
    with pytest.raises(FileNotFoundError, match='tools/select_samples.py writes it into a pool'):
        chosen(data, images_per_mask=str(data / 'none.json'))
