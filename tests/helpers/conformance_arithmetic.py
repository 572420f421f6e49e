"""The arithmetic cases of the conformance suite, computed without the code of the package."""

from collections.abc import Sequence
import itertools
import json
import statistics
import struct
from typing import Any
import zlib

import numpy as np

from helpers.conformance import Json
from helpers.conformance_builder import Mask, checksum, numbers, stored

BRICK = 32
SHAPES = [(4, 4, 4), (32, 32, 32), (33, 2, 35), (50, 32, 33), (70, 40, 33), (1, 1, 100)]

#: 100 numbers as uint32, compressed by zlib with its level 9.
_SQUARES = [n * n % 97 for n in range(100)]
_COMPRESSED = bytes.fromhex(
    "78da4dd1310b82501486e15b8624364483280d2ab52994826d463a88e1100e861165ffff57f406dfd0f02ca2f79ef36a8c31"
    "332ce0608d007b64b8a087051f07b49823c41913623458a1c007299e48f0468e252a6c31e2040f0f94d8c1c51d358e88b081"
    "8d1706dcd0e12a9d9e0d7ac7d63791cea875a6ab3b4adde969865133559a31d7cc897648b553a11d1bed3ca941a826ad1af9"
    "6ad6ab61a6a6811a3b6afe6b6ffefec117a51a1236"
)


def bricks() -> list[Json]:
    cases = []
    for shape in SHAPES:
        starts = itertools.product(*(range(0, n, BRICK) for n in shape))
        boxes = [[[a, min(a + BRICK, n)] for a, n in zip(start, shape, strict=True)] for start in starts]
        cases.append({"shape": shape, "boxes": boxes})
    return cases


def bits(mask: Mask) -> str:
    """Return voxels in C order as digits 0 and 1."""
    return "".join(str(int(voxel)) for voxel in mask.ravel())


def _mask(digits: str, shape: Sequence[int]) -> Mask:
    return np.array([digit == "1" for digit in digits]).reshape(shape)


def run_lengths() -> list[Json]:
    digits = ["0", "1", "01", "10", "0000", "1111", "10100001", "01100001", "1" * 31 + "0" * 17]
    cases = []
    for text in digits:
        runs = [len(list(group)) for _, group in itertools.groupby(text)]
        cases.append({"voxels": text, "runs": [0, *runs] if text[0] == "1" else runs})
    return cases


def checksums() -> list[Json]:
    cases = []
    for text in ("0", "1", "01100001", "10000000", "111111111", "000000000000000001", "10" * 20):
        row = _mask(text, (1, 1, len(text)))
        cases.append({"voxels": text, "checksum": checksum(row, [[0, 1], [0, 1], [0, len(text)]])})
    return cases


def changes() -> list[Json]:
    """Masks of 3x3x3 voxels before and after a change, in a box that is not always the smallest."""
    random = np.random.default_rng(7)
    cases = []
    for box in ([[0, 3], [0, 3], [0, 3]], [[1, 2], [0, 2], [1, 3]], [[2, 3], [2, 3], [2, 3]]):
        before = random.random((3, 3, 3)) < 0.4
        inside = tuple(slice(*pair) for pair in box)
        change = np.zeros((3, 3, 3), bool)
        change[inside] = random.random(change[inside].shape) < 0.5
        change[inside][0, 0, 0] = True
        after = before ^ change
        cases.append(
            {
                "shape": [3, 3, 3],
                "before": bits(before),
                "change": numbers(change, box),
                "after": bits(after),
                "checksum": checksum(after, box),
                "voxels": int(after.sum()),
            }
        )
    return cases


def compositions() -> list[Json]:
    random = np.random.default_rng(8)
    cases = []
    for _ in range(3):
        first, second = np.zeros((2, 4, 3, 5), bool)
        first[:3, :2, 1:] = random.random((3, 2, 4)) < 0.5
        second[1:, 1:, :3] = random.random((3, 2, 3)) < 0.5
        composed = numbers(first ^ second)
        cases.append({"shape": [4, 3, 5], "first": numbers(first), "second": numbers(second), "composed": composed})
    same = numbers(_mask("0110", (1, 1, 4)))
    return [*cases, {"shape": [1, 1, 4], "first": same, "second": same, "composed": None}]


