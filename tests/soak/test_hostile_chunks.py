"""A million corrupted blosc2 chunks. Each unpacks to the right size or is refused, and starts no program."""

import itertools
from pathlib import Path
import random
import sys

from helpers.hostile_chunks import (
    CHUNK_CODECS,
    CHUNK_CONTENTS,
    CHUNK_DTYPE,
    CHUNK_SHAPE,
    accepted_or_refused,
    mutated,
    packed_chunk,
    set_trap,
)
from helpers.soak import MINUTES
import pytest

CHUNKS = 1_000_000 if MINUTES else 2_000
#: Audit events of Python for started processes. The trap detects processes that a library starts itself.
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_a_million_mutated_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sprung, started, watching = set_trap(tmp_path), [], True
    sys.addaudithook(lambda event, _: started.append(event) if watching and event in STARTS else None)
    rng = random.Random(7)
    chunks = [packed_chunk(*kind) for kind in itertools.product(CHUNK_CODECS, CHUNK_CONTENTS)]
    accepted = sum(
        accepted_or_refused(mutated(rng.choice(chunks), rng), CHUNK_DTYPE, CHUNK_SHAPE) for _ in range(CHUNKS)
    )
    watching = False
    print(f"{accepted:,} of {CHUNKS:,} mutated chunks were accepted")
    assert 0 < accepted < CHUNKS
    assert not sprung.exists()
    assert started == []
