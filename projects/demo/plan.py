"""What a demo compares: how long each stage trains, and the rows of its table."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENERATORS = ('todsynth', 'tisynth')
REAL = 'real'  # the row of real images as they are
RECOLORED = 'recolored'  # the row of real images in the target's colours
ONLINE = 'online'  # the row whose images are generated while its segmentor trains
ONLINE_ROUNDS = 6  # parts of a training; a round is generated before each
IMAGES_PER_MASK = 4  # where labels are carried to another domain; within one, more than one were worth no more


@dataclass(frozen=True)
class Preset:
    """How much work a demo does.

    Attributes:
        suffix: Of the generator's config, ``projects/demo/configs/{generator}{suffix}.py``.
        generator_iters: Training iterations of the generator; None for the config's own.
        segmentor_iters: Training iterations of every row's segmentor; None for the configs' own.
        segmentor_lr: Its highest learning rate; None for the configs' own.
        judge_iters: Training iterations of the judge; None for its config's own.
        limit: Masks synthesized for; None for all.
        num_images: Images drawn for each part of the embedded set; None for the set's own numbers.
    """

    suffix: str = ''
    generator_iters: int | None = None
    segmentor_iters: int | None = None
    segmentor_lr: float | None = None
    judge_iters: int | None = None
    limit: int | None = None
    num_images: int | None = None


PRESETS = dict(
    # After 300 iterations some classes are not learnt yet; a short training wants a higher rate.
    standard=Preset(segmentor_iters=600, segmentor_lr=1.6e-2, judge_iters=550),
    long=Preset(suffix='_long'),
    smoke=Preset(generator_iters=3, segmentor_iters=3, judge_iters=3, limit=4, num_images=4))


@dataclass(frozen=True)
class Codec:
    """A latent codec in the place of the configs' own.

    Attributes:
        codec: Its config; the generator's channels and factor stay.
        num_images: Crops that it is fitted on.
    """

    codec: dict[str, Any]
    num_images: int


CODECS = dict(
    pca=None,  # the configs' own
    autoencoder=Codec(dict(type='mmsynth.AutoencoderCodec', factor=4, channels=16), num_images=1024))


@dataclass(frozen=True)
class Row:
    """Synthetic images, and the segmentor that trains on them and the real ones.

    Attributes:
        title: In the table.
        guidance: How they are generated, 'none' or 'crfm'.
        references: The part of the data set that the references come from; None for a generator without any.
        num_per_mask: Images for each mask.
        mixed: Whether a segmentor trains on them; otherwise they are only looked at.
    """

    title: str
    guidance: str
    references: str | None = None
    num_per_mask: int = 1
    mixed: bool = True


@dataclass(frozen=True)
class Plan:
    """What is trained on and compared.

    Attributes:
        rows: Name → what is generated; 'plain' and 'crfm' are among them.
        validated: The part of the data set whose images the table is about.
        judge_parts: The parts that the judge trains on.
    """

    rows: dict[str, Row]
    validated: str = 'val'
    judge_parts: tuple[str, ...] = ('judge', )

    @property
    def real_rows(self) -> dict[str, str]:
        """The rows without synthetic images → their titles; the last one's segmentor is the critic."""
        return {REAL: 'real only'} | ({RECOLORED: "real only, in the target's colours"} if self.transfers else {})

    @property
    def critic(self) -> str:
        """The row whose segmentor guides: the one that knows most without synthetic images."""
        return list(self.real_rows)[-1]

    @property
    def titles(self) -> dict[str, str]:
        """Row → its title: first without synthetic images, then with those of ``rows``, last with online ones."""
        return (self.real_rows | {name: row.title for name, row in self.rows.items() if row.mixed}
                | {ONLINE: 'real + CRFM synthetic, online'})

    @property
    def transfers(self) -> bool:
        """Whether the labelled images show another domain than the one the table is about."""
        return self.validated != 'val'


def make_plan(generator: str, data_root: Path) -> Plan:
    """The plan of a generator on a data set: one that takes references transfers to the set's target domain, if any.

    Raises:
        ValueError: For an unknown generator.
    """
    if generator not in GENERATORS:
        raise ValueError(f'`generator` must be one of {", ".join(GENERATORS)}, got {generator!r}.')
    if generator == 'todsynth':
        return Plan(_plain_and_crfm(None))
    if not (data_root / 'img_dir' / 'target').is_dir():
        return Plan(_plain_and_crfm('train'))
    source = Row('synthetic, source references', 'none', 'train', mixed=False)
    return Plan(dict(source=source) | _plain_and_crfm('target', ', target references', IMAGES_PER_MASK), 'target_val',
                ('judge', 'target_judge'))


def _plain_and_crfm(references: str | None, suffix: str = '', num_per_mask: int = 1) -> dict[str, Row]:
    return dict(plain=Row(f'real + plain synthetic{suffix}', 'none', references, num_per_mask),
                crfm=Row(f'real + CRFM synthetic{suffix}', 'crfm', references, num_per_mask))
