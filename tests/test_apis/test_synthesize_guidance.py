"""Which guidance a pool is generated with, what its records then say, and what is said when it cannot work."""
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from small_run import CLASSES, GUIDED_STEPS, NAMES, SmallRun

from mmsynth.apis.synthesize import _report_uncorrected, list_requests
from mmsynth.guidance import LatentCritic
from mmsynth.pool import Pool
from mmsynth.synthesis.build import build_dataset, build_generator
from mmsynth.synthesis.guidance import guidance_settings
from mmsynth.utils.hashes import file_hash
from mmsynth.visualization import pool_report

CANDIDATES = 3


def images(pool: Pool) -> dict[str, np.ndarray]:
    """Record id → image, as signed numbers that can be subtracted."""
    return {record.id: pool.load_image(record).astype(int) for record in pool.records}


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> int:
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]).max() for name in one)


@pytest.fixture(scope='module')
def best(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Best of three, asked for on a config that has CRFM."""
    return small_run.synthesize(tmp_path_factory.mktemp('pools') / 'best', guidance='best-of-n', candidates=CANDIDATES)


class TestBestOfN:

    def test_records_tell_what_was_chosen(self, best: Pool) -> None:
        for record in best.records:
            assert record.guidance['name'] == 'BestOfN'
            entry, = best.load_trace(record)
            assert entry['step'] == 2 and entry['candidate'] in range(CANDIDATES)
            assert entry['loss_after'] <= entry['loss_before']
            assert (entry['candidate'] == 0) == (entry['seed'] == record.seed)
        assert any(best.load_trace(record)[0]['candidate'] for record in best.records)
        assert best.settings['guidance']['settings']['type'] == 'mmsynth.BestOfN'
        assert best.settings['guidance']['settings']['num_candidates'] == CANDIDATES

    def test_the_seeds_of_a_record_generate_its_image_again(self, small_run: SmallRun, best: Pool) -> None:
        """The record's own under the pool's settings, the chosen candidate's without guidance."""
        cfg = small_run.config()
        generator = build_generator(cfg, small_run.generator, 'cpu')
        dataset = build_dataset(cfg.synthesis.dataset)
        for request, record in zip(list_requests(dataset, 0, 1), best.records, strict=True):
            sample = dataset[request.index]['data_samples']
            generated, = generator.synthesize([sample], [best.load_trace(record)[0]['seed']])
            image = generated.generated_img.data.permute(1, 2, 0).numpy().astype(int)
            assert request.seed == record.seed and abs(image - best.load_image(record)).max() <= 1

    def test_one_candidate_generates_what_no_guidance_generates(self, small_run: SmallRun, tmp_path: Path) -> None:
        one = small_run.synthesize(tmp_path / 'one', guidance='best-of-n', candidates=1)
        plain = small_run.synthesize(tmp_path / 'plain', guidance='none')
        assert largest_difference(images(one), images(plain)) == 0

    @pytest.mark.parametrize('batch_size', [1, 3])
    def test_the_batch_makes_no_difference(self, small_run: SmallRun, best: Pool, tmp_path: Path,
                                           batch_size: int) -> None:
        other = small_run.synthesize(
            tmp_path / 'pool', guidance='best-of-n', candidates=CANDIDATES, batch_size=batch_size)
        assert largest_difference(images(other), images(best)) <= 1
        assert [other.load_trace(record)[0]['seed'] for record in other.records] == [
            best.load_trace(record)[0]['seed'] for record in best.records]

    def test_the_config_s_own_is_used_unasked(self, small_run: SmallRun, best: Pool, tmp_path: Path) -> None:
        cfg = small_run.config()
        cfg.synthesis.guidance = dict(
            type='mmsynth.BestOfN', num_candidates=CANDIDATES, critic=cfg.synthesis.guidance.critic)
        pool = small_run.synthesize(tmp_path / 'pool', cfg)
        assert pool.settings == best.settings and largest_difference(images(pool), images(best)) == 0

    @pytest.mark.parametrize('options, field', [
        (dict(), 'settings.guidance.settings.type'),
        (dict(guidance='none'), 'settings.guidance'),
        (dict(guidance='best-of-n'), 'settings.guidance.settings.num_candidates: 3 there, (not set) here'),
    ])
    def test_a_pool_of_another_guidance_is_not_continued(self, small_run: SmallRun, best: Pool, options: dict,
                                                         field: str) -> None:
        with pytest.raises(ValueError) as caught:
            small_run.synthesize(best.root, **options)
        assert 'holds a pool made with other settings' in str(caught.value) and field in str(caught.value)

    def test_the_report_shows_which_candidates_were_kept(self, best: Pool) -> None:
        page = (best.root / 'report.html').read_text()
        kept = [best.load_trace(record)[0]['candidate'] for record in best.records]
        assert 'Candidates kept' in page and 'of the first candidate (before) and of the one kept (after)' in page
        assert f'{100 * kept.count(0) / len(kept):.1f}%' in page


class TestChoice:

    def test_by_default_it_is_the_config_s(self, small_run: SmallRun) -> None:
        cfg = small_run.config()
        assert guidance_settings(cfg, None) == guidance_settings(cfg, 'crfm') == cfg.synthesis.guidance.to_dict()
        assert guidance_settings(cfg, 'none') is None
        del cfg.synthesis['guidance']
        assert guidance_settings(cfg, None) is None

    def test_best_of_n_takes_over_critic_and_decoder_only(self, small_run: SmallRun) -> None:
        cfg = small_run.config(synthesis__guidance__decoder=dict(type='mmsynth.ReducedDecoder'))
        assert guidance_settings(cfg, 'best-of-n', 7) == dict(
            type='mmsynth.BestOfN', critic=cfg.synthesis.guidance.critic.to_dict(),
            decoder=dict(type='mmsynth.ReducedDecoder'), num_candidates=7)
        assert cfg.synthesis.guidance.type == 'mmsynth.CRFM'

    def test_a_latent_critic_takes_the_place_of_critic_and_decoder(self, small_run: SmallRun, tmp_path: Path) -> None:
        LatentCritic(channels=4, factor=4, num_classes=len(CLASSES), width=8).save(tmp_path / 'critic.safetensors')
        latent = dict(type='mmsynth.LatentCritic', checkpoint=str(tmp_path / 'critic.safetensors'))
        cfg = small_run.config(synthesis__guidance__decoder=dict(type='mmsynth.ReducedDecoder'))
        assert guidance_settings(cfg, 'best-of-n', latent_critic=latent['checkpoint']) == dict(
            type='mmsynth.BestOfN', critic=latent)
        given = small_run.synthesize(tmp_path / 'given', cfg=cfg, latent_critic=latent['checkpoint'])
        cfg = small_run.config()
        cfg.synthesis.guidance.critic = latent
        named = small_run.synthesize(tmp_path / 'named', cfg=cfg)
        assert largest_difference(images(given), images(named)) == 0
        assert given.settings['guidance'] == named.settings['guidance']

    def test_a_latent_critic_without_guidance_is_refused(self, small_run: SmallRun) -> None:
        with pytest.raises(ValueError, match='`latent_critic` has an effect with a guidance only'):
            guidance_settings(small_run.config(), 'none', latent_critic='critic.safetensors')

    @pytest.mark.parametrize('guidance, candidates, message', [
        ('crfm', 3, "`candidates` has an effect with the guidance 'best-of-n' only"),
        ('none', 3, "`candidates` has an effect with the guidance 'best-of-n' only"),
        (None, 3, "`candidates` has an effect with the guidance 'best-of-n' only"),
        ('best', None, "`guidance` must be one of crfm, best-of-n and none, got 'best'"),
    ])
    def test_what_has_no_effect_is_refused(self, small_run: SmallRun, guidance: str, candidates: int | None,
                                           message: str) -> None:
        with pytest.raises(ValueError, match=message):
            guidance_settings(small_run.config(), guidance, candidates)

    def test_crfm_on_a_config_of_best_of_n_is_refused(self, small_run: SmallRun) -> None:
        cfg = small_run.config()
        cfg.synthesis.guidance = dict(type='mmsynth.BestOfN', critic=cfg.synthesis.guidance.critic)
        with pytest.raises(ValueError, match="'crfm'.* mmsynth.BestOfN"):
            guidance_settings(cfg, 'crfm')

    def test_no_candidates_are_refused(self, small_run: SmallRun, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='`num_candidates` must be at least 1, got 0'):
            small_run.synthesize(tmp_path / 'pool', guidance='best-of-n', candidates=0)


def test_an_ensemble_guides_and_each_of_its_weights_is_noted(small_run: SmallRun, tmp_path: Path) -> None:
    member = small_run.config().synthesis.guidance.critic.to_dict()
    cfg = small_run.config(synthesis__guidance__critic=dict(
        _delete_=True, type='mmsynth.CriticEnsemble', critics=[member, member]))
    pool = small_run.synthesize(tmp_path / 'pool', cfg, limit=1)
    assert len(pool.load_trace(pool.records[0])) == GUIDED_STEPS
    digest = file_hash(member['checkpoint'])
    assert pool.settings['guidance']['critic_weights_sha256'] == [digest, digest]


class TestUncorrected:
    """A critic without finite numbers: nothing is corrected, and it is said."""

    @pytest.fixture
    def broken(self, small_run: SmallRun, tmp_path: Path) -> Pool:
        weights = torch.load(small_run.critic, weights_only=False)['state_dict']
        weights['decode_head.conv_seg.weight'][:] = torch.nan
        torch.save(weights, tmp_path / 'broken.pth')
        cfg = small_run.config(synthesis__guidance__critic__checkpoint=str(tmp_path / 'broken.pth'),
                               synthesis__guidance__objective='mask')
        return small_run.synthesize(tmp_path / 'pool', cfg)

    def test_the_images_are_those_of_no_guidance(self, small_run: SmallRun, broken: Pool, tmp_path: Path) -> None:
        plain = small_run.synthesize(tmp_path / 'plain', guidance='none')
        assert largest_difference(images(broken), images(plain)) == 0
        assert all(step['skipped'] == 1 for record in broken.records for step in broken.load_trace(record))

    def test_the_report_says_so(self, broken: Pool, tmp_path: Path) -> None:
        count, steps = len(NAMES), len(NAMES) * GUIDED_STEPS
        for page in (broken.root / 'report.html', tmp_path / 'again.html'):
            if not page.exists():
                pool_report(broken, page, class_counts_before=[1] * len(CLASSES))
            assert f'{steps} of {steps} guided steps were left uncorrected' in page.read_text()
            assert f'in {count} of {count} samples' in page.read_text()

    def test_the_log_says_so(self, broken: Pool, caplog: pytest.LogCaptureFixture) -> None:
        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        try:
            _report_uncorrected(map(broken.load_trace, broken.records))
        finally:
            logger.removeHandler(caplog.handler)
        message, = [record for record in caplog.records if 'uncorrected' in record.message]
        steps = len(NAMES) * GUIDED_STEPS
        assert f'guidance left {steps} steps of {len(NAMES)} samples uncorrected' in message.message
        assert message.levelno == logging.WARNING

    def test_nothing_is_said_of_a_run_without(self, best: Pool, caplog: pytest.LogCaptureFixture) -> None:
        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        try:
            _report_uncorrected(map(best.load_trace, best.records))
        finally:
            logger.removeHandler(caplog.handler)
        assert not caplog.records and 'uncorrected' not in (best.root / 'report.html').read_text()
