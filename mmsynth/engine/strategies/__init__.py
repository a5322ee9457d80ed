"""How the host's FlexibleRunner spreads a training over processes."""
from mmsynth.engine.strategies.fsdp import FSDPStrategy

__all__ = ['FSDPStrategy']
