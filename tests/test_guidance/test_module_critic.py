"""Critics of any torch model: logits in closed form, of each library's kind of output, and mistakes by name."""
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from toy_critic import batch, decode, step_at
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from mmsynth.guidance import CRFM, CriticEnsemble, ModuleCritic, TransformersCritic
from mmsynth.registry import MODELS


class Quarter(nn.Module):
    """Logits of a quarter of the size: what a 1x1 convolution makes of averaged pixels."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.avg_pool2d(images, 4))


def make(classes: int) -> nn.Module:
    return Quarter(classes)


def nothing() -> None:
    return None


def test_images_are_normalised_padded_and_logits_brought_to_their_size() -> None:
    module = Quarter()
    critic = ModuleCritic(module, 3, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), size_divisor=8)
    images = torch.rand(2, 3, 14, 20)
    normed = (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    padded = torch.cat([normed, normed[..., -1:, :].expand(-1, -1, 2, -1)], 2)
    padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, 4)], 3)
    expected = nn.functional.interpolate(module(padded), size=(16, 24), mode='bilinear')[..., :14, :20]
    torch.testing.assert_close(critic.predict_logits(images), expected)


@pytest.mark.parametrize('wrap', [
    lambda x: x, lambda x: OrderedDict(out=x, aux=0), lambda x: SimpleNamespace(logits=x)
], ids=['tensor', 'torchvision', 'transformers'])
def test_each_library_s_output_is_known(wrap) -> None:  # noqa: ANN001
    class Wrapped(Quarter):
        def forward(self, images: Tensor) -> object:
            return wrap(super().forward(images))

    own, plain, images = Wrapped(), Quarter(), torch.rand(1, 3, 8, 8)
    plain.load_state_dict(own.state_dict())
    expected = ModuleCritic(plain, 3).predict_logits(images)
    torch.testing.assert_close(ModuleCritic(own, 3).predict_logits(images), expected)


def test_other_outputs_need_a_function() -> None:
    class Odd(Quarter):
        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (super().forward(images), )

    images = torch.rand(1, 3, 8, 8)
    assert ModuleCritic(Odd(), 3, logits=lambda output: output[0]).predict_logits(images).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match='tuple.*`logits`'):
        ModuleCritic(Odd(), 3).predict_logits(images)


def test_it_is_frozen_and_guides() -> None:
    prediction, latents, masks = batch()
    critic = ModuleCritic(Quarter(), 3)
    assert not any(value.requires_grad for value in critic.parameters()) and not critic.train().module.training
    guidance = CRFM(CriticEnsemble([critic, ModuleCritic(Quarter(), 3)]), objective='mask', measure_after=True)
    _, records = guidance.correct(prediction, step_at(latents), decode, masks)
    assert all(record['loss_after'] < record['loss_before'] for record in records)


def test_a_config_builds_it_with_its_weights(tmp_path: Path) -> None:
    module = Quarter()
    torch.save(module.state_dict(), tmp_path / 'weights.pth')
    critic = MODELS.build(dict(
        type='mmsynth.ModuleCritic', num_classes=3, checkpoint=str(tmp_path / 'weights.pth'),
        module=dict(type=f'{__name__}.make', classes=3)))
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(critic.predict_logits(images), ModuleCritic(module, 3).predict_logits(images))


@pytest.mark.parametrize('settings, message', [
    (dict(module=dict(type='Unet')), "`module`.*type='Unet'"),
    (dict(module=dict(type=f'{__name__}.nothing')), 'NoneType, not a torch module'),
    (dict(module=Quarter(), num_classes=0), '`num_classes`'),
    (dict(module=Quarter(), std=(1, 0, 1)), '`std`'),
])
def test_mistakes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModuleCritic(**dict(num_classes=3) | settings)


def test_another_class_count_is_named_at_the_first_image() -> None:
    with pytest.raises(ValueError, match=r'\(B, 4, h, w\).*`num_classes`'):
        ModuleCritic(Quarter(), 4).predict_logits(torch.rand(1, 3, 8, 8))


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(
        num_labels=3, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3],
        strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16)).eval()
    model.save_pretrained(tmp_path)
    SegformerImageProcessor(image_mean=[0.5, 0.5, 0.5], image_std=[0.2, 0.2, 0.2]).save_pretrained(tmp_path)
    critic, images = TransformersCritic(str(tmp_path)), torch.rand(2, 3, 16, 16)
    assert critic.num_classes == 3
    expected = model(pixel_values=(images - 0.5) / 0.2).logits
    expected = nn.functional.interpolate(expected, size=(16, 16), mode='bilinear')
    torch.testing.assert_close(critic.predict_logits(images), expected)
