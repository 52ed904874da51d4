import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.grid import frames_to_grid, grid_to_frames

SMALL = st.integers(1, 4)


@given(rows=SMALL, cols=SMALL, height=SMALL, width=SMALL, channels=SMALL,
       leading=st.lists(st.integers(1, 3), max_size=2), tensor=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_clip_survives_the_round_trip(rows, cols, height, width, channels, leading, tensor):
    shape = (*leading, rows * cols, channels, height, width)
    frames = np.arange(np.prod(shape)).reshape(shape)
    grid = frames_to_grid(torch.from_numpy(frames) if tensor else frames, rows, cols)
    assert isinstance(grid, torch.Tensor if tensor else np.ndarray)
    assert tuple(grid.shape) == (*leading, channels, rows * height, cols * width)
    assert np.array_equal(np.asarray(grid_to_frames(grid, rows, cols)), frames)


def test_frames_fill_the_grid_row_by_row():
    frames_TCHW = np.stack([np.full((3, 2, 5), t) for t in range(6)])
    grid_CHW = frames_to_grid(frames_TCHW, rows=2, cols=3)
    for t in range(6):
        row, col = t // 3, t % 3
        assert (grid_CHW[:, 2 * row : 2 * row + 2, 5 * col : 5 * col + 5] == t).all()


def test_what_does_not_fit_the_grid_is_refused():
    with pytest.raises(ValueError, match="5 frames"):
        frames_to_grid(np.zeros((5, 3, 2, 2)), 2, 3)
    with pytest.raises(ValueError, match="10 x 12"):
        grid_to_frames(np.zeros((3, 10, 12)), 4, 4)
