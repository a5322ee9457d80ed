"""Draws with seeds of their own: the same transforms with any number of workers, and after a resume."""
from itertools import islice

import pytest
import torch
from small_run import write_data
from torch.utils.data import DataLoader

from mmsynth.datasets import ManifestDataset
from mmsynth.datasets.samplers import SeededInfiniteSampler

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='mmsynth.LoadSegMap'), dict(type='RandomCrop', crop_size=(8, 8)),
            dict(type='PhotoMetricDistortion'), dict(type='mmsynth.BuildPrompt'), dict(type='mmsynth.PackSynthInputs')]


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ManifestDataset:
    folder = tmp_path_factory.mktemp('seeded') / 'data'
    write_data(folder)
    return ManifestDataset(data_root=str(folder), meta_file='meta.json', img_suffix='.png', pipeline=PIPELINE,
                           data_prefix=dict(img_path='images', seg_map_path='masks'))


def batches(dataset: ManifestDataset, count: int, workers: int = 0, skipped: int = 0) -> list[torch.Tensor]:
    sampler = SeededInfiniteSampler(dataset, seed=3)
    if skipped:
        sampler.skip(2 * skipped)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers,
                        collate_fn=lambda items: torch.stack([item['inputs'] for item in items]))
    return list(islice(loader, count))


def test_workers_and_a_resume_change_nothing(dataset: ManifestDataset) -> None:
    expected = batches(dataset, 6)
    torch.manual_seed(9)
    assert all(map(torch.equal, batches(dataset, 6, workers=2), expected))
    assert all(map(torch.equal, batches(dataset, 3, skipped=3), expected[3:]))


def test_a_sample_comes_out_different_in_every_epoch(dataset: ManifestDataset) -> None:
    draws = list(islice(SeededInfiniteSampler(dataset, seed=3), 8))
    assert sorted(map(int, draws[:4])) == sorted(map(int, draws[4:])) == [0, 1, 2, 3]
    assert len({draw.seed for draw in draws}) == 8


def test_ranks_share_no_seed(dataset: ManifestDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    for rank in range(2):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        seeds += [draw.seed for draw in islice(SeededInfiniteSampler(dataset, seed=3), 4)]
    assert len(set(seeds)) == 8
