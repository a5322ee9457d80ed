"""Small helpers with no home of their own; they import nothing from the rest of the package."""
from mmsynth.utils.seeds import derive_seed, seeded_noise

__all__ = ['derive_seed', 'seeded_noise']
