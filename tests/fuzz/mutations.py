"""Damage documents at random: other types, huge and empty values, missing, repeated, swapped and nested parts."""

import json
import re

WHOLE = [
    0,
    1,
    -1,
    2,
    7,
    255,
    65_536,
    10**6,
    10**9,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**64,
    -(10**9),
    10**40,
]
REAL = [0.5, -0.0, 1e-300, 1e300, -1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "", " ", "\0", "a", "##", "▁", "é", "🙂", "\ud800", "A" * 5_000, "a b c", "../x", "</w>", "<0xFF>", "\n",
    "x" * 300_000, "(", "[", "\\", "(a+)+$", "(?:a|a)*b", "a{1,100000}", "((a{999}){999}){999}", "x*", "$", "^",
    "(?=a)", "(a)\\1", ".",
]  # fmt: skip
OTHERS = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"type": "Sequence"},
    [1, 2],
    ["a", "b"],
    {"a": {"b": 1}},
]
KINDS = [
    "value", "own kind", "own kind", "own kind", "delete", "repeat", "swap", "splice", "splice", "splice", "nest",
    "rename",
]  # fmt: skip
COUNTS = [2, 3, 10, 100, 1_000]
MOST_BYTES = 2**22
"""The longest text of a case: what a reader may take in time and memory is measured on files of this size."""


def mutated_json(random, document, others=(), names=()):
    """Return a copy of a JSON document with one to four changes, as bytes.

    Args:
        random: the source of all choices.
        document: the sound document.
        others: documents whose parts may take the place of parts of this one.
        names: keys that may be added to the document.
    """
    document = _copy(document)
    for _ in range(random.choice([1, 1, 1, 2, 2, 3, 4])):
        if names and isinstance(document, dict) and random.random() < 0.3:
            document[random.choice(names)] = any_value(random)
        holder = [document]
        _change(random, *_place(random, holder), others)
        document = holder[0]
    raw = json.dumps(document).encode()
    return mutated_bytes(random, raw) if random.random() < 0.05 else raw


def mutated_bytes(random, raw):
    """Return bytes with one to four changes: cut, removed, repeated, or other bytes."""
    raw = bytearray(raw)
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(raw) + 1)
        end = min(len(raw), start + random.choice([1, 1, 2, 8, 100]))
        change = random.choice(["cut", "remove", "repeat", "replace", "flip", "nest"])
        if change == "cut":
            del raw[start:]
        elif change == "remove":
            del raw[start:end]
        elif change == "repeat":
            raw[start:end] = raw[start:end] * random.choice(COUNTS)
        elif change == "replace":
            raw[start:end] = random.randbytes(end - start)
        elif change == "nest":
            raw[start:start] = random.choice([b"[", b'{"a":']) * random.choice([10, 500, 100_000])
        elif start < len(raw):
            raw[start] ^= 1 << random.randrange(8)
    return bytes(raw)


def _place(random, holder):
    """Return a container and a key in it, at a random depth."""
    container, key = holder, 0
    if isinstance(holder[0], dict) and holder[0] and random.random() < 0.98:
        container, key = holder[0], random.choice(list(holder[0]))
    while (inner := container[key]) and isinstance(inner, dict | list) and random.random() < 0.85:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        container, key = inner, random.choice(keys)
    return container, key


