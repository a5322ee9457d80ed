"""Classifier-free guidance in one pass of both conditions."""
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsynth.sampling import classifier_free


@dataclass(frozen=True)
class Condition:
    prompt: Tensor
    mask: Tensor


def network(latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    return latents * condition.mask + condition.prompt + timestep[:, None, None, None]


def test_it_is_two_passes_and_their_difference() -> None:
    latents, timestep = torch.randn(3, 4, 2, 2), torch.rand(3)
    condition = Condition(torch.randn(3, 4, 1, 1), torch.randn(3, 4, 1, 1))
    negative = Condition(torch.randn(3, 4, 1, 1), condition.mask)
    away, towards = network(latents, timestep, negative), network(latents, timestep, condition)
    guided = classifier_free(network, condition, negative, 2.5)(latents, timestep)
    torch.testing.assert_close(guided, away + 2.5 * (towards - away))
    torch.testing.assert_close(classifier_free(network, condition, negative, 1.0)(latents, timestep), towards)


def test_off_is_one_pass_bit_equal() -> None:
    latents, timestep = torch.randn(3, 4, 2, 2), torch.rand(3)
    condition = Condition(torch.randn(3, 4, 1, 1), torch.randn(3, 4, 1, 1))
    plain = classifier_free(network, condition, None, 7.0)(latents, timestep)
    assert torch.equal(plain, network(latents, timestep, condition))
