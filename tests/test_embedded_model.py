"""What the embedded model promises, on a phantom of a seed that training never sees (they begin at a million)."""

import numpy as np
import pytest

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.engine.catalogue import MODEL_FOLDER
from nninteractive_ws.evaluation import user
from nninteractive_ws.evaluation.measures import dice, obeyed

# Some of its organs, large and small, round and long: all of them would take CI a minute.
ORGANS = ("spleen", "right kidney", "left kidney", "stomach", "vena cava", "right lung")
PROMPTS = 3


@pytest.mark.timeout(200)
def test_it_finds_organs_of_an_unseen_phantom_and_listens_to_corrections(server: str) -> None:
    phantom = make_phantom(11)
    after: dict[str, list[float]] = {}
    listened: list[bool] = []
    with nni.connect(server) as session:
        session.set_image(phantom.image)
        for organ in ORGANS:
            truth, segment = phantom.mask(organ), session.segment(organ)
            for _ in range(PROMPTS):
                correction = user.correction(truth, segment.mask)
                assert correction is not None, "a mask without any error"
                point, positive = correction
                segment.add_point(point, positive=positive)
                listened.append(obeyed(segment.mask, truth, point, positive))
                after.setdefault(organ, []).append(dice(truth, segment.mask))
    means = np.mean(list(after.values()), 0)
    assert means[0] >= 0.85, after
    assert means[-1] >= 0.92, after
    assert np.mean(listened) >= 0.9, after


def test_it_is_small_and_says_its_licence() -> None:
    assert sum(f.stat().st_size for f in MODEL_FOLDER.rglob("*") if f.is_file()) <= 10e6
    assert (MODEL_FOLDER / "LICENSE").read_text().startswith("Apache-2.0\n")
