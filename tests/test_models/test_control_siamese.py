"""A block of siamese attention against SD3's own block and diffusers' own joint attention."""
import pytest
import torch
from diffusers.models.attention import JointTransformerBlock
from tiny_mmdit import BLOCKS, WIDTH, build_block, randomise, tokens
from torch import nn

TOWER = {'to_q': 'add_q_proj', 'to_k': 'add_k_proj', 'to_v': 'add_v_proj', 'norm_q': 'norm_added_q',
         'norm_k': 'norm_added_k'}


def as_sd3_block(block: JointTransformerBlock, control: nn.Module) -> JointTransformerBlock:
    """SD3's block whose first stream is the second tower's mask and whose second is its image."""
    reference = JointTransformerBlock(WIDTH, 2, 8, qk_norm='rms_norm')
    reference.norm1.load_state_dict(control.norm1.state_dict())
    reference.norm1_context.load_state_dict(block.norm1.state_dict())
    reference.ff.load_state_dict(control.ff.state_dict())
    for own, added in TOWER.items():
        getattr(reference.attn, own).load_state_dict(getattr(control.attn, own).state_dict())
        getattr(reference.attn, added).load_state_dict(getattr(control.image_attn, own).state_dict())
    reference.attn.to_out.load_state_dict(control.attn.to_out.state_dict())
    reference.attn.to_add_out.load_state_dict(control.image_attn.to_out[0].state_dict())
    return reference


@pytest.mark.parametrize('kind', BLOCKS)
@pytest.mark.parametrize('qk_norm', ['rms_norm', None])
@pytest.mark.parametrize('copied', [False, True])
def test_a_new_one_leaves_image_and_text_to_sd3_s_block(kind: str, qk_norm: str | None, copied: bool) -> None:
    block, control = build_block('siamese', kind, qk_norm)
    if copied:
        control.copy_image_stream(block)
    image, text, mask, temb = tokens()
    expected_text, expected_image = block(image, text, temb)
    ours = control(block, image, text, mask, temb)
    torch.testing.assert_close(ours[0], expected_image, atol=1e-5, rtol=1e-5)
    assert (ours[1] is None) == (expected_text is None) == kind.startswith('last')
    if expected_text is not None:
        torch.testing.assert_close(ours[1], expected_text, atol=1e-5, rtol=1e-5)


def test_the_mask_stream_is_that_of_a_joint_block_of_mask_and_image() -> None:
    block, control = build_block('siamese')
    randomise(control)
    image, text, mask, temb = tokens()
    _, expected = as_sd3_block(block, control)(mask, image, temb)
    torch.testing.assert_close(control(block, image, text, mask, temb)[2], expected, atol=1e-5, rtol=1e-5)


def test_the_image_gets_the_second_tower_s_result_through_its_own_projection_and_gate() -> None:
    block, control = build_block('siamese')
    randomise(control)
    nn.init.zeros_(block.norm1.linear.weight)  # the image stream adds nothing of its own and only normalises
    nn.init.zeros_(block.norm1.linear.bias)
    image, text, mask, temb = tokens()
    _, seen = as_sd3_block(block, control).attn(control.norm1(mask, emb=temb)[0], block.norm1.norm(image))
    expected = image + control.image_gate(nn.functional.silu(temb))[:, None] * seen
    torch.testing.assert_close(control(block, image, text, mask, temb)[0], expected, atol=1e-5, rtol=1e-5)


def test_text_and_mask_do_not_meet() -> None:
    block, control = build_block('siamese')
    randomise(control)
    image, text, mask, temb = tokens()
    before, other_mask, other_text = (control(block, image, *streams, temb)
                                      for streams in ((text, mask), (text, mask.square()), (text.square(), mask)))
    assert torch.equal(other_mask[1], before[1]) and torch.equal(other_text[2], before[2])
    assert not torch.allclose(other_mask[0], before[0], atol=1e-3)


@pytest.mark.parametrize('kind', ['plain', 'dual'])
def test_both_streams_of_the_second_tower_start_as_the_image_stream(kind: str) -> None:
    block, control = build_block('siamese', kind)
    control.copy_image_stream(block)
    for name, value in control.named_parameters():
        layer = name.removeprefix('image_')
        if name.startswith('image_attn.to_out'):
            assert not value.any()
        elif name.startswith('image_gate'):
            assert (value == name.endswith('bias')).all()
        else:
            assert torch.equal(value, block.get_parameter(layer)[:len(value)]), name


def test_a_last_one_shows_the_mask_to_the_image_and_drops_it() -> None:
    block, control = build_block('siamese', 'last', pre_only=True)
    control.copy_image_stream(block)
    randomise(control.image_attn.to_out)
    image, text, mask, temb = tokens()
    outputs = [control(block, image, text, tokens, temb) for tokens in (mask, mask.square())]
    assert all(output[1] is None and output[2] is None for output in outputs)
    assert not torch.allclose(outputs[0][0], outputs[1][0], atol=1e-4)
