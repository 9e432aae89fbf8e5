"""What the tests of readers of files share."""

import pytest


@pytest.fixture
def mutate():
    """Return the function that makes nearly valid files of valid ones."""
    return mutated


def mutated(rng, data, hot):
    """Change some bytes; delete, insert, repeat or blank a range; or truncate; mostly at the `hot` positions."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.choice(hot)) if rng.random() < 0.7 else int(rng.integers(len(data)))
        at = min(at, len(data) - 1)
        end = at + int(rng.integers(1, 40))
        kind = rng.integers(8)
        if kind <= 2:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            data[at] = int(rng.choice([0, 1, 0x30, 0x37, 0x7F, 0x80, 0xFF]))
        elif kind == 4:
            del data[at:end]
        elif kind == 5:
            data[at:at] = data[at:end]
        elif kind == 6:
            data[at:end] = bytes(len(data[at:end]))
        elif rng.random() < 0.5:
            del data[at:]
        else:
            data += data[at:end]
        data = data or bytearray(1)
    return bytes(data)
