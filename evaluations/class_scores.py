"""How well classes are told apart: accuracy, balanced accuracy, macro F1. Shapes: n clips, K classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(labels_n: np.ndarray, predicted_n: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) numbers of clips: of the class of the row, taken for that of the column."""
    cells = np.asarray(labels_n) * classes + predicted_n
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_scores(confusion_KK: np.ndarray) -> dict[str, float]:
    """Accuracy; balanced accuracy, the mean recall; macro F1. Means are over the classes that have clips."""
    right_K, clips_K, taken_K = np.diag(confusion_KK), confusion_KK.sum(1), confusion_KK.sum(0)
    there = clips_K > 0
    return {"accuracy": float(right_K.sum() / clips_K.sum()),
            "balanced_accuracy": float((right_K[there] / clips_K[there]).mean()),
            "macro_f1": float((2 * right_K[there] / (clips_K + taken_K)[there]).mean())}


def class_summary(class_names: Sequence[str], labels_n: np.ndarray, predicted_n: np.ndarray
                  ) -> dict[str, Any]:
    """Scores over all clips, and by class the accuracy and how often each class was predicted."""
    confusion_KK = confusion_matrix(labels_n, predicted_n, len(class_names))
    by_class = {name: {"clips": int(row_K.sum()), "accuracy": float(row_K[label] / row_K.sum()),
                       "taken_for": row_K.tolist()}
                for label, (name, row_K) in enumerate(zip(class_names, confusion_KK, strict=True))
                if row_K.any()}
    return {"clips": len(labels_n), **class_scores(confusion_KK), "by_class": by_class}
