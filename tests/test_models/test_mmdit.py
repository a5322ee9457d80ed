"""The triple-attention network against diffusers' own blocks and in closed form."""
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from mmsynth.models.networks import MaskStream, MMDiT, triple_block
from mmsynth.models.networks.mmdit import BRANCHES

TRUNK = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    caption_projection_dim=16,
    joint_attention_dim=12,
    pooled_projection_dim=10,
    pos_embed_max_size=8,
    dual_attention_layers=(0, ),
    qk_norm='rms_norm')
WIDTH = 16
BLOCKS = {
    'plain': dict(),
    'dual': dict(use_dual_attention=True),
    'last': dict(context_pre_only=True),
    'last_dual': dict(context_pre_only=True, use_dual_attention=True),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)  # not the seed of the tiny folder: its weights would be drawn again


def randomise(module: nn.Module) -> nn.Module:
    """Give every weight a value of its own; a new trunk's output layer and modulation are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return module


def network(**settings) -> MMDiT:
    return randomise(MMDiT(trunk=TRUNK, **settings))


def inputs(batch: int = 2, mask_channels: int = 4, rows: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, 4, rows, 8), (batch, 5, 12), (batch, 10), (batch, mask_channels, rows, 8)
    latents, prompt, pooled, mask = (torch.randn(shape, generator=generator) for shape in shapes)
    return [latents, torch.linspace(900, 100, batch), prompt, pooled, mask]


class TestBlock:

    @staticmethod
    def build(kind: str, qk_norm: str | None = 'rms_norm',
              pre_only: bool = False) -> tuple[JointTransformerBlock, MaskStream]:
        torch.manual_seed(0)
        block = JointTransformerBlock(WIDTH, 2, 8, qk_norm=qk_norm, **BLOCKS[kind])
        return randomise(block), MaskStream(WIDTH, num_heads=2, head_dim=8, qk_norm=qk_norm, pre_only=pre_only)

    @pytest.mark.parametrize('kind', BLOCKS)
    @pytest.mark.parametrize('qk_norm', ['rms_norm', None])
    def test_without_mask_tokens_it_is_sd3_s_block(self, kind: str, qk_norm: str | None) -> None:
        block, stream = self.build(kind, qk_norm)
        image, text, temb = torch.randn(2, 6, WIDTH), torch.randn(2, 3, WIDTH), torch.randn(2, WIDTH)
        expected_text, expected_image = block(image, text, temb)
        ours = triple_block(block, stream, image, text, torch.empty(2, 0, WIDTH), temb)
        torch.testing.assert_close(ours[0], expected_image, atol=1e-5, rtol=1e-5)
        assert (ours[1] is None) == (expected_text is None) == kind.startswith('last')
        if expected_text is not None:
            torch.testing.assert_close(ours[1], expected_text, atol=1e-5, rtol=1e-5)

    def test_a_copied_stream_does_with_mask_tokens_what_the_image_stream_does(self) -> None:
        block, stream = self.build('plain')
        stream.copy_image_stream(block)
        tokens, text, temb = torch.randn(2, 6, WIDTH), torch.randn(2, 3, WIDTH), torch.randn(2, WIDTH)
        image, _, mask = triple_block(block, stream, tokens, text, tokens, temb)
        torch.testing.assert_close(mask, image, atol=1e-5, rtol=1e-5)

    def test_the_released_rule_takes_the_mask_mlp_s_modulation_from_the_image(self) -> None:
        block, stream = self.build('plain')
        stream.copy_image_stream(block)
        text, temb = torch.randn(1, 3, WIDTH), torch.randn(1, WIDTH)
        tokens = torch.randn(1, 6, WIDTH)
        released = triple_block(block, stream, tokens, text, tokens, temb, mask_mlp_from_image=True)
        own = triple_block(block, stream, tokens, text, tokens, temb)
        torch.testing.assert_close(released[2], own[2])  # equal weights: no difference between the rules
        with torch.no_grad():
            stream.norm1.linear.bias[3 * WIDTH:] += 1  # shift, scale and gate of the mask's own MLP
        again = triple_block(block, stream, tokens, text, tokens, temb, mask_mlp_from_image=True)
        assert torch.equal(again[2], released[2])
        assert not torch.allclose(triple_block(block, stream, tokens, text, tokens, temb)[2], own[2], atol=1e-2)

    def test_a_last_stream_takes_part_and_is_dropped(self) -> None:
        block, stream = self.build('last', pre_only=True)
        stream.copy_image_stream(block)
        image, text, temb = torch.randn(1, 6, WIDTH), torch.randn(1, 3, WIDTH), torch.randn(1, WIDTH)
        outputs = [triple_block(block, stream, image, text, mask, temb) for mask in torch.randn(2, 1, 4, WIDTH)]
        assert all(output[1] is None and output[2] is None for output in outputs)
        assert not torch.allclose(outputs[0][0], outputs[1][0], atol=1e-4)


class TestParity:

    @pytest.mark.parametrize('legacy', [False, True])
    def test_without_a_mask_it_is_the_trunk(self, legacy: bool) -> None:
        ours, reference = network(legacy=legacy), SD3Transformer2DModel(**TRUNK)
        reference.load_state_dict(ours.trunk.state_dict())
        latents, timestep, prompt, pooled, _ = inputs()
        expected = reference(latents, prompt, pooled, timestep).sample
        torch.testing.assert_close(ours(latents, timestep, prompt, pooled), expected, atol=1e-5, rtol=1e-5)
        assert expected.std() > 0.1

    @pytest.mark.parametrize('rows', [8, 4])
    def test_with_masks_out_of_sight_it_is_the_trunk(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The masked path without mask tokens: embeddings, blocks, output layer and unpatchify against diffusers'."""
        ours = network()
        monkeypatch.setattr(ours.mask_embed, 'forward', lambda mask: torch.empty(len(mask), 0, WIDTH))
        *plain, mask = inputs(rows=rows)
        torch.testing.assert_close(ours(*plain, mask), ours(*plain), atol=1e-5, rtol=1e-5)

    def test_a_folder_gives_the_trunk(self, tiny_sd3: Path) -> None:
        reference = SD3Transformer2DModel.from_pretrained(tiny_sd3, subfolder='transformer').state_dict()
        ours = MMDiT(pretrained=str(tiny_sd3)).trunk.state_dict()
        assert ours.keys() == reference.keys()
        assert all(torch.equal(ours[key], value) for key, value in reference.items())


