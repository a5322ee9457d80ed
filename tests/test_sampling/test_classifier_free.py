"""Classifier-free guidance towards one or several conditions, in one pass of the network."""
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mmsynth.sampling import Negative, classifier_free


@dataclass(frozen=True)
class Condition:
    prompt: Tensor
    mask: Tensor


def network(latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    return latents * condition.mask + condition.prompt + timestep[:, None, None, None]


def sigma_of(timestep: Tensor) -> float:
    return float(timestep[0]) / 1000


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Condition]:
    """Latents, timestep (sigma 0.4) and a condition."""
    return (torch.randn(3, 4, 2, 2), torch.full((3, ), 400.),
            Condition(torch.randn(3, 4, 1, 1), torch.randn(3, 4, 1, 1)))


def test_one_is_two_passes_and_their_difference(given) -> None:
    latents, timestep, condition = given
    negative = Condition(torch.randn(3, 4, 1, 1), condition.mask)
    away, towards = network(latents, timestep, negative), network(latents, timestep, condition)
    guided = classifier_free(network, condition, [Negative(negative, 2.5)], sigma_of)(latents, timestep)
    torch.testing.assert_close(guided, away + 2.5 * (towards - away))


def test_several_add_up_in_one_pass(given) -> None:
    latents, timestep, condition = given
    calls = []

    def counted(*inputs) -> Tensor:
        calls.append(len(inputs[0]))
        return network(*inputs)

    prompt, mask = Condition(torch.zeros(3, 4, 1, 1), condition.mask), Condition(condition.prompt, condition.mask * 0)
    guided = classifier_free(counted, condition, [Negative(prompt, 3.0), Negative(mask, 1.5)], sigma_of)(
        latents, timestep)
    towards, without_prompt, without_mask = (network(latents, timestep, c) for c in (condition, prompt, mask))
    torch.testing.assert_close(guided, towards + 2 * (towards - without_prompt) + 0.5 * (towards - without_mask))
    assert calls == [9]


def test_a_scale_of_zero_leaves_the_part_out(given) -> None:
    latents, timestep, condition = given
    mask = Condition(condition.prompt, torch.zeros(3, 4, 1, 1))
    guided = classifier_free(network, condition, [Negative(mask, 0.0)], sigma_of)(latents, timestep)
    torch.testing.assert_close(guided, network(latents, timestep, mask))


@pytest.mark.parametrize('scale, interval', [(1.0, (0.0, 1.0)), (7.0, (0.5, 1.0)), (7.0, (0.0, 0.3))])
def test_off_and_outside_of_its_interval_it_is_one_pass_bit_equal(given, scale: float, interval: tuple) -> None:
    latents, timestep, condition = given
    negative = Condition(torch.randn(3, 4, 1, 1), condition.mask)
    plain = classifier_free(network, condition, [Negative(negative, scale, interval)], sigma_of)(latents, timestep)
    assert torch.equal(plain, network(latents, timestep, condition))


def test_inside_of_its_interval_it_guides(given) -> None:
    latents, timestep, condition = given
    negative = Negative(Condition(condition.prompt + 1, condition.mask), 3.0, (0.4, 0.9))
    guided = classifier_free(network, condition, [negative], sigma_of)(latents, timestep)
    torch.testing.assert_close(guided, network(latents, timestep, condition) - 2)
