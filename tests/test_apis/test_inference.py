"""What scripts and notebooks build: generators, of this package or another, and critics."""
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from PIL import Image
from small_run import NAMES, SIDE, SmallRun

from mmsynth.apis import generate, init_critic, init_generator, synthesize
from mmsynth.guidance import BestOfN, ModuleCritic
from mmsynth.registry import MODELS


@MODELS.register_module(force=True)
class PlainColours(BaseModel):
    """A generator that shares nothing with mmsynth's: every class has one learned grey level."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__(data_preprocessor=dict(type='BaseDataPreprocessor'))
        self.levels = torch.nn.Parameter(torch.zeros(256))

    def forward(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def synthesize(self, data_samples, seeds, *, guidance=None):  # noqa: ANN001, ANN201
        for sample in data_samples:
            grey = self.levels[sample.gt_sem_seg.data[0]].to(torch.uint8)
            sample.generated_img = PixelData(data=grey.expand(3, -1, -1))
        return data_samples

    def check_guidance(self, guidance: object) -> None:
        raise ValueError('PlainColours takes no guidance')


@pytest.fixture
def foreign(small_run: SmallRun, tmp_path: Path) -> tuple[Config, Path]:
    cfg = small_run.config()
    cfg.model = dict(type='mmsynth.PlainColours')
    model = PlainColours()
    torch.nn.init.constant_(model.levels, 200)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'foreign.pth')
    return cfg, tmp_path / 'foreign.pth'


def test_a_generator_of_another_package_fills_a_pool(foreign: tuple[Config, Path], tmp_path: Path) -> None:
    pool = synthesize(*foreign, tmp_path / 'pool', guidance='none')
    assert len(pool) == len(NAMES)
    assert all(np.array_equal(pool.load_image(record), np.full((SIDE, SIDE, 3), 200)) for record in pool.records)
    with pytest.raises(ValueError, match='takes no guidance'):
        synthesize(*foreign, tmp_path / 'guided', guidance='crfm')


def test_init_generator(small_run: SmallRun, foreign: tuple[Config, Path]) -> None:
    for config in (small_run.config_file, str(small_run.config_file), small_run.config()):
        generator = init_generator(config, small_run.generator)
        assert type(generator).__name__ == 'TODSynth' and generator.num_classes == 3 and not generator.training
    assert init_generator(*foreign).levels[0] == 200
    with pytest.raises(ValueError, match='`model` is EncoderDecoder.*synthesize'):
        init_generator(small_run.critic_config_file, small_run.critic)
    with pytest.raises(FileNotFoundError, match='none.py'):
        init_generator('none.py', small_run.generator)


def test_init_critic(small_run: SmallRun) -> None:
    for config in (small_run.critic_config_file, Config.fromfile(small_run.critic_config_file)):
        critic = init_critic(config, small_run.critic)
        assert critic.num_classes == 3 and not any(value.requires_grad for value in critic.parameters())
        assert critic.predict_logits(torch.rand(2, 3, SIDE, SIDE)).shape == (2, 3, SIDE, SIDE)
    with pytest.raises(FileNotFoundError, match='none.py'):
        init_critic('none.py')


def test_init_critic_takes_what_people_have(small_run: SmallRun) -> None:
    images = torch.rand(1, 3, SIDE, SIDE)
    segmentor = init_critic(small_run.critic_config_file, small_run.critic).segmentor
    assert init_critic(segmentor).segmentor is segmentor
    other = init_critic(torch.nn.Conv2d(3, 3, 1), num_classes=3)
    assert isinstance(other, ModuleCritic) and other.predict_logits(images).shape == (1, 3, SIDE, SIDE)
    settings = dict(type='mmsynth.SegmentorCritic', config=str(small_run.critic_config_file))
    named = init_critic(settings, small_run.critic)
    assert named.num_classes == 3
    with pytest.raises(ValueError, match='`checkpoint` has no effect'):
        init_critic('some/folder', small_run.critic)


@pytest.fixture(scope='module')
def generator(small_run: SmallRun) -> BaseModel:
    return init_generator(small_run.config_file, small_run.generator)


class TestGenerate:

    def test_every_kind_of_mask_and_any_batch_give_the_same(self, generator: BaseModel) -> None:
        masks = [np.random.default_rng(number).integers(0, 3, (SIDE, SIDE)) for number in range(3)]
        images = generate(generator, masks)
        assert [(image.shape, image.dtype) for image in images] == [((SIDE, SIDE, 3), np.uint8)] * 3
        others = [Image.fromarray(masks[0].astype(np.uint8)), torch.from_numpy(masks[1]), masks[2].astype(np.uint8)]
        for one, other in zip(images, generate(generator, others, batch_size=1)):
            assert np.abs(one.astype(int) - other).max() <= 1
        assert np.abs(images[0].astype(int) - generate(generator, masks[:1], seed=1)[0]).max() > 1

    def test_prompts_are_those_of_the_classes_by_default(self, generator: BaseModel) -> None:
        mask = np.zeros((SIDE, SIDE), int)
        name = generator.dataset_meta['classes'][0]
        given, = generate(generator, [mask], [f'a satellite image of {name}'])
        assert np.array_equal(generate(generator, [mask])[0], given)

    def test_a_critic_guides(self, small_run: SmallRun, generator: BaseModel) -> None:
        critic = init_critic(small_run.critic_config_file, small_run.critic)
        mask = np.random.default_rng(0).integers(0, 3, (SIDE, SIDE))
        plain, guided, best = (generate(generator, [mask], critic=guide)[0]
                               for guide in (None, critic, BestOfN(critic, 2)))
        assert not np.array_equal(plain, guided) and best.shape == plain.shape

    def test_mistakes_are_named(self, generator: BaseModel) -> None:
        mask = np.zeros((SIDE, SIDE), int)
        for arguments, option in (
            ((mask[None], ['a', 'b']), 'prompts'), (([np.zeros((SIDE, SIDE, 3), int)], ), 'masks'),
            (([mask / 2], ), 'masks'), (([mask], None, [mask]), 'references')):
            with pytest.raises(ValueError, match=f'`{option}`'):
                generate(generator, *arguments)
        classes = generator.__dict__.pop('dataset_meta')
        try:
            with pytest.raises(ValueError, match='`prompts` are needed'):
                generate(generator, [mask])
        finally:
            generator.dataset_meta = classes
