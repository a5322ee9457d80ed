"""Mask sources in a pipeline, inside each other, and in a synthesis run."""
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import NAMES, SmallRun
from tiny_masks import MemoryMasks, made

from mmsynth.apis.synthesize import list_requests
from mmsynth.datasets import PastedMasks, TransformedMasks
from mmsynth.datasets.mask_sources import ApplyMaskRecipe
from mmsynth.datasets.mask_sources.base import MaskRecipe
from mmsynth.datasets.transforms import BuildPrompt, CropSegMap
from mmsynth.pool import Pool
from mmsynth.registry import TRANSFORMS
from mmsynth.synthesis.build import build_dataset
from mmsynth.synthesis.encode_prompts import collect_prompts

FIELD, ROAD, WATER = range(3)
ROW = np.uint8([[1, 0, 0, 0]])
POND = np.uint8([[0, 2], [0, 0]])


def fill_all(value: int):
    """A step that makes the whole mask one class."""
    return lambda mask: (np.full_like(mask, value), dict(source='fill', value=value))


def apply(steps: tuple, **results: object) -> dict:
    return ApplyMaskRecipe()(dict(gt_seg_map=ROW, mask_recipe=MaskRecipe('a', steps)) | results)


# ---- the place in the pipeline


def test_steps_are_taken_in_order_and_origins_chained():
    results = apply((fill_all(1), fill_all(2)))
    assert results['gt_seg_map'].tolist() == [[2, 2, 2, 2]] and results['img_shape'] == (1, 4)
    assert results['mask_origin'] == dict(source='fill', value=2, of=dict(source='fill', value=1, of='a'))
    assert 'mask_recipe' not in results


def test_a_sample_without_recipe_passes_unchanged():
    assert ApplyMaskRecipe()(dict(gt_seg_map=ROW, img=1)) == dict(gt_seg_map=ROW, img=1)


def test_a_prompt_goes_only_where_the_classes_are_others():
    turned = apply((lambda mask: (mask[:, ::-1], dict(source='flip')), ), prompt='road and field')
    assert turned['prompt'] == 'road and field'
    assert 'prompt' not in apply((fill_all(1), ), prompt='road and field')


def test_configs_reach_the_transform():
    assert isinstance(TRANSFORMS.build(dict(type='mmsynth.ApplyMaskRecipe')), ApplyMaskRecipe)


def test_an_image_beside_a_changed_mask_is_refused():
    with pytest.raises(ValueError, match='mask of a .*image'):
        apply((fill_all(1), ), img=np.zeros((1, 4, 3), np.uint8))
    assert 'img' in apply((lambda mask: (mask, dict(source='chosen')), ), img=np.zeros((1, 4, 3), np.uint8))


def test_the_prompt_names_the_new_classes_and_the_crop_cuts_the_new_mask():
    dataset = MemoryMasks([ROW], transforms=[CropSegMap((1, 2)), BuildPrompt(classes=('field', 'road', 'water'))])
    results = made(TransformedMasks(dataset, 1, quarter_turns=False, seed=1))
    assert [prompt for _, _, prompt in results.values()] == ['a satellite image of field']
    mask, = [mask for mask, _, _ in results.values()]
    assert mask == [[0, 0]]


def test_a_pipeline_may_name_another_place():
    wide = np.zeros((6, 6), np.uint8)
    crop = [CropSegMap((2, 2)), ApplyMaskRecipe(), BuildPrompt(classes=('field', 'road', 'water'))]
    donors = MemoryMasks([POND], names=['donor'])
    results = made(PastedMasks(MemoryMasks([wide], transforms=crop), ['water'], ['field'], 1, donors=donors))
    mask, origin, prompt = results['m0+paste']
    assert np.array(mask).shape == (2, 2) and np.sum(np.array(mask) == WATER) == 1 and prompt.endswith('field, water')
    assert max(origin['objects'][0]['position']) <= 1


def test_a_data_set_that_loads_no_masks_is_refused():
    dataset = MemoryMasks([ROW])
    dataset.pipeline.transforms.pop(0)
    with pytest.raises(ValueError, match='MemoryMasks loads no masks'):
        TransformedMasks(dataset)
    del dataset.pipeline
    with pytest.raises(ValueError, match='MemoryMasks has no pipeline'):
        TransformedMasks(dataset)


# ---- inside each other


def test_sources_compose_and_the_origin_tells_the_whole_way():
    inner = TransformedMasks(MemoryMasks([np.zeros((5, 5), np.uint8), np.pad(POND, 2)]), 2, keep_original=True)
    results = made(PastedMasks(inner, ['water'], ['field'], num_objects=1))
    assert len(results) == 6 and all(name.endswith('+paste') for name in results)
    for name, (mask, origin, _) in results.items():
        base, *moves, _ = name.split('+')
        assert origin['source'] == 'paste'
        assert origin['of'] == base if not moves else origin['of']['source'] == 'transform'
        assert not moves or origin['of']['of'] == base
        # m1 and its variants come from one file: they get no object of one another
        assert len(origin['objects']) == (base == 'm0') and np.sum(np.array(mask) == WATER) == 1
        assert all(thing['donor'].startswith('m1') for thing in origin['objects'])


# ---- in configs and in a run


def with_source(small_run: SmallRun, **source: object):
    """The small run's config with its masks inside a mask source."""
    cfg = small_run.config()
    cfg.synthesis.dataset = dict(source, dataset=cfg.synthesis.dataset)
    return cfg


@pytest.fixture
def pasted(small_run: SmallRun):
    return with_source(small_run, type='mmsynth.PastedMasks', classes=['water'], onto=['field', 'road'],
                       num_objects=[1, 2], keep_original=True)


