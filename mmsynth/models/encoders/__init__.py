"""Encoders: what turns images into latents and prompts into embeddings."""
from mmsynth.models.encoders.autoencoder_codec import AutoencoderCodec
from mmsynth.models.encoders.clip_text_encoder import CLIPTextEncoder
from mmsynth.models.encoders.latent_cache import LatentCache, image_keys
from mmsynth.models.encoders.latent_codecs import LatentCodec, PatchPCACodec, VAECodec
from mmsynth.models.encoders.prompt_cache import CachedTextEncoder, PromptCache
from mmsynth.models.encoders.text_encoders import ClassNameEmbedding, SD3TextEncoder, TextEmbeds, TextEncoder

__all__ = [
    'AutoencoderCodec', 'CLIPTextEncoder', 'CachedTextEncoder', 'ClassNameEmbedding', 'LatentCache', 'LatentCodec',
    'PatchPCACodec', 'PromptCache', 'SD3TextEncoder', 'TextEmbeds', 'TextEncoder', 'VAECodec', 'image_keys'
]
