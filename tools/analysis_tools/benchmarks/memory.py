"""How much memory a computation needs, by running it on tensors without values (torch's fake tensors).

Counted are the storages that live at the same time: weights, gradients, optimizer states, what autograd keeps, and what
a layer has in hand. An allocator adds what it cannot use, and a device its context and the workspaces of libraries.
"""
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.parts import SD3_VAE, SEGMENTOR
from benchmarks.shapes import SD35_MEDIUM
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from mmsynth.guidance import CRFM, SegmentorCritic
from mmsynth.models.encoders import VAECodec
from mmsynth.models.lora import LoRASettings, add_lora
from mmsynth.models.networks import MMDiT, control_block

TOKENS = 77 + 256  # of the prompt: CLIP's and, at `max_sequence_length=256`, T5's
EIGHT_BIT = 2 + 2 * 4 / 256  # bytes per parameter of two moments, each with a float32 scale per 256 values
GIB = 2**30


class PeakMemory(TorchDispatchMode):
    """The bytes of all storages that live while this is on, now and at most; those given are counted from the start."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._living: dict[int, weakref.ref] = {}
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(self, function: Callable, types: Sequence[type], args: tuple = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._living:
            self._living[key] = weakref.ref(storage, partial(self._release, key, size))
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _release(self, key: int, size: int, reference: weakref.ref) -> None:
        del reference
        del self._living[key]
        self.now -= size


@dataclass(frozen=True)
class Training:
    """What one card needs to train the network, in bytes; the latent codec among the weights.

    Attributes:
        parameters: Count of the network's parameters.
        trainable: Count of those that train.
        weights: Of all parameters and buffers.
        buffers: Of the buffers among them: two tables of positions.
        gradients: Of all that trains.
        optimizer: The optimizer's states.
        units: Parameters of each block with its control block, which FSDP gathers together; the rest comes last.
        activations: Most that lives beside the weights in both passes, without gradients and copies of weights.
        forward: Most that lives during the forward pass beside weights and, from the second step on, optimizer states.
        backward: Most beside these during the backward pass: gradients so far, and what autograd keeps.
        step: Most beside these during the optimizer's step: gradients, and what the step has in hand.
    """

    parameters: int
    trainable: int
    weights: int
    buffers: int
    gradients: int
    optimizer: int
    units: tuple[int, ...]
    activations: int
    forward: int
    backward: int
    step: int

    @property
    def peak(self) -> int:
        return self.weights + self.optimizer + max(self.forward, self.backward, self.step)


def build_network(settings: Mapping[str, Any], trainable: str, rank: int = 16) -> MMDiT:
    """SD3.5's network with a mask stream; image and mask branch 'full' or 'lora', the text branch frozen."""
    network = MMDiT(trunk=dict(settings), gradient_checkpointing=True)
    if trainable == 'lora':
        add_lora(network, ['image', 'mask'], LoRASettings(rank=rank))
    for branch in ('image', 'mask', 'text'):
        for name, parameter in network.branch_parameters(branch).items():
            parameter.requires_grad_(branch != 'text' and (trainable == 'full' or 'lora_' in name))
    return network


def network_inputs(settings: Mapping[str, Any], size: int, batch: int, device: str = 'cpu') -> list[Tensor]:
    """What :class:`MMDiT` takes: latents, timesteps, prompt and pooled prompt embeddings, mask latents."""
    latents = torch.randn(batch, settings['in_channels'], size // 8, size // 8, device=device)
    return [latents, torch.rand(batch, device=device) * 1000,
            torch.randn(batch, TOKENS, settings['joint_attention_dim'], device=device),
            torch.randn(batch, settings['pooled_projection_dim'], device=device), latents.clone()]


def train_step(network: MMDiT, inputs: Sequence[Tensor], *, cache_enabled: bool = True) -> Tensor:
    """The forward pass of the flow-matching loss under bfloat16 autocast, as the released recipe has it.

    Args:
        network: The network.
        inputs: Of :func:`network_inputs`.
        cache_enabled: Whether the copies that autocast makes of trained weights live as long as the pass. Under FSDP
            there are none: the weights of a block are views of what was gathered.
    """
    with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16, cache_enabled=cache_enabled):
        velocity = network(*inputs)
    return (velocity.float() - inputs[0]).square().mean()


@contextmanager
def attention_of_a_card() -> Iterator[None]:
    """Attend as a GPU does, in the dtype of the autocast; on a CPU the network trains its attention in float32."""
    own = control_block._attend
    control_block._attend = F.scaled_dot_product_attention
    try:
        yield
    finally:
        control_block._attend = own


