"""The critic reads an image exactly as mmseg itself does, and is left as it was found."""
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from tiny_generator import segmentor
from torch import Tensor, nn

from mmsynth.guidance import CRFM, CriticOutput, SegmentorCritic
from mmsynth.registry import MODELS

CLASSES, HEIGHT, WIDTH = 3, 24, 20


def critic(**settings) -> SegmentorCritic:
    """A critic whose head makes a difference; a fresh one reads every pixel alike."""
    torch.manual_seed(0)
    built = SegmentorCritic(dict(model=segmentor(**settings)))
    with torch.no_grad():
        built.segmentor.decode_head.conv_seg.weight.normal_(std=10)
    return built


def image(count: int = 1) -> Tensor:
    """RGB bytes (B, 3, H, W)."""
    return torch.randint(256, (count, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def masks(count: int = 1) -> Tensor:
    return torch.randint(CLASSES, (count, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(2))


def read_by_mmseg(model: nn.Module, images: Tensor) -> Tensor:
    """What mmseg's test loop gives for the images as it would load them from disk: BGR bytes and metainfo."""
    size = (HEIGHT, WIDTH)
    samples = [SegDataSample(metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size)) for _ in images]
    data = model.data_preprocessor(dict(inputs=list(images.flip(1)), data_samples=samples), False)
    with torch.no_grad():
        return torch.stack([sample.seg_logits.data for sample in model.predict(data['inputs'], data['data_samples'])])


@pytest.mark.parametrize('settings', [
    dict(),
    dict(data_preprocessor=dict(bgr_to_rgb=False)),
    dict(data_preprocessor=dict(bgr_to_rgb=False, rgb_to_bgr=True)),
    dict(data_preprocessor=dict(mean=None, std=None)),
    dict(data_preprocessor=dict(size=(16, 16), test_cfg=None)),
    dict(data_preprocessor=dict(test_cfg=dict(size_divisor=16))),
    dict(data_preprocessor=dict(test_cfg=dict(size=(32, 48)), pad_val=7)),
    dict(data_preprocessor=dict(test_cfg=dict(size=(16, 16)))),
    dict(test_cfg=dict(mode='slide', crop_size=(16, 16), stride=(8, 8))),
    dict(test_cfg=dict(mode='slide', crop_size=(16, 16), stride=(10, 10)),
         data_preprocessor=dict(test_cfg=dict(size_divisor=32), bgr_to_rgb=False)),
    dict(test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(32, 32))),
    dict(head=dict(align_corners=True)),
], ids=lambda settings: str(settings).replace('data_preprocessor', '')[:60])
def test_logits_are_those_of_mmseg(settings: dict) -> None:
    ours = critic(**settings)
    expected = read_by_mmseg(ours.segmentor, image(2))
    assert expected.std((2, 3)).mean() > 0.1 and expected.shape == (2, CLASSES, HEIGHT, WIDTH)
    torch.testing.assert_close(ours.predict_logits(image(2).float() / 255), expected, atol=1e-4, rtol=1e-4)


def test_colour_order_matters_to_the_comparison() -> None:
    """The parity above would not see a swapped order if the segmentor read both alike."""
    ours = critic()
    as_it_is, swapped = (ours.predict_logits(own.float() / 255) for own in (image(), image().flip(1)))
    assert not torch.allclose(as_it_is, swapped, atol=1e-2)


class TestCriticOutput:

    def test_it_is_the_cross_entropy_of_those_logits(self) -> None:
        ours, labels = critic(), masks(2)
        labels[0, :5] = 255
        output, logits = ours(image(2).float() / 255, labels), ours.predict_logits(image(2).float() / 255)
        expected = F.cross_entropy(logits, labels, ignore_index=255, reduction='none')
        torch.testing.assert_close(output.loss, expected)
        assert torch.equal(output.valid, labels != 255) and output.loss[0, :5].abs().max() == 0
        assert torch.equal(output.wrong, (logits.argmax(1) != labels) & (labels != 255))
        assert output.loss.dtype == torch.float32

    def test_its_means_are_per_sample(self) -> None:
        loss = torch.tensor([[[1., 2., 4., 0.]], [[5., 5., 0., 0.]], [[0., 0., 0., 0.]]])
        wrong = torch.tensor([[[False, True, True, False]], [[False] * 4], [[False] * 4]])
        valid = torch.tensor([[[True, True, True, False]], [[True, True, False, False]], [[False] * 4]])
        output = CriticOutput(loss, wrong, valid)
        assert output.mean_loss.tolist() == pytest.approx([7 / 3, 5, 0])
        assert output.wrong_share.tolist() == pytest.approx([2 / 3, 0, 0])

    def test_the_segmentor_s_own_ignore_index_counts(self) -> None:
        ours, labels = critic(head=dict(ignore_index=200)), masks()
        labels[0, :5] = 200
        assert ours.ignore_index == 200 and not ours(image().float() / 255, labels).valid[0, :5].any()

    def test_two_samples_are_twice_one_sample(self) -> None:
        ours = critic()
        both = ours(image(2).float() / 255, masks(2))
        alone = ours(image(2)[1:].float() / 255, masks(2)[1:])
        torch.testing.assert_close(both.loss[1:], alone.loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('settings', [
    dict(),
    dict(test_cfg=dict(mode='slide', crop_size=(16, 16), stride=(8, 8))),
    dict(data_preprocessor=dict(test_cfg=dict(size_divisor=16)))
], ids=['whole', 'slide', 'padded'])
def test_the_gradient_reaches_the_image_and_is_right(settings: dict) -> None:
    ours, labels = critic(**settings).double(), masks()
    pixels = (image().double() / 255).requires_grad_()
    gradient, = torch.autograd.grad(ours(pixels, labels).loss.sum(), pixels)
    change = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        high, low = (ours(moved, labels).loss.double().sum() for moved in (pixels + change, pixels - change))
    assert float(high - low) / 2e-3 == pytest.approx(float(gradient.norm()), rel=1e-2)  # the critic works in float32
    assert gradient.norm() > 1 and (gradient.abs().amax((0, 1)) > 0).float().mean() > 0.9


class TestFrozen:

    def test_it_stays_in_eval_mode_without_gradients_of_its_own(self) -> None:
        ours = critic()
        nn.ModuleList([ours]).train()
        assert not any(module.training for module in ours.modules())
        assert not any(parameter.requires_grad for parameter in ours.parameters())

    def test_predicting_changes_nothing_in_it(self) -> None:
        ours = critic()
        before = {key: value.clone() for key, value in ours.state_dict().items()}
        ours(image().float() / 255, masks())
        assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


class TestBuild:

    def test_a_config_file_and_a_checkpoint_give_the_same_critic(self, tmp_path: Path) -> None:
        Config(dict(model=segmentor())).dump(tmp_path / 'critic.py')
        reference = critic()
        torch.save(dict(meta=dict(), state_dict=reference.segmentor.state_dict()), tmp_path / 'critic.pth')
        config = dict(type='mmsynth.SegmentorCritic', config=str(tmp_path / 'critic.py'),
                      checkpoint=str(tmp_path / 'critic.pth'), num_classes=CLASSES)
        guidance = MODELS.build(dict(type='mmsynth.CRFM', critic=config))
        assert isinstance(guidance, CRFM) and guidance.critic.num_classes == CLASSES
        pixels = image().float() / 255
        assert torch.equal(guidance.critic.predict_logits(pixels), reference.predict_logits(pixels))

    def test_a_preprocessor_beside_the_model_is_used(self) -> None:
        """As mmengine's Runner does."""
        model = segmentor()
        own = model.pop('data_preprocessor')
        built = SegmentorCritic(dict(model=model, data_preprocessor=own))
        assert built.segmentor.data_preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
        assert 'data_preprocessor' not in model

    def test_the_config_given_is_not_changed(self) -> None:
        config = Config(dict(model=segmentor()))
        before = config.to_dict()
        SegmentorCritic(config)
        SegmentorCritic(config)
        assert config.to_dict() == before

    def test_mmseg_builds_the_same_model(self) -> None:
        ours, theirs = critic().segmentor, MMSEG_MODELS.build(segmentor())
        assert type(ours) is type(theirs) and ours.state_dict().keys() == theirs.state_dict().keys()


class TestErrors:

    def test_another_class_count_is_named(self) -> None:
        with pytest.raises(ValueError, match='3 classes.* 5'):
            SegmentorCritic(dict(model=segmentor()), num_classes=5)

    def test_a_sigmoid_head_is_refused(self) -> None:
        loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
        head = dict(num_classes=2, out_channels=1, threshold=0.3, loss_decode=loss)
        with pytest.raises(ValueError, match=r'1 output channel\(s\) for 2 classes'):
            SegmentorCritic(dict(model=segmentor(head=head)))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match='missing.py does not exist'):
            SegmentorCritic(str(tmp_path / 'missing.py'))
        with pytest.raises(FileNotFoundError, match='missing.pth does not exist'):
            SegmentorCritic(dict(model=segmentor()), checkpoint=str(tmp_path / 'missing.pth'))

    def test_a_config_without_model_is_named(self) -> None:
        with pytest.raises(ValueError, match='`config` has no `model`'):
            SegmentorCritic(dict(type='EncoderDecoder'))

    def test_weights_of_another_segmentor_are_refused(self, tmp_path: Path) -> None:
        other = critic(head=dict(num_classes=4))
        torch.save(other.segmentor.state_dict(), tmp_path / 'other.pth')
        with pytest.raises(ValueError, match=r'other.pth does not fit EncoderDecoder: .*decode_head.conv_seg.bias '
                           r'\(file \(4,\), model \(3,\)\)'):
            SegmentorCritic(dict(model=segmentor()), checkpoint=str(tmp_path / 'other.pth'))
