"""A process group of gloo for a config's ``custom_imports``: mmengine's launchers take a GPU for each process.

The ranks are torchrun's or Slurm's; they meet in the file that ``MMSYNTH_TEST_STORE`` names.
"""
import atexit
import os

import torch.distributed as dist

rank = os.environ.get('RANK') or os.environ['SLURM_PROCID']
world = os.environ.get('WORLD_SIZE') or os.environ['SLURM_NTASKS']
os.environ.setdefault('LOCAL_RANK', rank)
dist.init_process_group('gloo', init_method=f'file://{os.environ["MMSYNTH_TEST_STORE"]}', rank=int(rank),
                        world_size=int(world))
# A process that ends with gloo's threads running may abort
atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
