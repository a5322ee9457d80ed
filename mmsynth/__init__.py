"""mmsynth: training-data synthesis for MMSegmentation.

``custom_imports = dict(imports=['mmsynth'])`` is all that a config needs. Importing the package checks the host stack,
fills mmseg's registries and adds its own; from then on mmengine reads checkpoints as data (docs/en/safety.md).
The public names are loaded from their modules when first used, because they bring diffusers and the networks.
"""
from importlib import import_module
from typing import Any

from mmsynth.gate import check_host_stack
from mmsynth.version import __version__

check_host_stack()

from mmsynth import host, registry  # noqa: E402, F401  (after the gate: they import what it checks)

host.register_mmseg()
host.load_checkpoints_as_data()
host.find_torn_checkpoints()

_PUBLIC = dict(
    BestOfN='mmsynth.guidance',
    ClassColorSpread='mmsynth.evaluation',
    ClassHistogram='mmsynth.evaluation',
    ClassLossFilter='mmsynth.filtering',
    CRFM='mmsynth.guidance',
    CriticEnsemble='mmsynth.guidance',
    FrechetDistance='mmsynth.evaluation',
    LatentCritic='mmsynth.guidance',
    ManifestDataset='mmsynth.datasets',
    MaskConsistency='mmsynth.evaluation',
    ModuleCritic='mmsynth.guidance',
    OnlineSynthesisHook='mmsynth.engine.hooks',
    RareClassSelector='mmsynth.filtering',
    SegmentorCritic='mmsynth.guidance',
    SiblingDiversity='mmsynth.evaluation',
    SynthDataPreprocessor='mmsynth.models',
    SyntheticAugmentDataset='mmsynth.datasets',
    TISynth='mmsynth.models',
    TODSynth='mmsynth.models',
    TransformersCritic='mmsynth.guidance',
)

__all__ = ['__version__', *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Load a public name from its package on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(__all__)}')
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
