"""The prompt cache: each distinct prompt's embeddings, encoded once and read from a folder while training.

Legend: B prompts, N tokens, D width of a token, P width of the pooled embedding.
"""
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmsynth.models.encoders.tensor_cache import TensorCache
from mmsynth.models.encoders.text_encoders import TextEmbeds, TextEncoder, as_prompt_list
from mmsynth.registry import MODELS


class PromptCache(TensorCache):
    """Embeddings of prompts by one encoder, in a folder; its identity is ``SD3TextEncoder.identity`` or the like."""

    kind, fields, command = 'prompt', TextEmbeds._fields, 'python tools/encode_prompts.py CONFIG'

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The distinct prompts that are not in the cache, in their first order."""
        return [prompt for prompt in dict.fromkeys(as_prompt_list(prompts)) if not self.has(prompt)]

    def get(self, prompt: str) -> TextEmbeds:
        """Read one prompt: (N, D) and (P,), on the CPU, in the dtype they were stored in.

        Raises:
            ValueError: If the prompt is not in the cache, or its file is damaged or of another prompt.
        """
        return TextEmbeds(**self.read(prompt))

    def put(self, prompt: str, embeds: TextEmbeds) -> None:
        """Store one prompt's embeddings (N, D) and (P,), replacing what is there."""
        self.write({prompt: embeds._asdict()})

    def encode_missing(self,
                       prompts: Sequence[str],
                       encoder: TextEncoder,
                       *,
                       batch_size: int = 8,
                       progress: Callable[[int], None] | None = None) -> int:
        """Encode the distinct prompts that are not in the cache.

        Args:
            prompts: Prompts, repeats allowed.
            encoder: The encoder whose identity this cache has.
            batch_size: Prompts encoded together.
            progress: Called after every batch with the number of prompts in it.

        Returns:
            The number of prompts encoded.

        Raises:
            ValueError: If the encoder has another identity, or ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f'`batch_size` must be at least 1, got {batch_size}.')
        if encoder.identity != self.identity:
            raise ValueError(f'`encoder` has the identity {encoder.identity}, the cache {self.identity}; open the '
                             'cache with the identity of the encoder that fills it.')
        missing = self.missing(prompts)
        for start in range(0, len(missing), batch_size):
            batch = missing[start:start + batch_size]
            embeds = zip(*encoder.encode(batch), strict=True)
            self.write({prompt: TextEmbeds(*own)._asdict() for prompt, own in zip(batch, embeds, strict=True)})
            if progress is not None:
                progress(len(batch))
        return len(missing)


@MODELS.register_module()
class CachedTextEncoder(TextEncoder):
    """Reads embeddings from a prompt cache; no encoder is in memory.

    The folder is opened at the first prompt and not before, so that a model can be built where the cache is not, for
    example to convert a checkpoint.

    Args:
        cache_dir: The cache's folder, filled by ``tools/encode_prompts.py``.
        identity: Identity of the encoder whose embeddings are read; needed only if several encoders share the folder.
        max_in_memory: Prompts kept in memory, the least recently used leave first. One of SD3's takes 2.7 MB.

    Raises:
        ValueError: If ``max_in_memory`` is below 1.
    """

    _anchor: Tensor

    def __init__(self, cache_dir: str, identity: str | None = None, max_in_memory: int = 64) -> None:
        super().__init__()
        if max_in_memory < 1:
            raise ValueError(f'`max_in_memory` must be at least 1, got {max_in_memory}.')
        self.cache_dir = cache_dir
        self.identity = identity
        self.max_in_memory = max_in_memory
        self._cache: PromptCache | None = None
        self._recent: OrderedDict[str, TextEmbeds] = OrderedDict()
        self.register_buffer('_anchor', torch.empty(0), persistent=False)  # follows `.to()`, so that outputs can

    def encode(self, prompts: Sequence[str]) -> TextEmbeds:
        """Read B prompts: (B, N, D) and (B, P), float32, whatever the dtype they were stored in.

        Raises:
            ValueError: If a prompt is not in the cache, no prompt is given, or the folder holds several encoders'
                embeddings and ``identity`` was not given.
        """
        prompts = as_prompt_list(prompts)
        if not prompts:
            raise ValueError('`prompts` must hold at least one prompt, got none.')
        tokens, pooled = zip(*(self._read(prompt) for prompt in prompts))
        return TextEmbeds(self._stack(tokens), self._stack(pooled))

    def _stack(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.stack([row.float() for row in rows]).to(self._anchor.device)

    def _read(self, prompt: str) -> TextEmbeds:
        if prompt not in self._recent:
            self._recent[prompt] = self.open_cache().get(prompt)
            if len(self._recent) > self.max_in_memory:
                self._recent.popitem(last=False)
        self._recent.move_to_end(prompt)
        return self._recent[prompt]

    def open_cache(self) -> PromptCache:
        """The cache, with the identity that was given or the only one that its folder has.

        Raises:
            ValueError: If the folder holds no embeddings, or several encoders' and ``identity`` was not given.
        """
        if self._cache is None:
            known = PromptCache.identities(self.cache_dir) if self.identity is None else [self.identity]
            if not known:
                raise ValueError(f'`cache_dir`: the prompt cache {self.cache_dir} is empty or does not exist. Fill it '
                                 f'with: {PromptCache.command}')
            if len(known) > 1:
                raise ValueError(f'`cache_dir`: the prompt cache {self.cache_dir} holds embeddings of {len(known)} '
                                 f'encoders: {", ".join(known)}. Name the wanted one as `identity`.')
            self._cache = PromptCache(self.cache_dir, known[0])
        return self._cache
