"""The text encoder of Stable Diffusion 1.5: CLIP ViT-L/14, its last hidden state.

Legend: B prompts, N tokens, D width of a token.
"""
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mmsynth.models.encoders.text_encoders import (
    DTYPES,
    TextEmbeds,
    TextEncoder,
    as_prompt_list,
    check_folder,
    check_source,
    fingerprint,
)
from mmsynth.registry import MODELS

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


@MODELS.register_module()
class CLIPTextEncoder(TextEncoder):
    """Stable Diffusion 1.5's CLIP text model, loaded by transformers; frozen.

    A prompt becomes N = 77 tokens, the last hidden state after the final norm (no layer skipped, as in SD1.5); the
    pooled embedding is the end token's. Run it once per prompt (``tools/encode_prompts.py``) and train from the cache,
    or let it encode while training: 123 M parameters.

    Args:
        pretrained: A folder or hub id in the diffusers layout, of which ``text_encoder`` and ``tokenizer`` are loaded.
        dtype: 'float32' or 'bfloat16', of weights and embeddings.
        built: The two, loaded already, in the place of ``pretrained``; they keep their dtype.

    Raises:
        ValueError: If not exactly one of pretrained and built is given, an option is out of range, the folder or a part
            of it is missing, or transformers cannot load it.
    """

    def __init__(self, pretrained: str | None = None, dtype: str = 'float32', *,
                 built: 'tuple[CLIPTextModel, CLIPTokenizer] | None' = None) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f'`dtype` must be one of {", ".join(DTYPES)}, got {dtype!r}.')
        check_source(pretrained, built)
        if built is None:
            assert pretrained is not None
            built = _load(pretrained, DTYPES[dtype])
        self.text_encoder, self.tokenizer = built
        self.dtype = self.text_encoder.dtype
        self.requires_grad_(False).eval()
        self._identity = ''

    @property
    def parts(self) -> dict[str, Any]:
        """The encoder and its tokenizer, as the diffusers layout calls them."""
        return dict(text_encoder=self.text_encoder, tokenizer=self.tokenizer)

    @property
    def identity(self) -> str:
        """What a cached embedding depends on beside its prompt: weights, tokenizer and dtype."""
        if not self._identity:
            digest = fingerprint((self.tokenizer, ), (self.text_encoder, ))
            self._identity = f'clip-{digest[:16]}-{str(self.dtype).removeprefix("torch.")}'
        return self._identity

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextEmbeds:
        """Embed B prompts into (B, 77, D) and (B, D), of the encoder's dtype; longer prompts are cut."""
        tokens = self.tokenizer(
            as_prompt_list(prompts),
            padding='max_length',
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors='pt')
        # without the attention mask, as SD1.5 was trained: padding is attended to
        output = self.text_encoder(tokens.input_ids.to(self.text_encoder.device))
        return TextEmbeds(output.last_hidden_state, output.pooler_output)

    def train(self, mode: bool = True) -> 'CLIPTextEncoder':
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)


def _load(pretrained: str, dtype: torch.dtype) -> 'tuple[CLIPTextModel, CLIPTokenizer]':
    check_folder(pretrained, ('text_encoder', 'tokenizer'), 'stable-diffusion-v1-5/stable-diffusion-v1-5',
                 "Stable Diffusion 1.5's text encoder and tokenizer are needed")
    from transformers import CLIPTextModel, CLIPTokenizer  # here: takes seconds that a cache reader can spare
    try:
        tokenizer = CLIPTokenizer.from_pretrained(pretrained, subfolder='tokenizer')
        return CLIPTextModel.from_pretrained(pretrained, subfolder='text_encoder').to(dtype), tokenizer
    except (OSError, ValueError) as error:
        raise ValueError(f'`pretrained`: the text encoder of {pretrained} does not load: {error}\nGive a complete '
                         'folder in the diffusers layout, or a hub id that this machine can reach.') from error
