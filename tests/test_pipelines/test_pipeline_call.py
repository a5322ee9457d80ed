"""What a call takes and gives: masks of any kind, seeds, callbacks, output types, devices; and what mistakes say."""
from collections.abc import Callable

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from PIL import Image
from tiny_generator import CLASSES
from tiny_pipelines import masks, pipeline, pixels, references, seeded
from torch import Tensor
from toy_critic import ToyCritic

from mmsynth.guidance import CRFM, BestOfN
from mmsynth.pipelines import SynthPipelineOutput, TISynthPipeline, TODSynthPipeline
from mmsynth.pipelines.base import draw_seeds
from mmsynth.pipelines.components import PatchPCACodecModel

KINDS = pytest.mark.parametrize('kind', ['todsynth', 'tisynth'])


@pytest.fixture(scope='module')
def tod() -> TODSynthPipeline:
    return pipeline('todsynth')


@pytest.fixture(scope='module')
def tis() -> TISynthPipeline:
    return pipeline('tisynth')


def test_masks_of_every_kind(tod: TODSynthPipeline) -> None:
    mask = masks(1)[0].astype(np.uint8)
    palette = Image.fromarray(mask).convert('P')
    palette.putdata(mask.flatten().tolist())
    expected = pixels(tod(mask, generator=seeded(count=1)).images)
    for other in (torch.from_numpy(mask), Image.fromarray(mask), palette, [mask]):
        assert np.array_equal(pixels(tod(other, generator=seeded(count=1)).images), expected)


def test_prompts_and_references_stand_for_all_masks(tis: TISynthPipeline) -> None:
    look = references('tisynth', 1)['reference'][0]
    once = tis(masks(), 'road, park', look, generator=seeded(), output_type='latent').images
    each = tis(masks(), ['road, park'] * 2, [look, Image.fromarray(look)], generator=seeded(),
               output_type='latent').images
    assert torch.equal(once, each)
    assert not torch.equal(once, tis(masks(), 'water', look, generator=seeded(), output_type='latent').images)
    named = tis([np.ones((16, 16), int)], f'a satellite image of {CLASSES[1]}', look, generator=seeded(count=1),
                output_type='latent').images
    default = tis([np.ones((16, 16), int)], None, look, generator=seeded(count=1), output_type='latent').images
    assert torch.equal(named, default)


def test_output_types_show_the_same(tod: TODSynthPipeline) -> None:
    outputs = {name: tod(masks(), generator=seeded(), output_type=name).images for name in ('pil', 'np', 'pt')}
    assert outputs['pt'].shape == (2, 3, 16, 16) and outputs['np'].shape == (2, 16, 16, 3)
    assert 0 <= outputs['np'].min() and outputs['np'].max() <= 1
    assert np.array_equal(outputs['pt'].permute(0, 2, 3, 1).numpy(), outputs['np'])
    assert np.array_equal((255 * outputs['np']).round().astype(np.uint8), pixels(outputs['pil']))


def test_traces_and_tuples(tod: TODSynthPipeline) -> None:
    result = tod(masks(), critic=ToyCritic(), guidance=dict(steps=2), generator=seeded())
    assert isinstance(result, SynthPipelineOutput)
    assert [[record['step'] for record in trace] for trace in result.traces] == [[0, 1]] * 2
    images, traces = tod(masks(), guidance=CRFM(ToyCritic(), steps=2), generator=seeded(), return_dict=False)
    assert np.array_equal(pixels(images), pixels(result.images)) and traces == result.traces
    assert tod(masks()).traces == [[], []]


@KINDS
def test_options_of_a_call_are_those_of_a_generator(kind: str) -> None:
    pipe, call = pipeline(kind), dict(generator=seeded(), output_type='latent', **references(kind))
    options = dict(num_inference_steps=3, guidance_scale=3.0, mask_guidance_scale=1.5)
    options |= dict(reference_guidance_scale=2.0) if kind == 'tisynth' else {}
    settings = {('num_steps' if name == 'num_inference_steps' else name): value for name, value in options.items()}
    other = pipeline(kind, **settings)
    given = pipe(masks(), **call, **options).images
    assert pipe.num_timesteps == 3
    assert torch.equal(given, other(masks(), **call | dict(generator=seeded())).images)
    plain = [one(masks(), **call | dict(generator=seeded())).images for one in (pipe, pipeline(kind))]
    assert torch.equal(*plain) and not torch.equal(plain[0], given)  # a call leaves nothing behind


