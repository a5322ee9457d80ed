"""Networks, built from diffusers' modules; they import nothing of the package but the registry."""
from mmsynth.models.networks.all_in_attention import AllInAttention
from mmsynth.models.networks.control_block import ControlBlock
from mmsynth.models.networks.control_branch import ControlBranch
from mmsynth.models.networks.controlled_unet import UNET_BRANCHES, ControlledUNet
from mmsynth.models.networks.diffusers_controlnet import SD3ControlNet, UNetControlNet
from mmsynth.models.networks.mask_adapter import MaskAdapter
from mmsynth.models.networks.mask_stream import MaskStream
from mmsynth.models.networks.mmdit import CONTROLS, MMDiT
from mmsynth.models.networks.siamese_attention import SiameseAttention
from mmsynth.models.networks.triple_attention import TripleAttention

__all__ = ['CONTROLS', 'UNET_BRANCHES', 'AllInAttention', 'ControlBlock', 'ControlBranch', 'ControlledUNet', 'MMDiT',
           'MaskAdapter', 'MaskStream', 'SD3ControlNet', 'SiameseAttention', 'TripleAttention', 'UNetControlNet']
