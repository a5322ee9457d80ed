"""What a corrected step costs with each way of asking the critic: seconds and memory, side by side.

A corrected step is one call of CRFM's guide: clean estimate, decode, critic, gradient back to the velocity; without the
second look of `measure_after`. The network's own pass is not in it: it is the same whatever judges.

Seconds: in every round each way makes one step, so that whatever changes on the machine falls on all alike; the median
over the rounds counts, a first round does not. On CUDA they are seconds of the clock, on a CPU seconds of processor
time, all threads together: what other processes take does not count. One thread (``OMP_NUM_THREADS=1``) measures best
there; several that wait for each other on a busy machine take processor time too.

Memory: how far one step goes beyond what is held before it (weights, input). On CUDA by torch's own count
(``max_memory_allocated``). On a CPU each way gets a fresh process that makes one step, gives free memory back to the
system, resets the kernel's mark of its largest resident size (``VmHWM`` of ``/proc/self/status``) and makes a second
step: the figure holds all that this touches, the convolutions' own scratch space too, and nothing that importing,
building or warming up needed. Elsewhere than on Linux there is no such mark; the columns stay empty.

The cost does not depend on the weights' values, so they may be random: what counts is the ratio to the full decode.
"""
import copy
import ctypes
import gc
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from benchmarks.parts import Parts, build_parts, tiny_decoder
from benchmarks.timing import time_in_turn
from mmengine.config import Config

from mmsynth.guidance import CRFM, LatentCritic, ReducedDecoder
from mmsynth.models.encoders import LatentCodec, VAECodec
from mmsynth.sampling import SamplingStep
from mmsynth.utils import isolated_random_state, progress_bar

