"""A pool filtered as users do it: what is written, what it does not depend on, and what is refused."""
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from mmseg.datasets import BaseSegDataset
from PIL import Image
from small_run import CLASSES, PALETTE, ROOT, SmallRun

from mmsynth.apis import filter_pool, fit_class_loss
from mmsynth.apis.filter_pool import build_filter
from mmsynth.filtering import ClassLosses, ClassLossFilter
from mmsynth.pool import Pool, store
from mmsynth.synthesis.build import load_config
from mmsynth.utils.shards import Shard

PER_MASK = 3


@pytest.fixture(scope='module')
def generated(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.synthesize(tmp_path_factory.mktemp('pools') / 'generated', guidance='none',
                                num_per_mask=PER_MASK).root


@pytest.fixture(scope='module')
def losses(small_run: SmallRun, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fitted losses, then scaled: of what a hardly trained segmentor reads in the pool, about half shall fall."""
    folder = tmp_path_factory.mktemp('losses')
    fitted = fit_class_loss(load_config(small_run.critic_config_file), small_run.critic)
    fitted.write(folder / 'fitted.json')
    copy = shutil.copytree(generated, folder / 'pool')
    report = filter_pool(copy, make(small_run, folder / 'fitted.json'))
    typical = np.median([record.filter['hardness'] for record in report.pool.records])
    means = tuple(float(mean * typical) for mean in fitted.mean_loss)
    ClassLosses(CLASSES, means, fitted.pixels, fitted.provenance).write(folder / 'losses.json')
    return folder / 'losses.json'


@pytest.fixture
def pool_dir(generated: Path, tmp_path: Path) -> Path:
    """A copy, to filter."""
    return Path(shutil.copytree(generated, tmp_path / 'pool'))


def settings(small_run: SmallRun, losses: Path, **options: object) -> dict:
    """``synthesis.filter``."""
    critic = dict(type='mmsynth.SegmentorCritic', config=str(small_run.critic_config_file),
                  checkpoint=str(small_run.critic))
    return dict(type='mmsynth.ClassLossFilter', segmentor=critic, class_losses=str(losses), margin=1.0) | options


def make(small_run: SmallRun, losses: Path, **options: object) -> ClassLossFilter:
    return build_filter(small_run.config(synthesis__filter=settings(small_run, losses, **options)))


def contents(root: Path, names: tuple[str, ...] = ('filtered', 'weights')) -> dict[str, list]:
    """Pixels of all that a filter wrote."""
    return {str(path.relative_to(root)): np.asarray(Image.open(path)).tolist()
            for name in names for path in sorted((root / name).glob('*'))}


def test_labels_records_and_kept_agree(small_run: SmallRun, losses: Path, pool_dir: Path, generated: Path) -> None:
    report = filter_pool(pool_dir, make(small_run, losses, min_valid=0.4))
    pool = Pool.open(pool_dir)
    assert report.filtered == len(pool) == 4 * PER_MASK
    fell = 0
    for record in pool.records:
        mask, label = pool.load_mask(record), np.asarray(Image.open(pool_dir / record.filter['label']))
        assert ((label == mask) | (label == 255)).all()
        for index, name in enumerate(CLASSES):
            assert record.filter['removed'].get(name, 0) == ((mask == index) & (label == 255)).sum()
        assert record.filter['valid'] == pytest.approx((label != 255).mean())
        assert record.filter['keep'] == ((label != 255).mean() > 0.4) and record.filter['weight'] is None
        fell += int((label != mask).sum())
    assert 0.1 < fell / (len(pool) * 256) < 0.9
    kept = [Path(record.image).stem for record in pool.records if record.filter['keep']]
    assert (pool_dir / 'kept.txt').read_text().split() == kept and report.kept == len(kept)
    for record in pool.records:  # what was generated stays
        assert (pool_dir / record.mask).read_bytes() == (generated / record.mask).read_bytes()


def test_a_plain_mmseg_dataset_trains_on_what_is_kept(small_run: SmallRun, losses: Path, pool_dir: Path) -> None:
    report = filter_pool(pool_dir, make(small_run, losses, weak_classes=['road']))
    dataset = BaseSegDataset(
        data_root=str(pool_dir), ann_file='kept.txt', data_prefix=dict(img_path='img_dir', seg_map_path='filtered'),
        img_suffix='.png', seg_map_suffix='.png', metainfo=dict(classes=CLASSES, palette=PALETTE))
    assert len(dataset) == report.kept > 0
    assert all(Path(info[key]).is_file() for info in map(dataset.get_data_info, range(len(dataset)))
               for key in ('img_path', 'seg_map_path'))


def assert_alike(one: dict[str, list], other: dict[str, list]) -> None:
    """The same files; of a pixel that is at its limit to seven digits, the batch may decide."""
    assert one.keys() == other.keys()
    different = [np.abs(np.subtract(one[path], other[path])) > 1 for path in one]
    assert np.mean(different) < 1e-3


def test_the_manifest_is_rewritten_once_however_many_samples_there_are(
        small_run: SmallRun, losses: Path, pool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], store.write_manifest
    monkeypatch.setattr(store, 'write_manifest', lambda *arguments: written.append(write(*arguments)))
    monkeypatch.setattr(sys.modules['mmsynth.apis.filter_pool'], 'CHUNK', 2)
    assert filter_pool(pool_dir, make(small_run, losses)).filtered == 4 * PER_MASK and len(written) == 1


@pytest.mark.parametrize('options', [{}, dict(mode='soft'), dict(sibling_vote='median')])
def test_batches_and_a_resume_do_not_matter(small_run: SmallRun, losses: Path, pool_dir: Path, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    pixel_filter, other = make(small_run, losses, **options), Path(shutil.copytree(pool_dir, tmp_path / 'other'))
    monkeypatch.setattr(sys.modules['mmsynth.apis.filter_pool'], 'CHUNK', 4)
    filter_pool(other, pixel_filter, batch_size=16)
    calls, read = [], ClassLossFilter.predict_logits

    def dies(self: ClassLossFilter, images: list) -> object:
        calls.append(len(images))
        if sum(calls) > 9:
            raise KeyboardInterrupt
        return read(self, images)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ClassLossFilter, 'predict_logits', dies)
        filter_pool(pool_dir, pixel_filter, batch_size=2)
    assert not (pool_dir / 'kept.txt').exists()
    done = sum(record.filter is not None for record in Pool.open(pool_dir).records)
    report = filter_pool(pool_dir, pixel_filter, batch_size=1)
    assert 0 < done < 4 * PER_MASK and report.filtered == 4 * PER_MASK - done
    assert filter_pool(pool_dir, pixel_filter).filtered == 0
    one, two = contents(pool_dir), contents(other)
    assert len(one) == 4 * PER_MASK * (2 if options.get('mode') == 'soft' else 1)
    assert_alike(one, two)
    assert (pool_dir / 'kept.txt').read_text() == (other / 'kept.txt').read_text()


@pytest.mark.parametrize('options', [dict(mode='soft'), dict(sibling_vote='median')])
def test_shards_find_what_one_process_finds(small_run: SmallRun, losses: Path, pool_dir: Path, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    """One of them is killed and comes back."""
    pixel_filter, other = make(small_run, losses, **options), Path(shutil.copytree(pool_dir, tmp_path / 'other'))
    whole = filter_pool(other, pixel_filter)
    monkeypatch.setattr(sys.modules['mmsynth.apis.filter_pool'], 'CHUNK', 1)
    update, stored = Pool.update, []

    def dies(pool: Pool, *arguments: object, **options: object) -> None:
        update(pool, *arguments, **options)
        stored.append(pool)
        if len(stored) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pool, 'update', dies)
        filter_pool(pool_dir, pixel_filter, shard=Shard(0, 3))  # of two masks; the others have one
    reports = [filter_pool(pool_dir, pixel_filter, shard=Shard(index, 3)) for index in (2, 1, 0)]
    assert 0 < sum(report.filtered for report in reports) < len(whole.pool)
    assert [report.kept for report in reports] == [None, None, whole.kept]
    assert Pool.open(pool_dir).records == whole.pool.records and contents(pool_dir) == contents(other)
    assert (pool_dir / 'kept.txt').read_text() == (other / 'kept.txt').read_text()
    again = filter_pool(pool_dir, pixel_filter, shard=Shard(0, 2))  # nothing to do: each is the last one
    assert again.filtered == 0 and again.kept == whole.kept and 'dropped' in str(again)


def test_what_shards_cannot_do(small_run: SmallRun, losses: Path, pool_dir: Path) -> None:
    pixel_filter = make(small_run, losses)
    with pytest.raises(ValueError, match='`overwrite` and `shard`'):
        filter_pool(pool_dir, pixel_filter, overwrite=True, shard=Shard(0, 2))
    small_run.synthesize(pool_dir, guidance='none', num_per_mask=PER_MASK + 2, batch_size=1, shard=Shard(0, 2))
    with pytest.raises(ValueError, match='is not finished.*`shard`'):
        filter_pool(pool_dir, pixel_filter, shard=Shard(0, 2))
    assert filter_pool(pool_dir, pixel_filter).filtered == 4 * (PER_MASK + 1)


def test_synthesis_filters_in_the_same_pass(small_run: SmallRun, losses: Path, pool_dir: Path, tmp_path: Path) -> None:
    for number, options in enumerate((dict(mode='soft'), dict(sibling_vote='median'))):
        cfg = small_run.config(synthesis__filter=settings(small_run, losses, **options))
        filter_pool(pool_dir, build_filter(cfg), overwrite=True)
        at_once = small_run.synthesize(tmp_path / str(number), cfg, guidance='none', num_per_mask=PER_MASK, filter=True)
        later = Pool.open(pool_dir)
        for one, other in zip(at_once.records, later.records, strict=True):
            assert one.id == other.id and one.filter.keys() == other.filter.keys()
            for key in ('filter_sha256', 'labels_sha256', 'label', 'weight', 'keep', 'pixels'):
                assert one.filter[key] == other.filter[key]
        assert_alike(contents(at_once.root), contents(pool_dir))
        assert (at_once.root / 'kept.txt').read_text() == (pool_dir / 'kept.txt').read_text()


def test_what_was_generated_unfiltered_is_filtered_too(small_run: SmallRun, losses: Path, pool_dir: Path) -> None:
    cfg = small_run.config(synthesis__filter=settings(small_run, losses))
    pool = small_run.synthesize(pool_dir, cfg, guidance='none', num_per_mask=PER_MASK + 1, filter=True)
    assert len(pool) == 4 * (PER_MASK + 1) and all(record.filter for record in pool.records)


def test_results_of_another_filter_are_replaced_on_demand_only(small_run: SmallRun, losses: Path,
                                                               pool_dir: Path) -> None:
    filter_pool(pool_dir, make(small_run, losses, mode='soft'))
    other = make(small_run, losses)
    with pytest.raises(ValueError, match='12 samples .*--overwrite'):
        filter_pool(pool_dir, other)
    assert len(contents(pool_dir)) == 2 * 4 * PER_MASK and (pool_dir / 'kept.txt').is_file()
    assert filter_pool(pool_dir, other, overwrite=True).filtered == 4 * PER_MASK
    assert not contents(pool_dir, ('weights', )) and len(contents(pool_dir)) == 4 * PER_MASK


def test_labels_that_were_changed_since_are_named(small_run: SmallRun, losses: Path, pool_dir: Path) -> None:
    pixel_filter = make(small_run, losses)
    filter_pool(pool_dir, pixel_filter)
    record = Pool.open(pool_dir).records[1]
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(pool_dir / record.mask)
    with pytest.raises(ValueError, match=f'1 labels .*{record.mask}'):
        filter_pool(pool_dir, pixel_filter)
    assert filter_pool(pool_dir, pixel_filter, overwrite=True).filtered == 1
    assert Pool.open(pool_dir).records[1].filter['pixels'] == dict(field=256)


def test_what_does_not_belong_together_is_refused(small_run: SmallRun, losses: Path, pool_dir: Path,
                                                  tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='`model`: TODSynth'):
        filter_pool(pool_dir, make(small_run, losses), generator=small_run.config(model__num_steps=9).model)
    fitted = ClassLosses.read(losses)
    renamed = tmp_path / 'renamed.json'
    ClassLosses(('a', 'b', 'c'), fitted.mean_loss, fitted.pixels, fitted.provenance).write(renamed)
    with pytest.raises(ValueError, match='field, road, water; .* a, b, c'):
        filter_pool(pool_dir, make(small_run, renamed))
    unseen = tmp_path / 'unseen.json'
    ClassLosses(CLASSES, (*fitted.mean_loss[:2], None), (1, 1, 0), fitted.provenance).write(unseen)
    with pytest.raises(ValueError, match='ann_dir/.*png shows water.*`unseen_classes`'):
        filter_pool(pool_dir, make(small_run, unseen))
    with pytest.raises(ValueError, match='it has no `synthesis.filter`'):
        build_filter(small_run.config())
    Pool.create(tmp_path / 'empty', {}, CLASSES, PALETTE).close()
    with pytest.raises(ValueError, match='empty; there is nothing to filter'):
        filter_pool(tmp_path / 'empty', make(small_run, losses))
    assert all(record.filter is None for record in Pool.open(pool_dir).records)


def test_a_critic_that_filters_what_it_guided_is_said_so(small_run: SmallRun, losses: Path, pool_dir: Path,
                                                         tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    module = sys.modules['mmsynth.apis.filter_pool']
    monkeypatch.setattr(module, 'print_log', lambda message, **options: told.append(message))
    filter_pool(pool_dir, make(small_run, losses))
    assert not told
    guided = small_run.synthesize(tmp_path / 'guided', limit=1)
    filter_pool(guided.root, make(small_run, losses))
    assert len(told) == 1 and 'is the critic that guided it' in told[0]


def test_the_tools_fit_and_filter(small_run: SmallRun, pool_dir: Path, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Both scripts, in this process."""
    def run(tool: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return ''.join(capsys.readouterr())

    out = run('fit_class_loss.py', small_run.critic_config_file, small_run.critic, '--out', tmp_path / 'new' / 'l.json',
              '--device', 'cpu')
    assert 'class losses on real data' in out and '4 images; written to' in out
    config = tmp_path / 'config.py'
    filter_settings = settings(small_run, tmp_path / 'new' / 'l.json')
    config.write_text(f'_base_ = {str(small_run.config_file)!r}\nsynthesis = dict(filter={filter_settings!r})\n')
    out = run('filter_pool.py', pool_dir, config, '--device', 'cpu', '--cfg-options', 'synthesis.filter.min_valid=0')
    assert 'labelled pixels' in out and 'kept' in out and '12 filtered now, 0 were' in out
    assert 'filter: 100%' in out
    first = json.loads((pool_dir / 'manifest.jsonl').read_text().splitlines()[0])['filter']
    assert first.keys() == {'filter_sha256', 'labels_sha256', 'label', 'weight', 'keep', 'reason', 'valid', 'pixels',
                            'removed', 'loss', 'hardness'}
