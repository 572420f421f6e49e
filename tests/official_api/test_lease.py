"""A lease: rounding of boxes, the client's target buffer after any sequence of requests, and its memory."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from helpers.fake_session import FakeSession
from hypothesis import given
from hypothesis import strategies as st
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
from nnInteractive.inference.remote.serialization import pack_array, unpack_array
import numpy as np
import pytest

from nninteractive_ws import errors
from nninteractive_ws.client import inputs
from nninteractive_ws.geometry import Box
from nninteractive_ws.official_api import lease as lease_module
from nninteractive_ws.official_api import nnia, payloads
from nninteractive_ws.official_api.lease import Answer, AnswerTimeout, Lease, clip_box
from nninteractive_ws.official_api.memory import MemoryBudget

SHAPE = (9, 8, 7)
IMAGE = np.random.default_rng(0).integers(-99, 99, (1, *SHAPE), np.int16)
PROMPTS = ("point", "bbox2d", "bbox3d", "scribble", "lasso")


def packed(array: np.ndarray) -> nnia.PackedArray:
    return nnia.parse(pack_array(array))


def point(i: int, j: int, k: int, positive: bool = True, run: bool = True) -> payloads.AddPoint:
    return payloads.AddPoint(coordinates=(i, j, k), include_interaction=positive, run_prediction=run)


def new_lease(limit: int = 10**9) -> tuple[Lease, FakeSession]:
    session: Any = FakeSession()
    return Lease(session, "", MemoryBudget(limit)), session


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(work())


# ---- boxes --------------------------------------------------------------------------------------------------


def official_box(pairs: list[tuple[float, float]], shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Return the voxels that nnInteractive's session marks for a box."""

    class Session:
        verbose = False
        preprocessed_image = np.broadcast_to(np.int8(0), (1, *shape))
        interactions: Any
        current_interaction_intensity = 1.0
        found: list[tuple[int, int]]

        def _add_patch_for_bbox_interaction(self, coordinates: list[list[int]]) -> None:
            self.found = [(start, stop) for start, stop in coordinates]

        def _prepare_new_interaction_intensity(self) -> None: ...

        def _record_interactions_region(self, channel: int, region: Any) -> None: ...

    session: Any = Session()
    session.interactions = np.zeros((1, *shape))
    nnInteractiveInferenceSession._add_validated_bbox_interaction(session, pairs, 0, run_prediction=False)
    (marked,) = (np.argwhere(session.interactions[0]),)
    assert len(marked), "it marks voxels"
    return session.found


edges = st.one_of(st.integers(-20, 40).map(float), st.floats(-20, 40), st.sampled_from([0.5, 1.5, 2.5, 8.5, 9.5, 1e9]))
ranges = st.tuples(edges, edges).map(lambda pair: (min(pair), max(pair)))


@given(st.tuples(ranges, ranges, ranges), st.tuples(*[st.integers(1, 12)] * 3))
def test_boxes_are_rounded_and_clipped_as_nninteractive_does(
    pairs: tuple[tuple[float, float], ...], shape: tuple[int, int, int]
) -> None:
    try:
        box = clip_box(pairs, shape, PROMPTS)
    except errors.OutOfBounds:
        # Only boxes without a voxel of the image are refused.
        assert any(stop <= start or stop <= 0 or start >= n for (start, stop), n in zip(pairs, shape, strict=True))
    else:
        assert list(box.pairs) == official_box(list(pairs), shape)


