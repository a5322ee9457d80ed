"""Checkpoints hold what cannot be had from the backbone, no more and no less, also through the host's runner."""
import copy
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook
from small_run import SmallRun, train
from tiny_backbone import write_tiny_sd3
from tiny_generator import perturb, pretrained_config, todsynth, velocity

from mmsynth.models import TODSynth
from mmsynth.models.backbone import FINGERPRINT, backbone_tensors, whole_state_dict
from mmsynth.models.checkpoints import load_generator, load_generator_state
from mmsynth.registry import MODELS
from mmsynth.utils import read_checkpoint

CHEAP = dict(image='lora', mask='lora', text='frozen')


def generator(folder: Path, **changes) -> TODSynth:
    torch.manual_seed(5)  # not that of the folder's weights
    return MODELS.build(pretrained_config(folder, **changes)).eval()


def stored(model: TODSynth) -> set[str]:
    return set(model.state_dict()) - {FINGERPRINT}


def names(model: TODSynth, branch: str) -> set[str]:
    return {f'network.{name}' for name in model.network.branch_parameters(branch)}


def own_text(model: TODSynth) -> set[str]:
    return {name for name in whole_state_dict(model) if name.startswith('text_encoder.')}


class TestWhatIsStored:

    def test_by_default_image_and_mask(self, tiny_sd3: Path) -> None:
        model = generator(tiny_sd3)
        assert stored(model) == names(model, 'image') | names(model, 'mask') | own_text(model)

    def test_a_frozen_copy_of_the_image_stream_is_the_backbones(self, tiny_sd3: Path) -> None:
        model = generator(tiny_sd3, trainable=dict(mask='frozen'))
        assert stored(model) == names(model, 'image') | own_text(model)

    def test_a_frozen_random_start_is_not(self, tiny_sd3: Path) -> None:
        """The release starts its mask stream from random weights."""
        model = generator(tiny_sd3, trainable=dict(mask='frozen'), network=dict(legacy=True))
        weights = {name for name in names(model, 'mask') if name.endswith('weight') and 'norm_' not in name}
        assert weights and weights <= stored(model)

    def test_with_lora_little_else(self, tiny_sd3: Path) -> None:
        model = generator(tiny_sd3, trainable=CHEAP)
        network = stored(model) - own_text(model)
        assert network and all('.lora_A.weight' in name or '.lora_B.weight' in name for name in network)

    def test_a_trunk_of_its_own_is_stored_whole(self) -> None:
        model = todsynth(trainable=dict(image='frozen', mask='frozen'))
        assert model.state_dict().keys() == whole_state_dict(model).keys() and not backbone_tensors(model)

    @pytest.mark.parametrize('name', ['network.trunk.pos_embed.proj.weight', 'latent_codec.vae.encoder.conv_in.weight'])
    def test_what_has_changed_is_stored_again(self, tiny_sd3: Path, name: str) -> None:
        """As a checkpoint of another training does that is then adapted by LoRA."""
        model, other = (generator(tiny_sd3, trainable=CHEAP) for _ in range(2))
        changed = whole_state_dict(model) | {name: torch.ones_like(whole_state_dict(model)[name])}
        load_generator_state(model, changed, source='a.pth')
        assert name in model.state_dict()
        load_generator_state(other, model.state_dict(), source='b.pth')
        assert torch.equal(whole_state_dict(other)[name], changed[name])

    def test_copies_store_the_same(self, tiny_sd3: Path) -> None:
        """EMA's copy has no parameter that requires a gradient, and its tensors are updated by averages."""
        model = generator(tiny_sd3, trainable=CHEAP)
        twin = copy.deepcopy(model).requires_grad_(False)
        for average, source in zip(twin.parameters(), model.parameters()):
            average.lerp_(source, 0.1)
        assert list(twin.state_dict()) == list(model.state_dict())
        assert torch.equal(twin.state_dict()[FINGERPRINT], model.state_dict()[FINGERPRINT])


