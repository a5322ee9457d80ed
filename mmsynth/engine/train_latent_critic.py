"""Distillation of a segmentor into a latent critic: a head that predicts the classes from the clean latent, undecoded.

It is trained on what CRFM will give it: the latents of real images, and the clean estimates z0_hat of the generator's
sampling steps, at every sigma. The teacher is the segmentor on the decoded latent, the student the head on the latent:

    loss = KL(segmentor ‖ head) + mask_weight * CE(head, mask),

the second term on real images only, because a generated image may not match its mask.

Legend: B batch, C latent channels, h w latent cells, H W pixels, K classes.
"""
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler, pseudo_collate
from mmseg.evaluation import IoUMetric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mmsynth.guidance import Critic, Guidance, LatentCritic
from mmsynth.guidance.base import Decode
from mmsynth.models.generators import BaseGenerator
from mmsynth.models.generators.base import stack_masks
from mmsynth.registry import MODELS
from mmsynth.sampling import Guide, SamplingStep
from mmsynth.synthesis.build import build_dataset, build_generator
from mmsynth.utils import isolated_random_state, progress_bar
from mmsynth.utils.hashes import config_hash, file_hash
from mmsynth.utils.labels import IGNORE_INDEX

_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.1, 64


@dataclass(frozen=True)
class Agreement:
    """How well a latent critic agrees with its segmentor, on held-out images.

    Attributes:
        images: Number of images.
        clean: Share of the pixels for which both predict the same class, on the images' latents; [0, 1].
        estimates: The same on the generator's clean estimates, over all sampling steps.
        gradient: Cosine between the gradients of their losses, d loss / d z0_hat, mean over those estimates; [-1, 1].
            Guidance follows this gradient.
        critic_miou: mIoU of the head against the masks, on the images' latents; [0, 1].
        segmentor_miou: That of the segmentor, on the decoded latents.
    """

    images: int
    clean: float
    estimates: float
    gradient: float
    critic_miou: float
    segmentor_miou: float

    def __str__(self) -> str:
        return (f'{self.images} held-out images\n'
                f'pixels of the same predicted class: {self.clean:.1%} of real images, {self.estimates:.1%} of the '
                'generator\'s clean estimates\n'
                f'cosine between the gradients of the two losses on those estimates: {self.gradient:.2f}\n'
                f'mIoU against the masks of the real images: latent critic {self.critic_miou:.1%}, '
                f'segmentor {self.segmentor_miou:.1%}')


def train_latent_critic(cfg: Config,
                        checkpoint: str | Path,
                        out: str | Path,
                        *,
                        iters: int = 2000,
                        batch_size: int | None = None,
                        lr: float = 2e-3,
                        width: int = 64,
                        mask_weight: float = 0.5,
                        seed: int = 0,
                        device: torch.device | str = 'cpu') -> Agreement:
    """Train a latent critic for a generator's codec and a segmentor, and write it to a file.

    Args:
        cfg: A synthesis config: ``model`` (the generator), ``train_dataloader`` (labelled images with prompts) and
            ``synthesis.guidance.critic`` (the segmentor). A ``val_dataloader`` of the same kind gives the held-out
            images; without one, a tenth of the training images is held out.
        checkpoint: The generator's weights.
        out: File to write, .safetensors; must not exist.
        iters: Training iterations.
        batch_size: Real images per iteration, beside as many clean estimates; the data loader's by default.
        lr: Peak of the one-cycle learning rate.
        width: Channels of the head's hidden layers.
        mask_weight: Weight of the cross entropy with the masks.
        seed: Of the split, the order of the data, the noise and the head's initial weights.
        device: Where everything runs.

    Returns:
        The agreement on held-out images; it is written to the file too.

    Raises:
        ValueError: If an option is out of range or the config lacks a part.
        FileExistsError: If ``out`` exists.
    """
    _check_options(cfg, out, dict(iters=iters, batch_size=batch_size, lr=lr), mask_weight)
    generator = build_generator(cfg, checkpoint, device)
    if not isinstance(generator, BaseGenerator):
        raise ValueError(f'{cfg.filename}: `model` is {type(generator).__name__}, which has no latents for a critic to '
                         'judge; use a diffusion model.')
    segmentor = _build_segmentor(cfg).to(device)
    teacher = Teacher(segmentor, generator)
    generator.check_guidance(teacher)
    batch_size = batch_size or cfg.train_dataloader.get('batch_size', 4)
    with isolated_random_state(seed):
        codec = generator.latent_codec
        critic = LatentCritic(codec.channels, codec.factor, segmentor.num_classes, width,
                              ignore_index=segmentor.ignore_index).to(device)
        train_set, held_out = _split(cfg)
        test_batches = [teacher.prepare(data, with_estimates=True) for data in DataLoader(
            held_out, batch_size, collate_fn=pseudo_collate)]  # first: what is wrong with the data shows at once
        sampler = InfiniteSampler(train_set, seed=seed)
        loader = DataLoader(train_set, batch_size, sampler=sampler, collate_fn=pseudo_collate)
        _fit(critic, teacher, iter(loader), iters, lr, mask_weight)
        agreement = measure_agreement(critic, teacher, test_batches)
    origin = dict(config_sha256=config_hash(cfg.model), weights_sha256=file_hash(checkpoint),
                  critic=cfg.synthesis.guidance.critic.to_dict(), iters=iters, seed=seed, agreement=asdict(agreement))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    critic.save(out, origin=origin)
    return agreement


