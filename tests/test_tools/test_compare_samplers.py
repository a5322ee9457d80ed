"""Comparing samplers: nothing to gain on a straight way, closer with more passes, and the generator is put back."""
import pytest
from benchmarks import samplers as module
from benchmarks.samplers import compare_samplers, table
from tiny_generator import oracle, samples, todsynth
from tiny_tisynth import referenced, tisynth

SEEDS = [1, 2, 3, 4]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'REFERENCE_STEPS', 60)


def test_on_a_straight_way_one_pass_is_enough() -> None:
    distances = compare_samplers(oracle(), samples(), SEEDS, [1, 5])
    assert list(distances) == ['Euler', 'DPM-Solver++', 'Heun'] and max(map(max, distances.values())) < 0.5


def test_more_passes_come_closer_and_the_generator_is_left_as_it_was() -> None:
    model = todsynth()
    before = model.sampler, model.num_steps
    distances = compare_samplers(model, samples(), SEEDS, [2, 24])
    assert all(many < few for few, many in distances.values())
    assert (model.sampler, model.num_steps) == before


def test_tisynth_has_samplers_of_its_own() -> None:
    distances = compare_samplers(tisynth(), referenced(2), SEEDS[:2], [4])
    assert list(distances) == ['DDIM', 'DPM-Solver++', 'UniPC, Karras', 'DPM-Solver++, Karras']


def test_numbers_of_passes_are_checked() -> None:
    with pytest.raises(ValueError, match=r'`passes` must be at least 1 each, got \[0, 3\]'):
        compare_samplers(oracle(), samples(), SEEDS, [0, 3])


def test_the_table() -> None:
    assert table({'Euler': [2.04, 1.0]}, [6, 12]).splitlines() == [
        '| passes of the network | 6 | 12 |', '|---|---|---|', '| Euler | 2.0 | 1.0 |']
