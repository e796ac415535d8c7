"""Points of edwards25519, computed apart from formats/signatures/keys.py: affine, by the addition law alone."""

from __future__ import annotations

FIELD = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, FIELD) % FIELD

Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    product = D * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + product, -1, FIELD)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, FIELD)
    return x % FIELD, y % FIELD


def multiply(scalar: int, power: Point) -> Point:
    point = (0, 1)
    while scalar:
        point = add(point, power) if scalar & 1 else point
        power, scalar = add(power, power), scalar >> 1
    return point


def point_of(y: int, sign: int = 0) -> Point | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    x = x if x * x % FIELD == square else x * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    if x * x % FIELD != square:
        return None
    return (x if x & 1 == sign else -x % FIELD), y


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point:
    number = int.from_bytes(data, "little")
    point = point_of(number & (1 << 255) - 1, number >> 255)
    assert point is not None
    return point


def torsion() -> set[Point]:
    """Return the eight points P with 8P = 0: multiples of L*Q for a point Q that gives all of them."""
    for y in range(2, 60):
        if (point := point_of(y)) is None:
            continue
        step = top = multiply(ORDER, point)
        points = {(0, 1)}
        while top != (0, 1):
            points.add(top)
            top = add(top, step)
        if len(points) == 8:
            return points
    raise AssertionError("no point of order 8 found")


def twins(public: bytes) -> list[bytes]:
    """Return the other keys for the same secret: the key and each point of small order."""
    own = decode(public)
    return [encode(add(own, point)) for point in torsion() if point != (0, 1)]
