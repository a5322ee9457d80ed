"""Models of mmagic as generators: against mmagic's own code where it imports, invariants, what is refused."""
import copy
from pathlib import Path

import numpy as np
import pytest
import tiny_mmagic
import torch
from mmagic_stack import need_mmagic
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.registry import MODELS as mmseg_models
from PIL import Image
from tiny_generator import images, perturb, samples, segmentor, todsynth
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmsynth.apis import init_generator, synthesize
from mmsynth.guidance import CRFM, SegmentorCritic
from mmsynth.models.generators.mmagic_translation import MMagicTranslation
from mmsynth.online.request import SynthesisRequest
from mmsynth.online.settings import RoundSettings
from mmsynth.online.synthesizer import RoundSynthesizer
from mmsynth.registry import MODELS
from mmsynth.synthesis import build_generator
from mmsynth.utils import isolated_random_state, seeded_noise

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
SIDE, SEEDS = 32, [1, 2]


@pytest.fixture(scope='module')
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mmagic.write_base(tmp_path_factory.mktemp('base'))


@pytest.fixture(scope='module')
def checkpoint(base: Path) -> Path:
    return tiny_mmagic.save(tiny_mmagic.trained(base), base / 'iter_10.pth')


def settings(base: Path, **changes) -> dict:
    return dict(type='mmsynth.MMagicGenerator', config=tiny_mmagic.config(base), palette=PALETTE, num_steps=3,
                guidance_scale=2.0) | changes


def with_parts(base: Path, **changes) -> dict:
    """The settings with changes in the model of mmagic's config."""
    return settings(base, config=tiny_mmagic.config(base, **changes))


def images_of(generator: nn.Module, count: int = 2, side: int = SIDE, seeds: list[int] = SEEDS) -> Tensor:
    done = generator.eval().synthesize(samples(count, side), seeds[:count])
    return torch.stack([sample.generated_img.data.float() for sample in done])


def colours(masks: Tensor) -> Tensor:
    """Masks (B, H, W) → (B, 3, H, W), [-1, 1], RGB."""
    return torch.tensor(PALETTE).float()[masks].permute(0, 3, 1, 2) / 127.5 - 1


def masks_of(count: int = 2, side: int = SIDE) -> Tensor:
    return torch.stack([sample.gt_sem_seg.data[0] for sample in samples(count, side)])


def pool_config(model: dict, folder: Path, side: int = SIDE) -> Config:
    (folder / 'masks').mkdir()
    for number in range(2):
        mask = np.random.default_rng(number).integers(0, 3, (side, side), np.uint8)
        Image.fromarray(mask).save(folder / 'masks' / f'{number}.png')
    (folder / 'masks.jsonl').write_text('{"source": "masks/0.png"}\n{"source": "masks/1.png"}\n')
    return Config(dict(model=model, synthesis=dict(dataset=dict(
        type='mmsynth.ManifestDataset', data_root=str(folder), ann_file='masks.jsonl',
        metainfo=dict(classes=('road', 'park', 'water'), palette=PALETTE),
        pipeline=[dict(type='mmsynth.LoadSegMap'), dict(type='mmsynth.BuildPrompt'),
                  dict(type='mmsynth.PackSynthInputs')]))))


