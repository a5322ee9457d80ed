"""Text encoders: prompts → embeddings, behind one interface.

``ClassNameEmbedding`` is learned with the generator and needs no weights; ``SD3TextEncoder`` holds Stable Diffusion
3's own three encoders and is run once per distinct prompt, as is ``CLIPTextEncoder`` (:mod:`.clip_text_encoder`), that
of Stable Diffusion 1.5; ``CachedTextEncoder`` (:mod:`.prompt_cache`) reads what they wrote.

Legend: B prompts, N tokens, D width of a token, P width of the pooled embedding, K classes.
"""
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmsynth.registry import MODELS
from mmsynth.utils.prompts import TEMPLATE, build_prompt

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

_SD3_PARTS = ('text_encoder', 'text_encoder_2', 'text_encoder_3', 'tokenizer', 'tokenizer_2', 'tokenizer_3')
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
# of the same width, to sum weights exactly
_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w.-]+')
_PROBE = 'a satellite image of road, park land, 17 buildings'


class TextEmbeds(NamedTuple):
    """What a generator is told about its prompts.

    Attributes:
        prompt_embeds: One embedding per token (B, N, D), float.
        pooled_prompt_embeds: One embedding per prompt (B, P), float.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor


class TextEncoder(nn.Module):
    """Interface of a text encoder. The empty prompt is the negative prompt of classifier-free guidance.

    An encoder that fills a prompt cache also has ``identity``, a string that differs when its results do.
    """

    def encode(self, prompts: Sequence[str]) -> TextEmbeds:
        """Embed B prompts on the module's device; N, D and P are the same for every prompt.

        Raises:
            TypeError: If ``prompts`` is a single string.
        """
        raise TypeError(f'{type(self).__name__} does not encode')


def as_prompt_list(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list; a single string would otherwise be read letter by letter.

    Raises:
        TypeError: If ``prompts`` is a string or holds anything else than strings.
    """
    if isinstance(prompts, str):
        raise TypeError(f'`prompts` must be a sequence of strings, got the string {prompts!r}; write [{prompts!r}].')
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f'`prompts` must hold strings, got {prompt!r}.')
    return list(prompts)


@MODELS.register_module()
class ClassNameEmbedding(TextEncoder):
    """One learned token per class, which says whether the prompt lists the class.

    Token k is ``present[k]`` if class k's name is an item of the prompt's comma-separated list, else ``absent[k]``; the
    pooled embedding is a linear map of the tokens' mean. Items are whole names, never parts of one ("park" is not in
    "park land"); case and repeated spaces do not count. The empty prompt lists nothing, and so does what
    BuildPrompt writes for a mask without classes ("a satellite image").

    Args:
        classes: The K class names, as they stand in prompts.
        embed_dims: Width D of a token.
        pooled_dims: Width P of the pooled embedding.
        template: What stands around the list in a prompt, as BuildPrompt has it; a prompt may also be the bare list.

    Raises:
        ValueError: If a class name is empty, repeated or holds a comma, if a width is below 1, or if the template does
            not hold ``{classes}`` exactly once.
    """

    def __init__(self,
                 classes: Sequence[str],
                 embed_dims: int,
                 pooled_dims: int,
                 template: str = TEMPLATE) -> None:
        super().__init__()
        if min(embed_dims, pooled_dims) < 1:
            raise ValueError(f'`embed_dims` and `pooled_dims` must be at least 1, got {embed_dims} and {pooled_dims}.')
        if template.count('{classes}') != 1:
            raise ValueError(f'`template` must hold {{classes}} exactly once, got {template!r}.')
        self.classes = tuple(as_prompt_list(classes))
        self.template = template
        self._indices = _index_names(self.classes)
        before, after = template.split('{classes}')
        self._head = _normalise(before) + ' ' * before.endswith(' ')  # with its space: "in {classes}" is not "inland"
        self._tail = ' ' * after.startswith(' ') + _normalise(after)
        self._nothing = _normalise(build_prompt(np.empty(0, dtype=np.int64), (), template))
        self.present = nn.Parameter(torch.randn(len(self.classes), embed_dims))
        self.absent = nn.Parameter(torch.randn(len(self.classes), embed_dims))
        self.pool = nn.Linear(embed_dims, pooled_dims)

    def encode(self, prompts: Sequence[str]) -> TextEmbeds:
        """Embed B prompts into (B, K, D) and (B, P), float32, differentiable.

        Raises:
            ValueError: If an item of a prompt is no class name.
        """
        listed = torch.tensor([self._listed(prompt) for prompt in as_prompt_list(prompts)], dtype=torch.bool)
        listed = listed.reshape(-1, len(self.classes), 1).to(self.present.device)
        tokens = torch.where(listed, self.present, self.absent)  # (B, K, D)
        return TextEmbeds(tokens, self.pool(tokens.mean(1)))

    def _listed(self, prompt: str) -> list[bool]:
        """For each class whether the prompt lists it."""
        text = _normalise(prompt)
        if text == self._nothing:
            return [False] * len(self.classes)
        text = f'{text} '.removeprefix(self._head).strip()
        text = f' {text}'.removesuffix(self._tail)
        items = [item.strip() for item in text.split(',') if item.strip()]
        unknown = [item for item in items if item not in self._indices]
        if unknown:
            raise ValueError(f'prompt {prompt!r}: {", ".join(map(repr, unknown))} is no class name of '
                             f'`ClassNameEmbedding`, which knows {", ".join(map(repr, self.classes))}, between the '
                             f'fixed words of its `template` {self.template!r}. Use the names and the template of the '
                             "dataset's BuildPrompt, or a real text encoder for free text.")
        found = {self._indices[item] for item in items}
        return [index in found for index in range(len(self.classes))]


