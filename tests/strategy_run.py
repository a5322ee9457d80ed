"""One process of a sharded training of the tiny TODSynth, by NCCL where each has a card, else by gloo on the CPU.

``python strategy_run.py RANK WORLD FOLDER BACKBONE CASE...`` trains every case and writes what it found to
``FOLDER/CASE_RANK.pth``. :func:`reference` is the same training in one process, by PyTorch alone.
"""
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from mmengine.logging import MessageHub
from mmengine.registry import STRATEGIES
from tiny_generator import images, pretrained_config, samples

from mmsynth.models import TODSynth
from mmsynth.models.generators import training_randomness
from mmsynth.registry import MODELS

WORLD, STEPS, MAX_NORM, LEARNING_RATE, SEED = 2, 3, 0.02, 1e-3, 3
HALF = dict(param_dtype='bfloat16', reduce_dtype='float32')
LORA = dict(trainable=dict(image='lora', mask='lora'), lora=dict(rank=2))
CASES = {  # settings of the generator
    'fsdp': {},
    'fsdp_lora': dict(LORA, checkpointing=True),
    'fsdp_bfloat16': {},
}


def build(case: str, backbone: Path) -> TODSynth:
    """The generator of a case, with weights that depend on nothing else."""
    changes = dict(CASES[case])
    checkpointing = changes.pop('checkpointing', False)
    torch.manual_seed(0)
    model = MODELS.build(pretrained_config(backbone, prompt_dropout=0.5, **changes))
    model.network.gradient_checkpointing = checkpointing
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def batch(rank: int) -> dict[str, Any]:
    """A rank's share of four labelled images, as a data loader gives it: (3, 16, 16), uint8, BGR."""
    rows = slice(2 * rank, 2 * rank + 2)
    pixels = ((images() + 1) * 127.5).round().to(torch.uint8)
    return dict(inputs=list(pixels[rows]), data_samples=samples()[rows])


def begin_iteration(iteration: int) -> None:
    """What the host's hooks tell of a training."""
    hub = MessageHub.get_current_instance()
    for key, value in dict(loop_stage='train', seed=SEED, iter=iteration).items():
        hub.update_info(key, value)


def optim_wrapper() -> dict[str, Any]:
    return dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=LEARNING_RATE), clip_grad=dict(max_norm=MAX_NORM))


def reference(case: str, backbone: Path, steps: int = STEPS) -> tuple[list[list[float]], TODSynth, list[float]]:
    """Losses of each step and rank, model and norms of gradients of one process that runs the batches of all ranks."""
    model = build(case, backbone)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses, norms, rngs = [], [], [training_randomness.TrainingRandomness() for _ in range(WORLD)]
    own = training_randomness.get_rank
    for iteration in range(steps):
        begin_iteration(iteration)
        losses.append([])
        for rank in range(WORLD):
            training_randomness.get_rank, model._training_rng = (lambda rank=rank: rank), rngs[rank]
            loss = model(**model.data_preprocessor(batch(rank), training=True), mode='loss')['loss_velocity']
            (loss / WORLD).backward()
            losses[-1].append(float(loss))
        training_randomness.get_rank = own
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
        optimizer.step()
        optimizer.zero_grad()
    MessageHub.get_current_instance().pop_info('loop_stage')
    return losses, model, norms


def prepare(case: str, backbone: Path, folder: Path) -> Any:
    strategy = STRATEGIES.build(dict(
        type='mmsynth.FSDPStrategy',
        model_wrapper=dict(mixed_precision=HALF) if case.endswith('bfloat16') else None,
        work_dir=str(folder / case),
        env_kwargs=dict(launcher='pytorch', randomness=dict(seed=SEED)),
        log_kwargs=dict(log_level='WARNING')))
    strategy.prepare(build(case, backbone), optim_wrapper=optim_wrapper())
    return strategy


def train(strategy: Any, first: int, last: int) -> tuple[list[float], list[float]]:
    losses, norms = [], []
    for iteration in range(first, last):
        begin_iteration(iteration)
        losses.append(float(strategy.model.train_step(batch(strategy.rank), strategy.optim_wrapper)['loss_velocity']))
        norms.append(float(strategy.optim_wrapper.message_hub.get_scalar('train/grad_norm').current()))
    return losses, norms


def read(folder: Path, case: str, rank: int) -> dict[str, Any]:
    """What a process has found in a case."""
    return torch.load(folder / f'{case}_{rank}.pth', weights_only=True)


def main(rank: int, world: int, folder: Path, backbone: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    from mmseg.utils import register_all_modules
    register_all_modules()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    nccl = torch.cuda.device_count() >= world
    if nccl:
        torch.cuda.set_device(rank)
    dist.init_process_group('nccl' if nccl else 'gloo', init_method=f'file://{folder}/store', rank=rank,
                            world_size=world)
    for case in cases:
        strategy = prepare(case, backbone, folder)
        losses, norms = train(strategy, 0, STEPS)
        held = sum(value.numel() for value in strategy.model.parameters())
        half, end = str(folder / f'{case}_half.pth'), str(folder / f'{case}_end.pth')
        strategy.save_checkpoint(end, extra_ckpt=dict(meta=dict(iter=STEPS), message_hub={}))
        found = dict(losses=losses, norms=norms, held=held)
        again = prepare(case, backbone, folder)
        train(again, 0, 2)
        again.save_checkpoint(half, extra_ckpt=dict(meta=dict(iter=2), message_hub={}))
        resumed = prepare(case, backbone, folder)
        resumed.resume(half, map_location='cpu')
        found['resumed'] = train(resumed, 2, STEPS)[0]
        resumed.save_checkpoint(str(folder / f'{case}_resumed.pth'),
                                extra_ckpt=dict(meta=dict(iter=STEPS), message_hub={}))
        strategy.model.eval()
        drawn = samples(2)
        for seed, sample in enumerate(drawn):
            sample.set_metainfo(dict(seed=seed))
        with torch.no_grad():
            drawn = strategy.model(None, drawn, mode='predict')
        found['images'] = torch.stack([sample.generated_img.data.cpu() for sample in drawn])
        torch.save(found, folder / f'{case}_{rank}.pth')


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
