"""Sharded training of a generator: mmengine's strategy for PyTorch's FSDP, with what it lacks under today's torch.

Every process holds a share of the weights, gradients and optimizer states. A block's weights are gathered for the time
that the block runs.
"""
import copy
import logging
import os
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy as HostFSDPStrategy
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMFullyShardedDataParallel
from mmengine.optim import BaseOptimWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from mmsynth.models.backbone import BackboneNotes
from mmsynth.models.lora import plain_name
from mmsynth.registry import STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(HostFSDPStrategy):
    """Shards a generator by the blocks that its network names (``sharded_units``).

    Checkpoints are those of a training without it: whole tensors in one file, without the backbone, LoRA under plain
    names. They hold the optimizer's states by parameter name, and resume with any number of processes. The latent codec
    is not sharded: it is small, frozen, and called outside of the network. Differs from mmengine's: gradients are
    clipped by the norm over all processes, not each process's own, and a training can be resumed under torch >= 2.1.

    Args:
        model_wrapper: Further settings of an ``MMFullyShardedDataParallel``, such as ``sharding_strategy`` or
            ``cpu_offload``. With ``mixed_precision=dict(param_dtype='bfloat16', reduce_dtype='float32')`` weights are
            kept in float32 and gathered in bfloat16, and the model runs under autocast.
        work_dir: As the four others: the runner gives it.
        experiment_name: Name of the run.
        env_kwargs: Launcher, seed and the like.
        log_kwargs: Of the logger.
        auto_scale_lr: Scaling of the learning rate by the batch size.

    Raises:
        ValueError: If the model has no network that can be sharded, or one of several dtypes.
    """

    def __init__(self,
                 *,
                 model_wrapper: dict | None = None,
                 work_dir: str = 'work_dirs',
                 experiment_name: str | None = None,
                 env_kwargs: dict | None = None,
                 log_kwargs: dict | None = None,
                 auto_scale_lr: dict | None = None) -> None:
        super().__init__(
            model_wrapper=model_wrapper,
            state_dict_cfg='full',
            work_dir=work_dir,
            experiment_name=experiment_name,
            env_kwargs=env_kwargs,
            log_kwargs=log_kwargs,
            auto_scale_lr=auto_scale_lr)

    def _wrap_model(self, model: nn.Module) -> MMFullyShardedDataParallel:
        network = getattr(model, 'network', None)
        units = getattr(network, 'sharded_units', None)
        if network is None or units is None:
            name = type(model if network is None else network).__name__
            raise ValueError(f"`strategy`: {name} cannot be sharded, it names no `sharded_units`; take mmengine's "
                             "dict(type='DDPStrategy').")
        dtypes = {str(parameter.dtype).removeprefix('torch.') for parameter in network.parameters()}
        if len(dtypes) > 1:
            raise ValueError(f'`model.dtype`: FSDP shards weights of one dtype, this network has {sorted(dtypes)}, as '
                             'frozen weights are held in the dtype that is named. Leave `model.dtype` out; the '
                             "strategy's `model_wrapper.mixed_precision` names what weights are gathered in.")
        device = torch.device(get_device())
        if device.type != 'cpu':
            device = torch.device(device.type, int(os.environ['LOCAL_RANK']))
        for part in (model.data_preprocessor, model.latent_codec):
            part.to(device)
        self._backbone = BackboneNotes(model)
        self._own_names = {plain_name(name): name for name, _ in model.named_parameters()}  # by those in files
        # to the CPU: from another device only, as FSDP frees what it has moved
        on_first_rank = dict(rank0_only=True, offload_to_cpu=device.type != 'cpu')
        with warnings.catch_warnings():
            # a block's text layers are frozen: their gradients' memory is counted in docs/en/scaling.md
            warnings.filterwarnings('ignore', message='.*has both parameters with requires_grad=True and False')
            warnings.filterwarnings('ignore', message='FSDP.state_dict_type')
            wrapped = ShardedGenerator(
                model,
                auto_wrap_policy=ModuleWrapPolicy(units),
                ignored_modules=[model.latent_codec],
                device_id=device,
                **_settings(self.model_wrapper))
            wrapped.set_state_dict_type(wrapped, self.state_dict_type, FullStateDictConfig(**on_first_rank),
                                        FullOptimStateDictConfig(**on_first_rank))
        return wrapped

    def build_optim_wrapper(self, optim_wrapper: dict, model: nn.Module | None = None) -> BaseOptimWrapper:
        """As the host's; its norm of gradients is that over all processes."""
        built = super().build_optim_wrapper(optim_wrapper, model)
        if built.clip_grad_kwargs and built.clip_func is nn.utils.clip_grad_norm_:
            assert isinstance(model, FullyShardedDataParallel)
            built._clip_grad = partial(_clip_grad_norm, built, model)
        return built

    def model_state_dict(self) -> dict[str, Tensor]:
        """The whole model's tensors as a checkpoint holds them, on rank 0."""
        state = self.model.state_dict()
        if self.rank != 0:
            return {}
        state = {plain_name(name): tensor for name, tensor in state.items()}
        self._backbone.leave_out(state)
        return state

    def load_model_state_dict(self, state_dict: dict[str, Tensor], *, strict: bool = False,
                              revise_keys: list | None = None) -> None:
        """Load a whole model's tensors, of which every process takes its share; what does not fit is logged.

        Raises:
            ValueError: If they were trained on another backbone.
        """
        del revise_keys
        state = dict(state_dict)
        left_out = self._backbone.check(state)
        state = {self._own_names.get(name, name): tensor for name, tensor in state.items()}
        missing, unexpected = self.model.load_state_dict(state, strict=strict)
        missing = sorted({plain_name(name) for name in missing} - left_out)
        if missing or unexpected:
            print_log(f'the checkpoint does not fit the model: missing in it: {", ".join(missing) or "nothing"}; '
                      f'unexpected: {", ".join(unexpected) or "nothing"}', 'current', logging.WARNING)

    def optim_state_dict(self) -> dict[str, Any]:
        """The optimizer's whole states by parameter name, on rank 0."""
        return FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer)

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load whole states, of which every process takes its share."""
        optimizer = self.optim_wrapper.optimizer
        # differs from mmengine's: the order of arguments that torch has had since 2.1
        optimizer.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict))


class ShardedGenerator(MMFullyShardedDataParallel):
    """mmengine's wrapper; with weights gathered in another dtype the model runs under autocast to that."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As FSDP's."""
        dtype = self.mixed_precision.param_dtype
        with torch.autocast(self.compute_device.type, dtype=dtype) if dtype else nullcontext():
            return super().forward(*args, **kwargs)


def _settings(model_wrapper: dict | None) -> dict[str, Any]:
    settings = copy.deepcopy(model_wrapper or {})
    if settings.get('mixed_precision') is not None:  # inputs are autocast's affair: the codec takes float32 images
        settings['mixed_precision'] = dict(
            cast_forward_inputs=False, cast_root_forward_inputs=False, **settings['mixed_precision'])
    return settings


def _clip_grad_norm(optim_wrapper: BaseOptimWrapper, model: FullyShardedDataParallel) -> None:
    norm = model.clip_grad_norm_(**optim_wrapper.clip_grad_kwargs)
    optim_wrapper.message_hub.update_scalar(f'train/{optim_wrapper.grad_name}', float(norm))