def _normalise(text: str) -> str:
    return ' '.join(text.casefold().split())


def _index_names(classes: Sequence[str]) -> dict[str, int]:
    """Normalised name → class id."""
    indices: dict[str, int] = {}
    for index, name in enumerate(classes):
        key = _normalise(name)
        if not key or ',' in key or key in indices:
            raise ValueError(f'`classes`: name {index} is {name!r}; names must be non-empty, different from each other '
                             'and without commas, because a prompt separates them by commas.')
        indices[key] = index
    if not indices:
        raise ValueError('`classes` must name at least one class, got none.')
    return indices


@MODELS.register_module()
class SD3TextEncoder(TextEncoder):
    """Stable Diffusion 3's CLIP-L, CLIP-G and T5-XXL, called through diffusers' own ``encode_prompt``; frozen.

    A prompt becomes 77 CLIP tokens (both encoders side by side, padded with zeros to T5's width) followed by
    ``max_sequence_length`` T5 tokens, and the two pooled CLIP projections side by side. About 11 GB of weights in
    bfloat16: run it once per prompt (``tools/encode_prompts.py``) and train from the cache.

    Args:
        pretrained: A folder or hub id in the diffusers layout; transformer and VAE are not loaded.
        max_sequence_length: Length of the T5 part in tokens, in [1, 512]; longer prompts are cut.
        dtype: 'float32' or 'bfloat16', of weights and embeddings.
        built: A pipeline with the encoders and tokenizers, loaded already, in the place of ``pretrained``; they keep
            their dtype.

    Raises:
        ValueError: If not exactly one of pretrained and built is given, an option is out of range, the folder or a part
            of it is missing, or diffusers cannot load it.
    """

    def __init__(self, pretrained: str | None = None, max_sequence_length: int = 256, dtype: str = 'bfloat16', *,
                 built: 'StableDiffusion3Pipeline | None' = None) -> None:
        super().__init__()
        if not 1 <= max_sequence_length <= 512:
            raise ValueError(f'`max_sequence_length` must be in [1, 512], got {max_sequence_length}.')
        if dtype not in DTYPES:
            raise ValueError(f'`dtype` must be one of {", ".join(DTYPES)}, got {dtype!r}.')
        self.max_sequence_length = max_sequence_length
        check_source(pretrained, built)
        if built is None:
            assert pretrained is not None
            built = _load_sd3_text(pretrained, DTYPES[dtype])
        self._pipeline = built
        self.dtype = self._pipeline.text_encoder.dtype
        self.text_encoder = self._pipeline.text_encoder  # the pipeline is no module: these make `.to()` reach it
        self.text_encoder_2 = self._pipeline.text_encoder_2
        self.text_encoder_3 = self._pipeline.text_encoder_3
        self.requires_grad_(False).eval()
        self._identity = ''

    @property
    def parts(self) -> dict[str, Any]:
        """The encoders and tokenizers, as the diffusers layout calls them."""
        return {name: getattr(self._pipeline, name) for name in _SD3_PARTS}

    @property
    def identity(self) -> str:
        """What a cached embedding depends on beside its prompt: weights, tokenizers, length and dtype.

        The same for a copy of the folder, another for other weights. Every weight is summed, exactly and as integers,
        which takes seconds for the real encoders, so the first call pays and the rest are free.
        """
        if not self._identity:
            tokenizers = (self._pipeline.tokenizer, self._pipeline.tokenizer_2, self._pipeline.tokenizer_3)
            digest = fingerprint(tokenizers, (self.text_encoder, self.text_encoder_2, self.text_encoder_3))
            self._identity = f'sd3-{digest[:16]}-n{self.max_sequence_length}-{str(self.dtype).removeprefix("torch.")}'
        return self._identity

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextEmbeds:
        """Embed B prompts into (B, 77 + max_sequence_length, D) and (B, P), of the encoder's dtype."""
        prompts = as_prompt_list(prompts)
        tokens, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=prompts,
            prompt_3=prompts,
            device=self.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length)
        return TextEmbeds(tokens, pooled)

    def train(self, mode: bool = True) -> 'SD3TextEncoder':
        """Stay in eval mode: the encoders are frozen."""
        return super().train(False)


