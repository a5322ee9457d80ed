"""Hooks: the codec is fitted once and reproducibly, pictures leave the training alone, the bar moves."""
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image
from small_run import SmallRun, train
from torch import Tensor

from mmsynth.engine.hooks import FitLatentCodecHook, PreviewHook, ProgressBarHook
from mmsynth.models.generators import TODSynth
from mmsynth.registry import MODELS
from mmsynth.synthesis.build import build_dataset


@pytest.fixture
def runner(small_run: SmallRun) -> SimpleNamespace:
    """What the hooks look at in a runner: an untrained generator and its training data."""
    cfg = small_run.config()
    torch.manual_seed(0)
    return SimpleNamespace(
        model=MODELS.build(cfg.model),
        train_dataloader=SimpleNamespace(dataset=build_dataset(cfg.train_dataloader.dataset)),
        logger=MMLogger.get_current_instance())


def codec_state(model: TODSynth) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.latent_codec.state_dict().items()}


def random_numbers() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), float(torch.rand(()))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---- FitLatentCodecHook


def test_codec_is_fitted_on_training_images(runner: SimpleNamespace) -> None:
    codec = runner.model.latent_codec
    FitLatentCodecHook(num_images=64).before_train(runner)
    assert bool(codec.fitted)
    items = [runner.train_dataloader.dataset[index] for index in range(4)]  # flips draw on: the fit saw both
    images = torch.stack([item['inputs'].flip(0) for item in items]).float() / 127.5 - 1
    latents = codec.encode(images)
    assert latents.mean((0, 2, 3)).abs().max() < 0.5 and (latents.std((0, 2, 3)) - 1).abs().max() < 0.5
    assert (codec.decode(latents) - images).abs().mean() < 0.25  # noise is lost, colours stay


def test_fitting_leaves_the_random_state_as_it_was(runner: SimpleNamespace) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = random_numbers()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    FitLatentCodecHook(num_images=8).before_train(runner)
    assert random_numbers() == expected


def test_fitting_gives_the_same_whatever_was_drawn_before(runner: SimpleNamespace) -> None:
    FitLatentCodecHook(num_images=8).before_train(runner)
    first = codec_state(runner.model)
    runner.model.latent_codec.fitted.fill_(False)
    random_numbers()
    FitLatentCodecHook(num_images=8).before_train(runner)
    assert same(first, codec_state(runner.model))


def test_a_fitted_codec_is_left_alone(runner: SimpleNamespace) -> None:
    runner.model.latent_codec.fitted.fill_(True)  # as after loading a checkpoint
    before = codec_state(runner.model)
    FitLatentCodecHook(num_images=8).before_train(runner)
    assert same(before, codec_state(runner.model))