def test_a_pool_says_how_its_masks_were_made(small_run: SmallRun, pasted, tmp_path: Path) -> None:
    pool = small_run.synthesize(tmp_path / 'pool', pasted, guidance='none')
    assert [record.id for record in pool.records] == [f'masks/{name}{end}' for end in ('', '+paste') for name in NAMES]
    for plain, changed in zip(pool.records[:4], pool.records[4:]):
        assert plain.mask_origin is None and plain.source_mask == changed.source_mask
        before, after = pool.load_mask(plain), pool.load_mask(changed)
        generated = sum(thing['pixels'] for thing in changed.mask_origin['objects'])
        assert changed.mask_origin['source'] == 'paste' and changed.mask_origin['of'] == plain.id
        assert (before != after).sum() == generated > 0 and set(after[before != after]) == {WATER}
        assert np.array_equal(before == 255, after == 255)
    assert Pool.open(pool.root).records == pool.records


def test_masks_do_not_depend_on_the_batch_or_a_resume(small_run: SmallRun, pasted, tmp_path: Path) -> None:
    small_run.synthesize(tmp_path / 'resumed', pasted, guidance='none', batch_size=3, limit=5)
    resumed = small_run.synthesize(tmp_path / 'resumed', pasted, guidance='none', batch_size=1)
    whole = small_run.synthesize(tmp_path / 'whole', pasted, guidance='none')
    assert {record.id for record in resumed.records} == {record.id for record in whole.records}
    stored = {record.id: (record.mask_origin, resumed.load_mask(record).tolist()) for record in resumed.records}
    assert all(stored[record.id] == (record.mask_origin, whole.load_mask(record).tolist()) for record in whole.records)


def test_a_segmentor_chooses_masks_of_a_run(small_run: SmallRun, tmp_path: Path) -> None:
    lines = [json.dumps(dict(source=f'masks/{name}.png', target=f'images/{name}.png')) for name in NAMES]
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(lines))
    critic = small_run.config().synthesis.guidance.critic
    cfg = with_source(small_run, type='mmsynth.UncertainMasks', critic=critic, share=0.5)
    cfg.synthesis.dataset.dataset.ann_file = str(tmp_path / 'pairs.jsonl')
    pool = small_run.synthesize(tmp_path / 'pool', cfg, guidance='none')
    assert len(pool.records) == 2
    scores = [record.mask_origin['score'] for record in pool.records]
    assert 1 >= scores[0] >= scores[1] > 0
    digest = hashlib.sha256(small_run.critic.read_bytes()).hexdigest()[:16]
    assert {record.mask_origin['critic_weights_sha256'] for record in pool.records} == {digest}
    assert all(record.mask_origin['of'] == record.id for record in pool.records)


def test_real_masks_and_variants_can_stand_side_by_side(small_run: SmallRun) -> None:
    cfg = with_source(small_run, type='mmsynth.TransformedMasks', num_variants=2)
    real = cfg.synthesis.dataset.dataset
    dataset = build_dataset(dict(type='ConcatDataset', datasets=[real, cfg.synthesis.dataset]))
    ids = [request.id for request in list_requests(dataset, 0, 1)]
    assert len(set(ids)) == 12 and ids[:4] == [f'masks/{name}' for name in NAMES]
    assert dataset[7]['data_samples'].mask_origin['source'] == 'transform'


def test_several_images_of_a_changed_mask_show_the_same_mask(small_run: SmallRun, pasted, tmp_path: Path) -> None:
    pasted.synthesis.dataset.keep_original = False
    pool = small_run.synthesize(tmp_path / 'pool', pasted, guidance='none', num_per_mask=2, limit=1)
    one, two = pool.records
    assert two.id == f'{one.id}~2' and one.mask_origin == two.mask_origin
    assert np.array_equal(pool.load_mask(one), pool.load_mask(two))


def test_prompts_of_changed_masks_are_collected(small_run: SmallRun, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / 'plain.png')
    Image.fromarray(np.uint8([[2, 0, 0, 0], [1, 1, 1, 1]])).save(tmp_path / 'rich.png')
    (tmp_path / 'masks.jsonl').write_text('{"source": "plain.png"}\n{"source": "rich.png"}\n')
    cfg = with_source(small_run, type='mmsynth.PastedMasks', classes=['water'], onto=['field'], num_objects=1)
    cfg.synthesis.dataset.dataset.update(data_root=str(tmp_path), meta_file=str(small_run.data / 'meta.json'),
                                         ann_file='masks.jsonl')
    cfg.pop('train_dataloader')
    assert collect_prompts(cfg) == ['', 'a satellite image of field, water', 'a satellite image of field, road, water']


def test_masks_of_sixteen_bits_are_changed_too(small_run: SmallRun, tmp_path: Path) -> None:
    Image.fromarray(np.uint16([[2, 0], [1, 255]])).save(tmp_path / 'deep.png')
    (tmp_path / 'masks.jsonl').write_text('{"source": "deep.png"}\n')
    cfg = with_source(small_run, type='mmsynth.TransformedMasks', num_variants=7)
    cfg.synthesis.dataset.dataset.update(data_root=str(tmp_path), meta_file=str(small_run.data / 'meta.json'),
                                         ann_file='masks.jsonl')
    masks = [sample['data_samples'].gt_sem_seg.data[0].numpy() for sample in build_dataset(cfg.synthesis.dataset)]
    assert len({mask.tobytes() for mask in masks}) == 7
    assert all(sorted(mask.ravel().tolist()) == [0, 1, 2, 255] for mask in masks)


def test_unknown_options_are_refused_by_name(small_run: SmallRun) -> None:
    cfg = with_source(small_run, type='mmsynth.TransformedMasks', flip=True)
    with pytest.raises(TypeError, match=re.escape("unexpected keyword argument 'flip'")):
        build_dataset(cfg.synthesis.dataset)
