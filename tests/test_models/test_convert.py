"""Checkpoints in other layouts: what is written computes the same, loads back, and nothing is overwritten."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from mmengine.config import Config
from safetensors.torch import load_file, save_file
from small_run import ROOT
from tiny_generator import perturb, pretrained_config, velocity
from torch import Tensor

from mmsynth.models import MMDiT, TODSynth, VAECodec
from mmsynth.models.checkpoints import load_control, load_generator
from mmsynth.models.convert import convert_checkpoint
from mmsynth.registry import MODELS

LORA = dict(image='lora', mask='lora')
CACHED = dict(type='mmsynth.CachedTextEncoder', cache_dir='nowhere')  # as a release's: it has no weights


def build(cfg: Config) -> TODSynth:
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def config(folder: Path, **changes) -> Config:
    return Config(dict(model=pretrained_config(folder, **changes)))


@pytest.fixture(params=[dict(), LORA, dict(network=dict(control='siamese')), dict(network=dict(control='adapter'))],
                ids=['plain', 'lora', 'siamese', 'adapter'])
def trained(request: pytest.FixtureRequest, tiny_sd3: Path, tmp_path: Path) -> tuple[Config, TODSynth, Path]:
    """A config, a trained generator of it, and its checkpoint as mmengine writes it."""
    changes = dict(trainable=LORA) if request.param == LORA else request.param
    return save(config(tiny_sd3, **changes), tmp_path)


@pytest.fixture
def adapted(tiny_sd3: Path, tmp_path: Path) -> tuple[Config, TODSynth, Path]:
    """The same for one that was trained by LoRA."""
    return save(config(tiny_sd3, trainable=LORA), tmp_path)


def save(cfg: Config, folder: Path) -> tuple[Config, TODSynth, Path]:
    model = perturb(build(cfg))
    torch.save(dict(meta=dict(iter=3), state_dict=model.state_dict(), optimizer={}), folder / 'iter_3.pth')
    return cfg, model, folder / 'iter_3.pth'


def released(cfg: Config) -> tuple[TODSynth, dict[str, Tensor]]:
    """A legacy generator with trained weights, and what a release would hold of it: the trained tensors."""
    model = perturb(build(cfg))
    names = [name for branch in ('image', 'mask') for name in model.network.branch_parameters(branch)]
    state = model.network.state_dict()
    return model, {release_name(name): state[name] for name in names}


def release_name(name: str) -> str:
    if name.startswith('mask_blocks.'):
        return name.replace('mask_blocks.', 'mmdit_blocks.', 1)
    if not name.startswith('trunk.transformer_blocks.'):
        return name.replace('mask_embed.', 'msk_pos_embed.').replace('trunk.', 'sd3_transformer.', 1)
    _, _, index, part, *rest = name.split('.')
    middle = dict(attn='attn.sd3_attn', attn2='attn2').get(part, f'sd3_block.{part}')
    return '.'.join(['mmdit_blocks', index, middle, *rest])


class TestOurs:

    @pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
    def test_the_same_checkpoint_in_another_file(self, trained: tuple, tmp_path: Path, suffix: str) -> None:
        cfg, model, checkpoint = trained
        result = convert_checkpoint(cfg, checkpoint, tmp_path / f'new/a{suffix}')
        loaded = build(cfg)
        assert load_generator(loaded, tmp_path / f'new/a{suffix}').complete
        assert torch.equal(velocity(loaded), velocity(model))
        assert f'wrote: {tmp_path}/new/a{suffix}: {len(model.state_dict())} tensors' in str(result)
        assert 'frozen tensors from the backbone' in str(result) and [p.name for p in tmp_path.glob('new/*')] == [
            f'a{suffix}']

    def test_a_release_gets_our_names(self, tiny_sd3: Path, tmp_path: Path) -> None:
        cfg = config(tiny_sd3, network=dict(legacy=True), text_encoder=CACHED)
        model, state = released(cfg)
        (tmp_path / 'release').mkdir()
        save_file(state, tmp_path / 'release' / 'model.safetensors')
        report = convert_checkpoint(cfg, tmp_path / 'release', tmp_path / 'a.safetensors').report
        assert report.loaded == len(state) and report.missing == ['mask_embed.pos_embed']  # follows from the settings
        assert report.from_backbone == len(model.network.branch_parameters('text')) + 1  # and the trunk's pos_embed
        loaded = build(cfg)
        assert load_generator(loaded, tmp_path / 'a.safetensors').complete
        ours = load_file(tmp_path / 'a.safetensors')
        assert {name for name in ours if 'blocks.0.attn.to_q' in name} == {
            f'network.{block}.0.attn.to_q.{kind}' for block in ('trunk.transformer_blocks', 'mask_blocks')
            for kind in ('weight', 'bias')}
        for name, value in model.network.state_dict().items():
            assert torch.equal(loaded.network.state_dict()[name], value), name

    @pytest.mark.parametrize('states', [dict(), dict(image='frozen'), dict(mask='frozen'), dict(text='full')], ids=str)
    def test_merged_it_fits_the_config_without_lora(self, adapted: tuple, tiny_sd3: Path, tmp_path: Path,
                                                    states: dict[str, str]) -> None:
        cfg, model, checkpoint = adapted
        result = convert_checkpoint(cfg, checkpoint, tmp_path / 'a.safetensors', merge_lora=True)
        assert result.merged > 0 and f'merged: LoRA of {result.merged} layers' in str(result)
        assert not [key for key in load_file(tmp_path / 'a.safetensors') if 'lora' in key]
        plain = build(config(tiny_sd3, trainable=states))
        if 'text' in states:  # never adapted, so that it is still the backbone's
            with pytest.raises(ValueError, match='missing in the file: network.trunk.context_embedder'):
                load_generator(plain, tmp_path / 'a.safetensors')
        else:
            assert load_generator(plain, tmp_path / 'a.safetensors').complete
            torch.testing.assert_close(velocity(plain), velocity(model), rtol=1e-4, atol=1e-5)


class TestDiffusers:

    def test_the_trunk_is_stable_diffusion(self, trained: tuple, tmp_path: Path) -> None:
        cfg, model, checkpoint = trained
        convert_checkpoint(cfg, checkpoint, tmp_path / 'a', to='diffusers', merge_lora=model.has_lora)
        trunk, info = SD3Transformer2DModel.from_pretrained(
            tmp_path / 'a', subfolder='transformer', output_loading_info=True)
        assert not any(info.values())
        latents, text, pooled = torch.randn(2, 4, 4, 4), torch.randn(2, 3, 32), torch.randn(2, 48)
        time = torch.tensor([700., 20.])
        with torch.no_grad():
            theirs = trunk(latents, text, pooled, time, return_dict=False)[0]
            torch.testing.assert_close(theirs, model.network(latents, time, text, pooled), rtol=1e-5, atol=1e-5)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / 'a', subfolder='scheduler')
        assert scheduler.config.shift == model.scheduler.config.shift

    def test_the_way_back(self, trained: tuple, tmp_path: Path) -> None:
        cfg, model, checkpoint = trained
        result = convert_checkpoint(cfg, checkpoint, tmp_path / 'a', to='diffusers', merge_lora=model.has_lora)
        about = json.loads((tmp_path / 'a/control/config.json').read_text())
        assert about['control'] == model.network.control and about['num_classes'] == 3 and not about['legacy']
        network = MMDiT(pretrained=str(tmp_path / 'a'), control=about['control'])
        report = load_control(network, tmp_path / 'a' / 'control')
        assert report.complete and report.from_backbone == len(network.trunk.state_dict())
        codec = VAECodec(str(tmp_path / 'a'))
        back = TODSynth(network, codec, model.label_codec, model.text_encoder).eval()
        torch.testing.assert_close(velocity(back), velocity(model), rtol=1e-4, atol=1e-5)
        assert result.left_out == ['text_encoder'] and 'no place in this layout: text_encoder' in str(result)

    def test_the_control_is_a_checkpoint_on_top_of_the_folder(self, tiny_sd3: Path, tmp_path: Path) -> None:
        cfg, model, checkpoint = save(config(tiny_sd3, text_encoder=CACHED), tmp_path)
        result = convert_checkpoint(cfg, checkpoint, tmp_path / 'a', to='diffusers')
        back = build(config(tmp_path / 'a', text_encoder=CACHED))
        assert load_generator(back, tmp_path / 'a/control').complete and not result.left_out
        for name, value in model.network.state_dict().items():
            assert torch.equal(back.network.state_dict()[name], value), name
        with pytest.raises(ValueError, match='text_encoder'):
            load_generator(build(config(tmp_path / 'a')), tmp_path / 'a/control')

    def test_the_control_needs_a_trunk(self, trained: tuple, tmp_path: Path) -> None:
        cfg, model, checkpoint = trained
        convert_checkpoint(cfg, checkpoint, tmp_path / 'a', to='diffusers', merge_lora=model.has_lora)
        settings = {key: value for key, value in model.network.trunk.config.items() if not key.startswith('_')}
        network = MMDiT(trunk=settings, control=model.network.control)
        with pytest.raises(ValueError, match=r'missing in the file: trunk\.'):
            load_control(network, tmp_path / 'a/control')


class TestErrors:

    @pytest.mark.parametrize('out, options, message', [
        ('a.safetensors', dict(to='onnx'), "`to` must be one of mmsynth, diffusers, got 'onnx'"),
        ('a.bin', dict(), "`out` must name a file that ends in .safetensors or .pth for the layout 'mmsynth', got"),
        ('a.pth', dict(to='diffusers', merge_lora=True), "`out` must name a folder for the layout 'diffusers'"),
        ('a', dict(to='diffusers'), 'the diffusers layout holds plain weights; merge the LoRA into them'),
    ])
    def test_options_that_cannot_be(self, adapted: tuple, tmp_path: Path, out: str, options: dict,
                                    message: str) -> None:
        cfg, _, checkpoint = adapted
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(cfg, checkpoint, tmp_path / out, **options)
        assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]

    def test_merging_nothing_is_refused(self, tiny_sd3: Path, tmp_path: Path) -> None:
        cfg, _, checkpoint = save(config(tiny_sd3), tmp_path)
        with pytest.raises(ValueError, match='`merge_lora` has no effect: no branch'):
            convert_checkpoint(cfg, checkpoint, tmp_path / 'a.safetensors', merge_lora=True)

    def test_a_config_that_does_not_fit(self, adapted: tuple, tiny_sd3: Path, tmp_path: Path) -> None:
        _, _, checkpoint = adapted
        with pytest.raises(ValueError, match='iter_3.pth .*TODSynth: .*lora_A'):
            convert_checkpoint(config(tiny_sd3), checkpoint, tmp_path / 'a.safetensors')
        segmentor = Config(dict(model=dict(type='mmsynth.OneHotCodec', num_classes=3)))
        with pytest.raises(ValueError, match='`model` is OneHotCodec; only a TODSynth'):
            convert_checkpoint(segmentor, checkpoint, tmp_path / 'a.safetensors')
        assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]

    @pytest.mark.parametrize('part, lacking', [
        ('text_encoder', r'these from nothing: text_encoder\. Set'),
        ('network', r'these from nothing: trunk\.context_embedder\.bias, .* more'),
    ])
    def test_a_release_without_its_backbone(self, tiny_sd3: Path, tmp_path: Path, part: str, lacking: str) -> None:
        """What it leaves to the backbone would be written as random numbers."""
        cfg = config(tiny_sd3, network=dict(legacy=True))
        if part == 'network':
            settings = SD3Transformer2DModel.load_config(tiny_sd3, subfolder='transformer')
            trunk = {key: value for key, value in settings.items() if not key.startswith('_')}
            cfg.model.network = dict(type='mmsynth.MMDiT', trunk=trunk, legacy=True)
            cfg.model.text_encoder = CACHED
        save_file(released(cfg)[1], tmp_path / 'a.safetensors')
        with pytest.raises(ValueError, match=lacking):
            convert_checkpoint(cfg, tmp_path / 'a.safetensors', tmp_path / 'b.safetensors')
        assert not (tmp_path / 'b.safetensors').exists()

    @pytest.mark.parametrize('to, name', [('mmsynth', 'a.safetensors'), ('diffusers', 'a')])
    def test_nothing_is_overwritten(self, tiny_sd3: Path, tmp_path: Path, to: str, name: str) -> None:
        cfg, _, checkpoint = save(config(tiny_sd3), tmp_path)
        (tmp_path / name).write_text('mine')
        with pytest.raises(FileExistsError, match=f'`out`: .*/{name} '):
            convert_checkpoint(cfg, checkpoint, tmp_path / name, to=to)
        assert (tmp_path / name).read_text() == 'mine'

    @pytest.mark.parametrize('to, name', [('mmsynth', 'a.safetensors'), ('diffusers', 'a')])
    def test_a_write_that_fails_leaves_nothing(self, tiny_sd3: Path, tmp_path: Path, to: str, name: str,
                                               monkeypatch: pytest.MonkeyPatch) -> None:

        def half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
            path.write_bytes(b'half of it')
            raise OSError('no space left on device')

        cfg, _, checkpoint = save(config(tiny_sd3), tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr('mmsynth.models.convert.save_file', half)
            with pytest.raises(OSError, match='no space left'):
                convert_checkpoint(cfg, checkpoint, tmp_path / name, to=to)
        assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
        convert_checkpoint(cfg, checkpoint, tmp_path / name, to=to)


def test_the_tool(adapted: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture) -> None:
    """The script itself, in this process."""
    cfg, _, checkpoint = adapted
    cfg.dump(tmp_path / 'config.py')
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', str(tmp_path / 'config.py'), str(checkpoint), '--out',
                                      str(tmp_path / 'a'), '--to', 'diffusers', '--merge-lora', '--cfg-options',
                                      'model.scheduler.shift=2.0'])
    runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')
    text = capsys.readouterr().out
    assert 'tensors loaded' in text and 'merged: LoRA of' in text
    assert all(f'wrote: {tmp_path}/a/{part}: ' in text for part in ('transformer', 'control', 'scheduler', 'vae'))
    assert json.loads((tmp_path / 'a/scheduler/scheduler_config.json').read_text())['shift'] == 2.0