def count_training(trainable: str, *, batch: int, size: int = 512, settings: Mapping[str, Any] = SD35_MEDIUM,
                   vae: Mapping[str, Any] = SD3_VAE) -> Training:
    """Count two training steps by AdamW; float32 weights, bfloat16 autocast, gradient checkpointing.

    Args:
        trainable: 'full' or 'lora'.
        batch: Images per card.
        size: Side of the images in pixels.
        settings: Of the ``SD3Transformer2DModel``.
        vae: Of the ``AutoencoderKL``, whose weights are there all the time.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = _without_values(lambda: build_network(settings, trainable))
        codec = _without_values(lambda: VAECodec(config=dict(vae)))
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=False)
        held = [*network.parameters(), *network.buffers(), *codec.parameters()]
        peaks = {}
        with PeakMemory(held) as memory, attention_of_a_card():
            weights, inputs = memory.now, network_inputs(settings, size, batch)
            dropping = [parameter.register_post_accumulate_grad_hook(_drop_gradient) for parameter in trained]
            train_step(network, inputs, cache_enabled=False).backward()
            peaks['activations'] = memory.peak - weights
            for handle in dropping:
                handle.remove()
            for _ in range(2):  # the first makes the optimizer's states
                start = memory.now
                for phase in ('forward', 'backward', 'step'):
                    memory.restart()
                    if phase == 'forward':
                        loss = train_step(network, inputs)
                    elif phase == 'backward':
                        loss.backward()
                    else:
                        optimizer.step()
                    peaks[phase] = memory.peak - start
                optimizer.zero_grad()
        states = sum(_size(value) for state in optimizer.state.values() for value in state.values())
        blocks = [_count(block.parameters()) + _count(control.parameters())
                  for block, control in zip(network.trunk.transformer_blocks, network.mask_blocks)]
        total = _count(network.parameters())
        return Training(
            parameters=total, trainable=_count(trained), weights=weights,
            buffers=sum(map(_size, network.buffers())), gradients=sum(map(_size, trained)), optimizer=states,
            units=(*blocks, total - sum(blocks)), **peaks)


@dataclass(frozen=True)
class Synthesis:
    """What one card needs to generate under CRFM, in bytes.

    Attributes:
        weights: Of network, codec and critic with their buffers.
        network: Most beside these while the network predicts.
        guidance: Most beside these while the critic looks through the decoder and the gradient comes back.
    """

    weights: int
    network: int
    guidance: int

    @property
    def peak(self) -> int:
        return self.weights + max(self.network, self.guidance)


def count_synthesis(dtype: torch.dtype, *, checkpointed_decoder: bool, batch: int = 1, size: int = 512,
                    settings: Mapping[str, Any] = SD35_MEDIUM, vae: Mapping[str, Any] = SD3_VAE) -> Synthesis:
    """Count a step of sampling that CRFM corrects by a DeepLabV3+ (ResNet-50).

    Args:
        dtype: Of the network and the codec; the critic is float32.
        checkpointed_decoder: ``gradient_checkpointing`` of the codec.
        batch: Images generated together.
        size: Side of the images in pixels.
        settings: Of the ``SD3Transformer2DModel``.
        vae: Of the ``AutoencoderKL``.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = _without_values(lambda: MMDiT(trunk=dict(settings)).requires_grad_(False), dtype)
        codec = _without_values(lambda: VAECodec(config=dict(vae), gradient_checkpointing=checkpointed_decoder), dtype)
        guidance = CRFM(SegmentorCritic(dict(model=SEGMENTOR)))
        parts = nn.ModuleList([network, codec, guidance])
        inputs = network_inputs(settings, size, batch)
        masks = torch.zeros(batch, size, size, dtype=torch.long)
        with PeakMemory([*parts.parameters(), *parts.buffers()]) as memory:
            weights = memory.now
            with torch.no_grad():
                velocity = network(*(value.to(dtype) for value in inputs))
            peak = memory.peak - weights
            memory.restart()
            clean = (inputs[0] - velocity.float()).requires_grad_()
            loss = guidance.judge(clean, lambda latents: codec.decode(latents.to(dtype)).float(), masks).loss
            torch.autograd.grad(loss.sum(), clean)
            return Synthesis(weights, peak, memory.peak - weights)


