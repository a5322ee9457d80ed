"""mmsynth: training-data synthesis for MMSegmentation.

Importing the package checks the host stack and makes the child registries known (so
``custom_imports = dict(imports=['mmsynth'])`` is all that a config needs). Neither torch nor a model is imported: the
public names below are loaded from their modules when first used.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmsynth.host import check_host_stack
from mmsynth.version import __version__

check_host_stack()

from mmsynth import registry  # noqa: E402, F401  (after the gate: it imports mmengine)

if TYPE_CHECKING:
    from mmsynth.datasets.manifest import ManifestDataset
    from mmsynth.datasets.synthetic_augment import SyntheticAugmentDataset
    from mmsynth.engine.hooks.online_synthesis_hook import OnlineSynthesisHook
    from mmsynth.evaluation.class_histogram import ClassHistogram
    from mmsynth.evaluation.frechet_metric import FrechetDistance
    from mmsynth.evaluation.mask_consistency import MaskConsistency
    from mmsynth.evaluation.sibling_diversity import SiblingDiversity
    from mmsynth.filtering.pixel_filter import ClassLossFilter
    from mmsynth.filtering.selection import RareClassSelector
    from mmsynth.guidance.best_of_n import BestOfN
    from mmsynth.guidance.crfm import CRFM
    from mmsynth.guidance.critic import SegmentorCritic
    from mmsynth.guidance.ensemble import CriticEnsemble
    from mmsynth.guidance.latent_critic import LatentCritic
    from mmsynth.models.data_preprocessor import SynthDataPreprocessor
    from mmsynth.models.generators.tisynth import TISynth
    from mmsynth.models.generators.todsynth import TODSynth

_HOMES = {
    'BestOfN': 'mmsynth.guidance.best_of_n',
    'CRFM': 'mmsynth.guidance.crfm',
    'ClassLossFilter': 'mmsynth.filtering.pixel_filter',
    'ClassHistogram': 'mmsynth.evaluation.class_histogram',
    'CriticEnsemble': 'mmsynth.guidance.ensemble',
    'FrechetDistance': 'mmsynth.evaluation.frechet_metric',
    'LatentCritic': 'mmsynth.guidance.latent_critic',
    'ManifestDataset': 'mmsynth.datasets.manifest',
    'MaskConsistency': 'mmsynth.evaluation.mask_consistency',
    'OnlineSynthesisHook': 'mmsynth.engine.hooks.online_synthesis_hook',
    'RareClassSelector': 'mmsynth.filtering.selection',
    'SegmentorCritic': 'mmsynth.guidance.critic',
    'SiblingDiversity': 'mmsynth.evaluation.sibling_diversity',
    'SynthDataPreprocessor': 'mmsynth.models.data_preprocessor',
    'SyntheticAugmentDataset': 'mmsynth.datasets.synthetic_augment',
    'TISynth': 'mmsynth.models.generators.tisynth',
    'TODSynth': 'mmsynth.models.generators.todsynth',
}

__all__ = ['__version__', 'BestOfN', 'CRFM', 'ClassHistogram', 'ClassLossFilter', 'CriticEnsemble', 'FrechetDistance',
           'LatentCritic', 'ManifestDataset', 'MaskConsistency', 'OnlineSynthesisHook', 'RareClassSelector',
           'SegmentorCritic', 'SiblingDiversity', 'SynthDataPreprocessor', 'SyntheticAugmentDataset', 'TISynth',
           'TODSynth']


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(__all__)}')
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
