"""What synthesis says when it is asked for something that does not fit, and that it leaves nothing half-written."""
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from small_run import NAMES, ROOT, SmallRun, command

from mmsynth.apis import synthesize
from mmsynth.apis.synthesize import NotFiniteError
from mmsynth.models import PatchPCACodec
from mmsynth.pool import Pool
from mmsynth.synthesis.build import load_config


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    """A folder for a pool in which nothing may be after the test."""
    yield (folder := tmp_path / 'pool')
    assert not folder.exists() or {path.name for path in folder.iterdir()} <= {'.lock'}


def refused(small_run: SmallRun, out_dir: Path, cfg: Config, *message: str, error: type = ValueError,
            **options: object) -> None:
    with pytest.raises(error) as caught:
        small_run.synthesize(out_dir, cfg, **options)
    assert all(part in str(caught.value) for part in message), str(caught.value)


# ---- config


def test_unknown_setting(small_run: SmallRun, out_dir: Path) -> None:
    cfg = small_run.config(synthesis__num_per_msk=2)
    refused(small_run, out_dir, cfg, 'generator.py', '`synthesis` does not know num_per_msk',
            'batch_size, dataset, filter, guidance, num_per_mask')


@pytest.mark.parametrize('remove', ['synthesis', 'dataset'])
def test_no_synthesis_section(small_run: SmallRun, out_dir: Path, remove: str) -> None:
    cfg = small_run.config()
    (cfg if remove == 'synthesis' else cfg.synthesis).pop(remove)
    refused(small_run, out_dir, cfg, 'generator.py: it has no `synthesis.dataset`')


def test_guidance_without_settings(small_run: SmallRun, out_dir: Path) -> None:
    cfg = small_run.config()
    del cfg.synthesis['guidance']
    refused(small_run, out_dir, cfg, '`synthesis.guidance` is not set; add', 'mmsynth.SegmentorCritic',
            guidance='crfm')


def test_config_without_guidance_generates_plain_images(small_run: SmallRun, tmp_path: Path) -> None:
    cfg = small_run.config()
    del cfg.synthesis['guidance']
    pool = small_run.synthesize(tmp_path / 'pool', cfg, limit=1)
    assert pool.records[0].guidance is None


def test_unknown_guidance(small_run: SmallRun, out_dir: Path) -> None:
    refused(small_run, out_dir, small_run.config(), "`guidance` must be one of crfm, best-of-n and none, got 'crmf'",
            guidance='crmf')


@pytest.mark.parametrize('option', ['num_per_mask', 'limit', 'batch_size'])
@pytest.mark.parametrize('value', [0, -1])
def test_counts_below_one(small_run: SmallRun, out_dir: Path, option: str, value: int) -> None:
    refused(small_run, out_dir, small_run.config(), f'`{option}`', f'must be at least 1, got {value}',
            **{option: value})


def test_more_guided_than_sampling_steps(small_run: SmallRun, out_dir: Path) -> None:
    cfg = small_run.config(synthesis__guidance__steps=9)
    refused(small_run, out_dir, cfg, "`steps` 9 is more than the run's 3 sampling steps")


def test_missing_config(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='config .*/none.py does not exist'):
        load_config(tmp_path / 'none.py')


# ---- classes


def test_critic_of_other_classes(small_run: SmallRun, out_dir: Path, tmp_path: Path) -> None:
    critic = Config.fromfile(small_run.critic_config_file)
    critic.model.decode_head.num_classes = 4
    critic.dump(tmp_path / 'critic.py')
    cfg = small_run.config(synthesis__guidance__critic=dict(config=str(tmp_path / 'critic.py'), checkpoint=None))
    refused(small_run, out_dir, cfg, 'critic: the segmentor has 4 classes, the data set has 3')


def test_masks_of_other_classes(small_run: SmallRun, out_dir: Path, tmp_path: Path) -> None:
    (tmp_path / 'meta.json').write_text(json.dumps(dict(classes=['land', 'water'])))
    cfg = small_run.config(synthesis__dataset__meta_file=str(tmp_path / 'meta.json'))
    refused(small_run, out_dir, cfg, 'the data set has 2 classes, the generator 3')


