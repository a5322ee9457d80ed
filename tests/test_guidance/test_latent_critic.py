"""The critic that reads latents: what it computes, what its file holds, how it guides, what it refuses."""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmsynth.guidance import LatentCritic, ReducedDecoder
from mmsynth.registry import MODELS
from mmsynth.sampling import SamplingStep

SETTINGS = dict(channels=4, factor=2, num_classes=3, width=8)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def critic(**changes) -> LatentCritic:
    """A head with random weights everywhere, so that every input makes a difference."""
    built = LatentCritic(**SETTINGS | changes)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def never(latents: Tensor) -> Tensor:
    raise AssertionError('something is decoded')


class TestReading:

    def test_a_new_head_reads_the_pixels_of_a_cell_alike(self) -> None:
        logits = LatentCritic(**SETTINGS).predict_logits(torch.randn(2, 4, 3, 5))
        assert logits.shape == (2, 3, 6, 10) and logits.std() > 0.1
        torch.testing.assert_close(logits, F.interpolate(logits[..., ::2, ::2], scale_factor=2))

    def test_a_trained_one_does_not(self) -> None:
        logits = critic().predict_logits(torch.randn(1, 4, 3, 5))
        assert not torch.allclose(logits, F.interpolate(logits[..., ::2, ::2], scale_factor=2), atol=1e-2)

    def test_its_loss_is_the_cross_entropy_where_labelled(self) -> None:
        ours, latents, masks = critic(), torch.randn(2, 4, 3, 3), torch.randint(3, (2, 6, 6))
        masks[:, :2] = 255
        output, logits = ours(latents, masks), ours.predict_logits(latents)
        torch.testing.assert_close(output.loss, F.cross_entropy(logits, masks, ignore_index=255, reduction='none'))
        assert torch.equal(output.valid, masks != 255)
        assert torch.equal(output.wrong, output.valid & (logits.argmax(1) != masks))

    def test_a_sample_is_read_apart_from_its_batch(self) -> None:
        ours, latents = critic(), torch.randn(3, 4, 5, 4)
        together = ours.predict_logits(latents)
        torch.testing.assert_close(together, torch.cat([ours.predict_logits(latents[row:row + 1]) for row in range(3)]))

    def test_half_precision_latents_are_read_in_float(self) -> None:
        assert critic().predict_logits(torch.randn(1, 4, 3, 3).bfloat16()).dtype == torch.float32

    def test_it_is_frozen(self) -> None:
        ours = critic().train()
        assert not ours.training and not any(parameter.requires_grad for parameter in ours.parameters())


class TestGuiding:

    def test_crfm_lowers_its_loss_without_a_decode(self) -> None:
        guidance = MODELS.build(dict(type='mmsynth.CRFM', critic=critic(), objective='mask', step_size=0.2,
                                     measure_after=True))
        guidance.check_fit(3, channels=4, factor=2)
        step = SamplingStep(1, 4, torch.randn(2, 4, 4, 4), alpha=0.4, sigma=0.6)
        _, records = guidance.bind(never, torch.randint(3, (2, 8, 8)))(torch.randn(2, 4, 4, 4), step)
        assert all(record['loss_after'] < record['loss_before'] for record in records)

    def test_a_decoder_beside_it_is_refused(self) -> None:
        with pytest.raises(ValueError, match='`decoder`'):
            MODELS.build(dict(type='mmsynth.CRFM', critic=critic(), decoder=ReducedDecoder(2)))

    @pytest.mark.parametrize('channels, factor', [(16, 2), (4, 8)])
    def test_another_codec_is_refused(self, channels: int, factor: int) -> None:
        with pytest.raises(ValueError, match=f' 4 channels and 2 pixels .* {channels} and {factor};'):
            critic().check_latents(channels, factor)

    def test_other_classes_are_refused(self) -> None:
        with pytest.raises(ValueError, match='has 3 classes, the data set has 5'):
            critic().check_num_classes(5)

    def test_masks_of_another_size_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r'\(4, 4\) cells .*\(8, 8\) pixels, got \(4, 8\)'):
            critic()(torch.randn(1, 4, 4, 4), torch.zeros(1, 4, 8, dtype=torch.long))


