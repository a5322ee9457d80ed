"""Files in the layout of latent diffusion: a round trip through the released names, and what is refused."""
import re
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from mmengine.config import Config
from tiny_tisynth import tisynth
from tiny_unet import CHANNELS, TEXT_DIM, UNET, UNREAD, network, predict, randomize
from torch import Tensor

from mmsynth.models import TISynth, VAECodec
from mmsynth.models.checkpoints import load_generator, load_generator_state
from mmsynth.models.convert import convert_checkpoint
from mmsynth.models.ldm_checkpoints import read_ldm
from mmsynth.models.networks import ControlledUNet
from mmsynth.registry import MODELS

LAYERS = UNET['layers_per_block']
RESNET = dict(norm1='in_layers.0', conv1='in_layers.2', time_emb_proj='emb_layers.1', norm2='out_layers.0',
              conv2='out_layers.3', conv_shortcut='skip_connection')
STEM = {'time_embedding.linear_1': 'time_embed.0', 'time_embedding.linear_2': 'time_embed.2',
        'conv_in': 'input_blocks.0.0', 'conv_norm_out': 'out.0', 'conv_out': 'out.2'}
FUSION = dict(reference_attn='attn00_ls_trainable', mask_attn='attn01_ssl_trainable', reference_norm='norm00_trainable',
              mask_norm='norm01_trainable')
VAE = dict(block_out_channels=(8, 16), down_block_types=('DownEncoderBlock2D', ) * 2, layers_per_block=1,
           up_block_types=('UpDecoderBlock2D', ) * 2, norm_num_groups=4, latent_channels=CHANNELS)


def released_unet(name: str) -> str:
    """diffusers' name of the U-Net's encoder, middle and decoder → the released one."""
    for new, old in STEM.items():
        if name.startswith(f'{new}.'):
            return old + name.removeprefix(new)
    part, *rest = name.split('.')
    names = RESNET if 'resnets' in rest else {}
    inner = '.'.join(names.get(word, word) for word in rest[3 if part != 'mid_block' else 2:])
    if part == 'mid_block':
        return f'middle_block.{1 if rest[0] == "attentions" else 2 * int(rest[1])}.{inner}'
    level, kind, layer = int(rest[0]), rest[1], int(rest[2])
    first = level * (LAYERS + 1)
    if kind == 'downsamplers':
        return f'input_blocks.{first + LAYERS + 1}.0.op.{rest[-1]}'
    if kind == 'upsamplers':
        place = 1 if UNET['up_block_types'][level] == 'UpBlock2D' else 2
        return f'output_blocks.{first + LAYERS}.{place}.conv.{rest[-1]}'
    block = f'input_blocks.{first + layer + 1}' if part == 'down_blocks' else f'output_blocks.{first + layer}'
    return f'{block}.{0 if kind == "resnets" else 1}.{inner}'


def released_name(name: str) -> str:
    """A name of a ControlledUNet → the released one."""
    part, rest = name.split('.', 1)
    if part == 'unet':
        return f'model.diffusion_model.{released_unet(rest)}'
    if part == 'fusions':
        place, block, layer, tail = re.fullmatch(r'(middle|decoder\.\d+)\.(\d+)\.(\w+)\.(.+)', rest).groups()
        place = place.replace('middle', 'middle_block').replace('decoder', 'output_blocks')
        return f'model.diffusion_model.{place}.1.transformer_blocks.{block}.{FUSION[layer]}.{tail}'
    prefix = dict(mask_branch='control_model', reference_branch='ssl_stage_model')[part]
    rest = rest.removeprefix('network.')
    rest = re.sub(r'hint_encoder\.blocks\.(\d+)', lambda hit: f'input_hint_block.{2 * int(hit[1]) + 2}', rest)
    rest = rest.replace('hint_encoder.conv_in', 'input_hint_block.0').replace('hint_encoder.conv_out',
                                                                              'input_hint_block.14')
    rest = re.sub(r'controlnet_down_blocks\.(\d+)', r'zero_convs.\1.0', rest)
    rest = rest.replace('controlnet_mid_block', 'middle_block_out.0')
    return f'{prefix}.{rest if re.match("input_hint|zero_convs|middle_block_out", rest) else released_unet(rest)}'


