"""Sample volume for Slicer's module Sample Data."""

from pathlib import Path

import numpy as np
import slicer

from . import packages

_RESOURCES = Path(__file__).parents[1] / "Resources"


def registerSampleData():
    """Register the sample volume in the module Sample Data."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="nnInteractive WS",
        sampleName="TorsoPhantom",
        thumbnailFileName=str(_RESOURCES / "Icons" / "TorsoPhantom.png"),
        # Sample Data requires a URI and a file name, although the volume is computed and not downloaded.
        uris="urn:nninteractive-ws:phantom",
        fileNames="TorsoPhantom.nrrd",
        nodeNames="TorsoPhantom",
        customDownloader=addPhantom,
    )


def addPhantom(_source=None):
    """Add a synthetic CT of a torso to the scene and show it. Return its vtkMRMLScalarVolumeNode, or None if the
    required packages are not installed."""
    try:
        if not packages.areInstalled():
            packages.install()
    except packages.NotInstalled as e:
        slicer.util.errorDisplay(str(e))
        return None
    from nninteractive_ws.demo.phantom import make_phantom

    with slicer.util.WaitCursor():
        phantom = make_phantom()
    # The phantom's axes point left, posterior and superior.
    ijkToRAS = np.diag([*np.multiply(phantom.spacing, (-1, -1, 1)), 1.0])
    ijkToRAS[:3, 3] = -ijkToRAS[:3, :3] @ (np.subtract(phantom.image.shape, 1) / 2)
    volume = slicer.util.addVolumeFromArray(phantom.image.transpose(2, 1, 0), ijkToRAS, "TorsoPhantom")
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(400, 60)  # soft tissue
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    return volume
