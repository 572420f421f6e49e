"""What the embedded model promises, on a phantom of a seed that training never sees (they begin at a million)."""

import numpy as np
import pytest

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.engine.catalogue import MODEL_FOLDER
from nninteractive_ws.evaluation import user
from nninteractive_ws.evaluation.measures import dice

PROMPTS = 5


@pytest.mark.timeout(200)
def test_dice_on_an_unseen_phantom(server: str) -> None:
    phantom = make_phantom(11)
    after: dict[str, list[float]] = {}
    with nni.connect(server) as session:
        session.set_image(phantom.image)
        for organ in set(phantom.organs()) - {"liver lesion"}:  # an organ is promised, not a lesion
            truth, segment = phantom.mask(organ), session.segment(organ)
            for _ in range(PROMPTS):
                if (correction := user.correction(truth, segment.mask)) is not None:
                    segment.add_point(correction[0], positive=correction[1])
                after.setdefault(organ, []).append(dice(truth, segment.mask))
    means = np.mean(list(after.values()), 0)
    assert means[0] >= 0.75, after
    assert means[-1] >= 0.88, after


def test_it_is_small_and_says_its_licence() -> None:
    assert sum(f.stat().st_size for f in MODEL_FOLDER.rglob("*") if f.is_file()) <= 10e6
    assert (MODEL_FOLDER / "LICENSE").read_text().startswith("Apache-2.0\n")
