"""Any EncoderDecoder can be the critic: it reads as mmseg itself does, gives gradients, and is left as it was found."""
import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from tiny_generator import segmentor
from tiny_segmentors import FAMILIES
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmsynth.guidance import CRFM, SegmentorCritic
from mmsynth.sampling import SamplingStep

CLASSES, SIDE = 3, 24
WAYS = {
    'whole, RGB': dict(),
    'whole, BGR, padded': dict(bgr_to_rgb=False, test_cfg=dict(size_divisor=16)),
    'slide, RGB, padded': dict(test_cfg=dict(size_divisor=16)),
    'slide, BGR': dict(bgr_to_rgb=False),
}


def model_config(name: str, way: str = 'whole, RGB') -> dict:
    """One of the families, to be read in one of the ways."""
    config = copy.deepcopy(FAMILIES[name])
    config['data_preprocessor'] |= WAYS[way]
    if way.startswith('slide'):
        config['test_cfg'] = dict(mode='slide', crop_size=(16, 16), stride=(12, 12))
    return config


def build(config: dict) -> nn.Module:
    """The segmentor, with statistics and weights that make a difference."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MMSEG_MODELS.build(ConfigDict(copy.deepcopy(config)))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        last = model.decode_head[-1] if isinstance(model.decode_head, nn.ModuleList) else model.decode_head
        last.conv_seg.weight.normal_(std=3)
    return model


def image(count: int = 2) -> Tensor:
    """RGB bytes (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def masks(count: int = 2) -> Tensor:
    return torch.randint(CLASSES, (count, SIDE, SIDE), generator=torch.Generator().manual_seed(2))


def read_by_mmseg(model: nn.Module, images: Tensor) -> Tensor:
    """What mmseg's test loop gives for images as loaded from disk: BGR bytes through the model's own preprocessor."""
    size = tuple(images.shape[-2:])
    samples = [SegDataSample(metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size)) for _ in images]
    data = model.data_preprocessor(dict(inputs=list(images.flip(1)), data_samples=samples), False)
    with torch.no_grad():
        predicted = model(**data, mode='predict')
    return torch.stack([sample.seg_logits.data for sample in predicted])


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', FAMILIES)
def test_logits_are_those_of_mmseg_and_the_gradient_reaches_the_image(name: str, way: str) -> None:
    model = build(model_config(name, way)).eval()
    critic = SegmentorCritic(segmentor=model)
    expected = read_by_mmseg(model, image())
    assert expected.std((2, 3)).mean() > 0.01 and expected.shape == (2, CLASSES, SIDE, SIDE)
    torch.testing.assert_close(critic.predict_logits(image().float() / 255), expected, atol=1e-4, rtol=1e-4)
    pixels = (image().float() / 255).requires_grad_()
    gradient, = torch.autograd.grad(critic(pixels, masks()).mean_loss.sum(), pixels)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 1e-4).all()


@pytest.mark.parametrize('name', FAMILIES)
def test_a_critic_built_from_the_config_reads_alike(name: str, tmp_path) -> None:
    model = build(model_config(name)).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    critic = SegmentorCritic(dict(model=model_config(name)), checkpoint=str(tmp_path / 'weights.pth'))
    pixels = image().float() / 255
    torch.testing.assert_close(critic.predict_logits(pixels), SegmentorCritic(segmentor=model).predict_logits(pixels))
    assert not any(parameter.requires_grad for parameter in critic.parameters())


