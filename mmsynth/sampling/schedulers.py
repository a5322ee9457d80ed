"""The diffusers schedulers that sampling goes over, by name: those for predicted noise, and those of flow matching."""
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin

# Of the schedulers for predicted noise those that draw none of their own and ask for one prediction per step.
SAMPLERS = ('DDIMScheduler', 'DPMSolverMultistepScheduler', 'UniPCMultistepScheduler', 'EulerDiscreteScheduler')
# Those of flow matching, by name, and the settings that each takes.
FLOW_SAMPLERS = {
    'FlowMatchEulerDiscreteScheduler': (),
    'FlowMatchHeunDiscreteScheduler': (),
    'DPMSolverMultistepScheduler': ('solver_order', 'solver_type', 'lower_order_final'),
}
# SD1.5's training schedule (LDM, arXiv 2112.10752)
STABLE_DIFFUSION_SCHEDULE = dict(
    beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)
# DDIM as LDM has it: timesteps 1, 21, …, 981 for 50 steps, the last step ends at the noise level of timestep 0
_LDM_DDIM = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing='leading')
# What a predicted noise and a latent without bounds rule out, by option: the values that are left
_FIXED = dict(prediction_type='epsilon', clip_sample=False, thresholding=False, rescale_betas_zero_snr=False,
              use_flow_sigmas=False)


def build_flow_scheduler(settings: Mapping[str, Any] | None = None) -> FlowMatchEulerDiscreteScheduler:
    """Build the diffusers scheduler of a flow-matching model.

    Args:
        settings: Of a ``FlowMatchEulerDiscreteScheduler``; ``shift`` is 3, as in SD3, where it is not given.

    Raises:
        ValueError: If a setting makes sampling random, or asks for what sampling does not give.
        TypeError: If the class does not know a setting.
    """
    settings = dict(shift=3.0) | dict(settings or {})
    _check_flow_settings(settings)
    return FlowMatchEulerDiscreteScheduler(**settings)


def build_flow_sampler(sampler: Mapping[str, Any] | None = None,
                       settings: Mapping[str, Any] | None = None) -> SchedulerMixin:
    """Build the diffusers scheduler that a flow-matching model samples over.

    Args:
        sampler: ``type``, one of :data:`FLOW_SAMPLERS`, and of that class the settings listed there; Euler by default.
            Heun (``FlowMatchHeunDiscreteScheduler``) asks for two predictions in every step but the last.
            DPM-Solver++ (arXiv 2211.01095) reuses those of earlier steps: one per step, of order ``solver_order``.
        settings: Of the model, see :func:`build_flow_scheduler`. Others than Euler know ``shift`` and
            ``num_train_timesteps`` only.

    Raises:
        ValueError: If the type is not one of them, does not take a setting, or diffusers is too old for it.
    """
    own = dict(sampler or dict(type='FlowMatchEulerDiscreteScheduler'))
    scheduler = build_flow_scheduler(settings)
    name = own.pop('type', None)
    if name not in FLOW_SAMPLERS:
        raise ValueError(f'`sampler.type` must be one of {", ".join(FLOW_SAMPLERS)}, got {name!r}: a velocity is '
                         'predicted, and a sampler that draws noise in every step would make a sample depend on its '
                         'batch.')
    unknown = own.keys() - set(FLOW_SAMPLERS[name])
    if unknown:
        takes = ', '.join(FLOW_SAMPLERS[name]) or 'no settings'
        raise ValueError(f'`sampler`: {name} takes {takes} here, got {", ".join(sorted(unknown))}; shift and '
                         'num_train_timesteps are those of `scheduler`.')
    if name == 'FlowMatchEulerDiscreteScheduler':
        return scheduler
    schedule = dict(shift=scheduler.config.shift, num_train_timesteps=scheduler.config.num_train_timesteps)
    ignored = (settings or {}).keys() - schedule.keys()
    if ignored:
        raise ValueError(f'`scheduler`: {", ".join(sorted(ignored))} has no effect on `sampler.type` {name}, which '
                         'knows shift and num_train_timesteps only; leave it out, or sample with '
                         'FlowMatchEulerDiscreteScheduler.')
    if name == 'FlowMatchHeunDiscreteScheduler':
        return diffusers.FlowMatchHeunDiscreteScheduler(**schedule)
    return diffusers.DPMSolverMultistepScheduler(
        prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=schedule['shift'],
        num_train_timesteps=schedule['num_train_timesteps'], **own)


