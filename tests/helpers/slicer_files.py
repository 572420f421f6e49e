"""Write and read files with the real slicer-core, in a separate process. The exit status is 77 if it is missing.

``write FOLDER``: markups of the shapes in shapes.json, and the points of the curve as drawn by Slicer.
``read FILE``: print names, colors, geometry and voxels of a segmentation as JSON.
"""

import json
from pathlib import Path
import sys
from typing import Any

import numpy as np

try:
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy
except ImportError:
    print("slicer-core is not installed")
    sys.exit(77)
if not hasattr(slicer, "vtkMRMLScene"):
    print("the package called slicer here is not 3D Slicer's")
    sys.exit(77)

TO_RAS = np.array([-1.0, -1.0, 1.0])


def new_scene() -> Any:
    """Create a scene with the node classes of markups, segmentations and their storage."""
    scene = slicer.vtkMRMLScene()
    scene.kept = [slicer.vtkSlicerMarkupsLogic(), slicer.vtkSlicerSegmentationsModuleLogic()]
    for logic in scene.kept:
        logic.SetMRMLScene(scene)
    return scene


def write(folder: Path) -> None:
    shapes = json.loads((folder / "shapes.json").read_text())
    scene = new_scene()
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    points.AddControlPoint(*(TO_RAS * shapes["inside"]))
    box = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    placed = vtk.vtkMatrix4x4()
    for row in range(3):
        for column in range(3):
            placed.SetElement(row, column, TO_RAS[row] * shapes["axes"][row][column])
        placed.SetElement(row, 3, TO_RAS[row] * shapes["inside"][row])
    box.SetAndObserveObjectToNodeMatrix(placed)
    box.SetSize(10.0, 20.0, 12.0)
    curve = scene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode")
    for corner in shapes["corners"]:
        curve.AddControlPoint(*(TO_RAS * corner))
    drawn = vtk_to_numpy(curve.GetCurvePointsWorld().GetData())
    np.save(folder / "curve.npy", drawn * TO_RAS)
    for node, name in ((points, "points"), (box, "roi"), (curve, "curve")):
        storage = node.CreateDefaultStorageNode()
        storage.SetFileName(str(folder / f"{name}.mrk.json"))
        scene.AddNode(storage)
        assert storage.WriteData(node)


def read(path: Path) -> dict[str, Any]:
    scene = new_scene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    segmentation = node.GetSegmentation()
    found = []
    for identifier in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(identifier)
        labelmap = slicer.vtkOrientedImageData()
        assert node.GetBinaryLabelmapRepresentation(identifier, labelmap)
        to_ras = vtk.vtkMatrix4x4()
        labelmap.GetImageToWorldMatrix(to_ras)
        values = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions(), order="F")
        extent = labelmap.GetExtent()
        voxels = np.argwhere(values != 0) + np.array([extent[0], extent[2], extent[4]])
        found.append(
            {
                "name": segment.GetName(),
                "color": segment.GetColor(),
                "ijk_to_ras": [[to_ras.GetElement(r, c) for c in range(4)] for r in range(4)],
                "voxels": voxels.tolist(),
            }
        )
    return {"segments": found}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        Path(sys.argv[3]).write_text(json.dumps(read(Path(sys.argv[2]))))
