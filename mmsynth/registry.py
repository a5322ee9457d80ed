"""Child registries of mmengine's, so that configs reach this package as ``type='mmsynth.NAME'``.

Each registry names the modules that fill it (``locations``): mmengine imports them when a name is first looked up,
so ``import mmsynth`` alone stays cheap.
"""
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

SCOPE = 'mmsynth'

DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope=SCOPE, locations=['mmsynth.datasets'])
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, scope=SCOPE, locations=['mmsynth.datasets'])
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope=SCOPE, locations=['mmsynth.datasets.transforms'])
MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope=SCOPE,
    locations=['mmsynth.models', 'mmsynth.guidance', 'mmsynth.filtering'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope=SCOPE, locations=['mmsynth.engine.hooks'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope=SCOPE, locations=['mmsynth.evaluation'])
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope=SCOPE, locations=['mmsynth.engine.strategies'])