@pytest.mark.parametrize("edge", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_box_that_is_not_finite_is_refused(edge: float, side: int) -> None:
    pair = (edge, 5.0) if side == 0 else (1.0, edge)
    with pytest.raises(errors.OutOfBounds, match="finite"):
        clip_box([(0, 3), pair, (0, 3)], SHAPE, PROMPTS)


def test_a_model_without_boxes_of_several_slices() -> None:
    flat = ("point", "bbox2d")
    assert clip_box([(0, 3), (2, 3), (0, 3)], SHAPE, flat).shape == (3, 1, 3)
    with pytest.raises(errors.UnsupportedPrompt, match="one slice only"):
        clip_box([(0, 3), (2, 4), (0, 3)], SHAPE, flat)


# ---- the target buffer --------------------------------------------------------------------------------------


class Client:
    """A client that writes answers into its target buffer as nnInteractive's does."""

    def __init__(self, lease: Lease) -> None:
        self.lease, self.buffer = lease, np.zeros(SHAPE, np.uint8)

    async def set_target_buffer(self, dtype: str = "uint8") -> None:
        self.buffer = np.zeros(SHAPE, dtype)
        await self.lease.set_target_buffer(payloads.SetTargetBuffer(SHAPE, dtype))

    def receive(self, answer: Answer) -> None:
        if answer.box is not None:
            part = unpack_array(nnia.pack(self.lease.part(answer.box)))
            assert part.dtype == self.buffer.dtype.newbyteorder("=")
            self.buffer[answer.box.slices] = part

    async def send(self, action: str, draw: Callable[..., Any]) -> Answer | None:
        lease, positive, predict = self.lease, draw(st.booleans()), draw(st.booleans())
        box = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(4, 7))] * 3))
        if action == "point":
            return await lease.add_point(point(*(start for start, _ in box), positive, predict))
        if action == "bbox":
            payload = payloads.AddBbox(bbox_coords=box, include_interaction=positive, run_prediction=predict)
            return await lease.add_bbox(payload)
        if action in ("scribble", "lasso"):
            strokes = np.zeros([stop - start for start, stop in box], np.uint8)
            strokes.flat[: draw(st.integers(0, strokes.size))] = 1
            mask = payloads.AddMask(interaction_bbox=box, include_interaction=positive, run_prediction=predict)
            add = lease.add_scribble if action == "scribble" else lease.add_lasso
            return await add(mask, packed(strokes))
        if action == "initial":
            given_mask = np.zeros(SHAPE, np.uint8)
            given_mask.flat[draw(st.integers(0, given_mask.size)) :] = 1
            self.buffer[:] = given_mask
            return await lease.add_initial_segmentation(
                payloads.AddInitialSegmentation(run_prediction=predict), packed(given_mask)
            )
        if action == "reset":
            self.buffer[:] = 0
            return await lease.reset()  # type: ignore[func-returns-value]
        if action == "buffer":
            return await self.set_target_buffer(draw(st.sampled_from(["uint8", "bool", "int16", ">i2", "int64"])))  # type: ignore[func-returns-value]
        return await (lease.undo() if action == "undo" else lease.predict())


ACTIONS = ("point", "bbox", "scribble", "lasso", "initial", "reset", "buffer", "undo", "predict")


@given(st.data())
def test_the_target_buffer_is_the_mask_after_any_sequence(data: st.DataObject) -> None:
    """Every received answer that says that it predicted makes them equal, also after errors and lost answers."""

    async def work() -> None:
        lease, session = new_lease()
        await lease.set_image(packed(IMAGE))
        client = Client(lease)
        await client.set_target_buffer()
        for action in data.draw(st.lists(st.sampled_from(ACTIONS), max_size=12)):
            if data.draw(st.integers(0, 4)) == 0:
                session.error = errors.OutOfMemory("No memory.")
            try:
                answer = await client.send(action, data.draw)
            except errors.OutOfMemory:
                answer = None
            session.error = None
            if answer is not None and answer.ran and data.draw(st.integers(0, 4)) == 0:
                lease.not_received(answer)
            elif answer is not None:
                client.receive(answer)
        # A last prompt makes up for all that was lost.
        client.receive(await lease.add_point(point(4, 4, 3)))
        assert np.array_equal(client.buffer != 0, session.segment("object").mask)
        assert np.unique(client.buffer).max() <= 1

    run(work)


def test_nothing_is_sent_before_there_is_a_target_buffer() -> None:
    async def work() -> None:
        lease, session = new_lease()
        await lease.set_image(packed(IMAGE))
        assert await lease.add_point(point(4, 4, 3)) == Answer(True, None)
        client = Client(lease)
        await client.set_target_buffer("int16")
        client.receive(await lease.add_point(point(1, 1, 1)))
        assert np.array_equal(client.buffer != 0, session.segment("object").mask)

    run(work)


def test_undo_and_predict_without_a_prompt_do_nothing() -> None:
    async def work() -> None:
        lease, _ = new_lease()
        await lease.set_image(packed(IMAGE))
        assert await lease.undo() == await lease.predict() == Answer(False, None)
        await lease.reset()

    run(work)