class TestBorrowed:
    """A built segmentor may be in the middle of its training."""

    @staticmethod
    def correct(model: nn.Module) -> None:
        """A whole correction by the model, in a critic that is moved and set to train meanwhile."""
        crfm = CRFM(SegmentorCritic(segmentor=model), num_rectified=2, objective='mask').train().to(torch.float64)
        latents = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
        step = SamplingStep(0, 1, latents, alpha=0.5, sigma=0.5)
        corrected, records = crfm.correct(torch.zeros_like(latents) + 0.1, step, lambda z: z / 4, masks())
        assert all(record['relative_change'] > 0 for record in records)

    @pytest.mark.parametrize('name', FAMILIES)
    def test_it_is_left_as_it_was_found(self, name: str) -> None:
        model = build(model_config(name)).train()
        model.backbone.eval()
        frozen = list(model.parameters())[1]
        frozen.requires_grad_(False)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        self.correct(model)
        assert {key: value.dtype for key, value in model.state_dict().items()} == {
            key: value.dtype for key, value in before.items()}
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
        assert [parameter.requires_grad for parameter in model.parameters()] == wanted and len(set(wanted)) == 2
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize('reentrant', [True, False])
    def test_layers_that_run_again_in_the_backward_pass_leave_no_trace(self, reentrant: bool) -> None:
        """mmseg's own ``with_cp``, and the other way: run in train mode they would change batch statistics."""
        config = segmentor()
        config['backbone']['with_cp'] = reentrant
        model = build(config).train()
        if not reentrant:
            layer = model.backbone.layer4
            own = layer.forward
            layer.forward = lambda inputs: checkpoint(own, inputs, use_reentrant=False)
        before = {key: value.clone() for key, value in model.named_buffers()}
        self.correct(model)
        assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
        assert {module.with_cp for module in model.modules() if hasattr(module, 'with_cp')} == {reentrant}

    def test_it_is_put_back_when_predicting_fails(self) -> None:
        model = build(model_config('PSPNet')).train()
        with pytest.raises(RuntimeError):
            SegmentorCritic(segmentor=model).predict_logits(torch.zeros(1, 5, SIDE, SIDE))
        assert all(module.training for module in model.modules()) and next(model.parameters()).requires_grad

    def test_it_reads_in_eval_mode_and_follows_its_training(self) -> None:
        model = build(model_config('PSPNet')).eval()
        critic, pixels = SegmentorCritic(segmentor=model), image().float() / 255
        settled = critic.predict_logits(pixels)
        assert torch.equal(SegmentorCritic(segmentor=model.train()).predict_logits(pixels), settled)
        with torch.no_grad():
            model.decode_head.conv_seg.bias += 1
        torch.testing.assert_close(critic.predict_logits(pixels), settled + 1)

    def test_it_is_not_part_of_the_critic(self) -> None:
        critic = SegmentorCritic(segmentor=build(model_config('PSPNet')))
        assert not list(critic.parameters()) and not critic.state_dict()


def test_synchronised_batch_norm_reads_on_the_cpu() -> None:
    """In eval mode it needs no other process: a config for several GPUs guides as it is."""
    config = segmentor()
    plain = build(config)
    config = copy.deepcopy(config)
    config['backbone']['norm_cfg'] = config['decode_head']['norm_cfg'] = dict(type='SyncBN', requires_grad=True)
    critic = SegmentorCritic(dict(model=config))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in critic.segmentor.modules())
    critic.segmentor.load_state_dict(plain.state_dict())
    pixels = (image().float() / 255).requires_grad_()
    expected = SegmentorCritic(segmentor=plain.eval()).predict_logits(pixels)
    torch.testing.assert_close(critic.predict_logits(pixels), expected)
    assert torch.autograd.grad(critic(pixels, masks()).loss.sum(), pixels)[0].norm() > 0


class TestIgnored:

    @pytest.mark.parametrize('ignore_index', [255, 200, 0, -100])
    def test_unlabelled_pixels_never_count_nor_those_that_the_segmentor_ignores(self, ignore_index: int) -> None:
        """In masks 255 is unlabelled, whatever value the segmentor was trained with."""
        critic = SegmentorCritic(segmentor=build(segmentor(head=dict(ignore_index=ignore_index))))
        labels = masks()
        labels[0, :5] = 255
        labels[1, :, :7] = ignore_index
        output = critic(image().float() / 255, labels)
        assert torch.equal(output.valid, (labels != 255) & (labels != ignore_index))
        assert output.loss[~output.valid].eq(0).all() and not output.wrong[~output.valid].any()
        assert output.loss[output.valid].gt(0).all()

    def test_a_class_that_the_critic_does_not_have_is_no_unlabelled_pixel(self) -> None:
        with pytest.raises(IndexError, match='Target 7 is out of bounds'):
            SegmentorCritic(segmentor=build(segmentor()))(image().float() / 255, masks() * 0 + 7)


class TestErrors:

    def test_config_or_segmentor(self) -> None:
        with pytest.raises(ValueError, match='`config` and `segmentor`.* neither'):
            SegmentorCritic()
        with pytest.raises(ValueError, match='`config` and `segmentor`.* both'):
            SegmentorCritic(dict(model=segmentor()), segmentor=build(segmentor()))
        with pytest.raises(ValueError, match='`checkpoint` goes with `config`'):
            SegmentorCritic(segmentor=build(segmentor()), checkpoint='weights.pth')

    def test_a_model_that_is_no_segmentor(self) -> None:
        with pytest.raises(ValueError, match='Conv2d.* EncoderDecoder'):
            SegmentorCritic(segmentor=nn.Conv2d(3, 3, 1))
        codec = dict(type='mmsynth.PatchPCACodec')
        with pytest.raises(ValueError, match='PatchPCACodec.* EncoderDecoder'):
            SegmentorCritic(dict(model=codec))

    def test_a_segmentor_that_does_not_say_how_images_are_normalised(self) -> None:
        config = segmentor()
        config.pop('data_preprocessor')
        with pytest.raises(ValueError, match='`data_preprocessor` is BaseDataPreprocessor'):
            SegmentorCritic(dict(model=config))

    def test_another_class_count_is_named(self) -> None:
        with pytest.raises(ValueError, match='3 classes.* 5'):
            SegmentorCritic(segmentor=build(model_config('OCRNet in a cascade')), num_classes=5)
