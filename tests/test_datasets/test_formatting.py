import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmseg.datasets.transforms import PackSegInputs

from mmsynth.datasets.transforms import PackSynthInputs
from mmsynth.structures import SynthDataSample


def results(**more: object) -> dict:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    return dict(gt_seg_map=mask, sample_id='masks/a', prompt='roads', seg_map_path='a.png', ori_shape=(2, 3)) | more


def test_images_and_masks_are_packed_as_in_mmseg():
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    given = results(img=image[:, ::-1], img_path='a.jpg', flip=True, flip_direction='horizontal')
    packed, host = PackSynthInputs()(dict(given)), PackSegInputs()(dict(given))
    assert torch.equal(packed['inputs'], host['inputs']) and packed['inputs'].dtype == torch.uint8
    sample = packed['data_samples']
    assert isinstance(sample, SynthDataSample)
    assert torch.equal(sample.gt_sem_seg.data, host['data_samples'].gt_sem_seg.data)
    assert sample.metainfo == dict(sample_id='masks/a', prompt='roads', img_path='a.jpg', seg_map_path='a.png',
                                   ori_shape=(2, 3), flip=True, flip_direction='horizontal')


def test_masks_alone_have_no_inputs_and_collate():
    packed = PackSynthInputs()(results())
    assert packed.keys() == {'data_samples'}
    batch = pseudo_collate([packed, PackSynthInputs()(results())])
    assert batch['data_samples'][1].gt_sem_seg.data.shape == (1, 2, 3)
    assert batch['data_samples'][1].gt_sem_seg.data.dtype == torch.int64


def test_a_reference_goes_along():
    reference = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    sample = PackSynthInputs()(results(reference=reference))['data_samples']
    np.testing.assert_array_equal(sample.reference.data.numpy(), reference.transpose(2, 0, 1))


def test_meta_keys_choose():
    sample = PackSynthInputs(meta_keys=['prompt', 'flip'])(results())['data_samples']
    assert sample.metainfo == dict(prompt='roads')


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='neither an image nor a mask'):
        PackSynthInputs()(dict(sample_id='a'))
    with pytest.raises(ValueError, match="`meta_keys`.* 'prompt'"):
        PackSynthInputs(meta_keys='prompt')
