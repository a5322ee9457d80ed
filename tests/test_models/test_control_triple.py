"""A block of triple attention against SD3's own block and in closed form."""
import pytest
import torch
from tiny_mmdit import BLOCKS, WIDTH, build_block, tokens


@pytest.mark.parametrize('kind', BLOCKS)
@pytest.mark.parametrize('qk_norm', ['rms_norm', None])
def test_without_mask_tokens_it_is_sd3_s_block(kind: str, qk_norm: str | None) -> None:
    block, control = build_block('triple', kind, qk_norm)
    image, text, _, temb = tokens()
    expected_text, expected_image = block(image, text, temb)
    ours = control(block, image, text, torch.empty(2, 0, WIDTH), temb)
    torch.testing.assert_close(ours[0], expected_image, atol=1e-5, rtol=1e-5)
    assert (ours[1] is None) == (expected_text is None) == kind.startswith('last')
    if expected_text is not None:
        torch.testing.assert_close(ours[1], expected_text, atol=1e-5, rtol=1e-5)


def test_a_copied_stream_does_with_mask_tokens_what_the_image_stream_does() -> None:
    block, control = build_block('triple')
    control.copy_image_stream(block)
    image, text, _, temb = tokens()
    ours, _, mask = control(block, image, text, image, temb)
    torch.testing.assert_close(mask, ours, atol=1e-5, rtol=1e-5)


def test_the_released_rule_takes_the_mask_mlp_s_modulation_from_the_image() -> None:
    block, control = build_block('triple')
    control.copy_image_stream(block)
    image, text, _, temb = tokens()

    def mask_after(released: bool) -> torch.Tensor:
        control.mask_mlp_from_image = released
        return control(block, image, text, image, temb)[2]

    released, own = mask_after(True), mask_after(False)
    torch.testing.assert_close(released, own)  # equal weights: no difference between the rules
    with torch.no_grad():
        control.norm1.linear.bias[3 * WIDTH:] += 1  # shift, scale and gate of the mask's own MLP
    assert torch.equal(mask_after(True), released)
    assert not torch.allclose(mask_after(False), own, atol=1e-2)


def test_a_last_stream_takes_part_and_is_dropped() -> None:
    block, control = build_block('triple', 'last', pre_only=True)
    control.copy_image_stream(block)
    image, text, mask, temb = tokens()
    outputs = [control(block, image, text, tokens, temb) for tokens in (mask, mask.square())]
    assert all(output[1] is None and output[2] is None for output in outputs)
    assert not torch.allclose(outputs[0][0], outputs[1][0], atol=1e-4)