def test_an_initial_segmentation_is_undone_only_as_the_newest_step() -> None:
    """Clients send an existing segment before its first prompt. One undo too many must not empty it."""

    async def work() -> None:
        lease, _ = new_lease()
        await lease.set_image(packed(IMAGE))
        await lease.set_target_buffer(payloads.SetTargetBuffer(SHAPE, "uint8"))
        initial = np.zeros(SHAPE, np.uint8)
        initial[2:4, 2:4, 2:4] = 1
        await lease.add_initial_segmentation(payloads.AddInitialSegmentation(), packed(initial))
        for n in (1, 2):
            await lease.add_point(point(n, n, n))
        assert [(await lease.undo()).ran for _ in range(3)] == [True, True, False]
        assert np.array_equal(lease.part(Box.whole(SHAPE)), initial)
        await lease.add_initial_segmentation(payloads.AddInitialSegmentation(), packed(1 - initial))
        assert (await lease.undo()).ran
        assert np.array_equal(lease.part(Box.whole(SHAPE)), initial)
        await lease.add_point(point(7, 7, 6))
        assert (await lease.undo()).ran, "the step after it has taken its place"
        assert np.array_equal(lease.part(Box.whole(SHAPE)), initial)

    run(work)


def test_an_empty_scribble_is_no_prompt() -> None:
    async def work() -> None:
        lease, session = new_lease()
        await lease.set_image(packed(IMAGE))
        mask = payloads.AddMask(include_interaction=True)
        assert await lease.add_scribble(mask, packed(np.zeros(SHAPE, bool))) == Answer(True, None)
        assert session.segments == []

    run(work)


# ---- refused requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        "float32", "complex64", "object", "U3", "M8[s]", "u1,u1", "(2,)u1", "(1,u1", "((((", "f4,(", "9", "", "no",
        "(" + "9" * 5000 + ",)u1", "u1," * 1000, "V8",
    ],
)  # fmt: skip
def test_a_target_buffer_of_another_dtype_is_refused(dtype: str) -> None:
    async def work() -> None:
        lease, _ = new_lease()
        await lease.set_image(packed(IMAGE))
        with pytest.raises(errors.BadMask, match="Use "):
            await lease.set_target_buffer(payloads.SetTargetBuffer(SHAPE, dtype))
        assert lease.dtype is None

    run(work)


def test_a_target_buffer_of_another_shape_is_refused() -> None:
    async def work() -> None:
        lease, _ = new_lease()
        await lease.set_image(packed(IMAGE))
        with pytest.raises(errors.OutOfBounds, match="target buffer has the shape"):
            await lease.set_target_buffer(payloads.SetTargetBuffer((9, 8, 8), "uint8"))

    run(work)


