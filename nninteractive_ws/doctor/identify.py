"""Identify an HTTP server: one of this project, one of another system, a proxy, or an unknown program."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nninteractive_ws.doctor.http_probe import HttpResponse

Product = Literal["nninteractive_ws", "official", "slicer_extension", "itksnap_dls", "monai_label", "unknown"]


@dataclass(frozen=True)
class IdentifiedServer:
    """The program that answers at an address. ``name``: for people; ``health``: its response to /healthz."""

    product: Product
    name: str
    health: HttpResponse


#: Systems whose addresses are easily confused with ours, with paths in the /openapi.json that FastAPI serves for each.
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


def identify(get: Callable[[str], HttpResponse]) -> IdentifiedServer:
    """Identify the server behind ``get(path)``. Raises the exceptions of ``get``."""
    health = get("/healthz")
    body = health.json
    if health.status == 200 and isinstance(body.get("protocol"), int) and "status" in body:
        return IdentifiedServer("nninteractive_ws", str(body.get("server", "an nninteractive-ws server")), health)
    if health.status in (401, 407, 502, 503, 504) or 300 <= health.status < 400:
        return IdentifiedServer("unknown", "", health)  # from a proxy, whose response is the same for every path
    description = get("/openapi.json").json
    paths = description.get("paths")
    for product, name, required in _OTHERS:
        if isinstance(paths, dict) and required <= paths.keys():
            return IdentifiedServer(product, name, health)
    if health.status == 200 and body == {"ok": True}:
        # From the official server if it has no /openapi.json.
        return IdentifiedServer("official", _OTHERS[0][1], health)
    return IdentifiedServer("unknown", _unknown_name(health, description.get("info")), health)


def _unknown_name(health: HttpResponse, info: object) -> str:
    title = info.get("title") if isinstance(info, dict) else None
    names = ", ".join(f'"{name}"' for name in (title, health.software) if name)
    return f"an unknown HTTP server{f' named {names}' if names else ''}"
