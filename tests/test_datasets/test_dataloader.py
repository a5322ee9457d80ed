"""The whole way from files to a model's input, built by the host's Runner from a config."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.utils import register_all_modules
from PIL import Image

from mmsynth.datasets import DubaiDataset
from mmsynth.models.data_preprocessor import SynthDataPreprocessor

CROP = (16, 16)


@pytest.fixture(autouse=True)
def mmseg_scope():
    before = dict(DefaultScope._instance_dict)
    register_all_modules(init_default_scope=True)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images whose blue band is 40 times the class id, so that a picture tells whether its mask moved along."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(4):
        mask = rng.integers(0, 5, (24 + i, 20 + 2 * i)).astype(np.uint8)
        image = np.zeros((*mask.shape, 3), np.uint8)
        image[..., 2] = 40 * mask
        Image.fromarray(mask).save(tmp_path / f'mask{i}.png')
        Image.fromarray(image).save(tmp_path / f'image{i}.png')
        lines.append(json.dumps(dict(source=f'mask{i}.png', target=f'image{i}.png', ref_image=f'image{3 - i}.png')))
    (tmp_path / 'index.jsonl').write_text('\n'.join(lines))
    return tmp_path


def loader_config(root: Path, pipeline: list[dict], *, workers: int = 0, **dataset: object) -> dict:
    return dict(
        batch_size=4,
        num_workers=workers,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(type='mmsynth.DubaiDataset', data_root=str(root), ann_file='index.jsonl', pipeline=pipeline,
                     **dataset))


@pytest.mark.parametrize('workers', [0, 1])
def test_a_training_batch_with_mmsegs_own_augmentations(root, workers):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmsynth.LoadSegMap'),
        dict(type='mmsynth.LoadReference'),
        dict(type='RandomCrop', crop_size=CROP, cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomRotFlip', rotate_prob=0.0, flip_prob=1.0),
        dict(type='mmsynth.BuildPrompt'),
        dict(type='mmsynth.PackSynthInputs'),
    ]
    loader = Runner.build_dataloader(loader_config(root, pipeline, workers=workers), seed=0)
    batch, = list(loader)
    prepared = SynthDataPreprocessor(size_divisor=8)(batch, True)
    assert prepared['inputs'].shape == (4, 3, *CROP)
    for image, sample in zip(prepared['inputs'], prepared['data_samples']):
        torch.testing.assert_close((image[2] + 1) * 127.5 / 40, sample.gt_sem_seg.data[0].float())
        assert sample.prompt == f'a satellite image of {", ".join(DubaiDataset.METAINFO["classes"])}'
        assert sample.reference.data.dtype == torch.float32
    assert {sample.sample_id for sample in prepared['data_samples']} == {f'mask{i}' for i in range(4)}


def test_a_batch_of_masks_for_synthesis(root):
    pipeline = [dict(type='mmsynth.LoadSegMap'), dict(type='mmsynth.BuildPrompt'), dict(type='mmsynth.PackSynthInputs')]
    config = loader_config(root, pipeline, masks_only=True, indices=1)
    batch, = list(Runner.build_dataloader(config, seed=0))
    prepared = SynthDataPreprocessor()(batch)
    sample, = prepared['data_samples']
    assert prepared['inputs'] is None
    assert sample.gt_sem_seg.data.shape == (1, *sample.ori_shape)


def test_a_host_dataset_works_with_the_same_transforms(root):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='mmsynth.LoadSegMap', num_classes=7),
                dict(type='mmsynth.BuildPrompt', classes=['x'] * 7), dict(type='mmsynth.PackSynthInputs')]
    config = loader_config(root, pipeline) | dict(batch_size=1)
    config['dataset'] = dict(type='LoveDADataset', data_root=str(root), img_suffix='image0.png',
                             seg_map_suffix='mask0.png', pipeline=pipeline)
    batch, = list(Runner.build_dataloader(config, seed=0))
    mask = np.asarray(Image.open(root / 'mask0.png'))
    np.testing.assert_array_equal(batch['data_samples'][0].gt_sem_seg.data[0], np.where(mask, mask - 1., 255))
