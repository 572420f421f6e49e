"""The picture of the README, without a server."""

import numpy as np
import pytest

from nninteractive_ws.demo.phantom import Phantom, make_phantom
from tools import live_picture
from tools.live_picture import Moment, Recorder


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(1, (40, 36, 32), (8.0, 8.0, 8.0))


def moment(phantom: Phantom, caption: str, uploaded: float, *organs: str) -> Moment:
    views = {organ: (phantom.mask(organ)[:, :, 16], phantom.mask(organ)[:, 18, :]) for organ in organs}
    return Moment(caption, uploaded, [((20, 18, 16), True), ((5, 5, 5), False)], views)


def test_a_frame_shows_masks_and_upload_progress(phantom: Phantom) -> None:
    recorder = Recorder((18, 16))
    without = np.asarray(live_picture.draw(phantom, recorder, moment(phantom, "liver: click", 0.2)))
    with_mask = np.asarray(live_picture.draw(phantom, recorder, moment(phantom, "liver: click", 0.2, "liver")))
    assert without.shape == with_mask.shape
    changed = (without != with_mask).any(axis=-1)
    assert changed.any()
    assert not changed[-live_picture.CAPTION :].any()
    uploaded = np.asarray(live_picture.draw(phantom, recorder, moment(phantom, "liver: click", 0.9)))
    changed = (without != uploaded).any(axis=-1)
    assert changed[-live_picture.CAPTION :].any()
    assert not changed[: -live_picture.CAPTION].any()


def test_small_upload_progress_adds_no_frame(phantom: Phantom) -> None:
    moments = [moment(phantom, "click", n / 100) for n in range(20)] + [moment(phantom, "result", 0.2)]
    chosen = live_picture._selected(moments)
    assert chosen[0] is moments[0]
    assert chosen[-1] is moments[-1]
    assert 5 < len(chosen) < 12
