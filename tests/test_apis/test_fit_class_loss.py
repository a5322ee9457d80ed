"""The fit on a data set on disk: the images as they are, whatever the training pipeline does to them."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import CLASSES, NAMES, SmallRun

from mmsynth.apis import fit_class_loss
from mmsynth.filtering import ClassLosses, segmentor_identity
from mmsynth.guidance import SegmentorCritic
from mmsynth.synthesis.build import load_config
from mmsynth.utils.hashes import file_hash


def config(small_run: SmallRun, **overrides: object):
    return load_config(small_run.critic_config_file, {key.replace('__', '.'): value
                                                      for key, value in overrides.items()})


@pytest.fixture(scope='module')
def fitted(small_run: SmallRun) -> ClassLosses:
    return fit_class_loss(config(small_run), small_run.critic)


def test_means_are_those_of_every_labelled_pixel(small_run: SmallRun, fitted: ClassLosses) -> None:
    critic = SegmentorCritic(str(small_run.critic_config_file), str(small_run.critic))
    sums, counts = np.zeros(3), np.zeros(3)
    for name in NAMES:
        pixels = np.array(Image.open(small_run.data / 'images' / f'{name}.png'))
        mask = np.array(Image.open(small_run.data / 'masks' / f'{name}.png'))
        with torch.no_grad():
            logits = critic.predict_logits(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
        loss = -logits.log_softmax(1)[0].double().numpy()
        for index in range(3):
            sums[index] += loss[index][mask == index].sum()
            counts[index] += (mask == index).sum()
    assert fitted.class_names == CLASSES and fitted.pixels == tuple(counts.astype(int))
    assert fitted.mean_loss == pytest.approx(sums / counts, rel=1e-4)


def test_provenance_names_segmentor_and_data(small_run: SmallRun, fitted: ClassLosses) -> None:
    critic = SegmentorCritic(str(small_run.critic_config_file), str(small_run.critic))
    told = fitted.provenance
    assert told['segmentor_sha256'] == segmentor_identity(critic)
    assert told['checkpoint_sha256'] == file_hash(small_run.critic)
    assert (told['dataset'], told['split'], told['num_images']) == ('BaseSegDataset', 'train', 4)


def test_batches_wrappers_and_augmentation_do_not_matter(small_run: SmallRun, fitted: ClassLosses) -> None:
    cfg = config(small_run)
    real = cfg.train_dataloader.dataset.to_dict()
    real['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                        dict(type='RandomCrop', crop_size=(4, 4)), dict(type='PackSegInputs')]
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=real)
    again = fit_class_loss(cfg, small_run.critic, batch_size=3)
    assert again.pixels == fitted.pixels and again.mean_loss == pytest.approx(fitted.mean_loss, rel=1e-4)


def test_images_of_several_sizes(small_run: SmallRun, tmp_path: Path) -> None:
    for name, size in dict(a=(16, 16), b=(24, 16), c=(16, 16)).items():
        for kind, shape in (('images', (*size, 3)), ('masks', size)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / kind / f'{name}.png')
    fitted = fit_class_loss(config(small_run, train_dataloader__dataset__data_root=str(tmp_path)), small_run.critic)
    assert fitted.pixels == (0, 2 * 16 * 16 + 24 * 16, 0) and fitted.mean_loss[0] is None


def test_mistakes_are_named(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='it has no `val_dataloader.dataset`'):
        fit_class_loss(config(small_run), small_run.critic, split='val')
    with pytest.raises(ValueError, match='the data set has 2 classes, the segmentor 3'):
        fit_class_loss(config(small_run, train_dataloader__dataset__metainfo__classes=['a', 'b'],
                              train_dataloader__dataset__metainfo__palette=[[0] * 3] * 2), small_run.critic)
    with pytest.raises(ValueError, match='`batch_size` must be at least 1, got 0'):
        fit_class_loss(config(small_run), small_run.critic, batch_size=0)