class TestLoading:

    @pytest.mark.parametrize('trainable', [dict(), dict(mask='frozen'), CHEAP, dict(text='lora')], ids=str)
    def test_the_velocity_comes_back(self, tiny_sd3: Path, trainable: dict[str, str], tmp_path: Path) -> None:
        saved = perturb(generator(tiny_sd3, trainable=trainable))
        torch.save(dict(state_dict=saved.state_dict()), tmp_path / 'a.pth')
        loaded = generator(tiny_sd3, trainable=trainable)
        assert not same(velocity(loaded), velocity(saved))
        report = load_generator(loaded, tmp_path / 'a.pth')
        assert same(velocity(loaded), velocity(saved))
        left_out = len(whole_state_dict(saved)) - len(stored(saved))
        assert report.complete and report.loaded == len(stored(saved)) and report.from_backbone == left_out > 0
        assert f'{left_out} frozen tensors from the backbone' in str(report)

    def test_a_file_with_all_tensors_loads(self, tiny_sd3: Path) -> None:
        """As written before anything was left out; also strictly, by torch."""
        saved, loaded = perturb(generator(tiny_sd3)), generator(tiny_sd3)
        whole = {name: value.detach().clone() for name, value in whole_state_dict(saved).items()}
        report = load_generator_state(loaded, whole, source='a.pth')
        assert report.complete and report.loaded == len(whole) and not report.from_backbone
        assert same(velocity(loaded), velocity(saved))
        assert str(generator(tiny_sd3).load_state_dict(whole)) == '<All keys matched successfully>'

    def test_torch_takes_it_strictly(self, tiny_sd3: Path) -> None:
        saved, loaded = perturb(generator(tiny_sd3, trainable=CHEAP)), generator(tiny_sd3, trainable=CHEAP)
        state = saved.state_dict()
        assert str(loaded.load_state_dict(state)) == '<All keys matched successfully>'
        assert same(velocity(loaded), velocity(saved)) and FINGERPRINT in state  # what is given stays as it is

    def test_a_training_without_lora_can_be_adapted(self, tiny_sd3: Path) -> None:
        trained = perturb(generator(tiny_sd3))
        adapted = generator(tiny_sd3, trainable=CHEAP)
        result = adapted.load_state_dict(trained.state_dict(), strict=False)
        assert all('.lora_' in key for key in result.missing_keys) and not result.unexpected_keys
        torch.testing.assert_close(velocity(adapted), velocity(trained), rtol=0, atol=0)
        again = generator(tiny_sd3, trainable=CHEAP)
        load_generator_state(again, perturb(adapted).state_dict(), source='a.pth')  # holds the weights it adapts
        assert same(velocity(again), velocity(adapted))

    @pytest.mark.parametrize('remove, message', [
        ('network.mask_blocks.1.norm1.linear.weight', r'1 missing in the file: network\.mask_blocks\.1\.norm1'),
        ('network.trunk.proj_out.bias', r'1 missing in the file: network\.trunk\.proj_out\.bias'),
        ('text_encoder.present', r'1 missing in the file: text_encoder\.present'),
    ])
    def test_a_missing_trained_tensor_is_refused(self, tiny_sd3: Path, remove: str, message: str) -> None:
        state, model = generator(tiny_sd3).state_dict(), generator(tiny_sd3)
        del state[remove]
        with pytest.raises(ValueError, match=f'a.pth does not fit TODSynth: .*{message}'):
            load_generator_state(model, state, source='a.pth')

    def test_without_the_updates_or_with_others_it_is_refused(self, tiny_sd3: Path) -> None:
        plain, small = generator(tiny_sd3), generator(tiny_sd3, trainable=CHEAP, lora=dict(rank=2))
        large = generator(tiny_sd3, trainable=CHEAP, lora=dict(rank=4))
        with pytest.raises(ValueError, match=r'missing in the file: .*lora_A\.weight'):
            load_generator_state(small, plain.state_dict(), source='a.pth')
        with pytest.raises(ValueError, match=r'unexpected in the file: .*lora_A\.weight'):
            load_generator_state(plain, small.state_dict(), source='a.pth')
        with pytest.raises(ValueError, match=r'lora_A\.weight \(file \(2, 32\), model \(4, 32\)\)'):
            load_generator_state(large, small.state_dict(), source='a.pth')

    def test_another_backbone_is_refused_and_nothing_loaded(self, tiny_sd3: Path, tmp_path: Path) -> None:
        state = perturb(generator(tiny_sd3, trainable=CHEAP)).state_dict()
        other = generator(write_tiny_sd3(tmp_path / 'other', seed=1), trainable=CHEAP)
        before = velocity(other)
        for load in (other.load_state_dict, lambda state: load_generator_state(other, state, source='a.pth')):
            with pytest.raises(ValueError, match=r'another backbone: \d+ of the \d+ tensors .* first is latent_codec'):
                load(state)
        assert same(velocity(other), before)

    def test_a_copied_backbone_is_the_same(self, tiny_sd3: Path, tmp_path: Path) -> None:
        saved = perturb(generator(tiny_sd3, trainable=CHEAP))
        twin = generator(write_tiny_sd3(tmp_path / 'copy'), trainable=CHEAP)
        load_generator_state(twin, saved.state_dict(), source='a.pth')
        assert same(velocity(twin), velocity(saved))


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal but for rounding: where memory is aligned otherwise, a processor may sum in another order."""
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


class TestRunner:
    PROMPTS = ('road', 'water, road')

    @staticmethod
    def train(small_run: SmallRun, folder: Path, tiny_sd3: Path, ema: bool, **overrides) -> tuple[TODSynth, TODSynth]:
        """Train with LoRA on the tiny backbone; the model, and the one that a checkpoint offers for use."""
        hooks = [dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.4, strict_load=True)] * ema
        model = pretrained_config(tiny_sd3, trainable=CHEAP, lora=dict(rank=1))
        changes = {f'model.{key}': value for key, value in model.items()}
        for key in ('network', 'latent_codec', 'label_codec', 'text_encoder'):
            changes[f'model.{key}'] |= dict(_delete_=True)
        changes['model.text_encoder']['classes'] = ('field', 'road', 'water')
        runner = train(small_run.config_file, folder, changes | {'custom_hooks': hooks} | overrides)
        averaged = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
        return runner.model.eval(), (averaged or [runner.model])[0].eval()

    @pytest.mark.parametrize('ema', [False, True])
    def test_train_save_resume(self, small_run: SmallRun, tiny_sd3: Path, tmp_path: Path, ema: bool) -> None:
        model, served = self.train(small_run, tmp_path, tiny_sd3, ema)
        state = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
        for part in (state['state_dict'], state['ema_state_dict'] if ema else {}):
            assert {key.removeprefix('module.') for key in part} - {FINGERPRINT, 'steps'} in (stored(model), set())
        whole = sum(value.numel() * value.element_size() for value in whole_state_dict(model).values())
        assert (tmp_path / 'iter_2.pth').stat().st_size < (0.6 if ema else 0.4) * whole  # with optimizer and log
        assert same(velocity(model, self.PROMPTS), velocity(served, self.PROMPTS)) != ema

        used = generator(tiny_sd3, trainable=CHEAP, lora=dict(rank=1), text_encoder=copy.deepcopy(model.text_encoder))
        load_generator(used, tmp_path / 'iter_2.pth')
        assert same(velocity(used, self.PROMPTS), velocity(served, self.PROMPTS))

        again = self.train(small_run, tmp_path, tiny_sd3, ema, resume=True)  # nothing left to do: as it was saved
        for resumed, before in zip(again, (model, served)):
            assert same(velocity(resumed, self.PROMPTS), velocity(before, self.PROMPTS))

    @pytest.mark.parametrize('ema', [False, True])
    def test_a_resumed_training_goes_on(self, small_run: SmallRun, tiny_sd3: Path, tmp_path: Path, ema: bool) -> None:
        self.train(small_run, tmp_path, tiny_sd3, ema)
        self.train(small_run, tmp_path, tiny_sd3, ema, resume=True, **{'train_cfg.max_iters': 3})
        before, after = (read_checkpoint(tmp_path / f'iter_{count}.pth') for count in (2, 3))
        assert before.keys() == after.keys()
        unused = 'network.mask_blocks.1.attn.to_q.lora_B.weight'  # of the last block, whose mask tokens are dropped
        assert {key for key in after if torch.equal(after[key], before[key])} == {FINGERPRINT, unused}
        assert 'do not match exactly' not in ''.join(path.read_text() for path in tmp_path.rglob('*.log'))
