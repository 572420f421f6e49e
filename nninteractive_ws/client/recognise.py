"""Who answers over HTTP: a server of this project, one of another system, a proxy, or something else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nninteractive_ws.client.http import Answer

Product = Literal["nninteractive_ws", "official", "slicer_extension", "itksnap_dls", "monai_label", "unknown"]


@dataclass(frozen=True)
class Answerer:
    """``name``: in words. ``health``: what it answered to /healthz."""

    product: Product
    name: str
    health: Answer


#: Systems whose addresses are mixed up with ours: the paths that the description at /openapi.json, which FastAPI
#: makes for each of them, must have.
_OTHERS: tuple[tuple[Product, str, frozenset[str]], ...] = (
    (
        "official",
        "the official nnInteractive server (nninteractive-server)",
        frozenset({"/capabilities", "/claim", "/add_point_interaction"}),
    ),
    (
        "slicer_extension",
        "the server of the first nnInteractive extension for 3D Slicer (SlicerNNInteractive)",
        frozenset({"/upload_image", "/upload_segment", "/add_point_interaction"}),
    ),
    (
        "itksnap_dls",
        "ITK-SNAP's deep learning server (itksnap-dls)",
        frozenset({"/start_session", "/process_point_interaction/{session_id}"}),
    ),
    ("monai_label", "a MONAI Label server", frozenset({"/info/", "/infer/{model}"})),
)


def recognise(get: Callable[[str], Answer]) -> Answerer:
    """Who answers ``get(path)``. Raises what that does."""
    health = get("/healthz")
    said = health.json
    if health.status == 200 and isinstance(said.get("protocol"), int) and "status" in said:
        return Answerer("nninteractive_ws", str(said.get("server", "an nninteractive-ws server")), health)
    if health.status in (401, 407, 502, 503, 504) or 300 <= health.status < 400:
        return Answerer("unknown", "", health)  # a proxy's words, which it says to every path
    description = get("/openapi.json").json
    paths = description.get("paths")
    for product, name, needed in _OTHERS:
        if isinstance(paths, dict) and needed <= paths.keys():
            return Answerer(product, name, health)
    if health.status == 200 and said == {"ok": True}:
        # What the official one answers, where it gives no description of itself.
        return Answerer("official", _OTHERS[0][1], health)
    return Answerer("unknown", _in_words(health, description.get("info")), health)


def _in_words(health: Answer, info: object) -> str:
    title = info.get("title") if isinstance(info, dict) else None
    named = ", ".join(f'"{word}"' for word in (title, health.software) if word)
    return f"something that speaks HTTP{f' and calls itself {named}' if named else ''}"