def presence() -> list[Json]:
    cases = []
    for count, present in ((1, [0]), (8, [0, 7]), (9, [8]), (12, [0, 3, 9]), (4, [])):
        octets = bytearray(-(-count // 8))
        for index in present:
            octets[index // 8] |= 1 << index % 8
        cases.append({"bricks": count, "present": present, "present_bricks": octets.hex()})
    return cases


# ---- statistics -------------------------------------------------------------------------------------------


def _float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _of_volume(dtype: str, sent_as: str, shape: Sequence[int], voxels: Sequence[Any]) -> Json:
    """Return a case with the statistics of the box around the nonzero voxels, in the type in which they are sent."""
    sent = [_float32(v) for v in voxels] if sent_as == "float32" else voxels
    places = [np.unravel_index(n, shape) for n, value in enumerate(sent) if value]
    low, high = np.min(places, axis=0), np.max(places, axis=0)
    within = [
        value
        for n, value in enumerate(sent)
        if all(a <= at <= b for a, at, b in zip(low, np.unravel_index(n, shape), high, strict=True))
    ]
    found = {"mean": statistics.fmean(within), "std": statistics.stdev(within)}
    return {"dtype": dtype, "sent_as": sent_as, "shape": shape, "voxels": voxels, **found}


def volumes() -> list[Json]:
    """The statistics of volumes. Voxels that JSON cannot express are the strings NaN and Infinity."""
    good: list[tuple[str, str, tuple[int, int, int], list[Any]]] = [
        ("int16", "int16", (2, 2, 3), [0, 0, 0, 0, -3, 6, 0, 0, 0, 0, 0, 12]),
        ("uint8", "uint8", (1, 2, 3), [1, 2, 3, 4, 5, 255]),
        ("bool", "uint8", (1, 1, 5), [0, 1, 0, 1, 0]),
        ("uint16", "uint16", (1, 1, 4), [0, 65535, 0, 7]),
        ("int32", "int32", (1, 1, 3), [-(2**20), 0, 2**20]),
        ("int64", "float32", (1, 1, 4), [2**24 + 1, 0, -5, 2**26 + 2]),
        ("float32", "float32", (1, 2, 2), [0.5, -0.25, 0.0, 1.0]),
        # 1e-50 is zero as float32, and outside of the box.
        ("float64", "float32", (1, 1, 5), [1e-50, 0.1, -0.3, 0.7, 0.0]),
    ]
    bad: list[tuple[str, str, tuple[int, int, int], list[Any]]] = [
        ("int16", "int16", (1, 1, 3), [0, 0, 0]),
        ("int16", "int16", (1, 1, 3), [7, 7, 7]),
        ("int16", "int16", (1, 1, 3), [0, 7, 0]),
        ("int16", "int16", (1, 1, 4), [0, 7, 7, 0]),
        ("float32", "float32", (1, 1, 3), [1.0, "NaN", 2.0]),
        ("float32", "float32", (1, 1, 3), [1.0, "Infinity", 2.0]),
        ("float64", "float32", (1, 1, 3), [1.0, 1e39, 2.0]),
    ]
    keys = ("dtype", "sent_as", "shape", "voxels")
    errors = [{**dict(zip(keys, case, strict=True)), "error": "bad_image"} for case in bad]
    return [*(_of_volume(*case) for case in good), *errors]


# ---- packed arrays ----------------------------------------------------------------------------------------


_FORMATS = {"int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "float32": "f"}


def arrays() -> list[Json]:
    cases = []
    for dtype, elements in (
        ("uint8", [0, 255, 7]), ("int16", [-2, 258, 0]), ("uint32", [1, 2**32 - 1]), ("float32", [0.5, -1.25]),
    ):  # fmt: skip
        data = struct.pack(f"<{len(elements)}{_FORMATS[dtype]}", *elements)
        for encoding, packed in (("raw", data), ("deflate", stored(data))):
            cases.append({"dtype": dtype, "elements": elements, "encoding": encoding, "data": packed.hex()})
    assert zlib.decompress(_COMPRESSED) == struct.pack("<100I", *_SQUARES)
    return [*cases, {"dtype": "uint32", "elements": _SQUARES, "encoding": "deflate", "data": _COMPRESSED.hex()}]


def invalid_arrays() -> list[Json]:
    data = struct.pack("<3h", 1, 2, 3)
    stream = stored(data)
    cases = [
        ("raw", data[:-1]),
        ("raw", data + b"\0"),
        ("raw", b""),
        ("deflate", stream[:-1]),
        ("deflate", stream[:-1] + bytes([stream[-1] ^ 1])),
        ("deflate", stream + b"\0"),
        ("deflate", stream[2:-4]),
        ("deflate", stored(data[:-2])),
        ("deflate", stored(data + b"\0\0")),
        ("deflate", stream + stream),
        ("deflate", b""),
        ("gzip", data),
    ]
    return [
        {"dtype": "int16", "count": 3, "encoding": encoding, "data": packed.hex(), "error": "bad_message"}
        for encoding, packed in cases
    ]


# ---- layers -----------------------------------------------------------------------------------------------


def _masked(dtype: str, voxel: float, mask: int) -> float:
    """Return the voxel with those of its bits that the mask has."""
    size = struct.calcsize(f"<{_FORMATS[dtype]}")
    bits = int.from_bytes(struct.pack(f"<{_FORMATS[dtype]}", voxel), "little") & mask
    masked: float
    (masked,) = struct.unpack(f"<{_FORMATS[dtype]}", bits.to_bytes(size, "little"))
    return masked


def layers() -> list[Json]:
    """Voxels and their two layers. The enhancement layer of a float is a subnormal number."""
    samples: list[tuple[str, int, list[float]]] = [
        ("int16", 5, [37, -5, 0, 31, 32, -1, -32768, 32767]),
        ("int16", 15, [37, -5, -32768, 32767]),
        ("uint16", 1, [0, 1, 65535, 40000]),
        ("int8", 3, [-128, -1, 9, 127]),
        ("uint8", 4, [0, 15, 16, 255]),
        ("int32", 10, [-(2**31), 2**31 - 1, -1000, 1000]),
        ("uint32", 31, [2**32 - 1, 2**31, 2**31 - 1]),
        ("float32", 18, [1000.25, -0.1, 1.0, 3e38, 1e-40]),
        ("float32", 23, [1000.25, -0.1, 1.5, -2.0]),
    ]
    cases = []
    for dtype, low_bits, values in samples:
        voxels = [_float32(v) for v in values] if dtype == "float32" else values
        low = 2**low_bits - 1
        base, enhancement = ([_masked(dtype, v, mask) for v in voxels] for mask in (~low, low))
        cases.append({"dtype": dtype, "low_bits": low_bits, "voxels": voxels, "base": base, "enhancement": enhancement})
    return cases


def low_bits() -> list[Json]:
    """Numbers of low bits: an interval of the base layer is about 1/16 of the standard deviation, 2 bits or more."""
    samples = [
        ("int16", 480.0, 3000.0, 5),
        ("int16", 240.0, 3000.0, 4),
        ("int16", 64.0, 500.0, 2),
        ("int16", 32.0, 500.0, 0),
        ("uint16", 1e6, 65535.0, 15),
        ("int32", 480.0, 3000.0, 5),
        ("uint8", 40.0, 255.0, 0),
        ("uint8", 127.0, 255.0, 3),
        ("int8", 1e9, 127.0, 7),
        # The steps of a float32 from 1024 to 2048 are 2^-13, so that 18 bits are an interval of 32.
        ("float32", 480.0, 1500.0, 18),
        ("float32", 480.0, 1024.0, 18),
        ("float32", 480.0, 1023.5, 19),
        ("float32", 0.0048, 0.015, 18),
        ("float32", 1e-6, 1000.0, 0),
        ("float32", 1e30, 1.0, 23),
    ]
    return [
        {"dtype": dtype, "std": std, "largest": largest, "low_bits": number} for dtype, std, largest, number in samples
    ]


def to_text() -> str:
    """Return the text of the file, with one case on each line."""
    groups = {
        "bricks": bricks(), "run_lengths": run_lengths(), "checksums": checksums(), "changes": changes(),
        "compositions": compositions(), "presence": presence(), "statistics": volumes(), "arrays": arrays(),
        "invalid_arrays": invalid_arrays(), "layers": layers(), "low_bits": low_bits(),
    }  # fmt: skip
    texts = [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(case)}" for case in cases) + "\n ]"
        for name, cases in groups.items()
    ]
    return "{\n" + ",\n".join(texts) + "\n}\n"
