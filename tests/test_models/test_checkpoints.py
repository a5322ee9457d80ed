"""Released names and our own checkpoints, loaded whole or not at all."""
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmsynth.models import GreyLevelCodec, MMDiT, PatchPCACodec, TODSynth
from mmsynth.models.checkpoints import (
    from_released_todsynth,
    is_released_todsynth,
    load_generator,
    load_released_todsynth,
)
from mmsynth.models.encoders import ClassNameEmbedding

RELEASE = Path(__file__).parents[1] / 'parity' / 'data' / 'mmdit_forward_dual.safetensors'
WIDTHS = dict(embed_dims=32, pooled_dims=48)  # the release's joint and pooled widths


def released() -> dict[str, Tensor]:
    """A state dict with every name of the released network."""
    with safe_open(RELEASE, framework='pt') as file:
        return {key.removeprefix('weights/'): file.get_tensor(key) for key in file.keys() if key.startswith('weights/')}


def network(legacy: bool = True) -> MMDiT:
    with safe_open(RELEASE, framework='pt') as file:
        trunk = json.loads(file.metadata()['transformer_config'])
    torch.manual_seed(0)
    return MMDiT(trunk=trunk, legacy=legacy)


def generator(legacy: bool = True) -> TODSynth:
    text_encoder = ClassNameEmbedding(['a', 'b', 'c'], **WIDTHS)
    return TODSynth(network(legacy), PatchPCACodec(4, 4), GreyLevelCodec(3), text_encoder)


