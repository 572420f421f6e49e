"""The web page in a browser, with a real server, against the Python client and SimpleITK."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.browser import OTHER_HOST, UNAUTHORIZED, PageUser, page_user
from helpers.fast_server import SLOW_NETWORK
from helpers.fault_proxy import FaultProxy, fault_proxy
import numpy as np
import pytest

from nninteractive_ws import connect, masks
from nninteractive_ws import messages as wire
from nninteractive_ws.masks import Mask
from nninteractive_ws.server.access import add_user

#: Voxels of the example: inside and outside of its liver, and inside of its stomach.
LIVER, OUTSIDE, STOMACH = (40, 50, 56), (80, 30, 56), (110, 48, 56)

#: Drop a file of this content on the page.
_DROP = """async ([content, name]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  for (const type of ['dragover', 'drop']) {
    document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
  }
}"""

#: Count the bytes that the page copies to 3-D textures.
_COUNT_UPLOADS = """
window.uploaded = 0;
const { texSubImage3D } = WebGL2RenderingContext.prototype;
WebGL2RenderingContext.prototype.texSubImage3D = function (...parameters) {
  window.uploaded += parameters.at(-1).byteLength;
  return texSubImage3D.apply(this, parameters);
};
"""


@pytest.fixture
def user(browser: Any) -> Iterator[PageUser]:
    """A person at a small desktop screen."""
    with page_user(browser, viewport={"width": 1280, "height": 720}) as person:
        yield person


def voxels_of(path: Path) -> Any:
    """The voxels of a file, (i, j, k), as SimpleITK reads them."""
    sitk = pytest.importorskip("SimpleITK")
    return sitk.GetArrayFromImage(sitk.ReadImage(path)).T


def assert_same_geometry(path: Path, other: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image, expected = sitk.ReadImage(path), sitk.ReadImage(other)
    assert image.GetSize() == expected.GetSize()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(image, name)(), getattr(expected, name)(), atol=1e-5)


def replay(address: str, image: Any, steps: list[wire.StepRequest]) -> Mask:
    """Return the mask of the Python client for the same prompts."""
    with connect(address) as session:
        session.set_image(image)
        segment = session.segment("replayed")
        for step in steps:
            give(segment, step, image.shape)
        return np.array(segment.mask)


def give(segment: Any, step: wire.StepRequest, shape: tuple[int, int, int]) -> None:
    if isinstance(step, wire.AddPoint):
        segment.add_point(step.point, positive=step.positive, run=step.run)
    elif isinstance(step, wire.AddBbox):
        segment.add_bbox(step.box, positive=step.positive, run=step.run)
    elif isinstance(step, wire.Run):
        segment.run()
    else:
        assert isinstance(step, wire.AddScribble | wire.AddLasso)
        drawn = np.zeros(shape, bool)
        masks.apply(masks.unpack(step.mask, shape), drawn)
        add = segment.add_scribble if isinstance(step, wire.AddScribble) else segment.add_lasso
        add(drawn, positive=step.positive, run=step.run)


def marked(step: wire.StepRequest, shape: tuple[int, int, int]) -> Mask:
    """The voxels that a scribble or a lasso marks."""
    assert isinstance(step, wire.AddScribble | wire.AddLasso)
    drawn = np.zeros(shape, bool)
    masks.apply(masks.unpack(step.mask, shape), drawn)
    return drawn


# ---- prompts and their results -------------------------------------------------------------------------------


def test_four_tools_give_the_masks_of_the_python_client(
    user: PageUser, server: str, example: Path, tmp_path: Path
) -> None:
    user.open_example(server)
    user.prompt(LIVER)
    assert user.crosshair == LIVER
    user.draw("b", (28, 40, 56), (60, 70, 56))
    user.press("t")
    user.draw("s", (80, 60, 56), (88, 60, 56))
    user.press("t")
    user.draw("l", (30, 45, 56), (50, 45, 56), (50, 62, 56), (30, 62, 56))
    image = voxels_of(example)
    point, box, scribble, lasso = steps = user.steps()

    assert isinstance(point, wire.AddPoint)
    assert (tuple(point.point), point.positive) == (LIVER, True)
    assert isinstance(box, wire.AddBbox)
    assert [tuple(pair) for pair in box.box] == [(28, 61), (40, 71), (56, 57)]
    assert isinstance(scribble, wire.AddScribble)
    assert not scribble.positive
    with connect(server) as session:
        thickness = round(session.server.model.scribble_thickness[1])
    rows = np.unique(np.argwhere(marked(scribble, image.shape))[:, 1])
    assert len(rows) == thickness
    assert abs(rows.mean() - 60) < 1
    assert isinstance(lasso, wire.AddLasso)
    filled = np.argwhere(marked(lasso, image.shape))
    assert np.all(np.abs(filled.min(axis=0) - (30, 45, 56)) <= 1)
    assert np.all(np.abs(filled.max(axis=0) - (50, 62, 56)) <= 1)
    assert len(filled) > 0.9 * 20 * 17

    mask = replay(server, image, steps)
    assert mask.any()
    assert user.voxels == [mask.sum()]
    for button in ("Save as .nii.gz label map", "Save as .seg.nrrd, for 3D Slicer"):
        saved = user.save(button, tmp_path)
        np.testing.assert_array_equal(voxels_of(saved) != 0, mask)
        assert_same_geometry(saved, example)


def test_undo_redo_and_reset(user: PageUser, server: str) -> None:
    user.open_example(server)
    user.prompt(LIVER)
    (first,) = user.voxels
    user.press("t")
    user.prompt(OUTSIDE)
    (second,) = user.voxels
    user.wait_for_marks(axial=2)
    user.press("Control+z")
    user.wait_for_voxels(first)
    user.wait_for_marks(axial=1)
    user.press("Control+Shift+Z")
    user.wait_for_voxels(second)
    user.wait_for_marks(axial=2)
    user.press("r")
    user.wait_for_voxels(0)
    user.wait_for_marks(axial=0)
    user.click("Undo")
    user.wait_for_voxels(second)


def test_prompts_without_running(user: PageUser, server: str, example: Path) -> None:
    user.open_example(server)
    user.page.get_by_text("Options").click()
    user.page.get_by_label("Run after each prompt").uncheck()
    user.page.locator("#overlay").focus()
    user.prompt(LIVER)
    user.prompt((44, 60, 56))
    assert user.voxels == [0]
    user.wait_for_marks(axial=2)
    user.click("Run")
    user.wait_for_result()
    steps = user.steps()
    assert [type(step) for step in steps] == [wire.AddPoint, wire.AddPoint, wire.Run]
    assert user.voxels == [replay(server, voxels_of(example), steps).sum()]


def test_cancel_reverts_the_segment(user: PageUser, start: Any) -> None:
    user.open_example(start(network=SLOW_NETWORK).address)
    user.show(LIVER)
    user.press("p")
    user.page.mouse.click(*user.pixel(LIVER))
    user.expect(user.page.get_by_role("button", name="Cancel", exact=True)).to_be_enabled()
    user.press("Escape")
    user.wait_for_status("Canceled. The segment was reverted.")
    user.wait_for_voxels(0)
    user.wait_for_marks(axial=0)


def test_a_lasso_around_nothing_is_refused_with_a_sentence(user: PageUser, server: str) -> None:
    user.open_example(server)
    user.draw("l", LIVER, LIVER)
    user.wait_for_status("The lasso encloses no voxel of the image. Draw a larger outline.")
    assert user.voxels == [0]
    user.wait_for_marks(axial=0)


# ---- segments ------------------------------------------------------------------------------------------------


def test_segments_have_names_colors_and_visibility(user: PageUser, server: str, example: Path, tmp_path: Path) -> None:
    user.open_example(server)
    user.prompt(LIVER)
    user.press("t")
    user.press("e")
    user.prompt(STOMACH)  # positive again, else the new segment would stay empty
    liver, stomach = user.voxels
    assert liver > 0
    assert stomach > 0
    user.click("Rename Segment 1")
    user.page.get_by_label("New name of Segment 1").fill("liver")
    user.press("Enter")
    user.page.get_by_label("Color of Segment 2").evaluate(
        "(field) => { field.value = '#ff0000'; field.dispatchEvent(new Event('change')); }"
    )
    assert user.names == ["liver", "Segment 2"]
    sitk = pytest.importorskip("SimpleITK")
    header = sitk.ReadImage(user.save("Save as .seg.nrrd, for 3D Slicer", tmp_path))
    assert [header.GetMetaData(f"Segment{n}_Name") for n in (0, 1)] == ["liver", "Segment 2"]
    assert np.allclose([float(x) for x in header.GetMetaData("Segment1_Color").split()], [1, 0, 0])

    shown = user.page.locator("#canvas").screenshot()
    user.press("v")
    user.expect(user.page.get_by_role("button", name="Show Segment 2")).to_be_visible()
    user.page.wait_for_timeout(500)
    assert user.page.locator("#canvas").screenshot() != shown

    user.click("Delete Segment 2")
    user.page.get_by_role("button", name="Delete", exact=True).click()
    user.wait_for_voxels(liver)
    user.expect(user.page.locator("#segments .name")).to_be_focused()
    assert_same_geometry(user.save("Save as .nii.gz label map", tmp_path), example)


def test_masks_do_not_disturb_the_renaming_of_a_segment(user: PageUser, start: Any) -> None:
    user.open_example(start(network=SLOW_NETWORK).address)
    user.show(LIVER)
    user.press("p")
    user.page.mouse.click(*user.pixel(LIVER))
    user.click("Rename Segment 1")
    field = user.page.get_by_label("New name of Segment 1")
    field.fill("liv")
    row = user.page.locator("#segments li").element_handle()
    user.expect(user.page.locator("#segments li")).not_to_have_attribute("data-voxels", "0")
    assert row.evaluate("(row) => row.isConnected")
    user.page.keyboard.type("er")
    user.expect(field).to_have_value("liver")
    user.press("Enter")
    assert user.names == ["liver"]
    user.wait_for_result()
    (voxels,) = user.voxels
    user.expect(user.page.locator("#segments .count")).to_have_text(f"{voxels:,} voxels")


def test_a_prompt_shows_a_hidden_segment_again(user: PageUser, server: str) -> None:
    user.open_example(server)
    user.prompt(LIVER)
    user.press("v")
    user.prompt((44, 60, 56))
    user.expect(user.page.get_by_role("button", name="Hide Segment 1")).to_be_visible()


# ---- keyboard and accessibility --------------------------------------------------------------------------------


def test_everything_works_without_a_mouse(user: PageUser, server: str, example: Path) -> None:
    user.open(server)
    user.wait_for_status("Connected.")
    user.page.get_by_role("button", name="Open example").first.focus()
    user.press("Enter")
    user.wait_for_status("The image is on the server.")
    user.show(LIVER)
    user.page.locator("#overlay").focus()
    user.press("ArrowLeft", "ArrowUp", "PageUp")
    # The example's axes point to the left, posterior and superior.
    i, j, k = LIVER
    assert user.crosshair == (i - 1, j - 1, k + 1)
    user.page.keyboard.down("Enter")
    user.page.keyboard.down("Enter")  # the key is held, and repeats
    user.page.keyboard.up("Enter")
    user.wait_for_result()
    assert len(user.steps()) == 1
    assert user.voxels == [replay(server, voxels_of(example), user.steps()).sum()]
    for key, button in {"p": "Point", "b": "Bounding box", "s": "Scribble", "l": "Lasso"}.items():
        user.press("Escape", key)
        pressed = user.page.get_by_role("button", name=button, exact=True)
        user.expect(pressed).to_have_attribute("aria-pressed", "true")
    user.press("t")
    user.expect(user.page.get_by_role("button", name="Negative")).to_have_attribute("aria-pressed", "true")
    user.press("e")
    user.wait_for_voxels(*user.voxels[:1], 0)


def test_options_are_those_of_a_new_page_after_a_return_to_it(user: PageUser, server: str) -> None:
    user.open(server)
    user.wait_for_status("Connected.")
    user.page.get_by_text("Options").click()
    user.page.get_by_label("Run after each prompt").uncheck()
    user.page.goto("about:blank")
    user.page.go_back()
    user.wait_for_status("Connected.")
    user.page.get_by_text("Options").click()
    user.expect(user.page.get_by_label("Run after each prompt")).to_be_checked()


def test_axe_finds_no_violation(user: PageUser, server: str) -> None:
    user.open(server)
    user.wait_for_status("Connected.")
    assert user.axe() == []
    user.click("Help")
    assert user.axe() == []
    user.press("Escape")
    user.page.get_by_role("button", name="Open example").first.click()
    user.wait_for_status("The image is on the server.")
    user.prompt(LIVER)
    user.page.get_by_text("Options").click()
    assert user.axe() == []
    user.click("Rename Segment 1")
    assert user.axe() == []


def test_the_window_of_a_ct(user: PageUser, server: str, example: Path) -> None:
    user.page.add_init_script(_COUNT_UPLOADS)
    user.open_example(server)
    # A large volume takes long, so that it is copied once, and no zeros for the other textures.
    assert user.page.evaluate("() => window.uploaded") < 1.1 * voxels_of(example).nbytes
    user.page.get_by_label("Preset").select_option("CT lung")
    user.expect(user.page.get_by_label("Width")).to_have_value("1500")
    user.expect(user.page.get_by_label("Level")).to_have_value("-600")
    user.page.get_by_label("Width").fill("300")
    user.press("Tab")
    user.expect(user.page.get_by_label("Preset")).to_have_value("")
    x, y = user.pixel(LIVER)
    user.page.mouse.move(x, y)
    user.page.mouse.down(button="right")
    user.page.mouse.move(x + 100, y)
    user.page.mouse.up(button="right")
    user.expect(user.page.get_by_label("Width")).to_have_value("450")
    user.expect(user.page.locator("#position")).to_contain_text("Voxel")
    user.page.mouse.move(1, 1)  # away from the views
    user.expect(user.page.locator("#position")).to_have_text("")
    user.page.get_by_label("Preset").select_option("Automatic")
    user.expect(user.page.get_by_label("Width")).not_to_have_value("450")


def prompt_by_touch(user: PageUser, server: str) -> None:
    """Tap a point into the example. The page fits the screen, and is accessible."""
    user.open_example(server)
    box = user.page.locator("#overlay").bounding_box()
    user.page.touchscreen.tap(box["x"] + 0.2 * box["width"], box["y"] + 0.25 * box["height"])
    user.wait_for_result()
    user.wait_for_marks(axial=1)
    assert user.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert user.axe() == []


def test_a_tablet(browser: Any, server: str) -> None:
    with page_user(browser, viewport={"width": 820, "height": 1180}, has_touch=True, is_mobile=True) as user:
        prompt_by_touch(user, server)


def test_a_phone(browser: Any, server: str) -> None:
    with page_user(browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as user:
        user.open(server)
        user.wait_for_status("Connected.")
        assert user.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        prompt_by_touch(user, server)


# ---- connections ---------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: str) -> Iterator[FaultProxy]:
    with fault_proxy(server) as started:
        yield started


def test_work_continues_after_the_connection_was_lost(user: PageUser, proxy: FaultProxy) -> None:
    user.expected_problems = ("WebSocket connection", "Failed to load resource")
    user.open_example(proxy.address)
    user.prompt(LIVER)
    (first,) = user.voxels
    proxy.refusing = True
    proxy.cut()
    user.wait_for_status("Connection lost, trying again. No work is lost.")
    user.expect(user.page.locator("#status-detail")).to_contain_text(" s")  # until the next attempt
    proxy.refusing = False
    user.wait_for_status("The image is on the server.")
    user.page.evaluate("() => dispatchEvent(new Event('online'))")  # the page asks the server for a sign of life
    user.page.wait_for_timeout(500)
    user.wait_for_status("The image is on the server.")
    user.prompt(STOMACH)
    user.press("Control+z")
    user.wait_for_voxels(first)


def test_work_continues_after_a_restart_of_the_server_and_a_reload(user: PageUser, start: Any) -> None:
    server = start()
    user.open_example(server.address)
    user.prompt(LIVER)
    user.press("e")
    user.prompt(STOMACH)
    user.click("Rename Segment 2")
    user.page.get_by_label("New name of Segment 2").fill("stomach")
    user.press("Enter")
    voxels = user.voxels
    user.page.wait_for_timeout(1000)
    user.page.reload()
    user.wait_for_status("The image is on the server.")
    user.wait_for_voxels(*voxels)
    assert user.names == ["Segment 1", "stomach"]
    user.wait_for_marks(axial=1)
    user.press("Control+z")
    user.wait_for_voxels(voxels[0], 0)


def test_an_own_image_is_continued_when_it_is_opened_again(user: PageUser, server: str, example: Path) -> None:
    own = example.rename(example.with_name("liver.nii.gz"))
    try:
        user.open(server)
        user.wait_for_status("Connected.")
        user.page.set_input_files("#files", own)
        user.wait_for_status("The image is on the server.")
        user.prompt(LIVER)
        voxels = user.voxels
        user.page.wait_for_timeout(1000)
        user.page.reload()
        user.expect(user.page.locator("#start-continue")).to_have_text(
            "Open liver.nii.gz again to continue. The segments are kept."
        )
        user.page.set_input_files("#files", own)
        user.wait_for_voxels(*voxels)
    finally:
        own.rename(example)


def test_saved_prompts_are_deleted(user: PageUser, server: str, example: Path) -> None:
    user.open_example(server)
    user.prompt(LIVER)
    user.page.wait_for_timeout(1000)  # the page saves with a delay
    user.page.get_by_text("Options").click()
    user.click("Delete saved prompts")
    assert user.axe() == []
    user.click("Delete")
    user.wait_for_status("The saved prompts were deleted.")
    kept = user.page.evaluate("() => [Object.keys(localStorage), Object.keys(sessionStorage)].flat()")
    assert kept == []
    user.open_example(server)
    assert user.voxels == [0]


def test_a_browser_that_blocks_its_stores_works_until_the_page_is_left(user: PageUser, server: str) -> None:
    user.page.add_init_script(
        "for (const name of ['sessionStorage', 'localStorage', 'indexedDB']) {"
        "  const get = () => { throw new DOMException('Access is denied.', 'SecurityError'); };"
        "  Object.defineProperty(window, name, { get });"
        "}"
    )
    user.open_example(server)
    user.expect(user.page.locator("#notes")).to_contain_text("This browser does not keep prompts for later.")
    user.prompt(LIVER)
    assert user.voxels[0] > 0


def test_a_browser_without_webgl_is_told_so(user: PageUser, server: str) -> None:
    user.page.add_init_script(
        "const original = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...more) {"
        "  return kind === 'webgl2' ? null : original.call(this, kind, ...more);"
        "};"
    )
    user.open(server)
    user.expect(user.page.locator("#start-problem")).to_contain_text("Turn on hardware acceleration")
    user.wait_for_status("WebGL 2 does not work")
    user.page.wait_for_timeout(1000)  # the connection must not replace it
    user.wait_for_status("WebGL 2 does not work")
    assert user.page.get_by_role("button", name="Open example").first.is_disabled()


def test_lost_graphics_are_an_error(user: PageUser, server: str) -> None:
    user.expected_problems = ("CONTEXT_LOST_WEBGL",)
    user.open_example(server)
    user.prompt(LIVER)
    voxels = user.voxels
    user.page.evaluate(
        "() => document.getElementById('canvas').getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()"
    )
    user.wait_for_status("The browser lost the graphics. Reload the page; the segments are kept.")
    user.page.wait_for_timeout(1000)  # the page saves with a delay
    user.page.reload()
    user.wait_for_status("The image is on the server.")
    user.wait_for_voxels(*voxels)


def test_a_dropped_file_is_opened(user: PageUser, server: str, example: Path) -> None:
    user.open(server)
    user.wait_for_status("Connected.")
    content = base64.b64encode(example.read_bytes()).decode()
    user.page.evaluate(_DROP, [content, "dropped.nii.gz"])
    user.wait_for_status("The image is on the server.")
    user.expect(user.page.locator("#image-name")).to_have_text("dropped.nii.gz")
    user.prompt(LIVER)
    assert user.voxels == [replay(server, voxels_of(example), user.steps()).sum()]


def test_a_dicom_series_is_saved_as_dicom_seg(user: PageUser, server: str, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from helpers.batch import write_series

    series = tmp_path / "series"
    write_series(series)
    user.open(server)
    user.wait_for_status("Connected.")
    user.page.set_input_files("#folder", series)
    user.wait_for_status("The image is on the server.")
    user.page.locator("#overlay").focus()
    user.press("Enter")
    user.wait_for_result()
    saved = pydicom.dcmread(user.save("Save as DICOM SEG", tmp_path))
    slices = [pydicom.dcmread(path) for path in series.rglob("*.dcm")]
    assert saved.Modality == "SEG"
    assert saved.PatientID == slices[0].PatientID
    assert saved.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert int(saved.pixel_array.sum()) == user.voxels[0] > 0


def test_a_file_that_is_no_image_is_refused(user: PageUser, server: str) -> None:
    user.open(server)
    user.wait_for_status("Connected.")
    user.page.set_input_files("#files", {"name": "a.nii", "mimeType": "", "buffer": b"no image"})
    user.expect(user.page.locator("#status-line")).to_have_attribute("data-kind", "error")
    user.wait_for_status("a.nii")


@pytest.fixture(scope="module")
def protected(start: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The address of a server that requires a token, and a token."""
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    token = add_user(file, "alice")
    return start("--token-file", str(file)).address, token


