"""State of a session in the scene: prompts, masks and segment ledgers, so that a session resumes after loading."""

from base64 import b64decode, b64encode
import json
import zlib

from nninteractive_ws import Journal
from nninteractive_ws.errors import BadJournal

from .segments import SegmentLedger
from .sparseMask import SparseMask

_CLASS = "vtkMRMLTextNode"
_ATTRIBUTE = "NNInteractiveWS.journal"
_VERSION = 1


def find(scene, segmentation, volume):
    """Find the node with the state of a segmentation on a volume, or None."""
    for n in range(scene.GetNumberOfNodesByClass(_CLASS)):
        node = scene.GetNthNodeByClass(n, _CLASS)
        matches = node.GetAttribute(_ATTRIBUTE) is not None and node.GetNodeReference("segmentation") is segmentation
        if matches and node.GetNodeReference("volume") is volume:
            return node
    return None


def store(scene, segmentation, volume, journal, ledgers, previews):
    """Store a session's state in the scene, and replace the previous one.

    ``ledgers``: those of Segments. ``previews``: for each segment whose mask is a preview, its difference from the
    journal's mask as a SparseMask.
    """
    node = find(scene, segmentation, volume)
    if node is None:
        node = scene.AddNewNodeByClass(_CLASS, "nnInteractive prompts")
        node.SetHideFromEditors(True)
        # Store the text in the scene file itself. A separate file is saved only if the user selects it.
        node.SetForceCreateStorageNode(node.CreateStorageNodeNever)
        node.SetAttribute(_ATTRIBUTE, str(_VERSION))
        node.SetNodeReferenceID("segmentation", segmentation.GetID())
        node.SetNodeReferenceID("volume", volume.GetID())
    state = {
        "journal": b64encode(journal.to_bytes()).decode(),
        "segments": {name: _packedLedger(ledger, previews.get(name, SparseMask())) for name, ledger in ledgers.items()},
    }
    node.SetText(json.dumps(state))


def load(scene, segmentation, volume, shape):
    """Load the journal and the segment ledgers, or None if nothing is stored. ``shape``: the volume's. Raise BadJournal
    if they are damaged or belong to another volume."""
    node = find(scene, segmentation, volume)
    if node is None or not node.GetText():
        return None
    try:
        state = json.loads(node.GetText())
        journal = Journal.from_bytes(b64decode(state["journal"]))
        if journal.shape != tuple(shape):
            raise BadJournal("The prompts saved in the scene belong to another image and were discarded.")
        return journal, {name: _unpackedLedger(packed, shape) for name, packed in state["segments"].items()}
    except BadJournal:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error) as e:
        raise BadJournal(f"The prompts saved in the scene cannot be read and were discarded ({e!r}).") from e


def remove(scene, segmentation, volume):
    """Remove the stored state, if there is any."""
    node = find(scene, segmentation, volume)
    if node is not None:
        scene.RemoveNode(node)


def _packedLedger(ledger, preview):
    taken = {other: mask.packed() for other, mask in ledger.taken.items()}
    taken = {other: mask for other, mask in taken.items() if mask}
    return {"mismatch": ledger.mismatch.packed(), "taken": taken, "preview": preview.packed()}


def _unpackedLedger(packed, shape):
    taken = {other: SparseMask.unpacked(mask, shape) for other, mask in packed["taken"].items()}
    mismatch, preview = (SparseMask.unpacked(packed[name], shape) for name in ("mismatch", "preview"))
    return SegmentLedger(mismatch=mismatch, taken=taken, preview=preview)
