"""The plan of a study and its places: mistakes by name, and places that never mix."""
from pathlib import Path

import pytest
from small_run import ROOT
from worth_study.data import PLACE, split_places
from worth_study.plan import Study

CONFIGS = ROOT / 'projects' / 'demo' / 'configs'
STEMS = [f'{place}_{number}' for place in ('a', 'b', 'c', 'd') for number in range(4)]


@pytest.mark.parametrize('seed', range(5))
def test_a_place_is_in_one_part_only(seed: int) -> None:
    parts = split_places(STEMS, PLACE, 0.5, seed)
    assert sorted(stem for stems in parts.values() for stem in stems) == STEMS
    held = {part: {stem[0] for stem in parts[part]} for part in ('test', 'val')}
    assert held == dict(test={'abcd'[seed % 4]}, val={'abcd'[(seed + 1) % 4]})
    assert len(parts['train']) == len(parts['unlabelled']) == 4


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    quarter, half = (set(split_places(STEMS, PLACE, share, 0)['train']) for share in (0.25, 0.5))
    assert quarter < half and len(quarter) == 2


@pytest.mark.parametrize('pattern, stems', [('^nothing', STEMS), ('^([ab])', STEMS), (PLACE, STEMS[:8])])
def test_places_that_cannot_be_told_are_refused(pattern: str, stems: list[str]) -> None:
    with pytest.raises(ValueError, match='`--places`'):
        split_places(stems, pattern, 1.0, 0)


PLANS = dict(generators=dict(g='g.py'), critics=dict(c='c.py', x=dict(config='c.py', cross_fitted=True)),
             segmentors=dict(fcn='c.py'), pools=dict(plain=dict()), rows=dict(real=dict()))


@pytest.mark.parametrize('plans, option', [
    (dict(rows=dict(real=dict(), plain=dict(pool='none'))), 'rows.plain.pool'),
    (dict(rows=dict(real=dict(ratio=1.5))), 'rows.real'),
    (dict(rows=dict(real=dict(learning_rate=0))), '`rows.real` must have `iterations` and `learning_rate` above 0'),
    (dict(rows=dict(real=dict(mixed=0))), 'rows.real'),
    (dict(rows=dict(real=dict(length=2))), 'length'),
    (dict(rows=dict(real=dict(), own=dict(self_training=True, pool='plain'))), 'rows.own.self_training'),
    (dict(rows=dict(real=dict(), on=dict(online=dict()))), 'rows.on.online'),
    (dict(rows=dict(real=dict(), on=dict(pool='plain', online=dict(guidance=None)))), 'rows.on.online` .*guidance'),
    (dict(rows=dict(real=dict(), on=dict(pool='plain', online=dict(critic='none')))), 'rows.on.online.critic'),
    (dict(pools=dict(p=dict(latent_critic=True))), 'pools.p.latent_critic'),
    (dict(pools=dict(p=dict(guidance=dict(type='mmsynth.CRFM'), critic='x', latent_critic=True))),
     'pools.p.latent_critic'),
    (dict(rows=dict()), 'baseline'),
    (dict(plain='none'), '`plain`'),
    (dict(judges='{}'), r'`worth.judges` must be a dict by name, got .{}.'),  # as --cfg-options give it
    (dict(trainings=0), '`trainings` must be at least 1, got 0'),
    (dict(shares=(0, )), 'shares'),
    (dict(seeds=(1, )), 'seeds'),
    (dict(generator='g.py'), '`generator` and `generators`'),
    (dict(generators=dict(g=dict(config='g.py', unlabelled=1))), 'generators.g.unlabelled'),
    (dict(generators=dict(g=dict(overrides=dict()))), 'generators.g'),
    (dict(critics=dict(c='c.py', both=dict(critics=('c', 'none')))), 'critics.both.critics'),
    (dict(critics=dict(c=dict())), 'critics.c'),
    (dict(critics=dict(c='c.py', pair=dict(type='mmsynth.ReducibleLossCritic', critics=('c', )))), 'critics.pair'),
    (dict(critics=dict(c=dict(config='c.py', looks=0))), 'critics.c'),
    (dict(critics=dict(c=dict(config='c.py', learning_rate=0))), '`critics.c.learning_rate` must be above 0, got 0'),
    (dict(critics=dict(c='c.py', both=dict(critics=('c', ), learning_rate=2))), '`critics.both` has no training'),
    (dict(critics=dict(both=dict(critics=('c', )), c='c.py'),
          pools=dict(plain=dict(guidance=dict(type='mmsynth.CRFM', objective=dict(name='target', targets='critic'))))),
     'pools.plain.guidance.objective'),
    (dict(pools=dict(plain=dict(step=1))), 'step'),
    (dict(pools=dict(plain=dict(generator='none'))), 'pools.plain.generator'),
    (dict(pools=dict(plain=dict(sampling=dict(network=1)))), 'pools.plain.sampling` .*network'),
    (dict(pools=dict(plain=dict(guidance=dict(type='mmsynth.CRFM', stepsize=1)))), 'pools.plain.guidance` .*stepsize'),
    (dict(pools=dict(plain=dict(guidance=dict(type='mmsynth.None')))), 'pools.plain.guidance.type'),
    (dict(pools=dict(plain=dict(guidance=dict(type='mmsynth.CRFM'), critic='n'))), 'pools.plain.critic'),
    (dict(pools=dict(plain=dict(masks=dict(type='mmsynth.TransformedMasks', turns=1)))), 'pools.plain.masks` .*turns'),
    (dict(pools=dict(plain=dict(masks=dict(type='mmsynth.UncertainMasks', critic='x')))), 'pools.plain.masks.critic'),
    (dict(pools=dict(plain=dict(filter=dict(limit=1)))), 'pools.plain.filter` .*limit'),
    (dict(pools=dict(plain=dict(filter=dict(segmentor='x')))), 'pools.plain.filter.segmentor'),
    (dict(pools=dict(plain=dict(filter=dict(sibling_vote='median')))), 'pools.plain.filter.sibling_vote'),
    (dict(pools=dict(live=dict(masks=dict(type='mmsynth.UncertainMasks', critic='runner'))),
          rows=dict(real=dict(), live=dict(pool='live'))), 'pools.live.masks'),
])
def test_mistakes_in_a_config_are_named(tmp_path: Path, plans: dict, option: str) -> None:
    path = tmp_path / 'worth.py'
    path.write_text(f'worth = {PLANS | plans!r}\n')
    for name in ('g.py', 'c.py'):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=option):
        Study.read(path)