def fingerprint(tokenizers: Sequence[Callable], encoders: Sequence[nn.Module]) -> str:
    """Hash of the weights and of how the tokenizers read a probe; names and settings vary with library versions."""
    digest = hashlib.sha256()
    for tokenizer in tokenizers:
        digest.update(repr(list(tokenizer(_PROBE).input_ids)).encode())
    for encoder in encoders:
        for weight in encoder.parameters():
            digest.update(repr((tuple(weight.shape), *_weight_sums(weight))).encode())
    return digest.hexdigest()


def _weight_sums(weight: Tensor, chunk: int = 2**24) -> tuple[int, list[int]]:
    """Exact sum of a tensor's bit patterns, and 64 of them spread over it, which also sees a reordering."""
    bits = weight.detach().flatten().view(_INTEGERS[weight.dtype])
    samples = bits[::max(bits.numel() // 64, 1)][:64]
    return sum(int(part.sum()) for part in bits.split(chunk)), samples.tolist()


def _load_sd3_text(pretrained: str, dtype: torch.dtype) -> 'StableDiffusion3Pipeline':
    """The pipeline without its transformer and VAE."""
    check_folder(pretrained, ('model_index.json', *_SD3_PARTS), 'stabilityai/stable-diffusion-3.5-medium',
                 'All three text encoders and tokenizers of Stable Diffusion 3 are needed')
    from diffusers import StableDiffusion3Pipeline  # here: it imports transformers, which a cache reader can do without
    try:  # `torch_dtype`, not the newer `dtype`: earlier releases ignore that one with a mere warning
        return StableDiffusion3Pipeline.from_pretrained(pretrained, transformer=None, vae=None, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(f'`pretrained`: the text encoders of {pretrained} do not load: {error}\nGive a complete '
                         'folder in the diffusers layout, or a hub id that this machine can reach and has access to '
                         '(Stable Diffusion 3.5 asks for its licence to be accepted on its page first).') from error


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name, and is no relative path."""
    return _HUB_ID.fullmatch(name) is not None


def check_source(pretrained: str | None, built: object | None) -> None:
    """Raise ValueError unless an encoder is either loaded from a folder or given built."""
    if (pretrained is None) == (built is None):
        raise ValueError(f'exactly one of `pretrained` and `built` must be given, got pretrained={pretrained!r}, '
                         f'built={type(built).__name__}.')


def check_folder(pretrained: str, parts: Sequence[str], example: str, needed: str) -> None:
    """Name what a folder lacks before gigabytes are read; hub ids are left to the library that loads them.

    Args:
        pretrained: A folder, or a hub id.
        parts: Files and folders that must be in it.
        example: A hub id to download, for the message.
        needed: What the parts are, for the message.

    Raises:
        ValueError: If it is neither, or a part is missing.
    """
    folder = Path(pretrained)
    if not folder.is_dir():
        if is_hub_id(pretrained):
            return
        raise ValueError(f'`pretrained`: no folder {pretrained}, and it is not a hub id of the form owner/name. Give a '
                         f'folder in the diffusers layout, such as a download of {example}.')
    missing = [name for name in parts if not (folder / name).exists()]
    if missing:
        raise ValueError(f'`pretrained`: the folder {pretrained} lacks {", ".join(missing)}. {needed}: download the '
                         'repository in the diffusers layout (not its single-file checkpoint).')
