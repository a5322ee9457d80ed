"""What a critic looks through: cheaper ways from clean latents to images than the codec's own full decode.

Legend: B batch, C latent channels, h w latent cells, H W pixels.
"""
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from mmsynth.guidance.base import Decode, GuidanceDecoder
from mmsynth.registry import MODELS


@MODELS.register_module()
class TinyDecoder(GuidanceDecoder):
    """diffusers' ``AutoencoderTiny`` (TAESD): a decoder of a few convolutions, distilled from the VAE's.

    TAESD takes the latents that the transformer works on, ``(vae.encode(x) - shift_factor) * scaling_factor``: the
    VAE's scale and shift are part of what it learned, and its own are 1 and 0. Its last layer gives [0, 1], which
    diffusers brings to [-1, 1]; the values are not clamped. Latents beyond about ±3 are squashed on the way in
    (``3 tanh(z / 3)``), so a gradient from there is small.

    The weights must belong to the codec: TAESD3 (``madebyollin/taesd3``) to Stable Diffusion 3's and 3.5's VAE.

    Args:
        pretrained: A folder or hub id that holds an ``AutoencoderTiny`` in the diffusers layout.
        config: Settings of an ``AutoencoderTiny`` with random weights (tests, benchmarks). Exactly one is given.

    Raises:
        ValueError: If not exactly one of the two is given.
    """

    def __init__(self, pretrained: str | None = None, config: dict | None = None) -> None:
        super().__init__()
        if (pretrained is None) == (config is None):
            raise ValueError('`pretrained` and `config`: exactly one must be given, got '
                             f'pretrained={pretrained!r}, config={config!r}.')
        self.tiny = AutoencoderTiny(**config) if config is not None else AutoencoderTiny.from_pretrained(pretrained)
        del self.tiny.encoder  # half of the weights; nothing is encoded here
        self.requires_grad_(False).eval()
        settings = self.tiny.config
        self.channels: int = settings.latent_channels
        self.factor: int = settings.upsampling_scaling_factor**(len(settings.num_decoder_blocks) - 1)
        self.scale: float = settings.scaling_factor
        self.shift: float = settings.get('shift_factor') or 0.0

    def around(self, decode: Decode) -> Decode:
        """The tiny decode; the codec's is not used."""
        return self.decode

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w), as the transformer has them → images (B, 3, H, W), nominally [-1, 1]."""
        return self.tiny.decode(latents / self.scale + self.shift).sample

    def check_latents(self, channels: int, factor: int) -> None:
        """Raise ValueError unless the codec has this decoder's latent channels and pixels per cell."""
        if (channels, factor) != (self.channels, self.factor):
            raise ValueError(f'TinyDecoder: it decodes latents of {self.channels} channels and {self.factor} pixels '
                             f'per cell, the generator\'s codec has {channels} and {factor}; use the tiny autoencoder '
                             'that was distilled from this codec.')

    def train(self, mode: bool = True) -> 'TinyDecoder':
        """Stay in eval mode: the decoder is frozen."""
        return super().train(False)


@MODELS.register_module()
class ReducedDecoder(GuidanceDecoder):
    """The codec's own decode at a fraction of the size: average latent cells, decode, enlarge the image.

    Cost and memory of a convolutional decoder fall with the square of ``factor``; so does the detail that the critic
    can ask for.

    Args:
        factor: Latent cells averaged into one, per side.

    Raises:
        ValueError: If ``factor`` is below 2.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if not isinstance(factor, int) or factor < 2:
            raise ValueError(f'`factor` must be a whole number of at least 2, got {factor!r}; leave the decoder out '
                             'for the full decode.')
        self.factor = factor

    def around(self, decode: Decode) -> Decode:
        """Average by ``factor``, decode, enlarge bilinearly.

        The function returned raises ValueError if a side of the latent is not a multiple of ``factor``.
        """

        def reduced(latents: Tensor) -> Tensor:
            self._check_size(*latents.shape[-2:])
            image = decode(F.avg_pool2d(latents, self.factor))  # (B, 3, H / factor, W / factor)
            return F.interpolate(image, scale_factor=float(self.factor), mode='bilinear', align_corners=False)

        return reduced

    def _check_size(self, height: int, width: int) -> None:
        if height % self.factor or width % self.factor:
            raise ValueError(f'ReducedDecoder: the latent is {height}x{width} cells, both sides must be multiples of '
                             f'`factor` {self.factor}; use another factor, or masks of another size.')