def _change(random, container, key, others):
    """Change one value in its container."""
    old = container[key]
    kind = random.choice(KINDS)
    if kind == "value":
        container[key] = any_value(random)
    elif kind == "own kind":
        container[key] = of_own_kind(random, old)
    elif kind == "delete":
        del container[key]
        container.append(None) if isinstance(container, list) and not container else None
    elif kind == "repeat" and isinstance(container, list):
        container[key:key] = [_copy(old) for _ in range(min(random.choice(COUNTS), 20_000 // _size(old) + 1))]
    elif kind == "swap":
        other_container, other_key = _place(random, [container])
        container[key], other_container[other_key] = _copy(other_container[other_key]), _copy(old)
    elif kind == "splice" and others:
        donor = random.choice(others)
        same = [value for name, value in _items(donor) if name == key]
        place, name = _place(random, [donor])
        container[key] = _copy(random.choice(same) if same else place[name])
    elif kind == "nest":
        container[key] = _nested(random, old)
    elif kind == "rename" and isinstance(container, dict):
        container[random.choice([*TEXTS, *container])] = container.pop(key)


def any_value(random):
    """Return a value of any type."""
    return _copy(random.choice(random.choice([WHOLE, REAL, TEXTS, OTHERS])))


def of_own_kind(random, old):
    """Return another value of the same type."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return random.choice([old + 1, old - 1, -old, old * 1000, *WHOLE, *REAL])
    if isinstance(old, str):
        return random.choice([old + old, old[:-1], old[1:], old[:1000] * 100, old.upper(), "##" + old, *TEXTS])
    return [] if isinstance(old, list) else {}


def _nested(random, old):
    """Return a value in many lists, objects or sequences."""
    depth = random.choice([1, 2, 5, 9, 20, 60, 115])
    kind = random.choice(["list", "object", "normalizers", "pretokenizers", "processors", "decoders"])
    for _ in range(depth):
        n = random.choice([1, 1, 2]) if depth < 6 else 1
        items = [_copy(old) for _ in range(n)]
        old = items if kind == "list" else {"a": old} if kind == "object" else {"type": "Sequence", kind: items}
    return old


def _copy(value):
    """Return a copy of a JSON value, which may be nested more deeply than `copy.deepcopy` can follow."""
    return json.loads(json.dumps(value))


def _size(value):
    return len(json.dumps(value)) // 8 + 1


def _items(value):
    """Return the pairs of key and value at every depth."""
    for key, inner in _children(value):
        yield key, inner
        yield from _items(inner)


def _children(value):
    return list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())


def mutated_lines(random, records):
    """Return JSON lines of which one to three are damaged, left out, repeated, joined or moved."""
    lines = [json.dumps(record).encode() + b"\n" for record in records]
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        n = random.randrange(len(lines))
        change = random.choice(["fields", "fields", "fields", "bytes", "remove", "repeat", "swap", "join", "insert"])
        if change == "fields":
            donors = [record for record in records if random.random() < 0.5]
            lines[n] = mutated_json(random, records[n % len(records)], donors) + b"\n"
        elif change == "bytes":
            lines[n] = mutated_bytes(random, lines[n])
        elif change == "remove" and len(lines) > 1:
            del lines[n]
        elif change == "repeat":
            lines[n:n] = [lines[n]] * random.choice([1, 2, 10])
        elif change == "swap":
            other = random.randrange(len(lines))
            lines[n], lines[other] = lines[other], lines[n]
        elif change == "join":
            lines[n] = lines[n].rstrip(b"\n")
        elif change == "insert":
            lines.insert(n, random.choice([b"\n", b"null\n", b"[]\n", b"{}\n", b"7\n", b"\0\n", b'{"a":1', b"\xff\n"]))
    return b"".join(lines)


def mutated_text(random, text, words):
    """Return a text, as UTF-8, with one to four changes: words of `words` added, and words of the text changed."""
    parts = re.findall(r"\w+|\s+|[^\w\s]", text)
    for _ in range(random.choice([1, 1, 2, 3, 4])):
        n = random.randrange(len(parts) + 1)
        change = random.choice(["insert", "insert", "replace", "remove", "repeat", "swap", "cut"])
        if change == "insert":
            parts.insert(n, random.choice(words))
        elif change == "replace":
            parts[n : n + 1] = [random.choice(words)]
        elif change == "remove":
            del parts[n : n + random.choice([1, 2, 5])]
        elif change == "repeat":
            parts[n : n + 3] = parts[n : n + 3] * random.choice(COUNTS)
        elif change == "swap" and parts:
            n, other = random.randrange(len(parts)), random.randrange(len(parts))
            parts[n], parts[other] = parts[other], parts[n]
        elif change == "cut" and random.random() < 0.3:
            del parts[n:]
    raw = "".join(parts).encode(errors="surrogatepass")[:MOST_BYTES]
    return mutated_bytes(random, raw) if random.random() < 0.15 else raw
