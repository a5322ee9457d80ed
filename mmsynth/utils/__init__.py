"""Small helpers with no home of their own; they import nothing from the rest of the package."""
from mmsynth.utils.checkpoint import LoadReport, load_state_dict, read_checkpoint
from mmsynth.utils.progress import progress_bar
from mmsynth.utils.random_state import isolated_random_state
from mmsynth.utils.seeds import derive_seed, seeded_noise

__all__ = [
    'LoadReport', 'derive_seed', 'isolated_random_state', 'load_state_dict', 'progress_bar', 'read_checkpoint',
    'seeded_noise'
]
