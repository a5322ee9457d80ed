"""Networks, built from diffusers' modules; they import nothing of the package but the registry."""
from mmsynth.models.networks.control_block import ControlBlock
from mmsynth.models.networks.mask_adapter import MaskAdapter
from mmsynth.models.networks.mask_stream import MaskStream
from mmsynth.models.networks.mmdit import CONTROLS, MMDiT
from mmsynth.models.networks.siamese_attention import SiameseAttention
from mmsynth.models.networks.triple_attention import TripleAttention

__all__ = ['CONTROLS', 'ControlBlock', 'MMDiT', 'MaskAdapter', 'MaskStream', 'SiameseAttention', 'TripleAttention']
