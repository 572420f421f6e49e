"""nnInteractive's inference session, without the libraries that it uses only in training and to read files.

They take more than half of the time of the import. ``tests/engine/test_upstream_contract.py`` tests that serving a
prompt needs none of them.
"""

from nninteractive_ws.engine.deferred_imports import defer_imports

#: torch._dynamo compiles networks. nnU-Net's trainer draws its progress, splits data sets and reads images.
DEFERRED = (
    "torch._dynamo",
    "seaborn",
    "matplotlib.pyplot",
    "sklearn",
    "pandas",
    "nibabel",
    "SimpleITK",
    "skimage.io",
)

with defer_imports(*DEFERRED):
    import nnInteractive.inference.inference_session as inference_session
    from nnInteractive.inference.inference_session import nnInteractiveInferenceSession

__all__ = ["inference_session", "nnInteractiveInferenceSession"]