@dataclass(frozen=True)
class DistillationBatch:
    """A batch of labelled images, encoded.

    Attributes:
        clean: The images' latents (B, C, h, w).
        masks: (B, H, W), integer class ids.
        estimates: Clean estimates (B, C, h, w) for the same masks, one per sampling step; empty if not asked for.
    """

    clean: Tensor
    masks: Tensor
    estimates: Sequence[Tensor] = ()


class Teacher(Guidance):
    """The segmentor on decoded latents, and the generator as the source of clean estimates.

    As a guidance it changes no prediction, and records the clean estimate of every sampling step.

    Args:
        critic: The segmentor.
        generator: The generator, whose codec decodes and whose sampling gives the clean estimates.
    """

    def __init__(self, critic: Critic, generator: BaseGenerator) -> None:
        super().__init__(critic)
        self.generator = generator
        self._estimates: list[Tensor] = []

    @property
    def decode(self) -> Decode:
        return self.generator.latent_codec.decode

    def bind(self, decode: Decode, masks: Tensor) -> Guide:
        """A guide that records each step's clean estimate."""

        def record(prediction: Tensor, step: SamplingStep) -> tuple[Tensor, None]:
            self._estimates.append(step.clean_estimate(prediction).float())
            return prediction, None

        return record

    @torch.no_grad()
    def prepare(self, data: dict[str, Any], *, with_estimates: bool) -> DistillationBatch:
        """Encode a batch of the data loader; for estimates, also sample the generator with its masks."""
        data = self.generator.data_preprocessor(data)
        samples = data['data_samples']
        masks = stack_masks(samples, self.generator.device)
        clean = self.generator.latent_codec.encode(data['inputs'], generator=torch.default_generator).float()
        if not with_estimates:
            return DistillationBatch(clean, masks)
        self._estimates = []
        seeds = torch.randint(2**62, (len(samples), )).tolist()
        self.generator.sample_latents(samples, masks, seeds, guidance=self)
        return DistillationBatch(clean, masks, tuple(self._estimates))

    @torch.no_grad()
    def predict_logits(self, latents: Tensor) -> Tensor:
        """The segmentor's logits (B, K, H, W) for clean latents (B, C, h, w), decoded in full."""
        with self.critic.frozen_eval():
            return self.critic.predict_logits((self.decode(latents) / 2 + 0.5).clamp(0, 1)).float()


def distillation_loss(logits: Tensor, target: Tensor, masks: Tensor, *, mask_weight: float) -> Tensor:
    """``KL(softmax target ‖ softmax logits)`` over all pixels, and the cross entropy of the labelled samples.

    Args:
        logits: The head's (N, K, H, W).
        target: The segmentor's (N, K, H, W).
        masks: Of the first B <= N samples (B, H, W), int64, -100 where a pixel does not count; the others have none.
        mask_weight: Weight of the cross entropy.

    Returns:
        A scalar. The first term counts all pixels, unlabelled ones too: the segmentor predicts there as well.
    """
    divergence = F.kl_div(logits.log_softmax(1), target.log_softmax(1), log_target=True, reduction='none').sum(1).mean()
    entropy = F.cross_entropy(logits[:len(masks)], masks, ignore_index=-100, reduction='sum')
    return divergence + mask_weight * entropy / (masks != -100).sum().clamp_min(1)


def measure_agreement(critic: LatentCritic, teacher: Teacher, batches: Sequence[DistillationBatch]) -> Agreement:
    """Compare a latent critic with its segmentor on batches with clean estimates."""
    guidance = Guidance(critic)
    clean, estimates, cosines = [], [], []
    areas: dict[str, list[tuple[Tensor, ...]]] = dict(head=[], segmentor=[])
    for batch in batches:
        predicted = dict(head=_classes(critic, batch.clean), segmentor=teacher.predict_logits(batch.clean).argmax(1))
        clean.append((predicted['head'] == predicted['segmentor']).float().mean((1, 2)))
        for name, classes in predicted.items():
            masks = batch.masks.masked_fill(~critic.counts(batch.masks), IGNORE_INDEX)
            areas[name].append(IoUMetric.intersect_and_union(classes, masks, critic.num_classes, IGNORE_INDEX))
        for estimate in batch.estimates:
            same = _classes(critic, estimate) == teacher.predict_logits(estimate).argmax(1)
            estimates.append(same.float().mean((1, 2)))
            ours, theirs = (_gradient(one, estimate, batch.masks, teacher.decode) for one in (guidance, teacher))
            cosines.append(F.cosine_similarity(ours.flatten(1), theirs.flatten(1)))
    return Agreement(
        images=sum(map(len, clean)),
        clean=float(torch.cat(clean).mean()),
        estimates=float(torch.cat(estimates).mean()),
        gradient=float(torch.cat(cosines).mean()),
        critic_miou=_miou(areas['head']),
        segmentor_miou=_miou(areas['segmentor']))


