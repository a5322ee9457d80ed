"""The network under each control scheme: against diffusers' transformer, its start, its gradients, its messages."""
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from tiny_mmdit import TRUNK, WIDTH, inputs, network

from mmsynth.models import TODSynth
from mmsynth.models.networks import CONTROLS, MMDiT

SCHEMES = [*(dict(control=control) for control in CONTROLS), dict(legacy=True)]
every_scheme = pytest.mark.parametrize('settings', SCHEMES, ids=lambda settings: '-'.join(map(str, settings.values())))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)  # not the seed of the tiny folder: its weights would be drawn again


def dropped_queries(control: str) -> set[str]:
    """The last block's queries of the streams that end there, text and mask: nobody reads what they find."""
    layers = [('trunk.transformer_blocks', 'add_q_proj', 'norm_added_q')]
    if control != 'adapter':  # whose queries are the image's
        layers.append(('mask_blocks', 'to_q', 'norm_q'))
    return {f'{stack}.2.attn.{name}' for stack, query, norm in layers
            for name in (f'{query}.weight', f'{query}.bias', f'{norm}.weight')}


class TestParity:

    @every_scheme
    def test_without_a_mask_it_is_the_trunk(self, settings: dict) -> None:
        ours, reference = network(**settings), SD3Transformer2DModel(**TRUNK)
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

    @pytest.mark.parametrize('control', ['siamese', 'adapter'])
    def test_a_new_scheme_beside_sd3_s_attention_changes_nothing_yet(self, control: str, tiny_sd3: Path) -> None:
        ours = MMDiT(pretrained=str(tiny_sd3), control=control)
        latents, mask = torch.randn(2, 2, 4, 16, 16)
        condition = torch.tensor([900.0, 100.0]), torch.randn(2, 5, 32), torch.randn(2, 48)
        expected = ours(latents, *condition)
        torch.testing.assert_close(ours(latents, *condition, mask), expected, atol=1e-5, rtol=1e-5)
        assert expected.std() > 0.1

    @pytest.mark.parametrize('control', CONTROLS)
    def test_a_mask_of_other_channels_has_an_embedding_of_its_own(self, control: str) -> None:
        ours = network(mask_channels=7, control=control)
        assert ours.mask_embed.proj.weight.shape[1] == ours.mask_channels == 7
        assert ours(*inputs(mask_channels=7)).shape == (2, 4, 8, 8)

    @pytest.mark.parametrize('control', CONTROLS)
    def test_a_new_trunk_starts_by_predicting_nothing(self, control: str) -> None:
        assert MMDiT(trunk=TRUNK, control=control)(*inputs()).abs().max() == 0


class TestBranches:

    @every_scheme
    def test_they_share_out_all_parameters(self, settings: dict) -> None:
        ours = network(**settings)
        names = [name for branch in TODSynth.branches for name in ours.branch_parameters(branch)]
        assert len(names) == len(set(names)) and set(names) == dict(ours.named_parameters()).keys()
        assert all(ours.branch_parameters(branch) for branch in TODSynth.branches)

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

    @every_scheme
    def test_image_and_text_are_the_trunk_s_and_the_mask_has_what_is_added(self, settings: dict) -> None:
        ours = network(**settings)
        trunk = ours.branch_parameters('image') | ours.branch_parameters('text')
        assert trunk.keys() == {f'trunk.{name}' for name, _ in SD3Transformer2DModel(**TRUNK).named_parameters()}
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

    @pytest.mark.parametrize('control', CONTROLS)
    @pytest.mark.parametrize('settings', [dict(), dict(gradient_checkpointing=True)])
    def test_every_trained_parameter_has_one(self, control: str, settings: dict) -> None:
        """Otherwise DistributedDataParallel would need `find_unused_parameters`."""
        ours = network(control=control, **settings)
        assert self.without_gradient(ours) == set()
        zero = {name for name, value in ours.branch_parameters('mask').items() if not value.grad.any()}
        assert zero == dropped_queries(control) - dropped_queries('adapter')

    def test_the_released_network_has_unused_layers_in_its_last_block(self) -> None:
        unused = self.without_gradient(network(legacy=True))
        assert {name.rsplit('.', 1)[0] for name in unused} == {
            f'mask_blocks.2.{layer}' for layer in ('attn.to_out.0', 'ff.net.0.proj', 'ff.net.2')
        }

    @every_scheme
    def test_checkpointing_changes_neither_output_nor_gradients(self, settings: dict) -> None:
        plain, frugal = network(**settings), network(gradient_checkpointing=True, **settings)
        outputs = [ours(*inputs()) for ours in (plain, frugal)]
        torch.testing.assert_close(outputs[1], outputs[0])
        for output in outputs:
            output.square().mean().backward()
        for (name, value), other in zip(plain.named_parameters(), frugal.parameters()):
            assert (value.grad is None) == (other.grad is None), name
            if value.grad is not None:
                torch.testing.assert_close(other.grad, value.grad)


