"""Plots of an ablation: what is drawn, and the message of each mistake."""
import io
from collections.abc import Sequence

import numpy as np
import pytest
from ablation.plots import AblationPanel, plot_ablation
from PIL import Image

STEPS = ('0', '2', 'all')
BLUE, ORANGE, GREY = (0, 114, 178), (213, 94, 0), (85, 85, 85)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)


def has(png: bytes, color: Sequence[int]) -> bool:
    """Whether a line of this colour runs across; letters have a few pixels of greys."""
    return bool(((pixels(png) == color).all(-1).sum(1) > 50).any())


def panel(**changes: object) -> AblationPanel:
    return AblationPanel(**dict(label='mIoU', curves=dict(relative={'0': [3.0, 4.0], 'all': [3.0, 4.0]})) | changes)


def test_rules_keep_their_colour_and_levels_are_lines() -> None:
    png = plot_ablation([panel()], STEPS)
    assert has(png, BLUE) and not has(png, ORANGE) and not has(png, GREY)
    assert has(plot_ablation([panel(levels=dict(none=[2.0]))], STEPS), GREY)
    second = panel(curves=dict(clamp={'0': [1.0], '2': [1.0]}))  # the second rule, though alone in its panel
    assert has(plot_ablation([panel(), second], STEPS), ORANGE)


def test_two_panels_side_by_side_then_a_new_row() -> None:
    one, two, three = (pixels(plot_ablation([panel()] * count, STEPS)).shape for count in (1, 2, 3))
    assert one[0] == two[0] < three[0] and one[1] < two[1] == three[1]


def test_plots_are_repeatable() -> None:
    assert plot_ablation([panel()], STEPS) == plot_ablation([panel()], STEPS)


@pytest.mark.parametrize('panels, message', [
    ([], 'at least one panel'),
    ([panel(curves=dict(clamp={'7': [1.0]}))], "on the axis `steps`.*got '7' in 'mIoU'"),
    ([panel(curves=dict(clamp={'2': []}))], r"at least one per point, got \[\] in 'mIoU'"),
    ([panel(levels=dict(none=[float('nan')]))], r'finite values.*got \[nan\]'),
])
def test_mistakes(panels: list[AblationPanel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_ablation(panels, STEPS)
