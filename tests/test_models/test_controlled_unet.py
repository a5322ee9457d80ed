"""The U-Net of TISynth: a new one is Stable Diffusion's, masks and references reach it, and everything learns."""
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_unet import CHANNELS, UNET, UNREAD, controls, inputs, network, predict, randomize

from mmsynth.models.networks import UNET_BRANCHES, ControlledUNet


class TestStart:

    @pytest.mark.parametrize('size', [(8, 8), (8, 12), (7, 9)])
    def test_a_new_network_is_the_unet_alone(self, size: tuple[int, int]) -> None:
        ours, plain = network().eval(), inputs(2, *size)
        expected = ours.unet(*plain).sample
        # several threads sum in another order
        torch.testing.assert_close(predict(ours, plain, controls(2, *size)), expected, atol=1e-4, rtol=1e-4)

    def test_the_released_start_is_random(self) -> None:
        ours = network(legacy=True).eval()
        assert (predict(ours) - ours.unet(*inputs()).sample).abs().max() > 1e-4

    def test_a_hint_is_about_as_strong_as_what_it_is_added_to(self) -> None:
        ours, (control, reference) = network(), controls(4)
        features = ours.unet.conv_in(torch.randn_like(reference))
        for hint in (ours.encode_mask(control), ours.encode_reference(reference)):
            assert 0.1 < float(hint.std() / features.std()) < 10

    def test_hint_encoders_may_be_narrower_and_change_nothing_else(self) -> None:
        ours, usual = network(conditioning_embedding_out_channels=(4, 8, 8, 12)), network()
        for encoder in (ours.mask_branch.hint_encoder, ours.reference_branch.hint_encoder):
            assert [layer.out_channels for layer in encoder.blocks] == [4, 8, 8, 8, 8, 12]
        shapes, others = ({key: value.shape for key, value in each.state_dict().items() if 'hint_encoder' not in key}
                          for each in (ours, usual))
        assert shapes == others and predict(ours).shape == predict(usual).shape

    @pytest.mark.parametrize('branch', ['mask_branch', 'reference_branch'])
    def test_branches_start_as_the_encoder(self, branch: str) -> None:
        ours = network()
        copy = getattr(ours, branch).network.state_dict()
        own = {key: value for key, value in ours.unet.state_dict().items()
               if key.startswith(('conv_in.', 'time_embedding.', 'down_blocks.', 'mid_block.'))}
        assert len(own) > 50 and all(torch.equal(copy[key], value) for key, value in own.items())

    def test_a_folder_is_loaded(self, tiny_sd15: Path) -> None:
        ours = ControlledUNet(pretrained=str(tiny_sd15))
        expected = UNet2DConditionModel.from_pretrained(tiny_sd15, subfolder='unet').state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in ours.unet.state_dict().items())
        assert ours.latent_channels == 4 and ours.mask_channels == 3 and ours.cross_attention_dim == 12


class TestWiring:

    def test_branch_outputs_meet_the_decoder_blocks_opposite(self) -> None:
        """Widths tell: a key/value projection has as many inputs as the branch output has channels."""
        ours = network()
        widths = [[fusion.reference_attn.to_k.in_features for fusion in fusions] for fusions in ours.fusions.decoder]
        assert widths == [[], [], [16], [8], [8], [8]]  # outputs 5 … 0 have 16, 16, 16, 8, 8, 8 channels
        assert [fusion.mask_attn.to_k.in_features for fusion in ours.fusions.middle] == [16]
        assert ours.unread_outputs == sorted(UNREAD, reverse=True)

    @pytest.mark.parametrize('index', range(7))
    def test_every_output_that_is_read_matters_and_no_other(self, index: int) -> None:
        ours = randomize(network()).eval()
        before = predict(ours)
        ours.mask_branch.register_forward_hook(
            lambda _, args, outputs: [value + (place == index) for place, value in enumerate(outputs)])
        changed = not torch.equal(predict(ours), before)
        assert changed == (index not in UNREAD)

    @pytest.mark.parametrize('which', [0, 1])
    def test_mask_and_reference_are_seen_where_they_change(self, which: int) -> None:
        ours, control = randomize(network()).eval(), controls()
        changed = [value.clone() for value in control]
        changed[which][1, :, :4, :4] += 1
        difference = (predict(ours, control=changed) - predict(ours)).abs().amax((1, 2, 3))
        assert difference[0] == 0 and difference[1] > 1e-5

    def test_locality_is_a_bell_around_each_cell_that_heads_learn(self) -> None:
        fusion = network(mask_locality=True).fusions.middle[0]
        with torch.no_grad():
            fusion.mask_locality[1] = 0.5
        scores = fusion._locality((2, 3))
        assert scores.shape == (2, 6, 6) and (scores.diagonal(dim1=1, dim2=2) == 0).all()
        assert scores[0, 0].tolist() == [0, -1, -4, -1, -2, -5]  # cells (0, 0) to (1, 2): squared distances
        torch.testing.assert_close(scores[1], scores[0] / 2)
        assert fusion.mask_locality.requires_grad

    def test_strong_locality_sees_the_mask_of_its_own_cell_only(self) -> None:
        fusion = randomize(network(mask_locality=True)).fusions.middle[0].eval()
        with torch.no_grad():
            fusion.mask_locality.fill_(1e4)
            tokens, control = torch.randn(1, 6, 16), torch.randn(1, 6, 16)
            changed = control.clone()
            changed[:, 2] += 1
            difference = fusion(tokens, control, changed, (2, 3)) - fusion(tokens, control, control, (2, 3))
        assert difference[0].abs().amax(-1).nonzero().flatten().tolist() == [2]

    def test_by_default_there_is_none(self) -> None:
        assert not [name for name, _ in network().named_parameters() if 'locality' in name]

    def test_a_batch_of_two_is_two_batches_of_one(self) -> None:
        ours, plain, control = randomize(network()).eval(), inputs(), controls()
        alone = [predict(ours, [value[row:row + 1] for value in plain], [value[row:row + 1] for value in control])
                 for row in range(2)]
        torch.testing.assert_close(predict(ours), torch.cat(alone), atol=1e-4, rtol=1e-4)  # float32, several threads

    @pytest.mark.parametrize('factor', [1, 2, 4, 8])
    def test_the_mask_may_have_any_of_the_factors(self, factor: int) -> None:
        ours = network(mask_factor=factor)
        assert ours.encode_mask(torch.rand(1, 3, 8 * factor, 8 * factor)).shape == (1, 8, 8, 8)

    def test_branches_name_every_parameter_once(self) -> None:
        ours = network()
        names = [name for branch in UNET_BRANCHES for name in ours.branch_parameters(branch)]
        assert len(names) == len(set(names)) and set(names) == dict(ours.named_parameters()).keys()
        assert ours.branch_parameters('unet').keys() == {f'unet.{name}' for name, _ in ours.unet.named_parameters()}