class TestStart:

    def test_the_mask_stream_is_a_copy_of_the_image_stream(self, tiny_sd3: Path) -> None:
        ours = MMDiT(pretrained=str(tiny_sd3))
        compared = 0
        for block, stream in zip(ours.trunk.transformer_blocks, ours.mask_blocks):
            for name, value in stream.named_parameters():
                other = block.get_parameter(name)
                assert torch.equal(value, other[:len(value)]), name  # SD3.5's dual norm1 has more rows
                assert value.data_ptr() != other.data_ptr()
                compared += 1
        assert compared == 16 + 10  # the last block has neither output projection nor MLP
        for name, value in ours.mask_embed.state_dict().items():
            assert torch.equal(value, ours.trunk.pos_embed.state_dict()[name])

    def test_the_released_mask_stream_is_random(self, tiny_sd3: Path) -> None:
        ours = MMDiT(pretrained=str(tiny_sd3), legacy=True)
        for block, stream in zip(ours.trunk.transformer_blocks, ours.mask_blocks):
            for name in ('norm1.linear.weight', 'attn.to_q.weight', 'attn.to_out.0.weight', 'ff.net.2.weight'):
                value = stream.get_parameter(name)
                assert not torch.equal(value, block.get_parameter(name)[:len(value)])
        assert not torch.equal(ours.mask_embed.proj.weight, ours.trunk.pos_embed.proj.weight)

    def test_a_mask_of_other_channels_has_an_embedding_of_its_own(self) -> None:
        ours = network(mask_channels=7)
        assert ours.mask_embed.proj.weight.shape[1] == ours.mask_channels == 7
        assert ours(*inputs(mask_channels=7)).shape == (2, 4, 8, 8)

    def test_a_new_trunk_starts_by_predicting_nothing(self) -> None:
        assert MMDiT(trunk=TRUNK)(*inputs()).abs().max() == 0