def copy_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_unchanged(module: torch.nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize('theirs, ours', [
    ('sd3_transformer.proj_out.weight', 'trunk.proj_out.weight'),
    ('msk_pos_embed.proj.bias', 'mask_embed.proj.bias'),
    ('mmdit_blocks.0.sd3_block.norm1.linear.weight', 'trunk.transformer_blocks.0.norm1.linear.weight'),
    ('mmdit_blocks.12.sd3_block.ff_context.net.2.bias', 'trunk.transformer_blocks.12.ff_context.net.2.bias'),
    ('mmdit_blocks.3.attn.sd3_attn.to_out.0.bias', 'trunk.transformer_blocks.3.attn.to_out.0.bias'),
    ('mmdit_blocks.3.attn2.norm_q.weight', 'trunk.transformer_blocks.3.attn2.norm_q.weight'),
    ('mmdit_blocks.3.attn.to_out.0.bias', 'mask_blocks.3.attn.to_out.0.bias'),
    ('mmdit_blocks.3.norm1.linear.bias', 'mask_blocks.3.norm1.linear.bias'),
    ('mmdit_blocks.3.ff.net.0.proj.weight', 'mask_blocks.3.ff.net.0.proj.weight'),
    ('something.else', 'something.else'),
])
def test_names(theirs: str, ours: str) -> None:
    assert from_released_todsynth({theirs: torch.ones(1)}).keys() == {ours}


class TestRelease:

    def test_every_tensor_arrives_under_a_name_of_its_own(self) -> None:
        state, ours = released(), network()
        report = load_released_todsynth(ours, state, source='release')
        renamed = from_released_todsynth(state)
        assert is_released_todsynth(state) and not is_released_todsynth(renamed)
        assert report.complete and report.loaded == len(state) == len(renamed)
        assert renamed.keys() == ours.state_dict().keys()
        assert_unchanged(ours, renamed)

    def test_the_frozen_tensors_may_be_missing_and_are_reported(self) -> None:
        """A release holds what was trained; the rest is the backbone's."""
        ours, reference, state = network(), network(), released()
        frozen = set(ours.branch_parameters('text')) | {'trunk.pos_embed.pos_embed', 'mask_embed.pos_embed'}
        names = {key: next(iter(from_released_todsynth({key: state[key]}))) for key in state}
        trained = {key: value for key, value in state.items() if names[key] not in frozen}
        report = load_released_todsynth(ours, trained, source='release')
        assert set(report.missing) == frozen and not report.unexpected
        assert all(torch.equal(value, reference.state_dict()[key]) == (key in frozen)
                   for key, value in ours.state_dict().items() if value.std() > 0)

    @pytest.mark.parametrize('change, message', [
        (dict(remove='mmdit_blocks.1.norm1.linear.weight'), '1 missing in the file: mask_blocks.1.norm1.linear.weight'),
        (dict(remove='sd3_transformer.proj_out.bias'), '1 missing in the file: trunk.proj_out.bias'),
        (dict(add='mmdit_blocks.3.norm1.linear.weight'), '1 unexpected in the file: mask_blocks.3.norm1.linear.weight'),
        (dict(add='sd3_transformer.extra'), '1 unexpected in the file: trunk.extra'),
        (dict(reshape='msk_pos_embed.proj.bias'), r'mask_embed.proj.bias \(file \(9,\), model \(32,\)\)'),
    ])
    def test_a_misfit_is_named_and_nothing_is_loaded(self, change: dict[str, str], message: str) -> None:
        ours, state = network(), released()
        before = copy_of(ours)
        for action, key in change.items():
            if action == 'remove':
                del state[key]
            else:
                state[key] = torch.zeros(9)
        with pytest.raises(ValueError, match=f'MMDiT: .*{message}'):
            load_released_todsynth(ours, state, source='release')
        assert_unchanged(ours, before)

    def test_it_needs_the_released_network(self) -> None:
        ours = network(legacy=False)
        before = copy_of(ours)
        with pytest.raises(ValueError, match='a.pth .*`model.network.legacy=True`'):
            load_released_todsynth(ours, released(), source='a.pth')
        assert_unchanged(ours, before)


class TestGenerator:

    def test_a_release_folder_fills_the_network_alone(self, tmp_path: Path) -> None:
        save_file(released(), tmp_path / 'model.safetensors')
        ours = generator()
        before = copy_of(ours)
        assert load_generator(ours, tmp_path).complete
        expected = from_released_todsynth(released())
        for key, value in ours.state_dict().items():
            name = key.removeprefix('network.')
            assert torch.equal(value, expected[name] if key.startswith('network.') else before[key]), key

    def test_a_release_for_another_network_is_refused(self, tmp_path: Path) -> None:
        save_file(released(), tmp_path / 'model.safetensors')
        ours = torch.nn.Module()
        ours.network = torch.nn.Linear(1, 1)
        with pytest.raises(ValueError, match='the config has a Linear.*TODSynth'):
            load_generator(ours, tmp_path)

    @pytest.mark.parametrize('legacy', [False, True])
    def test_a_checkpoint_of_mmengine_restores_all(self, legacy: bool, tmp_path: Path) -> None:
        saved = generator(legacy)
        saved.latent_codec.fit(torch.rand(2, 3, 16, 16))
        with torch.no_grad():
            for parameter in saved.parameters():
                parameter.normal_()
        path = tmp_path / 'iter_10.pth'
        torch.save(dict(meta=dict(iter=10), state_dict=saved.state_dict(), optimizer=dict()), path)
        loaded = generator(legacy)
        report = load_generator(loaded, str(path))
        assert report.complete and report.loaded == len(saved.state_dict())
        assert_unchanged(loaded, saved.state_dict())
        assert bool(loaded.latent_codec.fitted)

    def test_a_checkpoint_of_another_config_is_refused_whole(self, tmp_path: Path) -> None:
        torch.save(dict(state_dict=generator(legacy=True).state_dict()), tmp_path / 'a.pth')
        ours = generator(legacy=False)
        before = copy_of(ours)
        with pytest.raises(ValueError, match=r'a\.pth does not fit TODSynth: .*6 unexpected in the file: '
                           r'network\.mask_blocks\.2\.attn\.to_out\.0\.bias'):
            load_generator(ours, tmp_path / 'a.pth')
        assert_unchanged(ours, before)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match='a.pth does not exist'):
            load_generator(generator(), tmp_path / 'a.pth')
