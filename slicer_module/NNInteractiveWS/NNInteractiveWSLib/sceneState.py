"""What the scene keeps of a session: prompts, masks and whose voxels were taken, so that work goes on after loading."""

from base64 import b64decode, b64encode
import json
import zlib

from nninteractive_ws import Journal
from nninteractive_ws.errors import BadJournal

from .segments import Book
from .sparse import SparseMask

_CLASS = "vtkMRMLTextNode"
_MARK = "NNInteractiveWS.journal"
_VERSION = 1


def find(scene, segmentation, volume):
    """The node with the state of a segmentation on a volume, or None."""
    for n in range(scene.GetNumberOfNodesByClass(_CLASS)):
        node = scene.GetNthNodeByClass(n, _CLASS)
        ours = node.GetAttribute(_MARK) is not None and node.GetNodeReference("segmentation") is segmentation
        if ours and node.GetNodeReference("volume") is volume:
            return node
    return None


def store(scene, segmentation, volume, journal, books, previews):
    """Keep a session's state in the scene, instead of what was kept before. ``books``: those of Segments.
    ``previews``: of segments whose mask is a preview, as SparseMask where that differs from the journal's mask."""
    node = find(scene, segmentation, volume)
    if node is None:
        node = scene.AddNewNodeByClass(_CLASS, "nnInteractive prompts")
        node.SetHideFromEditors(True)
        # In the scene file itself: a file of its own would be written only by those who think of it.
        node.SetForceCreateStorageNode(node.CreateStorageNodeNever)
        node.SetAttribute(_MARK, str(_VERSION))
        node.SetNodeReferenceID("segmentation", segmentation.GetID())
        node.SetNodeReferenceID("volume", volume.GetID())
    kept = {
        "journal": b64encode(journal.to_bytes()).decode(),
        "segments": {name: _packedBook(book, previews.get(name, SparseMask())) for name, book in books.items()},
    }
    node.SetText(json.dumps(kept))


def load(scene, segmentation, volume, shape):
    """The journal and the books that are kept, or None. ``shape``: the volume's. Raises BadJournal if they are
    damaged, or of another volume."""
    node = find(scene, segmentation, volume)
    if node is None or not node.GetText():
        return None
    try:
        kept = json.loads(node.GetText())
        journal = Journal.from_bytes(b64decode(kept["journal"]))
        if journal.shape != tuple(shape):
            raise BadJournal("The prompts kept in the scene are of another image, and are forgotten.")
        return journal, {name: _unpackedBook(packed, shape) for name, packed in kept["segments"].items()}
    except BadJournal:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error) as e:
        raise BadJournal(f"The prompts that are kept in the scene cannot be read ({e!r}).") from e


def remove(scene, segmentation, volume):
    """Keep nothing any more."""
    node = find(scene, segmentation, volume)
    if node is not None:
        scene.RemoveNode(node)


def _packedBook(book, preview):
    taken = {other: mask.packed() for other, mask in book.taken.items()}
    taken = {other: mask for other, mask in taken.items() if mask}
    return {"withheld": book.withheld.packed(), "taken": taken, "preview": preview.packed()}


def _unpackedBook(packed, shape):
    taken = {other: SparseMask.unpacked(mask, shape) for other, mask in packed["taken"].items()}
    withheld, preview = (SparseMask.unpacked(packed[name], shape) for name in ("withheld", "preview"))
    return Book(withheld=withheld, taken=taken, preview=preview)