def released(ours: ControlledUNet) -> dict[str, Tensor]:
    """A release's tensors: all of the network's, of the outputs that nobody reads, and the noise schedule."""
    state = {released_name(name): value.clone() for name, value in ours.state_dict().items()}
    assert len(state) == len(ours.state_dict())
    unread = {f'{branch}.zero_convs.{index}.0.bias': torch.zeros(16)
              for branch in ('control_model', 'ssl_stage_model') for index in UNREAD}
    return state | unread | dict(betas=torch.zeros(1000), log_one_minus_alphas_cumprod=torch.zeros(1000))


def generator(seed: int = 0) -> TISynth:
    """One with the tiny U-Net, whose weights are not those of the file."""
    return tisynth(
        network=randomize(network(seed), seed + 5),
        latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=8, channels=CHANNELS),
        text_encoder=dict(type='mmsynth.ClassNameEmbedding', classes=('a', 'b', 'c'), embed_dims=TEXT_DIM,
                          pooled_dims=TEXT_DIM))


class TestRoundTrip:

    def test_the_released_names_of_a_network_are_read(self, tmp_path: Path) -> None:
        theirs, ours = randomize(network()).eval(), generator()
        torch.save(dict(state_dict=released(theirs)), tmp_path / 'release.ckpt')
        report = load_generator(ours, tmp_path / 'release.ckpt')
        assert report.loaded == len(theirs.state_dict()) and not report.unexpected and not report.mismatched
        assert torch.equal(predict(ours.network), predict(theirs))

    def test_the_unet_has_the_names_that_diffusers_gives_it(self) -> None:
        theirs = randomize(network())
        state = {name: value for name, value in released(theirs).items() if '_trainable.' not in name}
        expected = convert_ldm_unet_checkpoint(dict(state), dict(theirs.unet.config))
        ours = read_ldm(state, theirs, source='x').network
        assert {f'unet.{name}' for name in expected} == {name for name in ours if name.startswith('unet.')}
        assert all(ours[f'unet.{name}'] is value for name, value in expected.items())

    def test_the_vae_has_the_names_that_diffusers_gives_it(self) -> None:
        codec = VAECodec(config=VAE)
        state = {released_vae(name): value[..., None, None] if '.attentions.' in name and value.ndim == 2 else value
                 for name, value in codec.vae.state_dict().items()}
        expected = convert_ldm_vae_checkpoint(dict(state), dict(codec.vae.config))
        ours = read_ldm(state | {'control_model.x': torch.zeros(1)}, network(), source='x').vae
        assert ours.keys() == expected.keys() == codec.vae.state_dict().keys()
        assert all(torch.equal(ours[name], value) for name, value in expected.items())

    def test_branches_that_a_file_lacks_start_from_its_unet(self) -> None:
        """Stable Diffusion 1.5's own file."""
        theirs, ours = randomize(network()), generator()
        plain = {name: value for name, value in released(theirs).items()
                 if name.startswith('model.') and '_trainable.' not in name}
        hint = ours.network.mask_branch.hint_encoder.conv_in.weight.clone()
        load_generator_state(ours, plain, source='x')
        encoder = theirs.unet.down_blocks.state_dict()
        for branch in (ours.network.mask_branch, ours.network.reference_branch):
            assert all(torch.equal(branch.network.down_blocks.state_dict()[name], encoder[name]) for name in encoder)
        assert torch.equal(ours.network.mask_branch.hint_encoder.conv_in.weight, hint)


