"""Dice, IoU and HD95 of a predicted label map, and outlines to look at. Shapes: H x W pixels, K classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt

from dataset.sheet import contact_sheet

SCORES = {"dice": "higher", "iou": "higher", "hd95": "lower"}  # and which is better
TRUE, PREDICTED = (0, 220, 60), (255, 60, 220)  # colours of outlines
SHOWN_SIDE = 128  # pixels of a picture on the sheet at least


def overlap(true_HW: np.ndarray, predicted_HW: np.ndarray) -> tuple[float, float]:
    """(Dice, IoU) of two bool masks; two empty ones agree: 1 and 1."""
    both, either = (true_HW & predicted_HW).sum(), (true_HW | predicted_HW).sum()
    return (float(2 * both / (both + either)), float(both / either)) if either else (1.0, 1.0)


def hausdorff_95(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """95th percentile, in pixels, of the distances from the edge of each bool mask to that of the other.

    0 if both are empty, the picture's diagonal if one is.
    """
    if not a_HW.any() or not b_HW.any():
        return float(np.hypot(*a_HW.shape)) if a_HW.any() or b_HW.any() else 0.0
    edges = [mask & ~binary_erosion(mask) for mask in (a_HW, b_HW)]
    there, back = (distance_transform_edt(~to)[edge] for edge, to in (edges, edges[::-1]))
    return float(np.percentile(np.concatenate([there, back]), 95))


def over_classes(score: Callable[..., Any], true_HW: np.ndarray, predicted_HW: np.ndarray) -> np.ndarray:
    """Mean of `score` of two masks over the foreground classes that one of two label maps has.

    Without any it is that of empty masks.
    """
    labels = [label for label in np.union1d(true_HW, predicted_HW) if label] or [1]
    return np.mean([score(true_HW == label, predicted_HW == label) for label in labels], axis=0)


def mean_dice(true_nHW: np.ndarray, predicted_nHW: np.ndarray) -> float:
    """Dice, mean over pictures."""
    pairs = zip(true_nHW, predicted_nHW, strict=True)
    return float(np.mean([over_classes(overlap, *pair)[0] for pair in pairs]))


def score_all(true_nHW: np.ndarray, predicted_nHW: np.ndarray) -> dict[str, list[float]]:
    """`SCORES` of every picture, rounded to 5 digits behind the point."""
    def scores(true_HW: np.ndarray, predicted_HW: np.ndarray) -> tuple[float, ...]:
        return *overlap(true_HW, predicted_HW), hausdorff_95(true_HW, predicted_HW)

    values = [over_classes(scores, *pair) for pair in zip(true_nHW, predicted_nHW, strict=True)]
    return dict(zip(SCORES, np.round(values, 5).T.tolist(), strict=True))


def outlined(pixels_3HW: np.ndarray, *maps: tuple[np.ndarray, tuple[int, int, int]]) -> np.ndarray:
    """The picture, enlarged if it is small, with the outline of each (label map, colour): uint8 (H, W, 3)."""
    side = max(SHOWN_SIDE, *pixels_3HW.shape[1:])
    picture = cv2.resize(pixels_3HW.transpose(1, 2, 0), (side, side), interpolation=cv2.INTER_LINEAR)
    for labels_HW, colour in maps:
        mask_HW = cv2.resize((labels_HW > 0).astype(np.uint8), (side, side),
                             interpolation=cv2.INTER_NEAREST_EXACT)
        contours, _ = cv2.findContours(mask_HW, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, 1)
    return picture


def overlay_sheet(names: Sequence[str], pixels_n3HW: np.ndarray, true_nHW: np.ndarray,
                  predicted: Mapping[str, np.ndarray]) -> Image.Image:
    """A row per picture: as it is, with the true outline, and with both outlines for every arm."""
    rows = []
    for place, (name, pixels_3HW, true_HW) in enumerate(zip(names, pixels_n3HW, true_nHW, strict=True)):
        frames, titles = [outlined(pixels_3HW), outlined(pixels_3HW, (true_HW, TRUE))], ["picture, truth"]
        for arm, maps_nHW in predicted.items():
            frames.append(outlined(pixels_3HW, (true_HW, TRUE), (maps_nHW[place], PREDICTED)))
            titles.append(f"{arm} {over_classes(overlap, true_HW, maps_nHW[place])[0]:.2f}")
        rows.append((f"{name}: {', '.join(titles)}", frames))
    return contact_sheet(rows)
