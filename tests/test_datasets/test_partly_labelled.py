"""Labelled and unlabelled images: the exact share, null masks, the same draws after a resume, a training."""
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from small_run import write_data
from torch.utils.data import DataLoader

from mmsynth.datasets import ManifestDataset, PartlyLabelledDataset, PartlyLabelledSampler
from mmsynth.datasets.samplers.draws import Draw
from mmsynth.registry import DATASETS
from mmsynth.synthesis.encode_prompts import collect_prompts

if TYPE_CHECKING:
    from small_run import SmallRun

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='mmsynth.LoadSegMap'), dict(type='RandomCrop', crop_size=(8, 8)),
            dict(type='PhotoMetricDistortion'), dict(type='mmsynth.BuildPrompt'), dict(type='mmsynth.PackSynthInputs')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labelled images, and below raw/ three without labels."""
    folder = tmp_path_factory.mktemp('partly')
    write_data(folder / 'data')
    (folder / 'raw' / 'below').mkdir(parents=True)
    for name, value in (('x.png', 10), ('y.png', 20), ('below/z.png', 30)):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(folder / 'raw' / name)
    return folder


def config(folder: Path, **changes) -> dict:
    labelled = dict(type='mmsynth.ManifestDataset', data_root=str(folder / 'data'), meta_file='meta.json',
                    img_suffix='.png', data_prefix=dict(img_path='images', seg_map_path='masks'), pipeline=PIPELINE)
    return dict(type='mmsynth.PartlyLabelledDataset', dataset=labelled,
                unlabelled=dict(data_root=str(folder / 'raw'))) | changes


@pytest.fixture(scope='module')
def dataset(folder: Path) -> PartlyLabelledDataset:
    return DATASETS.build(config(folder))


def batches(dataset: PartlyLabelledDataset, count: int, workers: int = 0, skipped: int = 0) -> list[torch.Tensor]:
    sampler = PartlyLabelledSampler(dataset, 0.3, seed=3)
    sampler.skip(2 * skipped)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers,
                        collate_fn=lambda items: torch.stack([item['inputs'] for item in items]))
    return list(islice(loader, count))


def test_unlabelled_images_follow_with_the_null_mask(dataset: PartlyLabelledDataset) -> None:
    assert len(dataset) == 7 and dataset.num_labelled == 4
    names = [dataset.get_data_info(index)['sample_id'] for index in range(4, 7)]
    assert names == ['below/z.png', 'x.png', 'y.png']
    for index in range(4, 7):
        item = dataset[index]
        assert (item['data_samples'].gt_sem_seg.data == 255).all()
        assert item['data_samples'].prompt == 'a satellite image'
        assert item['inputs'].shape == (3, 8, 8)
    assert (dataset[0]['data_samples'].gt_sem_seg.data != 255).any()


@pytest.mark.parametrize('share', [0.0, 0.25, 0.3, 0.5, 0.9])
@pytest.mark.parametrize('world', [1, 3])
def test_the_share_is_exact_in_every_global_batch(dataset, share, world, monkeypatch) -> None:
    """B = 4 per rank; each kind is gone through once per epoch of its own."""
    drawn = []
    for rank in range(world):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, world))
        drawn.append(list(islice(PartlyLabelledSampler(dataset, share, seed=1), 400)))
    order = [drawn[number % world][number // world] for number in range(400 * world)]
    size = 4 * world
    counts = [sum(index >= 4 for index in order[start:start + size]) for start in range(0, len(order), size)]
    assert all(abs(sum(counts[:n]) - n * size * share) <= 0.5 + 1e-9 for n in range(1, len(counts)))
    assert {len(order)} == {len({draw.seed for draw in order})}
    for first, last in ((0, 4), (4, 7)):
        kind = [int(draw) for draw in order if first <= draw < last]
        whole = len(kind) // (last - first) * (last - first)
        epochs = np.array(kind[:whole]).reshape(-1, last - first)
        assert (np.sort(epochs, 1) == np.arange(first, last)).all()


def test_workers_and_a_resume_change_nothing(dataset: PartlyLabelledDataset) -> None:
    expected = batches(dataset, 6)
    torch.manual_seed(9)
    assert all(map(torch.equal, batches(dataset, 6, workers=2), expected))
    assert all(map(torch.equal, batches(dataset, 3, skipped=3), expected[3:]))


def test_a_draw_decides_the_transforms_of_unlabelled_images_too(dataset: PartlyLabelledDataset) -> None:
    first, again, other = (dataset[Draw(5, seed, -1)]['inputs'] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_generator_trains_on_it(small_run: 'SmallRun', folder: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(small_run.config_file)
    labelled = cfg.train_dataloader.dataset.to_dict()
    cfg.train_dataloader.dataset = dict(
        type='mmsynth.PartlyLabelledDataset', dataset=labelled, unlabelled=dict(data_root=str(folder / 'raw')))
    cfg.train_dataloader.sampler = dict(type='mmsynth.PartlyLabelledSampler', share=0.5)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), 'partly_labelled'
    assert 'a satellite image' in collect_prompts(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == cfg.train_cfg.max_iters


class TestErrors:

    def test_a_folder_without_images(self, folder: Path, tmp_path: Path) -> None:
        for root in (tmp_path, tmp_path / 'missing'):
            with pytest.raises(FileNotFoundError, match='`unlabelled.data_root`'):
                DATASETS.build(config(folder, unlabelled=dict(data_root=str(root))))

    def test_a_pipeline_that_loads_no_labels(self, folder: Path) -> None:
        built: ManifestDataset = DATASETS.build(config(folder)['dataset'])
        with pytest.raises(ValueError, match='`dataset.pipeline`'):
            PartlyLabelledDataset(built, dict(data_root=str(folder / 'raw')))

    def test_a_share_out_of_range(self, dataset: PartlyLabelledDataset) -> None:
        with pytest.raises(ValueError, match='`share`'):
            PartlyLabelledSampler(dataset, 1.0)

    def test_the_sampler_with_another_data_set(self, dataset: PartlyLabelledDataset) -> None:
        with pytest.raises(TypeError, match='PartlyLabelledDataset'):
            PartlyLabelledSampler(dataset.datasets[0])
