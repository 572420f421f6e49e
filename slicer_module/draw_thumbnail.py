"""Draw the thumbnail of the sample volume for Slicer's module Sample Data: ``python draw_thumbnail.py``."""

from pathlib import Path

import matplotlib.image
from nninteractive_ws.demo.phantom import ORGANS, make_phantom
import numpy as np
from scipy import ndimage

FILE = Path(__file__).parent / "NNInteractiveWS" / "Resources" / "Icons" / "TorsoPhantom.png"
SLICE = 62  # index of the axial slice, from inferior
WINDOW, LEVEL = 400, 60  # Hounsfield units
ZOOM = 2
COLORS = {"liver": (0.3, 0.9, 0.4), "spleen": (0.95, 0.6, 0.25), "stomach": (0.35, 0.6, 1.0)}


def draw():
    """Return an RGB image, floats in [0, 1], from anterior to posterior and with the patient's right on the left."""
    phantom = make_phantom()
    gray = np.clip((phantom.image[:, :, SLICE] - LEVEL) / WINDOW + 0.5, 0, 1)
    picture = np.repeat(ndimage.zoom(gray, ZOOM, order=1)[..., None], 3, axis=2)
    for organ, color in COLORS.items():
        mask = ndimage.zoom((phantom.labels[:, :, SLICE] == ORGANS[organ]).astype(float), ZOOM, order=1) > 0.5
        rim = mask & ~ndimage.binary_erosion(mask, iterations=2)
        picture[mask] = 0.75 * picture[mask] + 0.25 * np.array(color)
        picture[rim] = color
    return picture.transpose(1, 0, 2)


if __name__ == "__main__":
    matplotlib.image.imsave(FILE, np.clip(draw(), 0, 1))
