"""Label codecs in closed form: what a class becomes, and what an ignored pixel becomes."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmsynth.models import GreyLevelCodec, IdCodec, OneHotCodec, PaletteCodec
from mmsynth.models.label_codecs import LabelCodec
from mmsynth.registry import MODELS

PALETTE = [[255, 0, 0], [0, 255, 0], [10, 20, 30]]
CODECS = [
    dict(type='mmsynth.GreyLevelCodec', num_classes=3),
    dict(type='mmsynth.IdCodec', num_classes=3),
    dict(type='mmsynth.PaletteCodec', palette=PALETTE),
    dict(type='mmsynth.OneHotCodec', num_classes=3)
]
MASK = torch.tensor([[[0, 1, 2], [2, 255, 1]]])


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] → [0, 255]."""
    return ((images + 1) * 127.5).round().to(torch.uint8)


class TestGreyLevelCodec:

    @given(st.integers(1, 255))
    def test_grey_is_the_released_formula(self, num_classes: int) -> None:
        ids = torch.arange(num_classes)
        grey = to_bytes(GreyLevelCodec(num_classes).encode(ids[None, None]))[0, :, 0]
        assert grey[0].tolist() == [int(index * 255 / num_classes) for index in range(num_classes)]
        assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
        assert len(set(grey[0].tolist())) == num_classes and int(grey.max()) < 255  # 255 is for ignored pixels

    def test_ignored_pixels_are_white(self) -> None:
        images = GreyLevelCodec(3).encode(MASK)
        assert images.shape == (1, 3, 2, 3) and images.dtype == torch.float32
        assert to_bytes(images)[0, 0].tolist() == [[0, 85, 170], [170, 255, 85]]


def test_an_id_is_its_share_of_255_and_ignored_pixels_are_one() -> None:
    codec = IdCodec(3)
    control = codec.encode(MASK)
    assert control.shape == (1, 3, 2, 3) and control.dtype == torch.float32 and not codec.is_image
    torch.testing.assert_close(control, (MASK.float() / 255)[:, None].expand(-1, 3, -1, -1))


class TestPaletteCodec:

    def test_a_class_has_its_colour_and_ignored_pixels_are_black(self) -> None:
        codec = PaletteCodec(PALETTE)
        pixels = to_bytes(codec.encode(MASK))[0].permute(1, 2, 0).tolist()
        assert pixels == [[PALETTE[0], PALETTE[1], PALETTE[2]], [PALETTE[2], [0, 0, 0], PALETTE[1]]]
        assert codec.num_classes == codec.channels == 3 and codec.is_image

    @given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=6))
    def test_only_palettes_that_can_be_read_back_are_taken(self, palette: list[tuple[int, int, int]]) -> None:
        if len({*palette, (0, 0, 0)}) == len(palette) + 1:
            colours = to_bytes(PaletteCodec(palette).encode(torch.arange(len(palette))[None, None]))[0, :, 0].T
            assert [tuple(colour) for colour in colours.tolist()] == palette
        else:
            with pytest.raises(ValueError, match='`palette`: class '):
                PaletteCodec(palette)

    @pytest.mark.parametrize('palette, message', [
        ([[1, 2, 3], [9, 9, 9], [1, 2, 3]], r'class 2 has the colour \(1, 2, 3\), which an earlier class has too'),
        ([[1, 2, 3], [0, 0, 0]], r'class 1 has the colour \(0, 0, 0\), which ignored pixels have'),
    ])
    def test_the_class_in_question_is_named(self, palette: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PaletteCodec(palette)

    def test_the_palette_is_no_weight(self) -> None:
        """It stands in the config; a checkpoint must not bring another."""
        assert not PaletteCodec(PALETTE).state_dict()


class TestOneHotCodec:

    def test_a_class_is_a_channel_and_ignored_pixels_are_none(self) -> None:
        codec = OneHotCodec(3)
        maps = codec.encode(MASK)
        assert codec.channels == 3 and not codec.is_image and maps.dtype == torch.float32
        assert torch.equal(maps.argmax(1)[MASK != 255], MASK[MASK != 255])
        assert torch.equal(maps.sum(1), (MASK != 255).float())

    def test_pixels_of_a_cell_have_channels_of_their_own(self) -> None:
        masks = torch.randint(3, (2, 8, 12))
        maps = OneHotCodec(3, patch_size=4).encode(masks)
        assert maps.shape == (2, 48, 2, 3) and OneHotCodec(3, patch_size=4).channels == 48
        assert torch.equal(F.pixel_shuffle(maps, 4).argmax(1), masks)


@pytest.mark.parametrize('config', CODECS, ids=lambda config: config['type'].removeprefix('mmsynth.'))
class TestAll:

    @given(st.integers(-300, 300))
    def test_a_value_that_is_no_class_is_named(self, config: dict, value: int) -> None:
        codec = MODELS.build(config)
        mask = torch.tensor([[[0, value]]])
        if 0 <= value < 3 or value == 255:
            assert codec.encode(mask).isfinite().all()
        else:
            with pytest.raises(ValueError, match=f'mask value {value}: .* 3 .* 255'):
                codec.encode(mask)

    @pytest.mark.parametrize('dtype', [torch.uint8, torch.int32])
    def test_the_integer_type_does_not_matter(self, config: dict, dtype: torch.dtype) -> None:
        codec = MODELS.build(config)
        assert torch.equal(codec.encode(MASK.to(dtype)), codec.encode(MASK))

    def test_another_ignore_index_is_taken(self, config: dict) -> None:
        codec, other = MODELS.build(config), MODELS.build({**config, 'ignore_index': -1})
        assert torch.equal(other.encode(MASK.masked_fill(MASK == 255, -1)), codec.encode(MASK))
        with pytest.raises(ValueError, match='mask value 255'):
            other.encode(MASK)

    def test_the_mask_is_not_written_to(self, config: dict) -> None:
        mask = MASK.clone()
        MODELS.build(config).encode(mask).fill_(9)
        assert torch.equal(mask, MASK)

    def test_samples_do_not_touch_each_other(self, config: dict) -> None:
        codec, masks = MODELS.build(config), torch.cat([MASK, MASK.flip(2)])
        assert torch.equal(codec.encode(masks)[1:], codec.encode(masks[1:]))

    def test_an_ignore_index_that_is_a_class_is_refused(self, config: dict) -> None:
        with pytest.raises(ValueError, match='`ignore_index` 2 .*0 … 2'):
            MODELS.build({**config, 'ignore_index': 2})


def test_no_classes_are_refused() -> None:
    for build in (lambda: GreyLevelCodec(0), lambda: OneHotCodec(0), lambda: PaletteCodec([])):
        with pytest.raises(ValueError, match='`num_classes` must be at least 1, got 0'):
            build()


def test_the_interface_alone_does_not_encode() -> None:
    with pytest.raises(TypeError, match='LabelCodec does not encode'):
        LabelCodec(3).encode(MASK)
