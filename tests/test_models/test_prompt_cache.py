from pathlib import Path

import pytest
import torch

from mmsynth.models.encoders import CachedTextEncoder, PromptCache, TextEmbeds, TextEncoder
from mmsynth.registry import MODELS

PROMPTS = ['road, park', '', 'Wasser, Straße']


class CountingEncoder(TextEncoder):
    """Embeds a prompt's length; counts its calls."""

    def __init__(self, identity: str = 'counting', dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.identity = identity
        self.dtype = dtype
        self.batches: list[list[str]] = []

    def encode(self, prompts) -> TextEmbeds:
        self.batches.append(list(prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=self.dtype)
        return TextEmbeds(lengths[:, None, None].repeat(1, 4, 3), lengths[:, None].repeat(1, 2) + 0.5)


@pytest.fixture
def folder(tmp_path) -> Path:
    PromptCache(tmp_path / 'cache', 'counting').encode_missing(PROMPTS, CountingEncoder())
    return tmp_path / 'cache'


def test_round_trip_is_exact(tmp_path):
    cache = PromptCache(tmp_path, 'one')
    embeds = TextEmbeds(torch.randn(7, 4).bfloat16(), torch.randn(3).bfloat16())
    cache.put('a "quoted" prompt\n', embeds)
    back = cache.get('a "quoted" prompt\n')
    assert all(torch.equal(stored, given) and stored.dtype == given.dtype for stored, given in zip(back, embeds))


def test_reader_returns_float32_of_what_the_encoder_gave(folder):
    reader = MODELS.build(dict(type='mmsynth.CachedTextEncoder', cache_dir=str(folder)))
    batch = [PROMPTS[2], PROMPTS[0], PROMPTS[2]]
    embeds, expected = reader.encode(batch), CountingEncoder().encode(batch)
    assert embeds.prompt_embeds.shape == (3, 4, 3) and embeds.pooled_prompt_embeds.shape == (3, 2)
    for read, given in zip(embeds, expected):
        assert read.dtype == torch.float32 and torch.equal(read, given.float())
    assert not list(reader.parameters()) and not reader.state_dict()


def test_reader_follows_a_move_to_another_device(folder):
    embeds = CachedTextEncoder(str(folder)).to('meta').encode(PROMPTS)
    assert {tensor.device.type for tensor in embeds} == {'meta'}


def test_each_distinct_prompt_is_encoded_once(tmp_path):
    encoder, cache, done = CountingEncoder(), PromptCache(tmp_path, 'counting'), []
    assert cache.encode_missing(['a', 'b', 'a', '', 'c', 'b'], encoder, batch_size=3, progress=done.append) == 4
    assert encoder.batches == [['a', 'b', ''], ['c']] and done == [3, 1]
    assert cache.encode_missing(['c', 'd'], encoder) == 1 and encoder.batches[2:] == [['d']]
    assert cache.missing(['a', 'e', 'd', 'e']) == ['e']


def test_key_is_prompt_and_identity(tmp_path):
    keys = {PromptCache(tmp_path, identity).path(prompt) for identity in ('x', 'y') for prompt in ('', 'a', 'a ')}
    assert len(keys) == 6


def test_encoders_share_a_folder(folder):
    other = CountingEncoder('other', torch.float32)
    PromptCache(folder, 'other').encode_missing(PROMPTS[:1], other)
    assert PromptCache.identities(folder) == ['counting', 'other']
    assert PromptCache(folder, 'other').get(PROMPTS[0]).prompt_embeds.dtype == torch.float32
    assert not PromptCache(folder, 'other').has(PROMPTS[2])
    with pytest.raises(ValueError, match='counting, other.*`identity`'):
        CachedTextEncoder(str(folder)).encode(PROMPTS)
    CachedTextEncoder(str(folder), identity='counting').encode(PROMPTS)


def test_interrupted_write_leaves_nothing(folder, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    cache, before = PromptCache(folder, 'counting'), sorted(folder.iterdir())
    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(KeyboardInterrupt):
        cache.put('new', TextEmbeds(torch.zeros(1, 1), torch.zeros(1)))
    assert sorted(folder.iterdir()) == before and not cache.has('new')


def test_memory_is_bounded_and_least_recent_leaves(folder):
    reader = CachedTextEncoder(str(folder), max_in_memory=2)
    reader.encode([PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2]])
    assert list(reader._recent) == [PROMPTS[0], PROMPTS[2]]
    for path in folder.iterdir():
        path.unlink()
    assert torch.equal(reader.encode([PROMPTS[0]])[0], torch.full((1, 4, 3), float(len(PROMPTS[0]))))


def test_missing_prompt(folder):
    message = r"'swamp' is not in the prompt cache .*cache \(encoder counting\).*python tools/encode_prompts.py CONFIG"
    with pytest.raises(ValueError, match=message):
        CachedTextEncoder(str(folder)).encode([PROMPTS[0], 'swamp'])


def test_missing_folder_is_told_at_the_first_prompt(tmp_path):
    reader = CachedTextEncoder(str(tmp_path / 'nowhere'))
    with pytest.raises(ValueError, match='nowhere .*tools/encode_prompts.py'):
        reader.encode([''])


def test_damaged_renamed_and_foreign_files(folder):
    from safetensors.torch import save_file
    cache = PromptCache(folder, 'counting')
    cache.path(PROMPTS[0]).rename(cache.path('stolen'))
    with pytest.raises(ValueError, match="holds the prompt 'road, park'.*renamed"):
        cache.get('stolen')
    cache.path(PROMPTS[1]).write_bytes(b'half a file')
    with pytest.raises(ValueError, match='is damaged.*Delete it'):
        cache.get(PROMPTS[1])
    save_file({'weight': torch.zeros(1)}, cache.path(PROMPTS[2]))
    with pytest.raises(ValueError, match='not written by a prompt cache.*`cache_dir`'):
        cache.get(PROMPTS[2])


@pytest.mark.parametrize('call, message', [
    (lambda: PromptCache('x', 'one').encode_missing(['a'], CountingEncoder('two')), 'identity two, the cache one'),
    (lambda: PromptCache('x', 'one').encode_missing(['a'], CountingEncoder('one'), batch_size=0), '`batch_size`.*0'),
    (lambda: CachedTextEncoder('x', max_in_memory=0), '`max_in_memory`.*got 0'),
    (lambda: CachedTextEncoder('x').encode([]), 'at least one prompt'),
    (lambda: CachedTextEncoder('x').encode('road'), 'got the string'),
])
def test_mistakes(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