class TestLearning:

    @staticmethod
    def without_gradient(ours: ControlledUNet) -> set[str]:
        for parameter in ours.branch_parameters('unet').values():
            parameter.requires_grad_(False)
        predict(ours).square().mean().backward()
        return {name for name, value in ours.named_parameters() if value.requires_grad and value.grad is None}

    @pytest.mark.parametrize('checkpointing', [False, True])
    def test_every_trained_parameter_has_a_gradient(self, checkpointing: bool) -> None:
        """Otherwise DistributedDataParallel would need `find_unused_parameters`."""
        assert self.without_gradient(network(gradient_checkpointing=checkpointing)) == set()

    def test_as_released_the_middle_is_not_trained(self) -> None:
        without = self.without_gradient(network(legacy=True))
        assert without and all('fusions.middle' in name or '.mid_block.' in name or '_mid_block.' in name
                               or '.down_blocks.2.' in name or '.down_blocks.1.' in name for name in without)
        assert {name for name in without if name.startswith('fusions.')} == {
            name for name, _ in network(legacy=True).named_parameters() if name.startswith('fusions.middle.')}

    def test_checkpointing_changes_neither_output_nor_gradients(self) -> None:
        plain, frugal = (randomize(network(gradient_checkpointing=option)) for option in (False, True))
        outputs = [predict(ours) for ours in (plain, frugal)]
        torch.testing.assert_close(outputs[1], outputs[0])
        for output in outputs:
            output.square().mean().backward()
        for (name, value), other in zip(plain.named_parameters(), frugal.parameters()):
            torch.testing.assert_close(other.grad, value.grad, msg=name)

    def test_every_parameter_moves_within_a_few_steps(self) -> None:
        """The zeros leave one after the other: output projections, the last layer of the hint encoders, the rest."""
        ours = network()
        before = {name: value.clone() for name, value in ours.named_parameters()}
        optimizer = torch.optim.Adam(ours.parameters(), lr=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            (predict(ours) - controls()[1]).square().mean().backward()
            optimizer.step()
        assert [name for name, value in ours.named_parameters() if torch.equal(value, before[name])] == []


class TestErrors:

    @pytest.mark.parametrize('settings', [dict(), dict(pretrained='x', unet=UNET)])
    def test_exactly_one_source_is_needed(self, settings: dict) -> None:
        with pytest.raises(ValueError, match='`pretrained` and `unet`'):
            ControlledUNet(**settings)

    def test_a_folder_without_unet_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f'{tmp_path} has no `unet`'):
            ControlledUNet(pretrained=str(tmp_path))

    @pytest.mark.parametrize('change, problem', [
        (dict(mid_block_type='UNetMidBlock2D'), "mid_block_type with 'UNetMidBlock2D'"),
        (dict(down_block_types=['AttnDownBlock2D'] * 3), "down_block_types with 'AttnDownBlock2D'"),
        (dict(class_embed_type='timestep'), "class_embed_type='timestep'"),
    ])
    def test_a_unet_of_another_kind_is_refused(self, change: dict, problem: str) -> None:
        with pytest.raises(ValueError, match=f'`unet`.* got {problem}'):
            ControlledUNet(unet=UNET | change)

    def test_the_factor_is_checked(self) -> None:
        with pytest.raises(ValueError, match='`mask_factor` must be one of 1, 2, 4, 8, got 3'):
            network(mask_factor=3)

    @pytest.mark.parametrize('channels', [(16, 32), (16, 32, 64, 0), (16, 32, 64, 64.0)])
    def test_widths_of_the_hint_encoders(self, channels: tuple) -> None:
        with pytest.raises(ValueError, match='`conditioning_embedding_out_channels` must be four positive numbers'):
            network(conditioning_embedding_out_channels=channels)

    def test_a_mask_of_another_factor_is_named(self) -> None:
        with pytest.raises(ValueError, match='16x16 cells.* 8x8: `network.mask_factor`'):
            predict(network(mask_factor=4))

    def test_a_reference_of_another_size_is_named(self) -> None:
        with pytest.raises(ValueError, match='reference hint has 4x4 cells, the latents have 8x8'):
            predict(network(), control=(controls()[0], torch.rand(2, CHANNELS, 4, 4)))
