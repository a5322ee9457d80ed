"""Tiny Stable Diffusion 3 and 1.5 folders in the diffusers layout, written offline with random weights.

The loading code under test is then the real one. The widths keep SD3's relations: the two CLIP states side by side are
at most as wide as T5's (zero-padded to it), T5's width is the transformer's joint width, and the two CLIP projections
side by side are the pooled width. Of 1.5: CLIP's width is the U-Net's cross-attention width, and the VAE has 8 pixels
per latent cell.
"""
import json
import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

JOINT_DIM = 32  # T5 width = width of the prompt embeddings
CLIP_WIDTHS = (12, 16)  # 12 + 16 < JOINT_DIM, so the padding is exercised
CLIP_PROJECTIONS = (16, 32)
POOLED_DIM = sum(CLIP_PROJECTIONS)
CLIP_LENGTH = 77
START, END = '<|startoftext|>', '<|endoftext|>'
MERGES = ('r o', 'ro a', 'roa d</w>', 'a t', 'o f</w>', 'p a', 'pa r', 'par k</w>')


def write_tiny_sd3(folder: Path, *, latent_channels: int = 4, sample_size: int = 16, seed: int = 0) -> Path:
    """Write the folder and return it.

    Args:
        folder: Where to; created if needed.
        latent_channels: Channels of the VAE's latent and of the transformer's input.
        sample_size: Side of the transformer's latent; the VAE has 4 pixels per latent cell.
        seed: Of the random weights; the caller's random state is left alone.
    """
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusion3Pipeline(
            transformer=_transformer(latent_channels, sample_size),
            vae=_vae(latent_channels, sample_size),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=_clip(CLIP_WIDTHS[0], CLIP_PROJECTIONS[0]),
            text_encoder_2=_clip(CLIP_WIDTHS[1], CLIP_PROJECTIONS[1]),
            text_encoder_3=_t5(),
            tokenizer=_clip_tokenizer(folder / 'tokenizer'),
            tokenizer_2=_clip_tokenizer(folder / 'tokenizer_2'),
            tokenizer_3=_t5_tokenizer(folder / 'tokenizer_3'))
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_sd15(folder: Path, *, seed: int = 0) -> Path:
    """Write a folder of Stable Diffusion 1.5 with 4 latent channels, and return it.

    Args:
        folder: Where to; created if needed.
        seed: Of the random weights; the caller's random state is left alone.
    """
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            unet=_unet(),
            vae=AutoencoderKL(
                down_block_types=('DownEncoderBlock2D', ) * 4,
                up_block_types=('UpDecoderBlock2D', ) * 4,
                block_out_channels=(8, 8, 8, 16),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=64),
            scheduler=DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', clip_sample=False,
                set_alpha_to_one=False, steps_offset=1),
            text_encoder=_clip(CLIP_WIDTHS[0], model=CLIPTextModel),
            tokenizer=_clip_tokenizer(folder / 'tokenizer'),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return folder


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
        cross_attention_dim=CLIP_WIDTHS[0],
        attention_head_dim=2,
        norm_num_groups=4)


def _transformer(latent_channels: int, sample_size: int) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=sample_size,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=JOINT_DIM,
        pooled_projection_dim=POOLED_DIM,
        pos_embed_max_size=24,
        dual_attention_layers=(0, ),
        qk_norm='rms_norm')


def _vae(latent_channels: int, sample_size: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=('DownEncoderBlock2D', ) * 3,
        up_block_types=('UpDecoderBlock2D', ) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=sample_size * 4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False)


def _clip_vocab() -> dict[str, int]:
    """Every byte, every byte as the end of a word, the merged pieces, start and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(letter + '</w>' for letter in alphabet), *(merge.replace(' ', '') for merge in MERGES)]
    return {piece: index for index, piece in enumerate([*pieces, START, END])}


def _clip(width: int, projection: int = 16,
          model: type[PreTrainedModel] = CLIPTextModelWithProjection) -> PreTrainedModel:
    vocab = _clip_vocab()
    return model(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=projection,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=vocab[START],
            eos_token_id=vocab[END],
            pad_token_id=vocab[END])).eval()


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.json').write_text(json.dumps(_clip_vocab()), encoding='utf-8')
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *MERGES, '']), encoding='utf-8')
    return CLIPTokenizer.from_pretrained(folder, model_max_length=CLIP_LENGTH)


def _t5_vocab() -> list[tuple[str, float]]:
    """Padding, end, unknown, then single characters and a few words with their log-probabilities."""
    words = [f'▁{word}' for word in ('a', 'satellite', 'image', 'of', 'road', 'park', 'water')]
    letters = ['▁', *string.ascii_letters, *string.digits, *string.punctuation]
    special = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0)]
    return [*special, *((letter, -6.0) for letter in letters), *((word, -3.0) for word in words)]


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_t5_vocab()),
            d_model=JOINT_DIM,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj='gated-gelu',
            pad_token_id=0,
            eos_token_id=1)).eval()


def _t5_tokenizer(folder: Path) -> T5TokenizerFast:
    """Built with the tokenizers library, so that no sentencepiece file is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.Unigram(_t5_vocab(), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement='▁', prepend_scheme='always')
    tokenizer.decoder = decoders.Metaspace(replacement='▁', prepend_scheme='always')
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    tokenizer.save(str(folder / 'tokenizer.json'))
    settings = dict(eos_token='</s>', unk_token='<unk>', pad_token='<pad>', extra_ids=0, model_max_length=512)
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings), encoding='utf-8')
    return T5TokenizerFast.from_pretrained(folder)