def build_sampler(sampler: Mapping[str, Any] | None = None,
                  schedule: Mapping[str, Any] | None = None) -> SchedulerMixin:
    """Build the diffusers scheduler that sampling goes over.

    Args:
        sampler: ``type``, one of :data:`SAMPLERS`, and that class's own settings; DDIM as in LDM by default.
        schedule: The training schedule, see :func:`complete_schedule`.

    Raises:
        ValueError: If the type is not one of them, or a setting contradicts the training schedule, makes the sampler
            random, or does not go with predicted noise.
        TypeError: If the class does not know a setting.
    """
    settings = dict(sampler or dict(type='DDIMScheduler'))
    schedule = complete_schedule(schedule)
    name = settings.pop('type', None)
    if name not in SAMPLERS:
        raise ValueError(f'`sampler.type` must be one of {", ".join(SAMPLERS)}, got {name!r}: samplers that draw noise '
                         'in every step (ancestral, SDE) would make a sample depend on its batch.')
    _check_settings(settings)
    if name == 'DDIMScheduler':
        settings = _LDM_DDIM | settings
    return getattr(diffusers, name)(**schedule, **settings)


def check_flow_sampler(scheduler: SchedulerMixin) -> None:
    """Raise ValueError unless a flow-matching model can sample over a diffusers scheduler that is built already."""
    name, is_flow = type(scheduler).__name__, scheduler.config.get('use_flow_sigmas', True)
    if name not in FLOW_SAMPLERS or not is_flow:
        raise ValueError(f'`scheduler` must be one of {", ".join(FLOW_SAMPLERS)}, and of flow matching, got {name}'
                         f'{"" if is_flow else " with use_flow_sigmas=False"}: a velocity is predicted, and a sampler '
                         'that draws noise in every step would make a sample depend on its batch.')
    _check_flow_settings(scheduler.config)


def check_sampler(scheduler: SchedulerMixin) -> None:
    """The same for a model that predicts noise."""
    name = type(scheduler).__name__
    if name not in SAMPLERS:
        raise ValueError(f'`scheduler` must be one of {", ".join(SAMPLERS)}, got {name}: samplers that draw noise in '
                         'every step (ancestral, SDE) would make a sample depend on its batch.')
    _check_settings({key: scheduler.config[key] for key in (*_FIXED, 'algorithm_type') if key in scheduler.config})


def complete_schedule(schedule: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a training schedule, Stable Diffusion's where they are not given.

    Args:
        schedule: ``beta_schedule``, ``beta_start``, ``beta_end``, ``num_train_timesteps`` of a ``DDPMScheduler``.

    Raises:
        ValueError: If there is another setting.
    """
    unknown = (schedule or {}).keys() - STABLE_DIFFUSION_SCHEDULE.keys()
    if unknown:
        raise ValueError(f'`scheduler` takes {", ".join(STABLE_DIFFUSION_SCHEDULE)}, got {", ".join(sorted(unknown))}; '
                         'settings of sampling belong in `sampler`.')
    return STABLE_DIFFUSION_SCHEDULE | dict(schedule or {})


def _check_flow_settings(settings: Mapping[str, Any]) -> None:
    if settings.get('stochastic_sampling'):
        raise ValueError('`scheduler.stochastic_sampling` draws noise in every step, so that a sample would depend on '
                         'its batch; leave it out.')
    if settings.get('use_dynamic_shifting'):
        raise ValueError('`scheduler.use_dynamic_shifting` needs a shift for every image size, which this sampler does '
                         'not give; set a fixed `shift`.')


def _check_settings(settings: Mapping[str, Any]) -> None:
    repeated = settings.keys() & {*STABLE_DIFFUSION_SCHEDULE, 'trained_betas'}
    if repeated:
        raise ValueError(f'`sampler` has {", ".join(sorted(repeated))}, which it takes from the training schedule; set '
                         'it in `scheduler`.')
    wrong = {key: settings[key] for key in settings.keys() & _FIXED.keys() if settings[key] != _FIXED[key]}
    if wrong:
        raise ValueError(f'`sampler` must leave {", ".join(f"{key}={_FIXED[key]!r}" for key in sorted(wrong))}, got '
                         f'{wrong}: the network predicts noise, and its latents have no bounds.')
    if str(settings.get('algorithm_type', '')).startswith('sde'):
        raise ValueError(f"`sampler.algorithm_type` {settings['algorithm_type']!r} draws noise in every step, so that "
                         "a sample would depend on its batch; use 'dpmsolver++'.")
