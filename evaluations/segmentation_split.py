"""Which labelled pictures train, validate and test, so that none of the test is known before.

Pictures of one group, and near-duplicates in features of EfficientNet-Lite0, stay on one side. What a
generator was trained on is never in the test. Shapes: n pictures, D features.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from common.errors import InputError
from common.names import as_name
from common.progress import progress
from dataset.split import Piece, split_class
from evaluations.extractor import Lite0Frames
from evaluations.memorisation import QUANTILE
from evaluations.scores import nearest_neighbours
from evaluations.segmentation_data import Picture, read_pixels

CHUNK = 1024  # rows of similarities at once
NAMED = 5  # pictures in a message


def features(pictures: Sequence[Picture], device: torch.device, title: str) -> np.ndarray:
    """Lite0 features (n, D) float32."""
    extractor, found = Lite0Frames(device), []
    with torch.inference_mode():
        for picture in progress(pictures, len(pictures), title, "picture", True):
            pixels_3HW = torch.from_numpy(read_pixels(picture)).permute(2, 0, 1)
            found.append(extractor.features(pixels_3HW[None, None].to(device))[0, 0].cpu().numpy())
    return np.stack(found)


def directions(features_nD: np.ndarray, centre_D: np.ndarray) -> np.ndarray:
    """Unit vectors (n, D) from `centre_D`: their products are cosines."""
    centred_nD = features_nD - centre_D
    return centred_nD / np.maximum(np.linalg.norm(centred_nD, axis=1, keepdims=True), 1e-12)


def clusters(groups: Sequence[str], directions_nD: np.ndarray, cosine: float) -> np.ndarray:
    """Number (n,) of the cluster of each picture: it holds whole groups, and all pairs above `cosine`."""
    n, (_, owners) = len(groups), np.unique(np.asarray(groups), return_inverse=True)
    first = np.unique(owners, return_index=True)[1]
    pairs = [np.stack([np.arange(n), first[owners]], 1)]
    for start in range(0, n, CHUNK):
        near = np.argwhere(directions_nD[start : start + CHUNK] @ directions_nD.T > cosine)
        pairs.append(near + np.array([start, 0]))
    rows, cols = np.concatenate(pairs).T
    return connected_components(coo_matrix((np.ones(len(rows)), (rows, cols)), (n, n)), directed=False)[1]


class RealFeatures:
    """Features of all real pictures, computed when they are needed: a rerun needs none."""

    def __init__(self, pictures: Sequence[Picture], device: torch.device):
        self.pictures, self.device = pictures, device

    @cached_property
    def values_nD(self) -> np.ndarray:
        """Lite0 features."""
        return features(self.pictures, self.device, "near-duplicates")

    def clusters(self, cosine: float) -> np.ndarray:
        """Number (n,) of the cluster of each picture."""
        directions_nD = directions(self.values_nD, self.values_nD.mean(0))
        return clusters([own.group for own in self.pictures], directions_nD, cosine)

    def near_test(self, pictures: Sequence[Picture], train: Sequence[Picture], test: Sequence[Picture],
                  title: str) -> list[str]:
        """Names of the `pictures` near the test; `train` and `test` are some of the real ones."""
        places, centre_D = {own: i for i, own in enumerate(self.pictures)}, self.values_nD.mean(0)
        sides = [features(pictures, self.device, title),
                 *(self.values_nD[[places[own] for own in part]] for part in (train, test))]
        near = near_test(*(directions(side_nD, centre_D) for side_nD in sides))
        return [own.name for own, is_near in zip(pictures, near, strict=True) if is_near]


def without_class(recordings: Iterable[str]) -> set[str]:
    """The recordings <class>/<name>, and <name> alone."""
    recordings = set(recordings)
    return recordings | {recording.partition("/")[2] for recording in recordings if "/" in recording}


def names_of(picture: Picture) -> set[str]:
    """What the recording of a picture may be called: by its own name, group or folder, also as prepared.

    `dataset.prepare` turns <class>/<folder>/<file> into <class>/<folder>-<file>.
    """
    folder, _, last = picture.name.rpartition("/")
    names = {picture.name, picture.group, folder, picture.cell.recording if picture.cell else ""} - {""}
    for name in list(names):
        class_name, _, rest = name.partition("/")
        names |= {as_name(name), f"{class_name}/{as_name(rest)}"}
    return names if picture.cell or (folder and last.isdigit()) else names | {last}  # the number of a frame


def is_seen(picture: Picture, seen: set[str]) -> bool:
    """True if the picture, its group or its folder is one of the recordings `seen`."""
    return not seen.isdisjoint(names_of(picture))


def split_pictures(pool: Sequence[Picture], test: Sequence[Picture], cluster_n: np.ndarray, seen: set[str],
                   test_fraction: float, val_fraction: float) -> dict[str, Any]:
    """Names by part, "train", "val" and "test"; "clusters" of the test; what was "dropped" as near the test.

    `cluster_n` numbers the clusters of the pool, then of the given `test`, which may be empty: then it is
    drawn from what the generator has not seen, whole clusters in the order of a hash. If that is less than
    both fractions of the pool, both parts are smaller.

    Raises: `InputError` naming test pictures that the generator has seen, or if a part stays empty.
    """
    own, given = (list(map(str, part)) for part in np.split(cluster_n, [len(pool)]))
    if leaked := [picture.name for picture in test if is_seen(picture, seen)]:
        raise InputError(f"--test-path: the generator was trained on {len(leaked)} of its pictures: "
                         f"{', '.join(leaked[:NAMED])}")
    known = {cluster for picture, cluster in zip(pool, own, strict=True) if is_seen(picture, seen)}
    if leaked := [own.name for own, cluster in zip(test, given, strict=True) if cluster in known]:
        raise InputError(f"--test-path: {len(leaked)} of its pictures are near-duplicates (--twin-cosine) "
                         "or of the group of what the generator was trained on: "
                         f"{', '.join(leaked[:NAMED])}")
    wanted = (val_fraction if test else test_fraction + val_fraction) * len(pool)
    share = min(1.0, sum(cluster not in known for cluster in own) / wanted)
    parts: dict[str, Any] = {"dropped": []}
    left = list(range(len(pool)))
    if test:
        parts |= {"test": [picture.name for picture in test], "clusters": given}
        parts["dropped"] = [pool[i].name for i in left if own[i] in given]
        left = [i for i in left if own[i] not in given]
    else:
        left, chosen = _hold_out(pool, left, own, share * test_fraction, known)
        parts |= {"test": [pool[i].name for i in chosen], "clusters": [own[i] for i in chosen]}
    left, chosen = _hold_out(pool, left, own, share * val_fraction, known)
    parts |= {"train": [pool[i].name for i in left], "val": [pool[i].name for i in chosen]}
    for part in ("test", "val", "train"):
        if not parts[part]:
            why = f", {len(known)} of {len(set(own))} known to the generator" if known else ""
            raise InputError(f"--data-path: no picture is left for {part}: {len(pool)} pictures in "
                             f"{len(set(own))} independent clusters{why}")
    return parts


def _hold_out(pool: Sequence[Picture], places: list[int], owners: list[str], fraction: float, known: set[str]
              ) -> tuple[list[int], list[int]]:
    """(places that stay, places of about `fraction` of the pool in whole clusters that are not `known`).

    Clusters of more than half of that stay, if there is enough without them: one look is no test.
    """
    sizes, target = Counter(owners[i] for i in places), fraction * len(pool)
    if len(sizes) < 2:
        return places, []
    small = {owner for owner, size in sizes.items() if size <= target / 2 and owner not in known}
    if sum(sizes[owner] for owner in small) >= target:
        known = sizes.keys() - small
    pieces = [Piece(pool[i].name, owners[i], owners[i], 0, 1) for i in places]
    splits, _ = split_class(pieces, target / len(places), known)
    return tuple([i for i, split in zip(places, splits, strict=True) if split == part]
                 for part in ("train", "val"))


def near_test(added_nD: np.ndarray, train_mD: np.ndarray, test_kD: np.ndarray) -> np.ndarray:
    """True (n,) for pictures nearer to the test than all but a small part of the training pictures are.

    Directions from one centre; the rule and the part are those of `evaluations.filter_copies`.
    """
    threshold = np.quantile(nearest_neighbours(train_mD, test_kD)[0], QUANTILE)
    return nearest_neighbours(added_nD, test_kD)[0] < threshold