def released_vae(name: str) -> str:
    """diffusers' name of the VAE → LDM's."""
    name = re.sub(r'mid_block\.resnets\.(\d)', lambda hit: f'mid.block_{int(hit[1]) + 1}', name)
    name = name.replace('mid_block.attentions.0.to_out.0', 'mid.attn_1.proj_out')
    name = re.sub(r'mid_block\.attentions\.0\.to_([qkv])', r'mid.attn_1.\1', name)
    name = name.replace('mid_block.attentions.0.group_norm', 'mid.attn_1.norm').replace('conv_norm_out', 'norm_out')
    name = re.sub(r'down_blocks\.(\d)', r'down.\1', name)
    name = re.sub(r'up_blocks\.(\d)', lambda hit: f'up.{1 - int(hit[1])}', name)
    name = re.sub(r'(down|up)samplers\.0', r'\1sample', name.replace('resnets', 'block'))
    return 'first_stage_model.' + name.replace('conv_shortcut', 'nin_shortcut')


class TestRefused:

    @pytest.mark.parametrize('change, problem', [
        (lambda state: state.pop('control_model.middle_block_out.0.bias'),
         'missing in the file: .*network.mask_branch.network.controlnet_mid_block.bias'),
        (lambda state: state.update({'model.diffusion_model.label_emb.0.0.weight': torch.zeros(1)}),
         '1 unexpected in the file: network.unet.label_emb'),
        (lambda state: state.update(other=torch.zeros(1)), '1 unexpected in the file: other'),
        (lambda state: state.update({'model.diffusion_model.out.2.bias': torch.zeros(5)}),
         r'1 of another shape: network.unet.conv_out.bias \(file \(5,\), model \(4,\)\)'),
    ])
    def test_nothing_is_left_out_in_silence(self, change: object, problem: str) -> None:
        state, ours = released(network()), generator()
        change(state)
        before = {name: value.clone() for name, value in ours.state_dict().items()}
        with pytest.raises(ValueError, match=f'TISynth: .*{problem}'):
            load_generator_state(ours, state, source='x')
        assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())

    def test_a_file_of_another_layout_is_named(self) -> None:
        with pytest.raises(ValueError, match='checkpoint x .*latent diffusion'):
            read_ldm({'conv.weight': torch.zeros(1)}, network(), source='x')

    def test_another_network_is_named(self) -> None:
        ours = generator()
        ours.network = torch.nn.Linear(1, 1)
        with pytest.raises(ValueError, match="Linear.*'mmsynth.TISynth'"):
            load_generator_state(ours, released(network()), source='x')


class TestConversion:

    @staticmethod
    def config(folder: Path, **changes) -> Config:
        return Config(dict(model=dict(
            type='mmsynth.TISynth',
            network=dict(type='mmsynth.ControlledUNet', unet=UNET),
            latent_codec=dict(type='mmsynth.VAECodec', pretrained=str(folder)),
            label_codec=dict(type='mmsynth.IdCodec', num_classes=3),
            text_encoder=dict(type='mmsynth.CLIPTextEncoder', pretrained=str(folder))) | changes))

    def test_a_release_becomes_a_checkpoint_of_ours(self, tiny_sd15: Path, tmp_path: Path) -> None:
        theirs, cfg = randomize(network()).eval(), self.config(tiny_sd15)
        torch.save(released(theirs), tmp_path / 'release.ckpt')
        convert_checkpoint(cfg, tmp_path / 'release.ckpt', tmp_path / 'ours.safetensors')
        ours = MODELS.build(cfg.model).eval()
        assert load_generator(ours, tmp_path / 'ours.safetensors').complete
        assert torch.equal(predict(ours.network), predict(theirs))

    def test_the_diffusers_layout_has_no_place_for_it(self, tiny_sd15: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="`to`: .*'diffusers'"):
            convert_checkpoint(self.config(tiny_sd15), tmp_path / 'x.ckpt', tmp_path / 'folder', to='diffusers')
