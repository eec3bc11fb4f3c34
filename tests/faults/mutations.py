"""Valid files changed by what their format is made of, and by their bytes; all by the dice that are handed in."""

import copy
import json
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import yaml

WHOLE = [0, 1, 2, 3, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
WIDE = [*WHOLE, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
TEXTS = ["", "x", "1", "1e-3", "nan", "../x", "/etc/passwd", "a\0b", "a\nb", "\ud800", "é", "x" * 300, "x/" * 3000]
LEAVES = [
    *(None, True, False, -1, 10**30, -(10**400), *WIDE),
    *(0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *(*TEXTS, "float32", "1 epochs", "inf steps", "10 %"),
    *([], {}, [[]], {"": {}}, [0] * 50, {"a": 1}, [1, "a", None]),
]
# What breaks a text of JSON or YAML, or makes it another.
TOKENS = [
    *('"', "'", "\\", "{", "}", "[", "]", ",", ":", ": ", "\n", "\t", "\0", "\x85", "\u2028", "# ", "- ", "? ", "| "),
    *(
        "&a ",
        "*a ",
        "<<: *a\n",
        "!!binary x",
        "!!timestamp x",
        "!!python/object/apply:os.system [x]",
        "!!set {a}",
        "%TAG",
    ),
    *("NaN", "1e999", "0x", "0b1", ".inf", "2026-01-01", "1:1:1", "\\ud800", "1" * 5000, "[" * 3000, "{a: " * 300),
]

Change = Callable[[bytes, Random], bytes]


def changed_json(seed: bytes, dice: Random) -> bytes:
    """JSON with some values changed, or its text."""
    if dice.random() < 0.2:
        return changed_text(seed, dice)
    return json.dumps(changed_tree(json.loads(seed), dice)).encode()


def changed_yaml(seed: bytes, dice: Random) -> bytes:
    """A recipe with some values changed, or its text."""
    if dice.random() < 0.6:
        return changed_text(seed, dice)
    return yaml.safe_dump(changed_tree(yaml.safe_load(seed), dice)).encode("utf-8", "surrogatepass")


def changed_safetensors(seed: bytes, dice: Random) -> bytes:
    """Another header over the same data, its length told rightly or not."""
    size = int.from_bytes(seed[:8], "little")
    header, data = json.loads(seed[8 : 8 + size]), seed[8 + size :]
    text = changed_json(json.dumps(header).encode(), dice)
    lies = [max(len(text) - 1, 0), len(text) + 1, 0, 10**8, 2**63, 2**64 - 1]
    claimed = len(text) if dice.random() < 0.8 else dice.choice(lies)
    return claimed.to_bytes(8, "little") + text + data[: dice.choice([None, None, None, 0, 7])]


def changed_idx(seed: bytes, dice: Random) -> bytes:
    """Another header, over as many bytes as it claims or not."""
    start = (value if dice.random() < 0.9 else dice.choice([0, 1, 2, 9, 255]) for value in (0, 8, 3))
    shape = [dice.randrange(20) if dice.random() < 0.8 else dice.choice(WHOLE) for _ in range(3)]
    size = min(shape[0] * shape[1] * shape[2], 10_000) + dice.choice([0, 0, 0, 1, -1])
    return struct.pack(">HBB3I", *start, *shape) + bytes(max(size, 0))


def changed_wav(seed: bytes, dice: Random) -> bytes:
    """Chunks changed, moved, doubled, left out, or lying about their size."""
    chunks = list(_chunks(seed))
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(chunks))
        name, size, data = chunks[place]
        how = dice.choice(["number", "number", "number", "size", "cut", "drop", "twin", "move", "name"])
        if how == "number" and len(data) >= 2:
            width = dice.choice([2, 4])
            number = dice.choice([*WHOLE, 8, 24, 64, 8000, 768_001, 0xFFFE]) % (1 << 8 * width)
            data = _replaced(data, dice.randrange(min(len(data), 40) // 2) * 2, number.to_bytes(width, "little"))
        elif how == "size":
            size = dice.choice([*WHOLE, len(data) + 1, max(len(data) - 1, 0)])
        elif how == "cut":
            data = data[: dice.randint(0, len(data))]
            size = len(data)
        elif how == "name":
            name = dice.choice([b"LIST", b"JUNK", b"data", b"fmt ", b"fact", b"\0\0\0\0"])
        chunks[place] = name, size, data
        if how == "drop" and len(chunks) > 1:
            del chunks[place]
        elif how == "twin":
            chunks[place:place] = [chunks[place]] * dice.choice([1, 1, 300])
        elif how == "move":
            chunks.append(chunks.pop(place))
    body = b"".join(name + size.to_bytes(4, "little") + data + b"\0" * (len(data) % 2) for name, size, data in chunks)
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WAVE" + body


def changed_tree(value: Any, dice: Random) -> Any:
    """A tree of dicts and lists in which one to three places are replaced, removed, renamed, wrapped or nested."""
    root = [value]
    for _ in range(dice.randint(1, 3)):
        parent, key = dice.choice(list(_places(root)))
        how = dice.choice(["replace", "replace", "replace", "drop", "rename", "wrap", "twin", "nest"])
        if how == "drop" and parent is not root:
            del parent[key]
        elif how == "rename" and isinstance(parent, dict):
            parent[dice.choice(TEXTS + list(parent))] = parent.pop(key)
        elif how == "wrap":
            parent[key] = dice.choice([[parent[key]], {"a": parent[key]}, str(parent[key])])
        elif how == "twin" and isinstance(parent, list) and parent is not root:
            parent.insert(key, copy.deepcopy(parent[key]))
        elif how == "nest":
            for _ in range(dice.choice([3, 30, 200])):
                parent[key] = [parent[key]]
        else:
            parent[key] = copy.deepcopy(dice.choice(LEAVES))
    return root[0]


def changed_text(seed: bytes, dice: Random) -> bytes:
    """Tokens put in, lines doubled, left out, moved or shifted."""
    text = seed.decode()
    for _ in range(dice.randint(1, 3)):
        how = dice.choice(["token", "token", "twin", "drop", "shift", "move"])
        if how == "token":
            place = dice.randint(0, len(text))
            text = text[:place] + dice.choice(TOKENS) + text[place + dice.randrange(4) :]
            continue
        lines = text.split("\n")
        place = dice.randrange(len(lines))
        if how == "twin":
            lines.insert(place, lines[place])
        elif how == "drop":
            del lines[place]
        elif how == "shift":
            lines[place] = dice.choice([" ", "  ", "\t"]) + lines[place]
        else:
            lines.insert(dice.randrange(len(lines)), lines.pop(place))
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def changed_bytes(seed: bytes, dice: Random) -> bytes:
    """Bits flipped, numbers written over, pieces put in, left out, doubled, or the end cut off."""
    data = seed
    for _ in range(dice.randint(1, 4)):
        place, size = dice.randint(0, len(data)), dice.randint(1, 16)
        how = dice.choice(["flip", "flip", "number", "put", "drop", "twin", "cut"])
        if how == "flip" and place < len(data):
            data = _replaced(data, place, bytes([data[place] ^ (1 << size % 8)]))
        elif how == "number":
            width = dice.choice([1, 2, 4, 8])
            number = dice.choice(WIDE) % (1 << 8 * width)
            data = _replaced(data, place, number.to_bytes(width, dice.choice(["little", "big"])))
        elif how == "put":
            data = data[:place] + dice.randbytes(size) + data[place:]
        elif how == "drop":
            data = data[:place] + data[place + size :]
        elif how == "twin":
            data = data[:place] + data[place : place + size] * dice.choice([2, 100]) + data[place + size :]
        elif how == "cut":
            data = data[:place]
    return data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from _places(child)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        yield data[place : place + 4], size, data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _replaced(data: bytes, place: int, by: bytes) -> bytes:
    return data[:place] + by + data[place + len(by) :]
