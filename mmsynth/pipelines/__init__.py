"""diffusers pipelines over the same networks, codecs, schedulers and sampling as mmseg's way to a pool."""
from mmsynth.pipelines.base import SynthPipelineOutput
from mmsynth.pipelines.tisynth import TISynthPipeline
from mmsynth.pipelines.todsynth import TODSynthPipeline

__all__ = ['SynthPipelineOutput', 'TISynthPipeline', 'TODSynthPipeline']