def test_a_token_is_asked_for_and_kept_in_the_tab(user: PageUser, protected: tuple[str, str]) -> None:
    address, token = protected
    user.expected_problems = UNAUTHORIZED
    user.open(address)
    user.page.get_by_label("Token from the administrator").fill("wrong")
    user.click("Connect")
    user.page.get_by_label("Token from the administrator").fill(token)
    user.click("Connect")
    user.wait_for_status("Connected.")
    assert token not in user.page.url
    user.page.reload()
    user.wait_for_status("Connected.")


def test_an_image_is_sent_to_another_machine_only_with_consent(user: PageUser, protected: tuple[str, str]) -> None:
    address, token = protected
    user.expected_problems = UNAUTHORIZED
    user.open(address.replace("127.0.0.1", OTHER_HOST))
    user.page.get_by_label("Token from the administrator").fill(token)
    user.click("Connect")
    user.wait_for_status("Connected.")
    user.page.get_by_role("button", name="Open example").first.click()
    user.click("Do not send")
    user.wait_for_status("Nothing was sent.")
    user.page.get_by_role("button", name="Open example").first.click()
    assert user.axe() == []
    user.click("Agree")
    user.wait_for_status("The image is on the server.")
    user.page.reload()
    user.wait_for_status("The image is on the server.")