class TestControlNet:

    def test_mmagic_generates_the_same(self, base: Path, checkpoint: Path) -> None:
        """Its own modules take the checkpoint whole, and its own loop comes to the same images."""
        need_mmagic()
        from mmagic.registry import MODELS as MMAGIC_MODELS
        with DefaultScope.overwrite_default_scope('mmagic'):
            theirs = MMAGIC_MODELS.build(tiny_mmagic.config(base)['model'])
        theirs.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
        generator = MODELS.build(settings(base, checkpoint=str(checkpoint)))
        noise = seeded_noise(SEEDS, generator.latent_codec.latent_shape(SIDE, SIDE), device=torch.device('cpu'))
        found = theirs.eval().infer(
            [sample.prompt for sample in samples(2)], height=SIDE, width=SIDE, control=(colours(masks_of()) + 1) / 2,
            num_inference_steps=3, guidance_scale=2.0, latents=noise, return_type='tensor', show_progress=False)
        expected = ((found['samples'].clamp(-1, 1) + 1) * 127.5).round()
        assert expected.std() > 10  # not a flat image, of which all are alike
        assert (images_of(generator) - expected).abs().max() <= 1  # rounding of sums

    def test_a_segmentor_guides_it(self, base: Path, checkpoint: Path) -> None:
        generator = MODELS.build(settings(base, checkpoint=str(checkpoint))).eval()
        guidance = CRFM(SegmentorCritic(dict(model=segmentor())), objective='mask', step_size=0.3, measure_after=True)
        done = generator.synthesize(samples(2, SIDE), SEEDS, guidance=guidance)
        records = [record for sample in done for record in sample.guidance_trace]
        assert len(records) == 6 and not any(record['skipped'] for record in records)
        assert sum(record['loss_after'] - record['loss_before'] for record in records) < 0

    def test_a_pool_notes_the_checkpoint(self, base: Path, checkpoint: Path, tmp_path: Path) -> None:
        pool = synthesize(pool_config(settings(base), tmp_path), checkpoint, tmp_path / 'pool')
        assert len(pool) == 2 and pool.records[0].generator['weights_sha256'] is not None

    def test_a_segmentor_in_training_guides_a_round(self, base: Path, checkpoint: Path, tmp_path: Path) -> None:
        pool_config(settings(base), tmp_path).dump(tmp_path / 'config.py')
        rounds = RoundSynthesizer(RoundSettings(
            dict(config=str(tmp_path / 'config.py'), checkpoint=str(checkpoint)), num_per_round=2,
            guidance=dict(type='mmsynth.CRFM', steps=1, step_size=0.3)))
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = mmseg_models.build(ConfigDict(segmentor()))
        done = rounds(SynthesisRequest(0, segmentor=model))
        assert [sample.image.shape for sample in done.samples] == [(SIDE, SIDE, 3)] * 2
        assert done.statistics['guided_steps'] == 2

    def test_a_config_file_and_a_checkpoint_of_its_own(self, base: Path, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / 'controlnet.py').write_text(f'model = {tiny_mmagic.config(base)["model"]}\n')
        model = settings(base, config=str(tmp_path / 'controlnet.py'), checkpoint=str(checkpoint))
        generator = init_generator(Config(dict(model=model)))
        other = init_generator(Config(dict(model=settings(base))), checkpoint)
        assert torch.equal(images_of(generator), images_of(other))

    def test_parts_by_their_own_settings(self, base: Path, checkpoint: Path) -> None:
        unet = tiny_mmagic.trained(base).unet.model.config
        other = with_parts(
            base, vae=dict(type='AutoencoderKL', from_pretrained=f'{base}/vae', torch_dtype='float16'),
            unet=dict(type='UNet2DConditionModel', **{k: v for k, v in unet.items() if not k.startswith('_')}),
            scheduler=dict(type='DDPMScheduler', beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear'))
        generator = MODELS.build(other | dict(checkpoint=str(checkpoint)))
        assert torch.equal(images_of(generator), images_of(MODELS.build(settings(base, checkpoint=str(checkpoint)))))

    def test_random_weights_want_a_checkpoint(self, base: Path) -> None:
        with pytest.raises(ValueError, match='`checkpoint` is missing'):
            build_generator(Config(dict(model=settings(base))), None)
        tiny_mmagic.trained(base).controlnet.model.save_pretrained(base / 'trained')
        whole = dict(controlnet=dict(type='ControlNetModel', from_pretrained=f'{base}/trained'))
        assert build_generator(Config(dict(model=with_parts(base, **whole))), None).network.is_pretrained
        vae = dict(type='AutoencoderKL', from_config=str(base), subfolder='vae')
        with pytest.raises(ValueError, match='`checkpoint` is missing'):
            build_generator(Config(dict(model=with_parts(base, vae=vae, **whole))), None)

    @pytest.mark.parametrize('changes, message', [
        (dict(unet=dict(type='EditUNet')), '`model.unet` is EditUNet; it must be a UNet2DConditionModel'),
        (dict(test_scheduler=None), 'mmagic would sample over DDPMScheduler .`model.scheduler`.*set `sampler`'),
        (dict(text_encoder=dict(type='ClipWrapper', clip_type='clip')), '`model.text_encoder` and `model.tok'),
        (dict(vae=dict(type='AutoencoderKL', from_pretrained='x', revision='y')), '`model.vae` .* got revision'),
        (dict(controlnet=None), '`model.controlnet` is None; it must be a ControlNetModel'),
        (dict(scheduler=dict(type='DDPMScheduler', trained_betas=[0.1] * 1000)), '`model.scheduler.trained_betas`'),
        (dict(type='StyleGAN2'), "`config`: its `model` is mmagic's StyleGAN2"),
    ])
    def test_other_parts_are_refused(self, base: Path, changes: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MODELS.build(with_parts(base, **changes))

    def test_options_without_effect_are_refused(self, base: Path) -> None:
        with pytest.raises(ValueError, match='`channel_order` has no effect on a ControlNet'):
            MODELS.build(settings(base, channel_order='bgr'))
        with pytest.raises(ValueError, match='`num_steps` has no effect on .* Pix2Pix'):
            MODELS.build(dict(type='mmsynth.MMagicGenerator', config=dict(model=PIX2PIX), palette=PALETTE, num_steps=3))


PIX2PIX = dict(
    type='Pix2Pix',
    data_preprocessor=dict(type='DataPreprocessor', data_keys=['img_photo', 'img_mask']),
    generator=dict(type='UnetGenerator', in_channels=3, out_channels=3, num_down=5, base_channels=4,
                   norm_cfg=dict(type='BN'), use_dropout=True, init_cfg=dict(type='normal', gain=0.2)),
    discriminator=dict(type='PatchDiscriminator', in_channels=6, base_channels=4, num_conv=2,
                       norm_cfg=dict(type='BN'), init_cfg=dict(type='normal', gain=0.02)),
    loss_config=dict(pixel_loss_weight=100.0),
    default_domain='photo', reachable_domains=['photo'], related_domains=['photo', 'mask'])
DROPOUT = dict(PIX2PIX, generator=dict(PIX2PIX['generator'], num_down=6))  # the one kind of its layers that drops out


def settings_of_translation(model: dict = DROPOUT, **changes) -> dict:
    return dict(type='mmsynth.MMagicGenerator', config=dict(model=model), palette=PALETTE) | changes


@pytest.fixture(scope='module')
def theirs() -> nn.Module:
    """mmagic's model, as after a training."""
    need_mmagic()
    from mmagic.registry import MODELS as MMAGIC_MODELS
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmagic'):
        model = MMAGIC_MODELS.build(DROPOUT)
    return perturb(model)


@pytest.fixture(scope='module')
def saved(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mmagic.save(theirs, tmp_path_factory.mktemp('pix2pix') / 'iter_9.pth')


class TestTranslation:

    @pytest.fixture
    def generator(self, saved: Path) -> MMagicTranslation:
        return MODELS.build(settings_of_translation(checkpoint=str(saved)))

    def test_mmagic_generates_the_same(self, theirs: nn.Module, generator: MMagicTranslation) -> None:
        """By its own way to test, which its loaders feed with BGR."""
        own = copy.deepcopy(theirs)
        expected = []
        for control, seed in zip(colours(masks_of(side=64)).flip(1), SEEDS):
            with isolated_random_state(seed), torch.no_grad():
                image = own.forward_test(control[None], target_domain='photo')['target']
            expected.append(own.data_preprocessor.destruct(image[0]).flip(0))
        assert torch.stack(expected).std() > 10
        torch.testing.assert_close(images_of(generator, side=64), torch.stack(expected).round(), atol=1, rtol=0)

    def test_an_image_depends_on_its_own_seed_alone(self, generator: MMagicTranslation) -> None:
        both = images_of(generator, side=64)
        assert torch.equal(images_of(generator, 1, 64), both[:1])
        assert not torch.equal(images_of(generator, side=64, seeds=[1, 3])[1], both[1])

    def test_the_model_is_left_as_it_was(self, generator: MMagicTranslation) -> None:
        before = copy.deepcopy(generator.eval().state_dict())
        images_of(generator, side=64)
        assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
        assert not any(module.training for module in generator.modules())

    def test_a_pool(self, saved: Path, tmp_path: Path) -> None:
        pool = synthesize(pool_config(settings_of_translation(), tmp_path, 64), saved, tmp_path / 'pool')
        assert len(pool) == 2 and pool.records[0].generator['weights_sha256'] is not None

    def test_channel_orders(self, saved: Path, generator: MMagicTranslation) -> None:
        order = dict(data_preprocessor=dict(type='DataPreprocessor', output_channel_order='RGB'))
        found = MODELS.build(settings_of_translation(dict(DROPOUT, **order), checkpoint=str(saved)))
        other = MODELS.build(settings_of_translation(channel_order='rgb', checkpoint=str(saved)))
        assert torch.equal(images_of(found, side=64), images_of(other, side=64))
        assert not torch.equal(images_of(found, side=64), images_of(generator, side=64))

    def test_what_it_cannot_do_is_refused(self, generator: MMagicTranslation) -> None:
        guidance = CRFM(SegmentorCritic(dict(model=segmentor())))
        with pytest.raises(ValueError, match='`guidance`: Pix2Pix generates in one pass'):
            generator.synthesize(samples(2, 64), SEEDS, guidance=guidance)
        with pytest.raises(ValueError, match='masks of 48x48 pixels: Pix2Pix fails on them'):
            generator.synthesize(samples(2, 48), SEEDS)
        with pytest.raises(ValueError, match=r"`model.data_preprocessor` has \{'mean': 0"):
            MODELS.build(settings_of_translation(dict(PIX2PIX, data_preprocessor=dict(type='x', mean=0.0))))


class Measured(Hook):
    """Keeps what a test measured, which mmagic's loop does not return."""

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics


class TestOursInMMagic:

    def test_its_loop_measures_and_draws_our_images(self, tmp_path: Path) -> None:
        need_mmagic()
        pairs = [dict(inputs=((image + 1) * 127.5).flip(0).round().byte(), data_samples=sample)
                 for image, sample in zip(images(), samples())]
        runner = Runner(
            model=dict(type='mmsynth.ForMMagic', generator=todsynth_config()), default_scope='mmagic',
            log_level='WARNING', work_dir=str(tmp_path), experiment_name='ours',
            visualizer=dict(type='Visualizer', vis_backends=[dict(type='VisBackend')]),
            test_cfg=dict(type='MultiTestLoop'),
            test_dataloader=DataLoader(pairs, batch_size=2, collate_fn=pseudo_collate),
            test_evaluator=dict(type='Evaluator', metrics=[dict(
                type='SWD', fake_nums=4, image_shape=(3, 16, 16), prefix='swd', sample_model='orig')]),
            custom_hooks=[dict(type='VisualizationHook', interval=1, fixed_input=True, test_vis_keys='fake_img',
                               vis_kwargs_list=[])])
        runner.model.latent_codec.fit(images())
        measured = Measured()
        runner.register_hook(measured)
        runner.test()
        assert measured.metrics and all(0 < value < float('inf') for value in measured.metrics.values())
        drawn = sorted(tmp_path.rglob('test_fake_img*.png'))
        assert len(drawn) == 4
        expected = runner.model.predict(None, samples(1))[0].generated_img.data.permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(Image.open(drawn[0])).astype(int) - expected).max() <= 1

    def test_its_samples_hold_the_images_as_bgr(self) -> None:
        need_mmagic()
        model = MODELS.build(dict(type='mmsynth.ForMMagic', generator=todsynth_config()))
        model.latent_codec.fit(images())
        pixels = (torch.rand(2, 3, 16, 16) * 255).round()
        found = model.eval().val_step(dict(inputs=list(pixels), data_samples=samples(2)))
        expected = model.predict(None, samples(2))
        assert type(found[0]).__module__.startswith('mmagic.') and found[0].prompt == samples(1)[0].prompt
        for row in range(2):
            assert torch.equal(found[row].fake_img, expected[row].generated_img.data.flip(0).float())
            torch.testing.assert_close(found[row].gt_img, pixels[row], atol=1e-3, rtol=0)

    def test_training_and_checkpoints_are_the_generators_own(self) -> None:
        need_mmagic()
        torch.manual_seed(0)
        model = MODELS.build(dict(type='mmsynth.ForMMagic', generator=todsynth_config()))
        model.latent_codec.fit(images())
        assert model.state_dict().keys() == todsynth().state_dict().keys()
        assert 'loss' in next(iter(model(images(), samples(), mode='loss')))


def todsynth_config() -> dict:
    """The config of :func:`tiny_generator.todsynth`."""
    from tiny_generator import CHANNELS, TEXT, TRUNK
    return dict(
        type='mmsynth.TODSynth', network=dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=3),
        latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=4, channels=CHANNELS),
        label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3), text_encoder=TEXT, num_steps=2)