_MEBIBYTE = 2**20
_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        cfg: A synthesis config, whose codec and critic are used; None for Stable Diffusion 3's layout.
        checkpoint: The generator's weights; None for the config's own, or random ones.
        size: Side of the square images in pixels.
        batch_size: Images corrected together.
        device: Where.
    """

    cfg: Config | None = None
    checkpoint: str | None = None
    size: int = 256
    batch_size: int = 1
    device: str = 'cpu'


@dataclass(frozen=True)
class Cost:
    """What a corrected step takes with one way of asking the critic.

    Attributes:
        seconds: Median over the rounds; of processor time on a CPU.
        mebibytes: Memory beyond what is held before the step; None where it cannot be measured.
    """

    seconds: float
    mebibytes: float | None


Way = Callable[[Parts], tuple[LatentCodec, CRFM]]


def _full(parts: Parts) -> tuple[LatentCodec, CRFM]:
    return parts.codec, CRFM(parts.critic)


def _checkpointed(parts: Parts) -> tuple[LatentCodec, CRFM]:
    if not isinstance(parts.codec, VAECodec):
        raise ValueError(f'{type(parts.codec).__name__} has no gradient checkpointing')
    codec = copy.deepcopy(parts.codec)
    codec.set_gradient_checkpointing(True)
    return codec, CRFM(parts.critic)


def _tiny(parts: Parts) -> tuple[LatentCodec, CRFM]:
    return parts.codec, CRFM(parts.critic, decoder=tiny_decoder(parts.codec))


def _reduced(factor: int) -> Way:
    def build(parts: Parts) -> tuple[LatentCodec, CRFM]:
        if any(side % factor for side in parts.latent_shape[1:]):
            raise ValueError(f'a latent of {parts.latent_shape[1:]} cells cannot be reduced by {factor}')
        return parts.codec, CRFM(parts.critic, decoder=ReducedDecoder(factor))

    return build


def _latent(parts: Parts) -> tuple[LatentCodec, CRFM]:
    codec, critic = parts.codec, parts.critic
    return codec, CRFM(LatentCritic(codec.channels, codec.factor, critic.num_classes, ignore_index=critic.ignore_index))


WAYS: dict[str, Way] = {
    'full decode': _full,
    'full decode, gradient checkpointing': _checkpointed,
    'tiny decoder': _tiny,
    'reduced decode, factor 2': _reduced(2),
    'reduced decode, factor 4': _reduced(4),
    'latent critic': _latent,
}


def benchmark(setting: Setting, *, rounds: int = 5) -> dict[str, Cost]:
    """Measure every way that the setting allows; the full decode stands first.

    Args:
        setting: What is measured.
        rounds: Rounds that count, one step of each way in each.

    Raises:
        ValueError: If ``rounds`` or a size is below 1, or the config's codec and critic cannot be used.
    """
    if min(rounds, setting.size, setting.batch_size) < 1:
        raise ValueError(f'`rounds`, `size` and `batch_size` must be at least 1, got {rounds}, {setting.size} and '
                         f'{setting.batch_size}.')
    steps = _build_steps(setting)
    names = list(steps)
    with progress_bar(total=(rounds + 2) * len(names), unit='step', title='benchmark') as bar:
        seconds = time_in_turn(steps, rounds, setting.device, bar.update)
        if not setting.device.startswith('cuda'):
            steps.clear()  # so that this process and the measured ones need not share the machine's memory
        memory = {}
        for name in names:
            memory[name] = _cuda_memory(steps[name], setting.device) if steps else _memory_of_a_process(setting, name)
            bar.update()
    return {name: Cost(statistics.median(seconds[name]), memory[name]) for name in names}


def table(costs: Mapping[str, Cost]) -> str:
    """The costs as a markdown table with their ratios to the first row."""
    full = next(iter(costs.values()))
    rows = ['| judged through | s per corrected step | of full | MiB | of full |', '|---|---|---|---|---|']
    for name, cost in costs.items():
        memory = ('–', '–') if cost.mebibytes is None or not full.mebibytes else (
            f'{cost.mebibytes:.0f}', f'{cost.mebibytes / full.mebibytes:.2g}')
        rows.append(f'| {name} | {cost.seconds:.3g} | {cost.seconds / full.seconds:.2g} | {" | ".join(memory)} |')
    return '\n'.join(rows)


def _build_steps(setting: Setting, names: Sequence[str] = tuple(WAYS)) -> dict[str, Callable[[], None]]:
    """A function per way that makes one corrected step; ways that the setting does not allow are left out."""
    steps = {}
    with isolated_random_state(0):
        parts = build_parts(setting.cfg, setting.checkpoint, setting.size)
        for name in names:
            try:
                codec, guidance = WAYS[name](parts)
            except ValueError as reason:
                print(f'{name} is left out: {reason}')
                continue
            steps[name] = _step(setting, parts, codec.to(setting.device), guidance.to(setting.device))
    return steps


def _step(setting: Setting, parts: Parts, codec: LatentCodec, guidance: CRFM) -> Callable[[], None]:
    shape = (setting.batch_size, *parts.latent_shape)
    latents, velocity = (torch.randn(shape, device=setting.device) for _ in range(2))
    masks = torch.randint(guidance.critic.num_classes, (setting.batch_size, setting.size, setting.size),
                          device=setting.device)
    guide = guidance.bind(codec.decode, masks)
    where = SamplingStep(0, 2, latents, alpha=0.5, sigma=0.5)

    @torch.no_grad()
    def step() -> None:
        guide(velocity, where)

    return step


def _cuda_memory(step: Callable[[], None], device: str) -> float:
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / _MEBIBYTE


def _memory_of_a_process(setting: Setting, name: str) -> float | None:
    """The memory of one step, measured in a fresh process.

    Raises:
        RuntimeError: If that process ends before it has measured.
    """
    if not _CLEAR.exists():
        return None
    context = multiprocessing.get_context('forkserver')  # the server imports once and computes nothing
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_here, args=(setting, name, torch.get_num_threads(), sender), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError(f'{name}: the process that was to measure the memory ended early; its own message is above, '
                           'if the machine did not run out of memory.') from error
    finally:
        process.join()


def _measure_here(setting: Setting, name: str, threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    step = _build_steps(setting, [name])[name]
    step()  # loads code, fills the caches of the convolution library
    sender.send(resident_growth(step))


def resident_growth(step: Callable[[], None]) -> float | None:
    """How many MiB the resident size of this process rises above its present size at most while ``step`` runs.

    Returns:
        The figure, or None where the kernel keeps no such account.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else free memory that glibc keeps would be used unseen
        _CLEAR.write_text('5')  # the kernel's word for: start the high-water mark again from the present size
    except (AttributeError, OSError):
        return None
    before = _kibibytes('VmRSS')
    step()
    return (_kibibytes('VmHWM') - before) * 1024 / _MEBIBYTE


def _kibibytes(field: str) -> int:
    """A field of the kernel's account of this process."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f'{field}:'))
    return int(line.split()[1])
