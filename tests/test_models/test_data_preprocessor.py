import pytest
import torch
from mmengine.structures import PixelData
from torch import Tensor

from mmsynth.models.data_preprocessor import SynthDataPreprocessor
from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample


def sample(height: int = 4, width: int = 6, *, reference: Tensor | None = None, **meta: str) -> SynthDataSample:
    made = SynthDataSample(metainfo=meta)
    made.gt_sem_seg = PixelData(data=torch.full((1, height, width), 255))
    if reference is not None:
        made.reference = PixelData(data=reference)
    return made


def image(height: int = 4, width: int = 6, colour: tuple[int, int, int] = (255, 51, 0)) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, height, width).contiguous()


def test_bgr_becomes_rgb_in_minus_one_to_one():
    batch = dict(inputs=[image(), image(colour=(0, 0, 255))], data_samples=[sample(), sample()])
    inputs = SynthDataPreprocessor()(batch)['inputs']
    assert inputs.dtype == torch.float32 and inputs.shape == (2, 3, 4, 6)
    torch.testing.assert_close(inputs[:, :, 0, 0], torch.tensor([[-1.0, -0.6, 1.0], [1.0, -1.0, -1.0]]))


def test_rgb_input_keeps_its_order():
    inputs = SynthDataPreprocessor(bgr_to_rgb=False)(dict(inputs=torch.stack([image()])))['inputs']
    torch.testing.assert_close(inputs[0, :, 0, 0], torch.tensor([1.0, -0.6, -1.0]))


def test_a_batch_of_two_is_twice_a_batch_of_one():
    images = [image(), image(colour=(1, 2, 3))]
    both = SynthDataPreprocessor()(dict(inputs=images))['inputs']
    alone = [SynthDataPreprocessor()(dict(inputs=[one]))['inputs'] for one in images]
    assert torch.equal(both, torch.cat(alone))


def test_masks_stay_integers_and_may_come_alone():
    out = SynthDataPreprocessor()(dict(data_samples=[sample(prompt='roads')]), training=True)
    assert out['inputs'] is None
    assert out['data_samples'][0].gt_sem_seg.data.dtype == torch.int64
    assert out['data_samples'][0].prompt == 'roads'


def test_references_are_normalised_and_what_is_given_stays():
    given = [sample(reference=image(2, 3)), sample(reference=image(5, 5, (0, 0, 0)))]
    batch = dict(data_samples=given)
    for _ in range(2):  # a second pass gives the same: nothing was changed in place
        out = SynthDataPreprocessor()(batch)['data_samples']
        torch.testing.assert_close(out[0].reference.data[:, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))
        assert out[1].reference.data.shape == (3, 5, 5)
    assert given[0].reference.data.dtype == torch.uint8


def test_it_is_registered_and_takes_no_unknown_option():
    built = MODELS.build(dict(type='mmsynth.SynthDataPreprocessor', size_divisor=16))
    assert isinstance(built, SynthDataPreprocessor)
    with pytest.raises(TypeError, match='pad_val'):
        MODELS.build(dict(type='mmsynth.SynthDataPreprocessor', pad_val=0))


@pytest.mark.parametrize('batch, message', [
    (dict(inputs=[image(), image(4, 8)],
          data_samples=[sample(img_path='a.jpg'), sample(4, 8, img_path='b.jpg')]),
     r'one size, got a\.jpg 4 x 6 \(height x width\), b\.jpg 4 x 8 .*RandomCrop'),
    (dict(data_samples=[sample(seg_map_path='a.png'), sample(8, 6)]), r'a\.png 4 x 6 .*, sample 1 of the batch 8 x 6'),
    (dict(inputs=[image(4, 8)], data_samples=[sample(img_path='a.jpg')]), r'a\.jpg: the image is 4 x 8 .*mask 4 x 6'),
    (dict(inputs=[image()[:1]]), r'sample 0 of the batch: images must be \(3, H, W\), got \(1, 4, 6\)'),
    (dict(data_samples=[SynthDataSample()]), r'neither images \(`inputs`\) nor masks'),
    (dict(), 'neither images'),
])
def test_sizes_that_do_not_fit_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        SynthDataPreprocessor()(batch)


@pytest.mark.parametrize('batch', [dict(inputs=[image(16, 20)]), dict(data_samples=[sample(16, 20)])])
def test_sides_must_be_multiples_of_the_divisor(batch):
    with pytest.raises(ValueError, match='16 x 20 .*`size_divisor` 16; .* 16 x 16'):
        SynthDataPreprocessor(size_divisor=16)(batch)
    SynthDataPreprocessor(size_divisor=4)(batch)


def test_the_divisor_is_checked_at_once():
    with pytest.raises(ValueError, match='`size_divisor`.* got 0'):
        SynthDataPreprocessor(size_divisor=0)
