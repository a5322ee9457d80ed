"""LoRA: its formula, what trains in which combination of branches, names in files, and the message of each mistake."""
import copy
from itertools import product

import pytest
import torch
from tiny_generator import TRUNK, images, perturb, samples, todsynth, velocity
from torch import nn

from mmsynth.models import TODSynth
from mmsynth.models.lora import ATTENTION_PROJECTIONS, LoRASettings, add_lora, merge_lora, plain_name

STATES = ('full', 'lora', 'frozen')


class TwoBranches(nn.Module):
    """A layer in each of two branches, and a norm that no LoRA fits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.ModuleDict(dict(to_q=nn.Linear(5, 3), norm=nn.LayerNorm(3)))
        self.right = nn.ModuleDict(dict(left=nn.ModuleDict(dict(to_q=nn.Linear(5, 3))), to_out=nn.ModuleList(
            [nn.Linear(3, 3)])))

    def branch_parameters(self, branch: str) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.named_parameters() if name.startswith(f'{branch}.')}


def adapted_layers(model: TODSynth) -> set[str]:
    return {plain_name(name).removesuffix('.lora_A.weight') for name, _ in model.network.named_parameters()
            if 'lora_A' in name}


class TestLayers:

    @pytest.mark.parametrize('alpha, scale', [(None, 1.0), (8, 4.0), (0.5, 0.25)])
    def test_the_formula(self, alpha: float | None, scale: float) -> None:
        network, x = TwoBranches(), torch.randn(4, 5)
        weight, bias = (value.clone() for value in network.left.to_q.parameters())
        assert add_lora(network, ['left'], LoRASettings(rank=2, alpha=alpha)) == ['left.to_q']
        down, up = torch.randn(2, 5), torch.randn(3, 2)
        state = network.state_dict() | {'left.to_q.lora_A.weight': down, 'left.to_q.lora_B.weight': up}
        network.load_state_dict(state)
        expected = x @ (weight + scale * up @ down).T + bias
        torch.testing.assert_close(network.left.to_q(x), expected)
        assert merge_lora(network) == 1 and type(network.left.to_q) is nn.Linear
        torch.testing.assert_close(network.left.to_q(x), expected)
        assert network.state_dict().keys() == TwoBranches().state_dict().keys() and merge_lora(network) == 0

    def test_a_branch_is_adapted_and_not_what_is_called_like_it(self) -> None:
        """'right.left.to_q' ends like 'left.to_q'."""
        network = TwoBranches()
        add_lora(network, ['left'], LoRASettings())
        assert type(network.right.left.to_q) is nn.Linear

    def test_names_in_files_are_those_without_it(self) -> None:
        plain, network = TwoBranches(), TwoBranches()
        add_lora(network, ['left', 'right'], LoRASettings())
        keys = [key for key in network.state_dict() if 'lora_' not in key]
        assert keys == list(plain.state_dict())
        assert 'right.to_out.0.lora_B.weight' in network.state_dict()
        other = perturb(TwoBranches())
        result = network.load_state_dict(other.state_dict(), strict=False)
        assert not result.unexpected_keys and all('lora_' in key for key in result.missing_keys)
        torch.testing.assert_close(network.left.to_q(torch.ones(5)), other.left.to_q(torch.ones(5)), rtol=0, atol=0)

    def test_dropout_is_off_unless_asked_for(self) -> None:
        x = torch.ones(64, 5)
        for dropout, varies in ((0.0, False), (0.5, True)):
            network = TwoBranches()
            add_lora(network, ['left'], LoRASettings(dropout=dropout))
            perturb(network)
            assert torch.equal(network.left.to_q(x), network.left.to_q(x)) != varies


class TestGenerator:

    @pytest.mark.parametrize('control', ['triple', 'siamese', 'adapter'])
    @pytest.mark.parametrize('branches', [('image', ), ('mask', ), ('text', ), ('image', 'mask', 'text')])
    def test_it_starts_as_it_was(self, control: str, branches: tuple[str, ...]) -> None:
        network = dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=3, control=control)
        plain = todsynth(network=network)
        model = copy.deepcopy(plain)
        add_lora(model.network, branches, LoRASettings())
        assert torch.equal(velocity(model), velocity(plain))
        assert not torch.equal(velocity(perturb(model)), velocity(plain))

    @pytest.mark.parametrize('image, mask, text', list(product(STATES, repeat=3)))
    def test_what_trains(self, image: str, mask: str, text: str) -> None:
        states = dict(image=image, mask=mask, text=text)
        model = todsynth(trainable=states, lora=dict(rank=2) if 'lora' in states.values() else None)
        trained = set(model.trainable_names())
        for branch, state in states.items():
            names = {f'network.{name}' for name in model.network.branch_parameters(branch)}
            updates = {name for name in names if 'lora_' in name}
            assert bool(updates) == (state == 'lora')
            assert names & trained == dict(full=names, lora=updates, frozen=set())[state]
        assert {name for name in trained if not name.startswith('network.')} == {
            f'text_encoder.{name}' for name, _ in model.text_encoder.named_parameters()}
        model.train().loss(images(), samples())['loss_velocity'].backward()
        assert {name for name, value in model.named_parameters() if value.grad is not None} == trained

    @pytest.mark.parametrize('control', ['triple', 'siamese', 'adapter'])
    def test_only_projections_of_the_branch_are_adapted(self, control: str) -> None:
        network = dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=3, control=control)
        layers = {branch: adapted_layers(todsynth(network=network, trainable={branch: 'lora'}))
                  for branch in ('image', 'mask', 'text')}
        assert all(name.endswith(ATTENTION_PROJECTIONS) for names in layers.values() for name in names)
        assert all(name.startswith('mask_blocks.') for name in layers['mask'])
        assert all(name.startswith('trunk.') for name in layers['image'] | layers['text'])
        block = 'trunk.transformer_blocks.0'
        image = {'to_q', 'to_k', 'to_v', 'to_out.0'}
        assert {name for name in layers['image'] if name.startswith(block)} == {
            f'{block}.{attention}.{name}' for attention in ('attn', 'attn2') for name in image}
        assert {name for name in layers['text'] if name.startswith(block)} == {
            f'{block}.attn.{name}' for name in set(ATTENTION_PROJECTIONS) - image}

    def test_targets_can_be_chosen(self) -> None:
        model = todsynth(trainable=dict(image='lora', mask='lora'), lora=dict(target_modules=['attn.to_v', 'net.2']))
        assert {name.split('.', 2)[2] for name in adapted_layers(model) if name.startswith('mask_blocks.0')} == {
            'attn.to_v', 'ff.net.2'}
        assert not any('attn2' in name or 'to_q' in name for name in adapted_layers(model))

    def test_it_learns(self) -> None:
        model = todsynth(trainable=dict(image='lora', mask='lora'), text_encoder=todsynth().text_encoder).train()
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.Adam((p for p in model.network.parameters() if p.requires_grad), lr=1e-2)
        losses = []
        for _ in range(12):
            torch.manual_seed(5)  # the same noise and sigmas, so that only the weights differ
            loss = model(images(), samples(), mode='loss')['loss_velocity']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.95 * losses[0]
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed and all('lora_' in key for key in changed)

    def test_merging_keeps_the_velocity(self) -> None:
        model = perturb(todsynth(trainable=dict(image='lora', mask='lora')))
        before, layers = velocity(model), len(adapted_layers(model))
        assert model.has_lora and model.merge_lora() == layers and not model.has_lora
        torch.testing.assert_close(velocity(model), before, rtol=1e-4, atol=1e-5)
        assert not adapted_layers(model)
        assert model.network.state_dict().keys() == todsynth().network.state_dict().keys()

    def test_copies_of_it_are_adapted_too(self) -> None:
        """As EMA makes them."""
        model = perturb(todsynth(trainable=dict(image='lora')))
        twin = copy.deepcopy(model)
        assert torch.equal(velocity(twin), velocity(model)) and twin.state_dict().keys() == model.state_dict().keys()
        perturb(twin)
        assert not torch.equal(velocity(twin), velocity(model))


class TestErrors:

    @pytest.mark.parametrize('changes, message', [
        (dict(lora=dict(rank=4)), r"`lora` has no effect: no branch of `trainable` is 'lora', got \{'image': 'full'"),
        (dict(trainable=dict(image='lora'), lora=dict(rank=0)), '`lora.rank` must be at least 1, got 0'),
        (dict(trainable=dict(image='lora'), lora=dict(alpha=0)), '`lora.alpha` must be above 0, got 0'),
        (dict(trainable=dict(image='lora'), lora=dict(dropout=1.0)), r'`lora.dropout` must be in \[0, 1\), got 1.0'),
        (dict(trainable=dict(image='lora'), lora=dict(target_modules=[])), 'must name at least one layer, got none'),
        (dict(trainable=dict(image='lora'), lora=dict(target_modules=['to_w'])),
         "`lora.target_modules`: 'to_w' fit no linear layer of the branch 'image'; it has linear, .*to_out.0, to_q"),
        (dict(trainable=dict(image='lora', mask='lora'), lora=dict(target_modules=['to_q', 'to_w'])),
         "'to_w' fits no linear layer of the branches that are 'lora': 'image' has .*to_q.*; 'mask' has .*to_q"),
        (dict(trainable=dict(image='lora', text='lora'), lora=dict(target_modules=['to_q'])),
         "'to_q' fit no linear layer of the branch 'text'; it has add_k_proj, add_q_proj"),
        (dict(trainable=dict(image='lora'), lora=dict(target_modules=['o_q'])), "'o_q' fit no linear layer"),
    ])  # yapf: disable
    def test_options_that_cannot_be(self, changes: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            todsynth(**changes)

    @pytest.mark.parametrize('lora, message', [
        (dict(target_modules='to_q'), r"`lora.target_modules` must be a sequence of names, got 'to_q'; write \['to_q'"),
        (dict(rnk=4), "unexpected keyword argument 'rnk'"),
    ])
    def test_options_of_another_type(self, lora: dict, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            todsynth(trainable=dict(image='lora'), lora=lora)