def test_the_first_process_fits_and_the_others_take_it_over(runner: SimpleNamespace,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    monkeypatch.setattr('mmsynth.engine.hooks.fit_latent_codec_hook.broadcast', lambda data: sent.append(data.clone()))
    FitLatentCodecHook(num_images=8).before_train(runner)
    first = codec_state(runner.model)
    runner.model.latent_codec.load_state_dict({key: torch.zeros_like(value) for key, value in first.items()})
    monkeypatch.setattr('mmsynth.engine.hooks.fit_latent_codec_hook.is_main_process', lambda: False)
    received = iter(sent)
    monkeypatch.setattr('mmsynth.engine.hooks.fit_latent_codec_hook.broadcast',
                        lambda data: data.copy_(next(received)))
    FitLatentCodecHook(num_images=8).before_train(runner)
    assert same(first, codec_state(runner.model)) and bool(runner.model.latent_codec.fitted)


def test_a_codec_that_needs_no_fit_is_left_alone() -> None:
    codec = SimpleNamespace(needs_fit=False)
    FitLatentCodecHook().before_train(SimpleNamespace(model=SimpleNamespace(latent_codec=codec)))


@pytest.mark.parametrize('hook, options, message', [
    (FitLatentCodecHook, dict(num_images=0), '`num_images` must be at least 1, got 0'),
    (PreviewHook, dict(interval=0), '`interval` and `num_samples` must be at least 1, got 0 and 4'),
    (PreviewHook, dict(num_samples=0), '`interval` and `num_samples` must be at least 1, got 1000 and 0'),
])
def test_options_out_of_range(hook: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hook(**options)


# ---- PreviewHook and ProgressBarHook, in a training run


@pytest.fixture(scope='module')
def bare(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights after three iterations without any of them."""
    runner = train(small_run.config_file, tmp_path_factory.mktemp('bare'), {'train_cfg.max_iters': 3})
    return runner.model.state_dict()


def test_pictures_leave_the_training_alone(small_run: SmallRun, bare: dict[str, Tensor], tmp_path: Path) -> None:
    hooks = [dict(type='mmsynth.FitLatentCodecHook', num_images=8),
             dict(type='mmsynth.PreviewHook', interval=2, num_samples=3)]
    runner = train(small_run.config_file, tmp_path, {'train_cfg.max_iters': 3, 'custom_hooks': hooks})
    assert same(runner.model.state_dict(), bare)
    assert runner.model.training and not runner.model.latent_codec.training
    pictures = sorted((tmp_path / 'previews').iterdir())
    assert [path.name for path in pictures] == ['iter_2.png', 'iter_3.png']  # every second, and the last
    grids = [np.asarray(Image.open(path)) for path in pictures]
    assert grids[0].shape == grids[1].shape and grids[0].ndim == 3 and grids[0].std() > 0
    for step, grid in zip((2, 3), grids):  # the host's visualizer has the same pictures
        logged = list(tmp_path.glob(f'*/vis_data/vis_image/preview_{step}.png'))
        assert len(logged) == 1 and np.array_equal(np.asarray(Image.open(logged[0])), grid)


def test_every_rank_samples_the_preview_and_the_first_writes_it(runner: SimpleNamespace, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    FitLatentCodecHook(num_images=8).before_train(runner)
    sampled, logged, sample = [], [], runner.model.synthesize

    def synthesize(samples: list, seeds: list[int]) -> list:
        sampled.append((seeds, [sample.gt_sem_seg.data for sample in samples]))
        return sample(samples, seeds)

    monkeypatch.setattr(runner.model, 'synthesize', synthesize)
    runner.visualizer = SimpleNamespace(add_image=lambda name, image, step: logged.append((name, step)))
    runner.iter, runner.max_iters = 1, 2
    for rank in (1, 0):
        runner.work_dir = str(tmp_path / str(rank))
        monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None, rank=rank: rank)
        PreviewHook(interval=2, num_samples=2).after_train_iter(runner, 1)
    assert len(sampled) == 2 and sampled[0][0] == sampled[1][0]
    assert all(torch.equal(one, other) for one, other in zip(sampled[0][1], sampled[1][1]))
    assert not (tmp_path / '1').exists() and (tmp_path / '0' / 'previews' / 'iter_2.png').exists()
    assert logged == [('preview', 2)]


def test_threads_are_set_for_a_training(small_run: SmallRun, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        train(small_run.config_file, tmp_path, {'train_cfg.max_iters': 1,
                                                'default_hooks.threads': dict(type='mmsynth.NumThreadsHook')})
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_bar_shows_iterations_and_loss(small_run: SmallRun, bare: dict[str, Tensor], tmp_path: Path,
                                       capsys: pytest.CaptureFixture) -> None:
    hooks = [dict(type='mmsynth.FitLatentCodecHook', num_images=8),
             dict(type='mmsynth.ProgressBarHook', title='generating')]
    runner = train(small_run.config_file, tmp_path, {'train_cfg.max_iters': 3, 'custom_hooks': hooks})
    shown = capsys.readouterr().err
    assert 'generating: 100%' in shown and '3/3' in shown and 'loss=' in shown
    assert same(runner.model.state_dict(), bare)
    assert next(hook for hook in runner.hooks if isinstance(hook, ProgressBarHook))._bar is None
