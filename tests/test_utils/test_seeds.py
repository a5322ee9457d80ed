"""Seeds are functions of names alone, and noise of its seed alone."""
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsynth.utils import derive_seed, seeded_noise

KEYS = st.lists(st.integers() | st.text(st.characters(blacklist_characters='\x1f', codec='utf-8')), max_size=4)


def test_derived_seeds_never_change() -> None:
    """Pools on disk name samples by these: another value would be another image for the same name."""
    assert derive_seed(0, 'tile_3', 0) == 4763303701875263264
    assert derive_seed(7) == 4359823973405836615


@given(st.integers(), KEYS)
def test_derived_seed_is_a_torch_seed(run_seed: int, keys: list[str | int]) -> None:
    seed = derive_seed(run_seed, *keys)
    assert 0 <= seed < 2**63 and seed == derive_seed(run_seed, *keys)
    torch.Generator().manual_seed(seed)


def test_every_key_and_its_place_count() -> None:
    names = [(0, 'a', 0), (1, 'a', 0), (0, 'b', 0), (0, 'a', 1), (0, 0, 'a'), (0, 'a'), (0, 'a0'), (0, 'a', '', 0)]
    assert len({derive_seed(*name) for name in names}) == len(names)


def test_noise_is_torch_s_own_for_the_seed() -> None:
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(seeded_noise([5], (2, 3))[0], expected)


def test_noise_depends_on_neither_batch_nor_global_state() -> None:
    together = seeded_noise([3, 9, 3], (4, 2, 2))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(seeded_noise([9], (4, 2, 2)), together[1:2])
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert together.shape == (3, 4, 2, 2) and together.dtype == torch.float32