@pytest.mark.parametrize("shape", [SHAPE, (2, *SHAPE), (1, 1, *SHAPE[:2]), (5,)])
def test_an_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    async def work() -> None:
        lease, _ = new_lease()
        array = packed(np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
        if len(shape) == 4 and shape[0] == 1:
            await lease.set_image(array)
            return
        with pytest.raises(errors.BadImage, match=r"Expected \(1, X, Y, Z\)"):
            await lease.set_image(array)

    run(work)


def test_requests_before_the_image_are_refused() -> None:
    async def work() -> None:
        lease, _ = new_lease()
        mask = packed(np.ones(SHAPE, np.uint8))
        pairs = ((0, 1),) * 3
        for request in (
            lease.set_target_buffer(payloads.SetTargetBuffer(SHAPE, "uint8")),
            lease.add_bbox(payloads.AddBbox(bbox_coords=pairs, include_interaction=True)),
            lease.add_scribble(payloads.AddMask(include_interaction=True), mask),
            lease.add_initial_segmentation(payloads.AddInitialSegmentation(), mask),
        ):
            with pytest.raises(errors.NoImage, match="/set_image"):
                await request

    run(work)


def test_a_mask_of_another_shape_is_refused_before_it_is_unpacked() -> None:
    async def work() -> None:
        lease, _ = new_lease()
        await lease.set_image(packed(IMAGE))
        # It has no chunk, which unpacking would notice.
        forged = nnia.parse(pack_array(np.ones((2, 2, 2), np.uint8))[:-40])
        with pytest.raises(errors.OutOfBounds, match="mask has the shape"):
            await lease.add_lasso(payloads.AddMask(include_interaction=True), forged)

    run(work)


# ---- memory -------------------------------------------------------------------------------------------------


def test_the_image_and_its_mask_are_counted_until_the_end() -> None:
    async def work() -> None:
        lease, _ = new_lease()
        await lease.set_image(packed(IMAGE))
        voxels = IMAGE[0].size
        assert lease._budget.used == 3 * voxels
        await lease.set_image(packed(IMAGE.astype(np.float32)))
        assert lease._budget.used == 5 * voxels
        for array in (np.ones(SHAPE, np.uint8), np.full(SHAPE, 0.5, np.float32)):
            with suppress(errors.BadMask):
                await lease.add_scribble(payloads.AddMask(include_interaction=True), packed(array))
            assert lease._budget.used == 5 * voxels
        await lease.close()
        assert lease._budget.used == 0

    run(work)


def test_an_invalid_image_costs_nothing_and_the_previous_one_stays() -> None:
    async def work() -> None:
        lease, _ = new_lease()
        await lease.set_image(packed(IMAGE))
        await lease.set_target_buffer(payloads.SetTargetBuffer(SHAPE, "uint8"))
        used = lease._budget.used
        truncated = nnia.parse(pack_array(IMAGE)[:-1])
        with pytest.raises(errors.BadMessage):
            await lease.set_image(truncated)
        assert (lease.shape, lease.dtype, lease._budget.used) == (SHAPE, np.dtype("uint8"), used)
        assert (await lease.add_point(point(4, 4, 3))).box is not None

    run(work)


def test_an_image_that_the_session_refuses_leaves_none() -> None:
    """Its memory is counted, because the session may still have one of the two."""

    async def work() -> None:
        lease, session = new_lease()
        await lease.set_image(packed(IMAGE))
        session.error = errors.OutOfMemory("The worker has no memory.")
        with pytest.raises(errors.OutOfMemory):
            await lease.set_image(packed(IMAGE.astype(np.int32)))
        with pytest.raises(errors.NoImage):
            await lease.set_target_buffer(payloads.SetTargetBuffer(SHAPE, "uint8"))
        assert lease._budget.used == 5 * IMAGE.size
        await lease.set_image(packed(IMAGE))
        assert lease._budget.used == 3 * IMAGE.size

    run(work)


def test_an_image_larger_than_the_budget_is_refused() -> None:
    async def work() -> None:
        lease, session = new_lease(limit=3 * IMAGE.size)
        with pytest.raises(errors.TooLarge):
            await lease.set_image(packed(IMAGE.astype(np.int32)))
        await lease.set_image(packed(IMAGE))
        # While it is replaced, both are in memory.
        with pytest.raises(errors.OutOfMemory):
            await lease.set_image(packed(IMAGE))
        with pytest.raises(errors.OutOfMemory):
            await lease.add_scribble(payloads.AddMask(include_interaction=True), packed(np.ones(SHAPE, np.uint8)))
        assert session.image is not None
        assert lease._budget.used == 3 * IMAGE.size

    run(work)


def test_the_header_of_an_image_may_state_any_size() -> None:
    async def work() -> None:
        lease, _ = new_lease()
        data = bytearray(pack_array(IMAGE))
        data[8 + 5 + 8 : 8 + 5 + 32] = (2**40).to_bytes(8, "little") * 3
        forged = nnia.parse(data)
        assert forged.shape == (1, 2**40, 2**40, 2**40)
        with pytest.raises(errors.TooLarge):
            await lease.set_image(forged)

    run(work)


# ---- time ---------------------------------------------------------------------------------------------------


def test_a_request_that_takes_too_long_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "ANSWER_TIMEOUT_S", 0.05)

    async def work() -> None:
        lease, session = new_lease()
        await lease.set_image(packed(IMAGE))
        await lease.set_target_buffer(payloads.SetTargetBuffer(SHAPE, "uint8"))
        session.hold = asyncio.Event()
        with pytest.raises(AnswerTimeout, match="The segment is as before"):
            await lease.add_point(point(4, 4, 3))
        session.hold = None
        answer = await lease.add_point(point(4, 4, 3))
        assert answer.ran

    run(work)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_points_that_are_no_voxel_are_refused(value: float) -> None:
    try:
        assert inputs.to_index((value, 1, 1), SHAPE)[0] in range(SHAPE[0])
    except errors.OutOfBounds:
        assert not -0.5 <= value < SHAPE[0] - 0.5 or value == -0.5
