"""Whether 32 bytes are a point of the prime-order group of edwards25519 (RFC 8032, section 5.1).

The curve has eight points of small order beside that group. Such a point added to a public key gives another public key
for the same secret, under which half of all signatures, or an eighth, hold, and enough can be tried until they do. So
two people could share one secret; and under a point of small order alone one signature holds for many messages.
Nothing here is secret, so nothing takes constant time.
"""

from __future__ import annotations

PRIME = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, PRIME) % PRIME
_SQRT_MINUS_ONE = pow(2, (PRIME - 1) // 4, PRIME)

Point = tuple[int, int, int, int]
"""(X, Y, Z, T): x = X/Z, y = Y/Z, xy = T/Z."""
_IDENTITY: Point = (0, 1, 1, 0)


def is_prime_order(encoded: bytes) -> bool:
    """False for bytes that are no point, or a point in another encoding than its one, or of another order."""
    point = _decompress(encoded)
    return point is not None and not _is_identity(point) and _is_identity(_multiply(ORDER, point))


def _decompress(encoded: bytes) -> Point | None:
    """Section 5.1.3."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if len(encoded) != 32 or y >= PRIME:
        return None
    numerator, denominator = y * y - 1, _D * y * y + 1
    square = numerator * pow(denominator, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * _SQRT_MINUS_ONE % PRIME
    if x * x % PRIME != square or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = PRIME - x
    return x, y, 1, x * y % PRIME


def _multiply(scalar: int, point: Point) -> Point:
    product = _IDENTITY
    while scalar:
        if scalar & 1:
            product = _add(product, point)
        point, scalar = _add(point, point), scalar >> 1
    return product


def _add(one: Point, other: Point) -> Point:
    """Section 5.1.4: complete, so it doubles as well."""
    x1, y1, z1, t1 = one
    x2, y2, z2, t2 = other
    a, b = (y1 - x1) * (y2 - x2) % PRIME, (y1 + x1) * (y2 + x2) % PRIME
    c, d = 2 * t1 * t2 * _D % PRIME, 2 * z1 * z2 % PRIME
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % PRIME, g * h % PRIME, f * g % PRIME, e * h % PRIME


def _is_identity(point: Point) -> bool:
    x, y, z, _ = point
    return x % PRIME == 0 and (y - z) % PRIME == 0
