"""A real abdominal CT with its organs, which lies beside the repository, not in it."""

from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[3] / "shared" / "data"
CT, LABELS = _FOLDER / "ct_abdomen.nii.gz", _FOLDER / "ct_abdomen_labels.nii.gz"
needs_ct = pytest.mark.skipif(not CT.exists(), reason="the real CT lies beside the repository, not in it")
