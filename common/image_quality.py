"""How close a picture is to another: PSNR and SSIM. Shapes: T frames, C channels, H x W pixels."""

import numpy as np

Array = np.ndarray


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB of two pictures with values in [0, 1], at most 100."""
    return float(-10 * np.log10(max(1e-10, np.mean((a.astype(np.float64) - b) ** 2))))


def ssim(a_CHW: Array, b_CHW: Array) -> float:
    """Structural similarity (Wang et al. 2004, Gaussian window of sigma 1.5) of pictures in [0, 1]."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(a_CHW, b_CHW, channel_axis=0, data_range=1.0, gaussian_weights=True,
                                       sigma=1.5, use_sample_covariance=False))


def frame_quality(a_TCHW: Array, b_TCHW: Array) -> Array:
    """(T, 2): PSNR and SSIM of every frame of two uint8 clips."""
    pairs = zip(a_TCHW / 255, b_TCHW / 255, strict=True)
    return np.array([(psnr(a_CHW, b_CHW), ssim(a_CHW, b_CHW)) for a_CHW, b_CHW in pairs])
