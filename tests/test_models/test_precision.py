"""What the network computes in: bfloat16 beside float32, who decides, and compiled networks."""
from collections.abc import Callable

import pytest
import torch
from tiny_generator import images, samples, todsynth
from tiny_segmentors import segmentor
from tiny_tisynth import SEEDS, referenced, tisynth

from mmsynth.guidance import CRFM, SegmentorCritic
from mmsynth.models import BaseGenerator

GENERATORS = [(todsynth, samples), (tisynth, referenced)]


def generate(model: BaseGenerator, inputs: Callable, guidance: CRFM | None = None) -> torch.Tensor:
    return torch.stack([sample.generated_img.data.float()
                        for sample in model.synthesize(inputs(), SEEDS, guidance=guidance)])


def frozen_branch(dtype: str | None = None, **changes) -> BaseGenerator:
    return todsynth(trainable=dict(image='frozen', mask='full', text='frozen'), dtype=dtype, **changes)


@pytest.mark.parametrize('build, inputs', GENERATORS)
class TestBfloat16:

    def test_images_are_those_of_float32_but_for_rounding(self, build: Callable, inputs: Callable) -> None:
        """8 bits of mantissa over four steps of a network of large random weights: some grey levels of 255."""
        exact, rounded = generate(build(), inputs), generate(build(dtype='bfloat16'), inputs)
        assert 0 < (exact - rounded).abs().mean() < 6
        assert torch.corrcoef(torch.stack([exact.flatten(), rounded.flatten()]))[0, 1] > 0.98

    def test_weights_held_in_it_generate_as_well(self, build: Callable, inputs: Callable) -> None:
        exact, model = generate(build(), inputs), build(dtype='bfloat16')
        model.cast_network(torch.device('cpu'))
        assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}
        assert (exact - generate(model, inputs)).abs().mean() < 6

    def test_losses_and_gradients_are_float32(self, build: Callable, inputs: Callable) -> None:
        model = build(dtype='bfloat16').train()
        losses = model(images(), inputs(), mode='loss')
        assert all(value.dtype == torch.float32 for value in losses.values())
        sum(losses.values()).backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(parameter.dtype == torch.float32 for parameter in trained)
        assert all(parameter.grad.isfinite().all() for parameter in trained if parameter.grad is not None)
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in trained)


def test_frozen_weights_are_held_in_a_named_dtype() -> None:
    for name, parameter in frozen_branch('bfloat16').network.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    assert all(parameter.dtype == torch.float32 for parameter in frozen_branch().parameters())


def test_low_rank_updates_train_in_float32_on_a_frozen_network_of_bfloat16() -> None:
    model = todsynth(trainable=dict(image='lora', mask='lora'), lora=dict(rank=2), dtype='bfloat16')
    model.loss(images(), samples())['loss_velocity'].backward()
    updates = {name: value for name, value in model.network.named_parameters() if value.requires_grad}
    assert updates and all('lora_' in name and value.dtype == torch.float32 for name, value in updates.items())
    assert any(value.grad.any() for value in updates.values() if value.grad is not None)


class TestWhoDecides:

    @staticmethod
    def seen_by(model: BaseGenerator) -> torch.dtype:
        """The dtype of what leaves the network's first layer."""
        seen = []
        handle = model.network.trunk.context_embedder.register_forward_hook(
            lambda module, inputs, output: seen.append(output.dtype))
        model.loss(images(), samples())
        handle.remove()
        return seen[0]

    def test_a_cpu_computes_in_float32_by_itself(self) -> None:
        assert self.seen_by(todsynth()) == torch.float32

    def test_the_host_s_autocast_is_left_alone(self) -> None:
        with torch.autocast('cpu', torch.bfloat16):
            assert self.seen_by(todsynth()) == torch.bfloat16

    def test_a_named_dtype_goes_before_it(self) -> None:
        with torch.autocast('cpu', torch.bfloat16):
            assert self.seen_by(todsynth(dtype='float32')) == torch.float32
        assert self.seen_by(todsynth(dtype='bfloat16')) == torch.bfloat16

    def test_another_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match='`dtype`.*float32, bfloat16, float16.*half'):
            todsynth(dtype='half')


@pytest.mark.parametrize('build, inputs', GENERATORS)
def test_a_compiled_network_generates_the_same_and_guidance_moves_it(build: Callable, inputs: Callable) -> None:
    """Traced for the forward and the backward pass, run without generated code, which takes a compiler and minutes."""
    critic = SegmentorCritic(config=dict(model=segmentor()))
    guidance = CRFM(critic, objective='mask', step_size=0.3)
    compiled = build(compile=dict(backend='aot_eager'))
    assert (generate(build(), inputs) - generate(compiled, inputs)).abs().max() <= 1
    guided = generate(compiled, inputs, guidance)
    assert (guided - generate(build(), inputs, guidance)).abs().max() <= 1
    assert (guided - generate(compiled, inputs)).abs().max() > 1
    assert list(compiled.state_dict()) == list(build().state_dict())