def shard(training: Training, cards: int, *, gathered: int, optimizer_bytes: float = 8) -> dict[str, float]:
    """What a card needs under FSDP, by arithmetic on what was counted for one card.

    A card keeps its share of float32 weights, gradients (of whole units, frozen parts as well) and optimizer states;
    the position tables and the codec; the root's weights while a step lasts; and the weights of two blocks, the one
    that runs and the next one, with the gradient of one.

    Args:
        training: Of :func:`count_training`.
        cards: Number of cards.
        gathered: Bytes of a gathered weight and its gradient: 4, or 2 with ``mixed_precision`` in bfloat16.
        optimizer_bytes: Per trained parameter: 8 for AdamW, 2.03 f.

    Returns:
        Bytes by what they are for.
    """
    *blocks, root = training.units
    beside = training.weights - 4 * training.parameters
    share = dict(
        weights=4 * training.parameters / cards, gradients=4 * training.parameters / cards,
        optimizer=optimizer_bytes * training.trainable / cards, tables_and_codec=beside)
    share['gathered'] = gathered * (3 * max(blocks) + 2 * root)
    share['activations'] = training.activations
    return share


def count_flops(*, size: int = 512, settings: Mapping[str, Any] = SD35_MEDIUM,
                vae: Mapping[str, Any] = SD3_VAE) -> dict[str, float]:
    """Operations for one image: a pass of the network, a decode, a correction through decoder and critic."""
    with torch.device('meta'):  # not fake tensors of the CPU, whose attention torch does not count
        network = MMDiT(trunk=dict(settings)).requires_grad_(False).to('meta')
        codec, guidance = VAECodec(config=dict(vae)), CRFM(SegmentorCritic(dict(model=SEGMENTOR)))
    inputs = network_inputs(settings, size, 1, 'meta')
    masks = torch.zeros(1, size, size, dtype=torch.long, device='meta')
    flops = {}
    for part in ('network', 'decode', 'correction'):
        with FlopCounterMode(display=False) as counter:
            if part == 'network':
                network(*inputs)
            elif part == 'decode':
                codec.decode(inputs[0])
            else:
                clean = inputs[0].clone().requires_grad_()
                torch.autograd.grad(guidance.judge(clean, codec.decode, masks).loss.sum(), clean)
        flops[part] = float(counter.get_total_flops())
    return flops


def report(*, size: int, batch: int, cards: int, settings: Mapping[str, Any] = SD35_MEDIUM,
           vae: Mapping[str, Any] = SD3_VAE) -> str:
    """Markdown: training on one card, sharded training, synthesis, and operations per image."""
    options = dict(size=size, settings=settings, vae=vae)
    trainings = {name: count_training(name, batch=batch, **options) for name in ('lora', 'full')}
    full = trainings['full']
    lines = [f'{full.parameters:,} parameters, {full.trainable:,} of them trained (text frozen); '
             f'LoRA of rank 16: {trainings["lora"].trainable:,}. {size} x {size} pixels, {batch} per card; GiB.', '']
    rows = [[name, one.weights, one.optimizer, one.gradients, one.activations, one.forward, one.backward, one.step,
             one.peak] for name, one in trainings.items()]
    lines += markdown_table(['training, one card', 'weights, tables, codec', 'optimizer', 'gradients', 'activations',
                             'forward', 'backward', 'step', 'peak'], rows)
    rows = []
    for name, gathered, states in (('float32 gathered, AdamW', 4, 8), ('bfloat16 gathered, AdamW', 2, 8),
                                   ('bfloat16 gathered, 8-bit AdamW', 2, EIGHT_BIT)):
        share = shard(full, cards, gathered=gathered, optimizer_bytes=states)
        rows.append([name, *share.values(), sum(share.values())])
    parts = [part.replace('_', ' ') for part in share]
    lines += markdown_table([f'full training, FSDP over {cards}', *parts, 'sum'], rows)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for checkpointed in (False, True):
            one = count_synthesis(dtype, checkpointed_decoder=checkpointed, **options)
            name = str(dtype).removeprefix('torch.') + (', gradient_checkpointing of the codec' if checkpointed else '')
            rows.append([name, one.weights, one.network, one.guidance, one.peak])
    lines += markdown_table(['synthesis with CRFM, batch 1', 'weights', 'network', 'correction', 'peak'], rows)
    flops = count_flops(**options)
    lines += ['Operations for one image: ' + ', '.join(
        f'{part} {count / 1e12:.2f} TFLOP' for part, count in flops.items()) + '.']
    return '\n'.join(lines)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table, bytes as GiB, with an empty one at the end."""
    cells = [[value if isinstance(value, str) else f'{value / GIB:.2f}' for value in row] for row in rows]
    return [f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *cells)] + ['']


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _without_values(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a module with fake tensors of a dtype; it is built on torch's meta device, as fake ones cannot be moved."""
    with unset_fake_temporarily(), torch.device('meta'):
        module = build()
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            fake = torch.empty(value.shape, dtype=dtype)
            setattr(part, name, nn.Parameter(fake, requires_grad=value.requires_grad))
        for name, value in part.named_buffers(recurse=False):
            part._buffers[name] = torch.empty(value.shape, dtype=dtype if value.is_floating_point() else value.dtype)
    return module


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