class TestGenerators:

    def test_a_new_one_is_a_seed_and_a_used_one_goes_on(self) -> None:
        one = torch.Generator().manual_seed(5)
        first, second, third = (draw_seeds(one, 1)[0] for _ in range(3))
        assert first == 5 and len({first, second, third}) == 3
        again = torch.Generator().manual_seed(5)
        assert draw_seeds(again, 3) == [first, second, third]

    def test_without_one_the_global_generator_decides(self) -> None:
        torch.manual_seed(1)
        drawn = draw_seeds(None, 2)
        torch.manual_seed(1)
        assert draw_seeds(None, 2) == drawn and drawn[0] != drawn[1]

    def test_an_image_does_not_depend_on_its_batch(self, tod: TODSynthPipeline) -> None:
        together = tod(masks(), generator=seeded(), output_type='latent').images
        alone = tod(masks()[1], generator=seeded()[1], output_type='latent').images
        torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)

    def test_one_per_mask(self, tod: TODSynthPipeline) -> None:
        with pytest.raises(ValueError, match='`generator` must be one, or a list of one per mask, got 3 for 2'):
            tod(masks(), generator=seeded(count=3))


class TestCallback:

    @KINDS
    def test_it_sees_every_step(self, kind: str) -> None:
        pipe, seen = pipeline(kind), []

        def callback(pipe: object, index: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.append((pipe, index, float(timestep), values['latents']))
            return values

        call = dict(output_type='latent', **references(kind))
        latents = pipe(masks(), generator=seeded(), callback_on_step_end=callback, **call).images
        pipe.scheduler.set_timesteps(4)
        assert [entry[1] for entry in seen] == [0, 1, 2, 3] and all(entry[0] is pipe for entry in seen)
        assert [entry[2] for entry in seen] == pytest.approx(pipe.scheduler.timesteps.tolist())
        assert torch.equal(seen[-1][3], latents)
        assert torch.equal(latents, pipe(masks(), generator=seeded(), **call).images)

    def test_what_it_returns_is_gone_on_with(self, tod: TODSynthPipeline) -> None:
        def at(step: int) -> Callable:
            return lambda pipe, index, timestep, values: dict(latents=values['latents'] * (index != step))

        call = dict(output_type='latent')
        plain, early, last = (tod(masks(), generator=seeded(), callback_on_step_end=at(step), **call).images
                              for step in (9, 1, 3))
        assert not last.any() and early.any() and not torch.equal(early, plain)

    def test_it_may_return_nothing(self, tod: TODSynthPipeline) -> None:
        images = tod(masks(), generator=seeded(), callback_on_step_end=lambda *given: None).images
        assert np.array_equal(pixels(images), pixels(tod(masks(), generator=seeded()).images))

    def test_another_shape_is_refused(self, tod: TODSynthPipeline) -> None:
        with pytest.raises(ValueError, match='`callback_on_step_end` returned latents of the shape'):
            tod(masks(), callback_on_step_end=lambda pipe, index, timestep, values: dict(latents=values['latents'][:1]))


class TestDevices:

    @KINDS
    def test_offloading_brings_every_part_before_it_computes(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The CPU stands for the accelerator, so that what is watched are the hooks."""
        pipe, brought = pipeline(kind), []
        call = dict(critic=ToyCritic(), **references(kind))
        expected = pixels(pipe(masks(), generator=seeded(), **call).images)
        own = accelerate.hooks.CpuOffload.pre_forward

        def pre_forward(hook: object, module: torch.nn.Module, *inputs: object, **options: object) -> object:
            brought.append(type(module).__name__)
            return own(hook, module, *inputs, **options)

        def to(module: torch.nn.Module, *where: object, **options: object) -> torch.nn.Module:
            brought.extend([type(module).__name__] * (where == (torch.device('cpu:0'), )))
            return move(module, *where, **options)

        move = PatchPCACodecModel.to
        monkeypatch.setattr(PatchPCACodecModel, 'to', to)
        monkeypatch.setattr(accelerate.hooks.CpuOffload, 'pre_forward', pre_forward)
        network = type(getattr(pipe, pipe.network_name)).__name__
        for _ in range(2):  # the hooks are put back after a call
            brought.clear()
            pipe.enable_model_cpu_offload(device='cpu')
            assert np.array_equal(pixels(pipe(masks(), generator=seeded(), **call).images), expected)
            assert brought[-1] == 'PatchPCACodecModel' and brought.count(network) >= 4
            first = [name for number, name in enumerate(brought) if name not in brought[:number]]
            order = ['ClassNameEmbeddingModel', network, 'PatchPCACodecModel']
            assert first == (order if kind == 'todsynth' else ['PatchPCACodecModel', *order[:2]])  # references first
        assert [hook.hook.prev_module_hook is None for hook in pipe._all_hooks] == [True, False, True]

    @KINDS
    def test_the_network_computes_in_its_own_dtype(self, kind: str, tmp_path: object) -> None:
        pipe, call = pipeline(kind), references(kind)
        expected = pixels(pipe(masks(), generator=seeded(), **call).images).astype(int)
        pipe.save_pretrained(tmp_path)
        loaded = type(pipe).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        for half in (pipe.to(torch.bfloat16), loaded):
            assert getattr(half, half.network_name).dtype == torch.bfloat16
            assert half.vae.dtype == half.vae.components.dtype == torch.float32 and half.vae.fitted.dtype == torch.bool
            images = pixels(half(masks(), generator=seeded(), **call).images).astype(int)
            assert 0 < np.abs(images - expected).mean() < 8

    def test_a_critic_elsewhere_is_named(self, tod: TODSynthPipeline) -> None:
        with pytest.raises(ValueError, match=r"`critic` is on meta, the pipeline computes on cpu.*critic.to\('cpu'\)"):
            tod(masks(), critic=ToyCritic().to('meta'))


class FourClasses(ToyCritic):
    num_classes = 4


class TestErrors:

    @pytest.mark.parametrize('given, message', [
        (dict(mask=np.full((16, 16), 3)), r'values \[3\] have no name among 3 classes'),
        (dict(mask=np.full((16, 16), 3), prompt='road'), 'mask value 3: must be below the class count 3'),
        (dict(mask=np.zeros((16, 16))), '`masks`: number 0 must be class ids .* got float64'),
        (dict(mask=Image.new('RGB', (16, 16))), '`masks`: number 0 must be class ids'),
        (dict(mask=[]), '`mask` must hold at least one'),
        (dict(mask=[np.zeros((16, 16), int), np.zeros((8, 8), int)]), 'must have one size'),
        (dict(mask=np.zeros((18, 18), int)), 'image size 18x18: both sides must be multiples of 4'),
        (dict(prompt=['road', 'park', 'road']), '`prompts` must be one per mask, got 3 for 2'),
        (dict(prompt='forest'), "'forest' is no class name"),
        (dict(reference=np.zeros((16, 16, 3), np.uint8)), '`reference` has no effect: a TODSynthPipeline'),
        (dict(reference_guidance_scale=2.0), '`reference_guidance_scale` has no effect: a TODSynthPipeline has none'),
        (dict(critic=FourClasses()), 'the segmentor has 4 classes, the data set has 3'),
        (dict(critic=torch.nn.Conv2d(3, 3, 1)), '`critic` must be what mmsynth.apis.init_critic returns, got Conv2d'),
        (dict(critic=ToyCritic(), guidance=BestOfN(ToyCritic(), 2)), '`critic` has no effect: `guidance` is a BestOfN'),
        (dict(guidance=dict(steps=2)), "`guidance` {'steps': 2} are settings of a guidance, which needs a `critic`"),
        (dict(critic=ToyCritic(), guidance=dict(steps=9)), '`steps` 9 is more than the run'),
        (dict(num_inference_steps=0), '`num_steps` and `guidance_scale` must be at least 1, got 0 and'),
        (dict(guidance_scale=0.5), 'must be at least 1, got 4 and 0.5'),
        (dict(mask_guidance_scale=-1.0), '`mask_guidance_scale` must not be negative'),
        (dict(output_type='image'), "`output_type` must be one of pil, np, pt, latent, got 'image'"),
    ])
    def test_of_a_call(self, tod: TODSynthPipeline, given: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tod(**dict(mask=masks()) | given)

    def test_of_references(self, tis: TISynthPipeline) -> None:
        with pytest.raises(ValueError, match='`reference` is missing: a TISynthPipeline takes the look'):
            tis(masks())
        with pytest.raises(ValueError, match='`references`: number 0 must be RGB'):
            tis(masks(1), reference=np.zeros((16, 16), np.uint8))
        with pytest.raises(ValueError, match='`references` must be one per mask, got 1 for 2'):
            tis(masks(), **references('tisynth', 1))

    @pytest.mark.parametrize('kind, scheduler, message', [
        ('todsynth', DDIMScheduler(), '`scheduler` must be one of FlowMatchEulerDiscrete.* got DDIMScheduler'),
        ('todsynth', FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 'use_dynamic_shifting` needs a shift'),
        ('tisynth', PNDMScheduler(), '`scheduler` must be one of DDIMScheduler, .* got PNDMScheduler'),
        ('tisynth', DDIMScheduler(clip_sample=True), 'must leave clip_sample=False'),
    ])
    def test_of_schedulers(self, kind: str, scheduler: object, message: str) -> None:
        pipe = pipeline(kind)
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=message):
            pipe(masks(), **references(kind))

    def test_of_parts_that_are_missing(self) -> None:
        pipe = pipeline('todsynth')
        pipe.classes = None
        with pytest.raises(ValueError, match='`prompt` is needed.*pipe.classes'):
            pipe(masks())
        pipe.text_encoder = None
        with pytest.raises(ValueError, match='no `text_encoder`.*register_modules'):
            pipe(masks(), 'road')
