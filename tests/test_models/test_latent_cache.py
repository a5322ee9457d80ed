"""The latent cache: what is read is what the codec encodes, in training only; the message of each mistake."""
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmsynth.models import VAECodec
from mmsynth.models.encoders import LatentCache, image_keys


def images(count: int = 3, seed: int = 0) -> Tensor:
    levels = torch.randint(256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return levels / 127.5 - 1


@pytest.fixture
def codec(tiny_sd3: Path, tmp_path: Path) -> VAECodec:
    """In training, with a cache that holds :func:`images`."""
    codec = VAECodec(str(tiny_sd3), cache_dir=str(tmp_path / 'cache'))
    cache = codec.open_cache(tmp_path / 'cache')
    cache.write({key: dict(moments=moments) for key, moments in zip(image_keys(images()), codec.moments(images()))})
    return codec.train()


@pytest.mark.parametrize('seed', [None, 5])
def test_what_is_read_is_what_is_encoded(codec: VAECodec, tiny_sd3: Path, monkeypatch: pytest.MonkeyPatch,
                                         seed: int | None) -> None:
    """The mode and, from the same generator, the same draw; and the generator is left at the same place."""
    generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
    encoded = VAECodec(str(tiny_sd3)).encode(images(), generator=generators[0])
    monkeypatch.setattr(codec.vae, 'encode', None)
    assert torch.equal(codec.encode(images(), generator=generators[1]), encoded)
    order = torch.tensor([2, 0])
    torch.testing.assert_close(codec.encode(images()[order]), VAECodec(str(tiny_sd3)).encode(images()[order]),
                               atol=1e-5, rtol=0)
    assert seed is None or torch.equal(*(generator.get_state() for generator in generators))


def test_outside_of_training_it_is_not_looked_at(codec: VAECodec, tmp_path: Path) -> None:
    for path in (tmp_path / 'cache').iterdir():
        path.write_bytes(b'damaged')
    codec.eval().encode(images(), generator=torch.Generator())
    with pytest.raises(ValueError, match='is damaged.*Delete it and run: python tools/encode_latents.py'):
        codec.train().encode(images())


def test_the_codec_itself_stays_in_eval_mode(codec: VAECodec) -> None:
    assert not any(module.training for module in codec.modules())


def test_training_images_must_be_there_and_others_need_not(codec: VAECodec) -> None:
    other = torch.cat([images()[:1], images(1, seed=1)])
    with pytest.raises(ValueError, match='`latent_codec.cache_dir`: training image 1 .*encode_latents.*random crop'):
        codec.encode(other, generator=torch.Generator())
    assert torch.equal(codec.encode(other), codec.eval().encode(other))


def test_an_image_flipped_or_changed_is_another() -> None:
    one = images(1)
    changed = one.clone()
    changed[0, 0, 0, 0] += 1 / 127.5 if changed[0, 0, 0, 0] < 0 else -1 / 127.5
    keys = [image_keys(image)[0] for image in (one, one.flip(-1), changed, one.reshape(1, 3, 8, 32))]
    assert len(set(keys)) == 4 and image_keys(one.clone() + 1e-6) == keys[:1]


def test_an_image_between_grey_levels_has_no_key() -> None:
    with pytest.raises(ValueError, match='`cache_dir`.* whole grey levels'):
        image_keys(images() * 0.9)


def test_other_weights_are_another_codec(codec: VAECodec, tiny_sd3: Path, tmp_path: Path) -> None:
    same, other = VAECodec(str(tiny_sd3)), VAECodec(str(tiny_sd3), cache_dir=str(tmp_path / 'cache'))
    with torch.no_grad():
        other.vae.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
        same.vae.decoder.conv_in.weight.zero_()  # encodes alike
    identities = [one.open_cache('x').identity for one in (codec, same, other)]
    assert identities[0] == identities[1] != identities[2]
    with pytest.raises(ValueError, match=f'codec {identities[2]}.* folder holds images of {identities[0]}'):
        other.train().encode(images(), generator=torch.Generator())


def test_an_interrupted_write_leaves_nothing(codec: VAECodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    cache, before = LatentCache(tmp_path / 'cache', 'x'), sorted((tmp_path / 'cache').iterdir())
    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(KeyboardInterrupt):
        cache.write(dict(a=dict(moments=torch.zeros(2, 1, 1)), b=dict(moments=torch.zeros(2, 1, 1))))
    assert sorted((tmp_path / 'cache').iterdir()) == before