def test_label_value_beyond_the_classes(small_run: SmallRun, out_dir: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(tmp_path / 'wrong.png')
    (tmp_path / 'masks.jsonl').write_text('{"source": "wrong.png"}\n')
    cfg = small_run.config(synthesis__dataset__data_root=str(tmp_path), synthesis__dataset__ann_file='masks.jsonl',
                           synthesis__dataset__meta_file=str(small_run.data / 'meta.json'))
    refused(small_run, out_dir, cfg, f'label {tmp_path}/wrong.png holds 7', '3 classes', 'set `ignore_index`')


def test_a_corrected_run_takes_the_folder_of_the_failed_one(small_run: SmallRun, tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(tmp_path / 'unlabelled.png')
    (tmp_path / 'masks.jsonl').write_text('{"source": "unlabelled.png"}\n')
    change = dict(synthesis__dataset__data_root=str(tmp_path), synthesis__dataset__ann_file='masks.jsonl',
                  synthesis__dataset__meta_file=str(small_run.data / 'meta.json'))
    with pytest.raises(ValueError, match='set `ignore_index`'):
        small_run.synthesize(tmp_path / 'pool', small_run.config(**change))
    pool = small_run.synthesize(tmp_path / 'pool', small_run.config(**change, synthesis__dataset__ignore_index=7))
    assert len(pool) == 1 and np.all(pool.load_mask(pool.records[0]) == 255)


# ---- checkpoint and model


def test_missing_checkpoint(small_run: SmallRun, out_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match='checkpoint /nowhere/iter_1.pth does not exist'):
        synthesize(small_run.config(), '/nowhere/iter_1.pth', out_dir)


def test_missing_critic(small_run: SmallRun, out_dir: Path) -> None:
    cfg = small_run.config(synthesis__guidance__critic__checkpoint='/nowhere/critic.pth')
    refused(small_run, out_dir, cfg, 'checkpoint /nowhere/critic.pth does not exist', error=FileNotFoundError)
    cfg = small_run.config(synthesis__guidance__critic__config='/nowhere/critic.py')
    refused(small_run, out_dir, cfg, 'config /nowhere/critic.py does not exist', error=FileNotFoundError)


def test_checkpoint_of_other_shapes(small_run: SmallRun, out_dir: Path) -> None:
    cfg = small_run.config(model__text_encoder__embed_dims=24, model__network__trunk__joint_attention_dim=24)
    refused(small_run, out_dir, cfg, str(small_run.generator), 'does not fit TODSynth', 'of another shape',
            'text_encoder.present (file (3, 16), model (3, 24))', 'Use the config that it was trained with')


def test_checkpoint_of_another_model(small_run: SmallRun, out_dir: Path) -> None:
    with pytest.raises(ValueError, match='TODSynth: .* missing .* unexpected'):
        synthesize(small_run.config(), small_run.critic, out_dir)


def test_checkpoint_of_an_untrained_codec(small_run: SmallRun, out_dir: Path, tmp_path: Path) -> None:
    from mmsynth.registry import MODELS
    cfg = small_run.config()
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'untrained.pth')
    with pytest.raises(ValueError, match='PatchPCACodec is not fitted'):
        synthesize(cfg, tmp_path / 'untrained.pth', out_dir)


def test_model_is_a_segmentor(small_run: SmallRun, out_dir: Path) -> None:
    cfg = small_run.config()
    cfg.model = Config.fromfile(small_run.critic_config_file).model
    refused(small_run, out_dir, cfg, '`model` is EncoderDecoder, not a generator', "type='mmsynth.TODSynth'")


# ---- data set


@pytest.mark.parametrize('content, error, message', [
    ('', FileNotFoundError, 'has no records'),
    ('{"source": "masks/a.png"}\n{"source": ', ValueError, 'line 2: not JSON'),
    ('{"source": "masks/none.png"}', FileNotFoundError, 'masks/none.png (mask of line 1)'),
])
def test_manifest_that_cannot_be_used(small_run: SmallRun, out_dir: Path, tmp_path: Path, content: str, error: type,
                                      message: str) -> None:
    (tmp_path / 'masks.jsonl').write_text(content)
    cfg = small_run.config(synthesis__dataset__ann_file=str(tmp_path / 'masks.jsonl'))
    refused(small_run, out_dir, cfg, message, error=error)


# ---- output folder


@pytest.fixture(scope='module')
def other_pool(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return small_run.synthesize(tmp_path_factory.mktemp('pools') / 'pool', limit=1)


@pytest.mark.parametrize('config, options, field', [
    (dict(model__num_steps=2), {}, 'settings.generator.config_sha256'),
    ({}, dict(seed=1), 'settings.seed: 0 there, 1 here'),
    ({}, dict(guidance='none'), 'settings.guidance'),
    (dict(synthesis__guidance__step_size=0.1), {}, 'settings.guidance.settings.step_size: 0.3 there, 0.1 here'),
    (dict(synthesis__dataset__masks_only=True), {}, 'settings.masks_sha256'),
])
def test_pool_of_other_settings(small_run: SmallRun, other_pool: Pool, config: dict, options: dict,
                                field: str) -> None:
    before = {path: path.read_bytes() for path in other_pool.root.rglob('*') if path.is_file()}
    with pytest.raises(ValueError) as caught:
        small_run.synthesize(other_pool.root, small_run.config(**config), **options)
    assert 'holds a pool made with other settings' in str(caught.value) and field in str(caught.value)
    assert {path: path.read_bytes() for path in other_pool.root.rglob('*') if path.is_file()} == before
    assert [record.id for record in Pool.open(other_pool.root).records] == [f'masks/{NAMES[0]}']


def test_pool_of_other_weights(small_run: SmallRun, other_pool: Pool, tmp_path: Path) -> None:
    content = torch.load(small_run.generator, weights_only=False)['state_dict']
    content['text_encoder.present'] += 1
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='settings.generator.weights_sha256'):
        synthesize(small_run.config(), tmp_path / 'other.pth', other_pool.root)


def test_folder_that_is_no_pool(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(ValueError, match="not empty and not a pool .*'thesis.tex'"):
        small_run.synthesize(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


# ---- images that are not finite


def test_images_that_are_not_finite_are_left_out_and_made_again(small_run: SmallRun, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be black images with full labels. The run goes on to its end, then says so."""
    decode = PatchPCACodec.decode

    def broken(codec: PatchPCACodec, latents: torch.Tensor) -> torch.Tensor:
        images = decode(codec, latents)
        images[1, 0, 0, 0] = float('nan')
        return images

    with monkeypatch.context() as patch:
        patch.setattr(PatchPCACodec, 'decode', broken)
        with pytest.raises(NotFiniteError, match='1 of 4 images were not finite'):
            small_run.synthesize(tmp_path / 'pool', guidance='none')
    assert len(Pool.open(tmp_path / 'pool')) == 3 and (tmp_path / 'pool' / 'report.html').is_file()
    assert len(small_run.synthesize(tmp_path / 'pool', guidance='none')) == 4


def test_the_tool_ends_with_an_error_where_images_are_not_finite(small_run: SmallRun, tmp_path: Path) -> None:
    state = torch.load(small_run.generator, weights_only=False)
    state['state_dict']['latent_codec.mean'] *= float('nan')
    torch.save(state, tmp_path / 'broken.pth')
    line, env = command(ROOT / 'tools' / 'synthesize.py', small_run.config_file, tmp_path / 'broken.pth', '--out-dir',
                        tmp_path / 'pool', '--guidance', 'none')
    result = subprocess.run(line, env=env, capture_output=True, text=True)
    assert result.returncode == 1 and '4 of 4 images were not finite' in result.stderr.splitlines()[-1]
    assert len(Pool.open(tmp_path / 'pool')) == 0


def test_other_weights_of_a_mask_source_are_noticed(small_run: SmallRun, tmp_path: Path) -> None:
    """They choose other masks under the same config."""
    weights = tmp_path / 'critic.pth'
    weights.write_bytes(small_run.critic.read_bytes())
    critic = dict(type='mmsynth.SegmentorCritic', config=str(small_run.critic_config_file), checkpoint=str(weights))
    cfg = small_run.config()
    cfg.synthesis.dataset = dict(type='mmsynth.UncertainMasks', dataset=cfg.train_dataloader.dataset,
                                 critic=critic, share=1.0)
    small_run.synthesize(tmp_path / 'pool', cfg, guidance='none')
    state = torch.load(weights, weights_only=False)
    state['state_dict']['decode_head.conv_seg.bias'] += 1
    torch.save(state, weights)
    with pytest.raises(ValueError, match='masks_sha256'):
        small_run.synthesize(tmp_path / 'pool', cfg, guidance='none')
