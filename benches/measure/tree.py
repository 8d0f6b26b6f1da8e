"""The data that is saved and packed: 2 GiB in eight equal parts of 2,500 small files, a large and a random one."""

import random

PARTS = 8
SMALL_FILES = 2500
MIB = 1 << 20
PART_BYTES = 256 * MIB
RANDOM_BYTES = 56 * MIB


def fill(directory):
    """Makes `part-0` to `part-7`; the same bytes in every run."""
    numbers = random.Random(42)
    text = make_text(numbers, 24 * MIB)
    for part in range(PARTS):
        _fill_part(directory / f"part-{part}", numbers, text)


def make_text(numbers, size):
    """Words of which some are much more frequent than others, as in any text: compresses to about a third."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(numbers.choices(letters, k=numbers.randint(2, 10))) for _ in range(4096)]
    weights = [1 / (rank + 8) for rank in range(len(words))]
    return " ".join(numbers.choices(words, weights, k=size // 5)).encode()[:size]


def _fill_part(directory, numbers, text):
    left = PART_BYTES
    for index in range(SMALL_FILES):
        parent = directory / f"d{index % 40:02}"
        parent.mkdir(parents=True, exist_ok=True)
        size = numbers.randint(1024, 80 * 1024)
        at = numbers.randrange(len(text) - size)
        (parent / f"file-{index}.txt").write_bytes(text[at : at + size])
        left -= size
    (directory / "random").write_bytes(numbers.randbytes(RANDOM_BYTES))
    left -= RANDOM_BYTES
    with open(directory / "large.txt", "wb") as large:
        while left > 0:
            size = min(left, numbers.randint(MIB, 8 * MIB))
            at = numbers.randrange(len(text) - size)
            large.write(text[at : at + size])
            left -= size
