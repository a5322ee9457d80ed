"""Synthesis by a generator that needs references: the same tool, references from the manifest or chosen."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from PIL import Image
from small_run import CLASSES, NAMES, SIDE, SmallRun
from tiny_tisynth import NETWORK, UNET

from mmsynth.apis import synthesize
from mmsynth.pool import Pool
from mmsynth.registry import MODELS
from mmsynth.synthesis.encode_prompts import encode_prompts

pytestmark = pytest.mark.slow

MODEL = dict(
    type='mmsynth.TISynth',
    network=NETWORK | dict(unet=UNET | dict(in_channels=4, out_channels=4)),
    latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=4, channels=4),
    label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3),
    text_encoder=dict(type='mmsynth.ClassNameEmbedding', classes=CLASSES, embed_dims=12, pooled_dims=12),
    guidance_scale=1.0,
    num_steps=3)


def config(small_run: SmallRun, *references: dict, ann_file: str = 'synthesis.jsonl') -> Config:
    """The small run's config with a TISynth for a model, and transforms for its references."""
    cfg = small_run.config()
    cfg.model = ConfigDict(MODEL)
    cfg.synthesis.dataset.ann_file = ann_file
    cfg.synthesis.dataset.pipeline[2:2] = [ConfigDict(transform) for transform in references]
    return cfg


def pick(small_run: SmallRun, **options: object) -> dict:
    return dict(type='mmsynth.PickReference', folder=str(small_run.data / 'images'), **options)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights everywhere."""
    torch.manual_seed(0)
    model = MODELS.build(MODEL)
    model.latent_codec.fit(torch.rand(8, 3, SIDE, SIDE) * 2 - 1)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if 'norm' not in name:
                parameter.normal_(std=0.15)
    path = tmp_path_factory.mktemp('tisynth') / 'weights.pth'
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope='module')
def pool(small_run: SmallRun, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Two images per mask, without guidance."""
    out_dir = tmp_path_factory.mktemp('pools') / 'picked'
    return synthesize(config(small_run, pick(small_run)), checkpoint, out_dir, guidance='none', num_per_mask=2)


def test_the_pool_says_which_reference_and_never_the_own_image(pool: Pool) -> None:
    assert len(pool.records) == 2 * len(NAMES)
    for record in pool.records:
        assert Path(record.reference).is_file() and Path(record.reference).stem != Path(record.source_mask).stem


def test_repeats_of_a_mask_get_references_of_their_own(pool: Pool) -> None:
    by_mask: dict[str, list[str]] = {}
    for record in pool.records:
        by_mask.setdefault(record.source_mask, []).append(record.reference)
    assert any(len(set(chosen)) == 2 for chosen in by_mask.values())


def test_batch_size_and_resume_make_no_difference(small_run: SmallRun, checkpoint: Path, pool: Pool,
                                                  tmp_path: Path) -> None:
    cfg = config(small_run, pick(small_run))
    for limit in (2, None):
        again = synthesize(cfg, checkpoint, tmp_path / 'pool', guidance='none', num_per_mask=2, limit=limit,
                           batch_size=1)
    assert len(again) == len(pool)
    for record in pool.records:
        other = next(each for each in again.records if each.id == record.id)
        assert other.reference == record.reference
        assert np.abs(again.load_image(other).astype(int) - pool.load_image(record)).max() <= 1


def test_another_seed_of_the_choice_generates_other_images(small_run: SmallRun, checkpoint: Path, pool: Pool,
                                                        tmp_path: Path) -> None:
    other = synthesize(config(small_run, pick(small_run, seed=3)), checkpoint, tmp_path / 'pool', guidance='none')
    changed = [each for each, record in zip(other.records, pool.records[::2], strict=True)
               if each.reference != record.reference]
    assert changed
    for each in changed:
        record = next(record for record in pool.records if record.id == each.id)
        assert each.seed == record.seed and np.any(other.load_image(each) != pool.load_image(record))


def test_the_manifest_names_references(small_run: SmallRun, checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 40, 3), (200, 60, 20), np.uint8)).save(tmp_path / 'style.png')
    for folder in ('images', 'masks'):
        (tmp_path / folder).symlink_to(small_run.data / folder)
    (tmp_path / 'referenced.jsonl').write_text(json.dumps(dict(source='masks/a.png', ref_image='style.png')))
    cfg = config(small_run, dict(type='mmsynth.LoadReference'), dict(type='mmsynth.FitReference'),
                 ann_file=str(tmp_path / 'referenced.jsonl'))
    cfg.synthesis.dataset.update(data_root=str(tmp_path), meta_file=str(small_run.data / 'meta.json'))
    record, = synthesize(cfg, checkpoint, tmp_path / 'pool', guidance='none').records
    assert record.reference == str(tmp_path / 'style.png')
    cfg.synthesis.dataset.pipeline.pop(3)
    with pytest.raises(ValueError, match='masks/a is 20 x 40, its mask 16 x 16 .*FitReference'):
        synthesize(cfg, checkpoint, tmp_path / 'other', guidance='none')


def test_without_references_it_says_what_to_add(small_run: SmallRun, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='masks/a has no reference.*PickReference'):
        synthesize(config(small_run), checkpoint, tmp_path / 'pool', guidance='none')


def test_the_critic_guides_it(small_run: SmallRun, checkpoint: Path, tmp_path: Path) -> None:
    cfg = config(small_run, pick(small_run))
    cfg.synthesis.guidance.update(objective='mask', measure_after=True)
    guided = synthesize(cfg, checkpoint, tmp_path / 'crfm', limit=2)
    traces = [guided.load_trace(record) for record in guided.records]
    assert [[entry['step'] for entry in trace] for trace in traces] == [[0, 1]] * 2
    steps = [entry for trace in traces for entry in trace]
    assert all(entry['skipped'] == 0 for entry in steps)
    assert sum(entry['loss_after'] for entry in steps) < sum(entry['loss_before'] for entry in steps)
    best = synthesize(cfg, checkpoint, tmp_path / 'best', guidance='best-of-n', candidates=2, limit=2)
    assert all(trace[0]['loss_after'] <= trace[0]['loss_before']
               for trace in map(best.load_trace, best.records))


def test_its_prompts_are_encoded_by_clip(small_run: SmallRun, tiny_sd15: Path, tmp_path: Path) -> None:
    cfg = config(small_run, pick(small_run))
    cfg.prompt_encoder = dict(type='mmsynth.CLIPTextEncoder', pretrained=str(tiny_sd15))
    report = encode_prompts(cfg, cache_dir=tmp_path / 'cache')
    assert report.identity.startswith('clip-') and report.encoded == report.distinct > 1
    assert encode_prompts(cfg, cache_dir=tmp_path / 'cache').encoded == 0
