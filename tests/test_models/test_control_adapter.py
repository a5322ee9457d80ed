"""A block of the mask adapter against SD3's own block and in closed form."""
import pytest
import torch
from tiny_mmdit import BLOCKS, build_block, randomise, tokens
from torch import Tensor, nn


@pytest.mark.parametrize('kind', BLOCKS)
@pytest.mark.parametrize('qk_norm', ['rms_norm', None])
@pytest.mark.parametrize('copied', [False, True])
def test_a_new_one_leaves_image_and_text_to_sd3_s_block(kind: str, qk_norm: str | None, copied: bool) -> None:
    block, control = build_block('adapter', kind, qk_norm)
    if copied:
        control.copy_image_stream(block)
    image, text, mask, temb = tokens()
    expected_text, expected_image = block(image, text, temb)
    ours = control(block, image, text, mask, temb)
    torch.testing.assert_close(ours[0], expected_image, atol=1e-5, rtol=1e-5)
    assert (ours[1] is None) == (expected_text is None) == kind.startswith('last')
    if expected_text is not None:
        torch.testing.assert_close(ours[1], expected_text, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('qk_norm', ['rms_norm', None])
def test_the_image_gets_a_cross_attention_to_the_mask(qk_norm: str | None) -> None:
    block, control = build_block('adapter', qk_norm=qk_norm)
    randomise(control)
    nn.init.zeros_(block.norm1.linear.weight)  # the image stream adds nothing of its own and only normalises
    nn.init.zeros_(block.norm1.linear.bias)
    image, text, mask, temb = tokens()
    scale, shift = control.norm1.linear(nn.functional.silu(temb))[:, None].chunk(2, dim=2)
    mask_in = block.norm1.norm(mask) * (1 + scale) + shift
    attn = control.attn

    def heads(layer: nn.Module, norm: nn.Module | None, streams: Tensor) -> Tensor:
        split = layer(streams).reshape(2, -1, 2, 8).transpose(1, 2)
        return split if norm is None else norm(split)

    query, key = heads(attn.to_q, attn.norm_q, block.norm1.norm(image)), heads(attn.to_k, attn.norm_k, mask_in)
    weights = (query @ key.mT / 8**0.5).softmax(dim=-1)
    seen = (weights @ heads(attn.to_v, None, mask_in)).transpose(1, 2).flatten(2)
    expected = image + attn.to_out[0](seen)
    torch.testing.assert_close(control(block, image, text, mask, temb)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kind', ['plain', 'dual'])
def test_it_starts_by_reading_mask_tokens_as_the_image_stream_reads_its_own(kind: str) -> None:
    block, control = build_block('adapter', kind)
    control.copy_image_stream(block)
    image, _, _, temb = tokens()
    torch.testing.assert_close(control.norm1(image, temb), block.norm1(image, emb=temb)[0])
    for name, value in control.attn.named_parameters():
        assert not value.any() if name.startswith('to_out') else torch.equal(value, block.attn.get_parameter(name))


def test_mask_tokens_pass_unchanged_until_the_last_one_drops_them() -> None:
    image, text, mask, temb = tokens()
    block, control = build_block('adapter')
    assert control(block, image, text, mask, temb)[2] is mask
    block, control = build_block('adapter', 'last', pre_only=True)
    assert control(block, image, text, mask, temb)[1:] == (None, None)


def test_text_and_mask_do_not_meet() -> None:
    block, control = build_block('adapter')
    randomise(control)
    image, text, mask, temb = tokens()
    before, after = (control(block, image, text, value, temb) for value in (mask, mask.square()))
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[0], before[0], atol=1e-3)
