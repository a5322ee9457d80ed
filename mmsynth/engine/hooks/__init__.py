"""Hooks of the mmengine runner."""
from mmsynth.engine.hooks.fit_latent_codec_hook import FitLatentCodecHook
from mmsynth.engine.hooks.num_threads_hook import NumThreadsHook
from mmsynth.engine.hooks.online_synthesis_hook import OnlineSynthesisHook
from mmsynth.engine.hooks.preview_hook import PreviewHook
from mmsynth.engine.hooks.progress_bar_hook import ProgressBarHook
from mmsynth.engine.hooks.resume_check_hook import ResumeCheckHook

__all__ = ['FitLatentCodecHook', 'NumThreadsHook', 'OnlineSynthesisHook', 'PreviewHook', 'ProgressBarHook',
           'ResumeCheckHook']