def test_one_generator_and_one_critic_need_no_names(tmp_path: Path) -> None:
    (tmp_path / 'worth.py').write_text(
        "worth = dict(generator='g.py', critic='c.py', segmentors=dict(fcn='c.py'), pools=dict(plain=dict()), "
        "rows=dict(real=dict(), plain=dict(pool='plain')))\n")
    with pytest.raises(FileNotFoundError, match='g.py'):
        Study.read(tmp_path / 'worth.py')
    for name in ('g.py', 'c.py'):
        (tmp_path / name).touch()
    study = Study.read(tmp_path / 'worth.py')
    pool = study.pools['plain']
    assert study.generators[pool.generator].config == str(tmp_path / 'g.py')
    assert study.critics[pool.critic].config == str(tmp_path / 'c.py')
    assert study.baseline == ('real', ) and study.plain == 'plain'


def test_rows_are_picked_by_name_in_the_config_s_order() -> None:
    study = Study.read(CONFIGS / 'worth.py', rows=('crfm', 'real'))
    assert list(study.rows) == ['real', 'crfm'] and study.baseline == ('real', ) and study.plain is None
    with pytest.raises(ValueError, match=r"worth.py: `--rows` must be one of real, twice, .*, got 'none'"):
        Study.read(CONFIGS / 'worth.py', rows=('real', 'none'))


@pytest.mark.parametrize('name', sorted(path.stem for path in CONFIGS.glob('worth*.py')))
def test_the_shipped_studies_read_and_their_files_exist(name: str) -> None:
    study = Study.read(CONFIGS / f'{name}.py', {'worth.shares': [0.5]})
    assert 'real' in study.baseline and study.shares == [0.5]
    files = [plan.config for plan in (*study.generators.values(), *study.critics.values()) if plan.config]
    assert all(Path(file).is_file() for file in (*files, *study.segmentors.values(), *study.judges.values()))
    if name == 'worth':
        assert [study.unfiltered(pool) for pool in ('hard', 'soft', 'vote')] == ['plain', 'plain', 'plain_4']