class TestBranches:

    @pytest.mark.parametrize('legacy', [False, True])
    def test_they_share_out_all_parameters(self, legacy: bool) -> None:
        ours = network(legacy=legacy)
        names = [name for branch in BRANCHES for name in ours.branch_parameters(branch)]
        assert len(names) == len(set(names)) and set(names) == dict(ours.named_parameters()).keys()
        assert all(ours.branch_parameters(branch) for branch in BRANCHES)

    def test_the_text_branch_is_what_sd3_calls_context(self) -> None:
        own = ['norm1_context.linear', 'attn.add_q_proj', 'attn.add_k_proj', 'attn.add_v_proj', 'attn.to_add_out',
               'ff_context.net.0.proj', 'ff_context.net.2']
        last = ['norm1_context.linear', 'attn.add_q_proj', 'attn.add_k_proj', 'attn.add_v_proj']  # text ends there
        timestep, pooled = ('trunk.time_text_embed.' + part for part in ('timestep_embedder', 'text_embedder'))
        layers = ['trunk.context_embedder', *(f'{part}.linear_{i}' for part in (timestep, pooled) for i in (1, 2)),
                  *(f'trunk.transformer_blocks.{i}.{name}' for i in (0, 1) for name in own),
                  *(f'trunk.transformer_blocks.2.{name}' for name in last)]
        expected = {f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')}
        expected |= {f'trunk.transformer_blocks.{i}.attn.norm_added_{x}.weight' for i in range(3) for x in 'qk'}
        assert network().branch_parameters('text').keys() == expected

    def test_the_output_layers_are_the_image_s_and_the_mask_s_own_are_the_mask_s(self) -> None:
        ours = network()
        assert {name.split('.')[0] for name in ours.branch_parameters('mask')} == {'mask_embed', 'mask_blocks'}
        image = ours.branch_parameters('image')
        assert {'trunk.proj_out.weight', 'trunk.norm_out.linear.weight', 'trunk.pos_embed.proj.weight',
                'trunk.transformer_blocks.0.attn2.to_q.weight'} <= image.keys()


class TestGradients:

    @staticmethod
    def without_gradient(ours: MMDiT) -> set[str]:
        for parameter in ours.branch_parameters('text').values():
            parameter.requires_grad_(False)
        ours(*inputs()).square().mean().backward()
        return {name for name, value in ours.named_parameters() if value.requires_grad and value.grad is None}

    @pytest.mark.parametrize('settings', [dict(), dict(gradient_checkpointing=True), dict(mask_channels=4)])
    def test_every_trained_parameter_has_one(self, settings: dict) -> None:
        """Otherwise DistributedDataParallel would need `find_unused_parameters`."""
        assert self.without_gradient(network(**settings)) == set()

    def test_the_released_network_has_unused_layers_in_its_last_block(self) -> None:
        unused = self.without_gradient(network(legacy=True))
        assert {name.rsplit('.', 1)[0] for name in unused} == {
            f'mask_blocks.2.{layer}' for layer in ('attn.to_out.0', 'ff.net.0.proj', 'ff.net.2')
        }

    @pytest.mark.parametrize('legacy', [False, True])
    def test_checkpointing_changes_neither_output_nor_gradients(self, legacy: bool) -> None:
        plain, frugal = network(legacy=legacy), network(legacy=legacy, gradient_checkpointing=True)
        outputs = [ours(*inputs()) for ours in (plain, frugal)]
        torch.testing.assert_close(outputs[1], outputs[0])
        for output in outputs:
            output.square().mean().backward()
        for (name, value), other in zip(plain.named_parameters(), frugal.parameters()):
            assert (value.grad is None) == (other.grad is None), name
            if value.grad is not None:
                torch.testing.assert_close(other.grad, value.grad)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_batch_of_two_is_two_batches_of_one(legacy: bool) -> None:
    ours = network(legacy=legacy).eval()
    both = inputs()
    alone = torch.cat([ours(*(value[row:row + 1] for value in both)) for row in range(2)])
    torch.testing.assert_close(ours(*both), alone, atol=1e-5, rtol=1e-5)


def test_the_mask_is_seen_where_it_changes() -> None:
    ours = network()
    *plain, mask = inputs()
    changed = mask.clone()
    changed[1, :, 0, 0] += 1
    difference = (ours(*plain, changed) - ours(*plain, mask)).abs().amax((1, 2, 3))
    assert difference[0] == 0 and difference[1] > 1e-4


class TestErrors:

    @pytest.mark.parametrize('settings', [dict(), dict(pretrained='x', trunk=TRUNK)])
    def test_exactly_one_source_is_needed(self, settings: dict) -> None:
        with pytest.raises(ValueError, match='`pretrained` and `trunk`: exactly one must be given'):
            MMDiT(**settings)

    def test_a_folder_without_transformer_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f'the folder {tmp_path} has no `transformer` in it.*diffusers layout'):
            MMDiT(pretrained=str(tmp_path))

    def test_latents_that_are_no_whole_patches_are_named(self) -> None:
        *plain, mask = inputs(rows=7)
        with pytest.raises(ValueError, match='latents of 7x8 cells: both sides must be multiples of the patch size 2'):
            network()(*plain, mask)
