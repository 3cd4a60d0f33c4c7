"""The wire form of protocol buffers, of which checkpoint files need a few fields: no schema, no generated code.

Source: the "Encoding" page of the protocol buffers documentation.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
_MAX_FIELD = 2**29 - 1


def fields(buffer: memoryview | bytes) -> Iterator[tuple[int, int, int | memoryview]]:
    """Go through the fields of a message, in the order in which they lie.

    Nothing is copied, and nested messages are not opened: call ``fields`` on their value. A message that is not
    trusted can hold a field for every 2 bytes, so callers limit the length or count the fields.

    Args:
        buffer: The whole message.

    Yields:
        Field number (1 to 2**29 - 1), wire type and value: an int from 0 to 2**64 - 1 for ``VARINT`` (0), ``FIXED64``
        (1) and ``FIXED32`` (5), a ``memoryview`` slice of ``buffer`` for ``BYTES`` (2).

    Raises:
        ValueError: The buffer ends within a field, a varint has more than 64 bits, or a tag holds a field number or
            wire type that does not exist (groups, deprecated, count as such).
    """
    view = memoryview(buffer).cast("B")
    position, end = 0, len(view)
    while position < end:
        tag, position = decode_varint(view, position)
        number, wire_type = tag >> 3, tag & 7
        if not 1 <= number <= _MAX_FIELD:
            raise ValueError(f"field number {number} does not exist")
        value: int | memoryview
        if wire_type == VARINT:
            value, position = decode_varint(view, position)
        elif wire_type == BYTES:
            length, position = decode_varint(view, position)
            value, position = _take(view, position, length)
        elif wire_type in _FIXED_SIZES:
            piece, position = _take(view, position, _FIXED_SIZES[wire_type])
            value = int.from_bytes(piece, "little")
        else:
            raise ValueError(f"field {number} has the wire type {wire_type}, which does not exist")
        yield number, wire_type, value


def decode_varint(buffer: memoryview | bytes, position: int) -> tuple[int, int]:
    """Read one varint.

    Args:
        buffer: Bytes that hold it.
        position: Where it starts.

    Returns:
        Its value, from 0 to 2**64 - 1, and the position behind it.

    Raises:
        ValueError: The buffer ends within it, or it has more than 64 bits.
    """
    value = 0
    for index, byte in enumerate(buffer[position:position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, position + index + 1
    else:
        if len(buffer) - position < 10:
            raise ValueError("it ends within a number")
    raise ValueError("a number has more than 64 bits")


def encode_varint(value: int) -> bytes:
    """Write one varint.

    Args:
        value: 0 to 2**64 - 1; a negative int64 is written as ``value % 2**64``.

    Returns:
        1 to 10 bytes.

    Raises:
        ValueError: The value is outside that range.
    """
    if not 0 <= value < 2**64:
        raise ValueError(f"{value} is not a number from 0 to 2**64 - 1")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _take(view: memoryview, position: int, length: int) -> tuple[memoryview, int]:
    if length > len(view) - position:
        raise ValueError(f"a field of {length} bytes has {len(view) - position} left")
    return view[position:position + length], position + length
