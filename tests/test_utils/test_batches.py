"""Batches of one shape: the order stays, nothing is lost."""
from hypothesis import given
from hypothesis import strategies as st

from mmsynth.utils.batches import batches_of_one_shape


@given(shapes=st.lists(st.integers(0, 2), max_size=20), batch_size=st.integers(1, 5))
def test_neighbours_of_one_shape_in_their_order(shapes: list[int], batch_size: int) -> None:
    items = list(enumerate(shapes))
    batches = list(batches_of_one_shape(items, lambda item: item[1], batch_size))
    assert [item for batch in batches for item in batch] == items
    assert all(0 < len(batch) <= batch_size and len({shape for _, shape in batch}) == 1 for batch in batches)
    for one, other in zip(batches, batches[1:]):  # a batch ends where it is full or the shape changes
        assert len(one) == batch_size or one[0][1] != other[0][1]
