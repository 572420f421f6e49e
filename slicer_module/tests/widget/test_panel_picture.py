"""The tutorial's picture of the panel can be made, and shows a session."""

from nninteractive_ws.server.local import local_server
import panel_picture
import qt


def test_the_tutorials_picture(application):
    with local_server("--model", "demo", "--log-level", "warning") as address:
        picture = panel_picture.picture(address)
    assert picture.width() > 2 * panel_picture.WIDTH
    assert picture.height() > 300
    colours = {qt.QColor(picture.pixelColor(x, 200)).rgb() for x in range(picture.width())}
    assert len(colours) > 10
