"""Folders of pipelines: what stands in them, that nothing in them is run, and the converter that writes them."""
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from mmengine.config import Config
from safetensors.torch import load_file, save_file
from small_run import ROOT, SmallRun
from tiny_generator import CHANNELS, TEXT, perturb, pretrained_config, todsynth
from tiny_pipelines import PIPELINES, generator, masks, pipeline, pixels, quiet, references, seeded
from tiny_tisynth import NETWORK

from mmsynth.apis import generate, init_generator
from mmsynth.models import TISynth, VAECodec
from mmsynth.models.label_codecs import OneHotCodec
from mmsynth.pipelines import TISynthPipeline, TODSynthPipeline, base
from mmsynth.pipelines.convert import convert_to_pipeline
from mmsynth.registry import MODELS

KINDS = pytest.mark.parametrize('kind', ['todsynth', 'tisynth'])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline('todsynth').save_pretrained(tmp_path / 'pipe')
    return tmp_path / 'pipe'


def change_index(folder: Path, **changes: object) -> None:
    path = folder / 'model_index.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@KINDS
def test_a_folder_is_json_and_safetensors(kind: str, tmp_path: Path) -> None:
    pipe = pipeline(kind)
    pipe.save_pretrained(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*') if path.is_file()}
    network = pipe.network_name
    assert files == {'model_index.json', 'scheduler/scheduler_config.json'} | {
        f'{part}/{name}' for part in (network, 'vae', 'text_encoder')
        for name in ('config.json', 'diffusion_pytorch_model.safetensors')}
    index = json.loads((tmp_path / 'model_index.json').read_text())
    assert index['_class_name'] == PIPELINES[kind].__name__ and index['settings']['num_steps'] == 4
    assert index['label_codec'] == dict(type='OneHotCodec', num_classes=3, ignore_index=255, patch_size=1)


def test_a_pipeline_shares_the_tensors_of_its_generator() -> None:
    model = generator('tisynth')
    pipe = TISynthPipeline.from_generator(model)
    before = pixels(pipe(masks(), generator=seeded(), **references('tisynth')).images)
    with torch.no_grad():
        model.network.unet.conv_out.bias.add_(1.0)
    assert not np.array_equal(before, pixels(pipe(masks(), generator=seeded(), **references('tisynth')).images))


def test_a_hub_id_is_downloaded_without_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(name: str, allow_patterns: list[str], **options: object) -> str:
        asked.update(options, name=name, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(base, 'snapshot_download', download)
    pipe = quiet(TODSynthPipeline.from_pretrained('somebody/todsynth', revision='v1'))
    assert asked['name'] == 'somebody/todsynth' and asked['revision'] == 'v1'
    assert not any('py' in pattern or 'bin' in pattern for pattern in asked['patterns'])
    assert pipe(masks(1)).images[0].size == (16, 16)


class TestErrors:

    @pytest.mark.parametrize('changes, message', [
        (dict(controlnet=['diffusers', 'ControlNetModel']), 'unknown component controlnet; a TODSynthPipeline has'),
        (dict(vae=['diffusers', 'DiffusionPipeline']), 'component `vae` is diffusers.DiffusionPipeline; it can be'),
        (dict(transformer=['os', 'MMDiTModel']), 'component `transformer` is os.MMDiTModel'),
        (dict(_class_name='TISynthPipeline'), "`_class_name` is 'TISynthPipeline', and TODSynthPipeline loads its own"),
        (dict(_class_name=['pipeline', 'TODSynthPipeline']), '`_class_name` is '),
        (dict(settings=dict(steps=4)), '`settings` of TODSynthPipeline does not know steps; it takes'),
        (dict(label_codec=dict(type='SegmentorCritic', config='x.py')), '`label_codec.type` must be one of GreyLevel'),
        (dict(label_codec=dict(type='OneHotCodec', num_classes=4)), '`network.mask_channels` is 3, `label_codec`'),
        (dict(label_codec=None), '`label_codec` is missing'),
    ])
    def test_an_index_that_cannot_be(self, folder: Path, changes: dict, message: str) -> None:
        change_index(folder, **changes)
        with pytest.raises(ValueError, match=message):
            TODSynthPipeline.from_pretrained(folder)

    @pytest.mark.parametrize('name', ['None.py', 'vae/mmsynth.pipelines.components.py', 'scheduler/diffusers.py'])
    def test_code_is_not_run(self, folder: Path, name: str) -> None:
        """Files that some releases of diffusers would import from a folder."""
        (folder / name).write_text("raise SystemExit('it ran')")
        with pytest.raises(ValueError, match=f'holds {Path(name).name}: a pipeline is data'):
            TODSynthPipeline.from_pretrained(folder)

    @pytest.mark.parametrize('options', [dict(trust_remote_code=True), dict(custom_pipeline='x'),
                                         dict(use_safetensors=False)])
    def test_options_that_run_code(self, folder: Path, options: dict) -> None:
        with pytest.raises(ValueError, match=f'`{next(iter(options))}`: a folder of TODSynthPipeline holds data'):
            TODSynthPipeline.from_pretrained(folder, **options)

    def test_pickles_are_not_read(self, folder: Path) -> None:
        weights = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
        torch.save(load_file(weights), folder / 'vae' / 'diffusion_pytorch_model.bin')
        weights.unlink()
        with pytest.raises(OSError, match='safetensors'):
            TODSynthPipeline.from_pretrained(folder)

    @pytest.mark.parametrize('part, name', [('vae', 'mean'), ('text_encoder', 'pool.bias'),
                                            ('transformer', 'mask_embed.proj.weight')])
    def test_weights_that_lack_a_tensor(self, folder: Path, part: str, name: str) -> None:
        path = folder / part / 'diffusion_pytorch_model.safetensors'
        save_file({key: value for key, value in load_file(path).items() if key != name}, path, {'format': 'pt'})
        with pytest.raises((ValueError, RuntimeError), match=name):
            TODSynthPipeline.from_pretrained(folder)

    def test_no_folder_and_no_pipeline(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match='no folder .*nowhere, and it is no hub id'):
            TODSynthPipeline.from_pretrained(tmp_path / 'nowhere')
        with pytest.raises(FileNotFoundError, match='has no model_index.json.*convert_checkpoint.py --to pipeline'):
            TODSynthPipeline.from_pretrained(tmp_path)

    def test_generators_that_are_none(self) -> None:
        with pytest.raises(ValueError, match='a TISynthPipeline is made of a TISynth .* got TODSynth with MMDiT'):
            TISynthPipeline.from_generator(todsynth())
        with pytest.raises(ValueError, match='has LoRA.*merge_lora'):
            TODSynthPipeline.from_generator(todsynth(trainable=dict(image='lora')))

        class OwnCodec(OneHotCodec):
            pass

        with pytest.raises(ValueError, match='`model.label_codec` is OwnCodec; a pipeline can have GreyLevelCodec'):
            TODSynthPipeline.from_generator(todsynth(label_codec=OwnCodec(3)))
        encoder = type('OwnEncoder', (torch.nn.Module, ), {})()
        with pytest.raises(ValueError, match='`model.text_encoder` is OwnEncoder, which no pipeline has a component'):
            TODSynthPipeline.from_generator(todsynth(text_encoder=encoder))


class TestConverter:

    def test_the_tool(self, small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                      capsys: pytest.CaptureFixture) -> None:
        """From a config and mmengine's checkpoint to the same images; the names of the classes go along."""
        out = tmp_path / 'pipe'
        monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', str(small_run.config_file), str(small_run.generator),
                                          '--out', str(out), '--to', 'pipeline'])
        runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')
        text = capsys.readouterr().out
        assert f'wrote: {out}: TODSynthPipeline' in text and f'wrote: {out}/transformer: MMDiTModel' in text
        model = init_generator(small_run.config_file, small_run.generator)
        given = masks(size=32)
        expected = generate(model, given)
        pipe = quiet(TODSynthPipeline.from_pretrained(out))
        assert np.array_equal(pixels(pipe(given, generator=seeded()).images), np.stack(expected))
        assert tuple(pipe.classes) == tuple(model.dataset_meta['classes'])

    def test_lora_is_merged_and_the_vae_is_diffusers_own(self, tiny_sd3: Path, tmp_path: Path) -> None:
        cfg = Config(dict(model=pretrained_config(tiny_sd3, trainable=dict(image='lora', mask='lora'))))
        torch.manual_seed(0)
        model = perturb(MODELS.build(cfg.model)).eval()
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
        with pytest.raises(ValueError, match='the pipeline layout holds plain weights; merge the LoRA'):
            convert_to_pipeline(cfg, tmp_path / 'a.pth', tmp_path / 'pipe')
        result = convert_to_pipeline(cfg, tmp_path / 'a.pth', tmp_path / 'pipe', merge_lora=True)
        assert result.merged > 0 and not (tmp_path / '.tmp-pipe').exists()
        pipe = quiet(TODSynthPipeline.from_pretrained(tmp_path / 'pipe'))
        assert isinstance(pipe.vae, AutoencoderKL)
        assert VAECodec(str(tmp_path / 'pipe')).channels == 4  # the folder serves as a backbone's VAE too
        expected = generate(model, masks(size=32), ['road', 'park'])
        got = pixels(pipe(masks(size=32), ['road', 'park'], generator=seeded()).images)
        assert np.abs(got.astype(int) - np.stack(expected)).max() <= 1  # merging rounds

    def test_tisynth(self, tmp_path: Path) -> None:
        model = generator('tisynth')
        assert isinstance(model, TISynth)
        cfg = Config(dict(model=dict(
            type='mmsynth.TISynth', network=NETWORK, guidance_scale=2.0, num_steps=4, text_encoder=TEXT,
            latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=4, channels=CHANNELS),
            label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3))))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
        convert_to_pipeline(cfg, tmp_path / 'a.pth', tmp_path / 'pipe')
        pipe = quiet(TISynthPipeline.from_pretrained(tmp_path / 'pipe'))
        assert pipe.classes is None
        looks = references('tisynth')
        expected = generate(model, masks(), ['road', 'park'], looks['reference'])
        got = pipe(masks(), ['road', 'park'], generator=seeded(), **looks).images
        assert np.array_equal(pixels(got), np.stack(expected))

    def test_nothing_is_overwritten(self, small_run: SmallRun, tmp_path: Path) -> None:
        shutil.copy(small_run.config_file, tmp_path / 'mine')
        with pytest.raises(FileExistsError, match='`out`: .*/mine '):
            convert_to_pipeline(small_run.config(), small_run.generator, tmp_path / 'mine')
        with pytest.raises(ValueError, match="`out` must name a folder for the layout 'pipeline'"):
            convert_to_pipeline(small_run.config(), small_run.generator, tmp_path / 'a.pth')
