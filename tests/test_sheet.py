import numpy as np
import pytest

from dataset.sheet import contact_sheet, moving_sheet


def test_sheet_shows_evenly_spread_frames_of_every_clip_in_its_row():
    ramp = np.stack([np.full((20, 30, 3), 10 * t, np.uint8) for t in range(16)])
    sheet = np.asarray(contact_sheet([("first", ramp), ("second", list(ramp[:3]))]))
    shades = [set(np.unique(sheet[:, x, 0]).tolist()) for x in range(0, 8 * 32, 32)]
    spread = [0, 2, 4, 6, 9, 11, 13, 15]
    assert all(10 * t in shades[column] for column, t in enumerate(spread))
    assert all(10 * t in shades[t] for t in range(3))  # the short clip is shown whole
    assert sheet.shape[0] >= 2 * 20
    assert sheet.shape[1] == 8 * 32 - 2


def test_sheet_of_nothing_is_refused():
    for rows in ([], [("empty", [])]):
        with pytest.raises(ValueError, match="needs clips"):
            contact_sheet(rows)


def test_long_title_is_not_cut_off():
    frame = np.zeros((1, 8, 8, 3), np.uint8)
    assert contact_sheet([("a very long title of a clip", frame)]).width > 100


def test_film_shows_every_clip_in_motion_at_its_place():
    clips = [(f"clip {k}", np.stack([np.full((24, 32, 3), 50 * k + t, np.uint8) for t in range(3)]))
             for k in range(5)]
    film = [np.asarray(picture) for picture in moving_sheet(clips)]
    assert len(film) == 3 and film[0].shape == (2 * (24 + 21), 3 * 34 - 2, 3)
    corners = [(21, 0), (21, 34), (21, 68), (66, 0), (66, 34)]
    for t, picture in enumerate(film):
        for k, (top, left) in enumerate(corners):
            assert (picture[top : top + 24, left : left + 32] == 50 * k + t).all()
    titles = film[0][:21]
    assert (titles == film[1][:21]).all() and (titles[:, :32] < 128).any()
    assert len(moving_sheet([("a title much wider than its clip", clips[0][1])])) == 3
    with pytest.raises(ValueError, match="needs clips"):
        moving_sheet([])
