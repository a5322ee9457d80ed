"""Networks, built from diffusers' modules; they import nothing of the package but the registry."""
from mmsynth.models.networks.mmdit import MMDiT
from mmsynth.models.networks.triple_attention import MaskStream, triple_block

__all__ = ['MMDiT', 'MaskStream', 'triple_block']