def _fit(critic: LatentCritic, teacher: Teacher, batches: Iterator[dict], iters: int, lr: float,
         mask_weight: float) -> None:
    optimizer = torch.optim.AdamW(critic.requires_grad_(True).parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=iters + 1, pct_start=0.1)
    estimates = _endless_estimates(teacher, batches)
    with progress_bar(total=iters, unit='it', title='latent critic') as bar:
        for _ in range(iters):
            batch = teacher.prepare(next(batches), with_estimates=False)
            latents = torch.cat([batch.clean, next(estimates)])  # (2 B, C, h, w)
            masks = batch.masks.masked_fill(~critic.counts(batch.masks), -100)
            loss = distillation_loss(critic.predict_logits(latents), teacher.predict_logits(latents), masks,
                                     mask_weight=mask_weight)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f'{loss.item():.3f}', refresh=False)
            bar.update()
    critic.requires_grad_(False)


def _endless_estimates(teacher: Teacher, batches: Iterator[dict]) -> Iterator[Tensor]:
    """Yield clean estimates (B, C, h, w), run after run of sampling, the steps of each run in random order."""
    while True:
        estimates = teacher.prepare(next(batches), with_estimates=True).estimates
        for index in torch.randperm(len(estimates)).tolist():
            yield estimates[index]


def _build_segmentor(cfg: Config) -> Critic:
    segmentor = MODELS.build(cfg.synthesis.guidance.critic)
    if segmentor.input_type != 'images':
        raise ValueError(f'{cfg.filename}: `synthesis.guidance.critic` is a {type(segmentor).__name__}, which takes '
                         'latents; set it to the segmentor to distil, such as mmsynth.SegmentorCritic.')
    return segmentor


def _split(cfg: Config) -> tuple[Dataset, Dataset]:
    """Split into training and held-out images; at most 64 are held out, of the validation set or a tenth of all."""
    dataset = build_dataset(cfg.train_dataloader.dataset)
    if cfg.get('val_dataloader'):
        validation = build_dataset(cfg.val_dataloader.dataset)
        return dataset, Subset(validation, torch.randperm(len(validation))[:_MOST_HELD_OUT].tolist())
    if len(dataset) < 2:
        raise ValueError(f'{cfg.filename}: `train_dataloader.dataset` has {len(dataset)} image; at least 2 are needed, '
                         'as one is held out.')
    order = torch.randperm(len(dataset)).tolist()
    count = min(max(round(_HELD_OUT_SHARE * len(order)), 1), _MOST_HELD_OUT)
    return Subset(dataset, order[count:]), Subset(dataset, order[:count])


@torch.no_grad()
def _classes(critic: LatentCritic, latents: Tensor) -> Tensor:
    return critic.predict_logits(latents).argmax(1)


def _gradient(guidance: Guidance, latents: Tensor, masks: Tensor, decode: Decode) -> Tensor:
    variable = latents.detach().requires_grad_(True)
    with guidance.critic.frozen_eval():
        return torch.autograd.grad(guidance.judge(variable, decode, masks).mean_loss.sum(), variable)[0]


def _miou(areas: Sequence[tuple[Tensor, ...]]) -> float:
    """Mean intersection over union of the classes that occur; areas as mmseg's IoUMetric gives them."""
    intersection, union = (torch.stack([batch[index] for batch in areas]).sum(0) for index in (0, 1))
    return float((intersection / union)[union > 0].mean())


def _check_options(cfg: Config, out: str | Path, counts: dict[str, float | None], mask_weight: float) -> None:
    wrong = [f'`{name}` must be positive, got {value}' for name, value in counts.items()
             if value is not None and value <= 0]
    if mask_weight < 0:
        wrong.append(f'`mask_weight` must be at least 0, got {mask_weight}')
    if Path(out).suffix != '.safetensors':
        wrong.append(f'`out` must end in .safetensors, got {out}')
    guidance = (cfg.get('synthesis') or {}).get('guidance') or {}
    if 'critic' not in guidance:
        wrong.append("the config has no `synthesis.guidance.critic`; name there the segmentor to distil, as "
                     'projects/demo/configs/todsynth.py does')
    if not cfg.get('train_dataloader'):
        wrong.append('the config has no `train_dataloader`, whose labelled images are trained on')
    if wrong:
        raise ValueError(f'{cfg.filename}: {"; ".join(wrong)}.')
    if Path(out).exists():
        raise FileExistsError(f'{out} exists; remove it or choose another --out.')
