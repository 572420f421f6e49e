"""Draw the module's icon: a click into an organ, its mask, and radio waves for the connection.

python slicer_module/draw_icon.py     writes NNInteractiveWS/Resources/Icons/NNInteractiveWS.png (needs matplotlib)
"""

from pathlib import Path

import matplotlib.image
import numpy as np

SIZE = 128
_SAMPLES = 8  # per pixel and axis, for anti-aliasing
TARGET = Path(__file__).parent / "NNInteractiveWS" / "Resources" / "Icons" / "NNInteractiveWS.png"

NIGHT, DUSK = np.array([0.05, 0.10, 0.20]), np.array([0.10, 0.28, 0.44])
MASK, EDGE = np.array([0.16, 0.72, 0.47]), np.array([0.62, 0.98, 0.76])
WHITE = np.array([1.0, 1.0, 1.0])


def draw():
    """Return the icon as RGBA, (SIZE, SIZE, 4), floats from 0 to 1."""
    line = (np.arange(SIZE * _SAMPLES) + 0.5) / _SAMPLES
    x, y = np.meshgrid(line, line)
    plate = _rounded_square(x, y, margin=4, radius=26)
    color = NIGHT + (DUSK - NIGHT) * (1 - y / SIZE)[..., None]
    organ = _organ(x, y, 56, 76)
    color = _over(color, MASK, (organ < 0) * (0.78 + 0.22 * np.clip(-organ / 40, 0, 1)))
    color = _over(color, EDGE, np.abs(organ) < 2.6)
    for radius in (58, 72):
        color = _over(color, WHITE, _wave(x, y, 50, 80, radius, half_width=3.2) * 0.92)
    color = _over(color, WHITE, _plus(x, y, 50, 80, arm=15, half_width=4.2))
    rgba = np.concatenate([color, plate[..., None]], axis=-1)
    return _mean_of_samples(rgba)


def _rounded_square(x, y, margin, radius):
    half = SIZE / 2 - margin - radius
    beyond = [np.maximum(np.abs(axis - SIZE / 2) - half, 0) for axis in (x, y)]
    return (np.hypot(*beyond) < radius).astype(float)


def _organ(x, y, center_x, center_y):
    """Signed distance in pixels to the outline of a rounded, uneven shape, negative inside."""
    angle = np.arctan2(y - center_y, x - center_x)
    outline = 35 + 4.0 * np.cos(2 * angle + 0.5) + 3.0 * np.cos(3 * angle - 1.0)
    return np.hypot(x - center_x, y - center_y) - outline


def _wave(x, y, center_x, center_y, radius, half_width):
    """Mask of an arc toward the upper right, with round ends."""
    toward, spread = -np.pi / 4, 0.42
    angle = np.arctan2(y - center_y, x - center_x)
    nearest = toward + np.clip(angle - toward, -spread, spread)
    distance = np.hypot(x - center_x - radius * np.cos(nearest), y - center_y - radius * np.sin(nearest))
    return distance < half_width


def _plus(x, y, center_x, center_y, arm, half_width):
    along, across = np.abs(x - center_x), np.abs(y - center_y)
    reach = arm - half_width
    bars = [np.hypot(np.maximum(a - reach, 0), b) for a, b in ((along, across), (across, along))]
    return np.minimum(*bars) < half_width


def _over(below, color, cover):
    cover = np.asarray(cover, float)[..., None]
    return below * (1 - cover) + color * cover


def _mean_of_samples(rgba):
    """Average the samples of each pixel. Weight colors by alpha."""
    rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)
    mean = rgba.reshape(SIZE, _SAMPLES, SIZE, _SAMPLES, 4).mean(axis=(1, 3))
    alpha = mean[..., 3:]
    return np.concatenate(
        [np.divide(mean[..., :3], alpha, where=alpha > 0, out=np.zeros_like(mean[..., :3])), alpha], -1
    )


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(TARGET, np.clip(draw(), 0, 1), metadata={"Software": None})