class TestLearning:

    @staticmethod
    def unmoved(ours: MMDiT, steps: int) -> set[str]:
        """The parameters that some steps without weight decay leave as they are."""
        optimizer = torch.optim.Adam(ours.parameters(), lr=1e-2)
        before = {name: value.clone() for name, value in ours.named_parameters()}
        *plain, mask = inputs()
        for _ in range(steps):
            optimizer.zero_grad()
            (ours(*plain, mask) - mask).square().mean().backward()
            optimizer.step()
        return {name for name, value in ours.named_parameters() if torch.equal(value, before[name])}

    @pytest.mark.parametrize('control', CONTROLS)
    def test_on_a_trained_trunk_every_parameter_moves_within_two_steps(self, control: str, tmp_path: Path) -> None:
        """The first step leaves the zeros of the scheme's output projection."""
        network().trunk.save_pretrained(tmp_path / 'transformer')
        assert self.unmoved(MMDiT(pretrained=str(tmp_path), control=control), 2) == dropped_queries(control)

    @pytest.mark.parametrize('control', CONTROLS)
    def test_on_a_new_trunk_no_scheme_needs_longer_than_the_trunk_s_own_zeros(self, control: str) -> None:
        """Those leave step by step: the output layer, the image's gates, the text's and the mask's, what is behind."""
        assert self.unmoved(MMDiT(trunk=TRUNK, control=control), 4) == dropped_queries(control)


@every_scheme
def test_a_batch_of_two_is_two_batches_of_one(settings: dict) -> None:
    ours = network(**settings).eval()
    both = inputs()
    alone = torch.cat([ours(*(value[row:row + 1] for value in both)) for row in range(2)])
    torch.testing.assert_close(ours(*both), alone, atol=1e-5, rtol=1e-5)


@every_scheme
def test_the_mask_is_seen_where_it_changes(settings: dict) -> None:
    ours = network(**settings)
    *plain, mask = inputs()
    changed = mask.clone()
    changed[1, :, 0, 0] += 1
    difference = (ours(*plain, changed) - ours(*plain, mask)).abs().amax((1, 2, 3))
    assert difference[0] == 0 and difference[1] > 1e-4


class TestErrors:

    @pytest.mark.parametrize('settings', [dict(), dict(pretrained='x', trunk=TRUNK)])
    def test_exactly_one_source_is_needed(self, settings: dict) -> None:
        with pytest.raises(ValueError, match='`pretrained` and `trunk`'):
            MMDiT(**settings)

    def test_an_unknown_scheme_is_named_before_anything_is_built(self) -> None:
        with pytest.raises(ValueError, match="`control`.* got 'tripel'"):
            MMDiT(pretrained='no/such/folder', control='tripel')

    @pytest.mark.parametrize('control', ['siamese', 'adapter'])
    def test_the_released_network_has_one_scheme(self, control: str) -> None:
        with pytest.raises(ValueError, match=f"`legacy=True`.* got '{control}'"):
            MMDiT(trunk=TRUNK, control=control, legacy=True)

    def test_a_folder_without_transformer_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f'{tmp_path} has no `transformer`'):
            MMDiT(pretrained=str(tmp_path))

    def test_latents_that_are_no_whole_patches_are_named(self) -> None:
        *plain, mask = inputs(rows=7)
        with pytest.raises(ValueError, match='7x8 cells.* patch size 2'):
            network()(*plain, mask)