class TestFile:

    def test_one_line_brings_it_back(self, tmp_path: Path) -> None:
        ours, file = critic(ignore_index=7), tmp_path / 'head.safetensors'
        ours.save(file, origin=dict(iters=5))
        again = MODELS.build(dict(type='mmsynth.LatentCritic', checkpoint=str(file)))
        latents = torch.randn(1, 4, 3, 3)
        assert torch.equal(again.predict_logits(latents), ours.predict_logits(latents))
        assert again.settings == ours.settings == SETTINGS | dict(ignore_index=7) and again.ignore_index == 7
        with safe_open(file, framework='pt') as content:
            assert json.loads(content.metadata()['origin']) == dict(iters=5)
        assert [path.name for path in tmp_path.iterdir()] == ['head.safetensors']  # no temporary is left

    def test_plain_weights_need_the_settings(self, tmp_path: Path) -> None:
        ours = critic()
        torch.save(ours.state_dict(), tmp_path / 'head.pth')
        save_file(ours.state_dict(), tmp_path / 'head.safetensors')
        for name in ('head.pth', 'head.safetensors'):
            again = LatentCritic(**SETTINGS, checkpoint=str(tmp_path / name))
            assert torch.equal(again.head.weight, ours.head.weight)
            with pytest.raises(ValueError, match='`channels`, `factor`, `num_classes`.* `ch'):
                LatentCritic(checkpoint=str(tmp_path / name))

    def test_a_setting_that_contradicts_the_file_is_named(self, tmp_path: Path) -> None:
        critic().save(tmp_path / 'head.safetensors')
        LatentCritic(4, num_classes=3, checkpoint=str(tmp_path / 'head.safetensors'))
        with pytest.raises(ValueError, match=r'other settings: `num_classes` 5 \(file: 3\), `width` 16 \(file: 8\)'):
            LatentCritic(num_classes=5, width=16, checkpoint=str(tmp_path / 'head.safetensors'))

    def test_weights_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        save_file(critic().state_dict(), tmp_path / 'head.safetensors')
        with pytest.raises(ValueError, match='head.safetensors does not fit LatentCritic: '):
            LatentCritic(**SETTINGS | dict(num_classes=4), checkpoint=str(tmp_path / 'head.safetensors'))

    @pytest.mark.parametrize('settings', ['{"channels": "4"}', '{"depth": 4}', '[4]', '{"width": true}'])
    def test_settings_of_another_kind_are_refused(self, settings: str, tmp_path: Path) -> None:
        save_file(critic().state_dict(), tmp_path / 'head.safetensors', {'mmsynth.LatentCritic': settings})
        with pytest.raises(ValueError, match='its settings are .*channels, factor'):
            LatentCritic(checkpoint=str(tmp_path / 'head.safetensors'))

    def test_a_missing_or_damaged_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match='gone.safetensors does not exist'):
            LatentCritic(**SETTINGS, checkpoint=str(tmp_path / 'gone.safetensors'))
        (tmp_path / 'torn.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"a":')
        with pytest.raises(ValueError, match='torn.safetensors cannot be read as safetensors'):
            LatentCritic(checkpoint=str(tmp_path / 'torn.safetensors'))

    def test_it_is_written_as_safetensors_only(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='must end in .safetensors'):
            critic().save(tmp_path / 'head.pth')


@pytest.mark.parametrize('changes', [dict(width=12), dict(width=0), dict(channels=0), dict(num_classes=-1)])
def test_settings_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match='`width` a positive multiple of 8, got'):
        LatentCritic(**SETTINGS | changes)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match='`factor`.* `checkpoint`'):
        LatentCritic(channels=4, num_classes=3)
