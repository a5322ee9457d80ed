"""Encoding a training set's latents: training from them is training without, and what cannot be enumerated is named."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file
from small_run import ROOT, RUNTIME, train, write_data
from tiny_backbone import JOINT_DIM, POOLED_DIM

from mmsynth.models import VAECodec
from mmsynth.synthesis.encode_latents import encode_latents
from mmsynth.utils.files import FolderLock

GENERATOR = """
custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
classes = ('field', 'road', 'water')
model = dict(
    type='mmsynth.TODSynth',
    network=dict(type='mmsynth.MMDiT', pretrained=backbone),
    latent_codec=dict(type='mmsynth.VAECodec', pretrained=backbone),
    label_codec=dict(type='mmsynth.GreyLevelCodec', num_classes=3),
    text_encoder=dict(type='mmsynth.ClassNameEmbedding', classes=classes, embed_dims=JOINT, pooled_dims=POOLED),
    mask_dropout=0.5)
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.ManifestDataset', data_root=folder + '/data', meta_file='meta.json', img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PackSynthInputs')]))
"""


@pytest.fixture(scope='module')
def config_file(tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('latents')
    write_data(folder / 'data')
    names = dict(folder=str(folder), backbone=str(tiny_sd3), JOINT=JOINT_DIM, POOLED=POOLED_DIM)
    (folder / 'generator.py').write_text('\n'.join(f'{key} = {value!r}' for key, value in names.items())
                                         + RUNTIME + GENERATOR)
    return folder / 'generator.py'


@pytest.fixture
def config(config_file: Path, tmp_path: Path) -> Config:
    cfg = Config.fromfile(config_file)
    cfg.model.latent_codec.cache_dir = str(tmp_path / 'cache')
    return cfg


def pipeline(config: Config) -> list[dict]:
    return config.train_dataloader.dataset.pipeline


def losses(work_dir: Path) -> list[float]:
    """Of every iteration that a training logged."""
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [json.loads(line)['loss_velocity'] for line in lines if 'loss_velocity' in line]


@pytest.mark.slow
def test_a_training_from_the_cache_has_the_losses_of_one_without(config: Config, config_file: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Flips, dropped masks and draws from the posterior included; nothing is encoded."""
    encode_latents(config)
    without = {'default_hooks.checkpoint.interval': 100, 'train_cfg.max_iters': 4}
    train(config_file, tmp_path / 'without', without)
    monkeypatch.setattr(VAECodec, 'moments', None)
    train(config_file, tmp_path / 'with', without | {'model.latent_codec.cache_dir': str(tmp_path / 'cache')})
    expected = losses(tmp_path / 'without')
    assert len(expected) == 4 and losses(tmp_path / 'with') == pytest.approx(expected, rel=1e-5)


def test_images_flips_and_control_images_are_encoded_once(config: Config, capsys: pytest.CaptureFixture) -> None:
    """Four images and masks, each as it is and flipped, and the null mask's control image."""
    report = encode_latents(config, batch_size=3)
    assert (report.distinct, report.encoded) == (4 * 2 * 2 + 1, 17) and '17 encoded' in str(report)
    assert report.size_bytes == sum(path.stat().st_size for path in report.folder.glob('*.safetensors'))
    assert 'encode latents: 100%' in capsys.readouterr().err
    next(report.folder.glob('*.safetensors')).unlink()
    (report.folder / '.tmp-of-a-killed-run').touch()
    again = encode_latents(config)
    assert (again.distinct, again.encoded) == (17, 1) and not list(report.folder.glob('.tmp-*'))


def test_only_what_training_asks_for_is_encoded(config: Config) -> None:
    """No control images of TISynth, which reads them at pixel resolution, nor of maps that are pooled."""
    config.model.type = 'mmsynth.TISynth'
    assert encode_latents(config).distinct == 8
    config.model.update(type='mmsynth.TODSynth', label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3))
    assert encode_latents(config).distinct == 8
    pipeline(config)[2].update(prob=1.0, direction=['horizontal', 'vertical', 'diagonal'])
    assert encode_latents(config).distinct == 12
    pipeline(config).pop(2)
    assert encode_latents(config).distinct == 4


def test_batches_and_workers_make_no_difference(config: Config, tmp_path: Path) -> None:
    codec = VAECodec(config.model.latent_codec.pretrained)
    caches = [codec.open_cache(tmp_path / name) for name in ('a', 'b')]
    encode_latents(config, cache_dir=tmp_path / 'a', batch_size=1)
    encode_latents(config, cache_dir=tmp_path / 'b', batch_size=4, num_workers=1)
    names = [sorted(path.name for path in cache.folder.glob('*.safetensors')) for cache in caches]
    assert names[0] == names[1] and len(names[0]) == 17
    for name in names[0]:
        one, other = (load_file(cache.folder / name)['moments'] for cache in caches)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


class TestMistakes:

    @pytest.mark.parametrize('transform, message', [
        (dict(type='RandomCrop', crop_size=(8, 8)), 'RandomCrop makes another image of record 0 every time'),
        (dict(type='PhotoMetricDistortion'), 'PhotoMetricDistortion makes another image .*RandomFlip alone may stay'),
        (dict(type='RandomRotate', prob=1.0, degree=90.0), 'RandomRotate makes another image'),
    ], ids=str)
    def test_what_is_random_is_named(self, config: Config, transform: dict, message: str) -> None:
        pipeline(config).insert(2, transform)
        with pytest.raises(ValueError, match=f'`train_dataloader.dataset`: {message}'):
            encode_latents(config)
        assert not Path(config.model.latent_codec.cache_dir).exists()

    def test_no_cache_and_no_codec_that_keeps_one(self, config: Config) -> None:
        config.model.latent_codec.pop('cache_dir')
        with pytest.raises(ValueError, match='`model.latent_codec.cache_dir`.*--cache-dir'):
            encode_latents(config)
        config.model.latent_codec = dict(type='mmsynth.PatchPCACodec')
        with pytest.raises(ValueError, match='`model.latent_codec` is mmsynth.PatchPCACodec'):
            encode_latents(config)

    def test_no_training_set(self, config: Config) -> None:
        config.pop('train_dataloader')
        with pytest.raises(ValueError, match='no `train_dataloader.dataset`'):
            encode_latents(config)

    @pytest.mark.parametrize('options', [dict(batch_size=0), dict(num_workers=-1)])
    def test_numbers_out_of_range(self, config: Config, options: dict) -> None:
        with pytest.raises(ValueError, match='`batch_size` .* `num_workers`'):
            encode_latents(config, **options)

    def test_a_second_writer(self, config: Config) -> None:
        folder = Path(config.model.latent_codec.cache_dir)
        folder.mkdir()
        lock = FolderLock(folder)
        with pytest.raises(RuntimeError, match='is being written by process'):
            encode_latents(config)
        lock.release()


def test_the_tool(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, 'argv', ['encode_latents.py', str(config_file), '--cache-dir', str(tmp_path / 'cache')])
    runpy.run_path(str(ROOT / 'tools' / 'encode_latents.py'), run_name='__main__')
    assert '17 distinct images: 0 were cached, 17 encoded' in capsys.readouterr().out
