"""Scores in features of EfficientNet-Lite0, whose weights come with the requirements: nothing to download.

They are no FID: compare them only with scores of the same features.
"""

from dataclasses import replace
from typing import Any

from common.distributed import Runtime
from evaluations.comparison import Comparison
from evaluations.extractor import Extractor
from evaluations.failures import attempt
from evaluations.features import Features
from evaluations.measures import Frechet, Measure, section
from evaluations.memorisation import memorisation
from evaluations.two_sample import c2st, mean_and_change


def clip_means(features: Features) -> Features:
    """One vector per clip, the mean over its frames."""
    return replace(features, stored_NRD=features.stored_NRD.mean(1, keepdims=True))


def measure(comparison: Comparison, extractor: Extractor, runtime: Runtime) -> dict[str, Any]:
    """The sections "lite0" and "memorisation-lite0"; empty on all processes but the main one."""
    features = comparison.features(extractor, runtime)
    if not runtime.is_main:
        return {}
    frechet = Measure(("frechet_lite0",), "lower", Frechet(comparison.protocol.ddof))
    name, means = "memorisation-lite0", [clip_means(side) for side in features[:2]]
    copies = attempt(name, lambda: {name: memorisation(comparison, *means, f"{name}.png")})
    return {"lite0": section(comparison, features, [frechet, c2st(mean_and_change)]), **copies}
