import numpy as np
import pytest

from shards.batch import stack_images, stack_regions
from shards.errors import DataError

PIXELS, REGIONS = np.full((2, 2, 3), 7, np.uint8), np.full((2, 3), 0.5, np.float32)


def test_images_are_stacked_or_there_are_none() -> None:
    stacked = stack_images([PIXELS, PIXELS + 1])
    assert stacked is not None
    assert stacked.tolist() == [PIXELS.tolist(), (PIXELS + 1).tolist()]
    assert stack_images([None, None]) is None


def test_regions_are_padded_to_the_longest_row_and_masked() -> None:
    stacked, mask = stack_regions([REGIONS[:1], REGIONS])
    assert stacked is not None
    assert mask is not None
    assert stacked.tolist() == [[[0.5] * 3, [0.0] * 3], [[0.5] * 3, [0.5] * 3]]
    assert mask.tolist() == [[True, False], [True, True]]
    assert stack_regions([None]) == (None, None)


def test_regions_of_two_widths_are_refused() -> None:
    with pytest.raises(DataError, match="regions of 2 and of 3 features in one data set"):
        stack_regions([REGIONS, REGIONS[:, :2]])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_that_is_missing_does_not_shift_the_others_unnoticed(place: int) -> None:
    pixels, regions = [PIXELS] * 3, [REGIONS] * 3
    with pytest.raises(AssertionError, match="would shift the others"):
        stack_images([*pixels[:place], None, *pixels[place + 1 :]])
    with pytest.raises(AssertionError, match="would shift the others"):
        stack_regions([*regions[:place], None, *regions[place + 1 :]])
