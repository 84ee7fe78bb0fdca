"""What a protobuf message would cost in memory, found by walking its bytes, before any library builds objects of them.

An empty submessage is two bytes in a file and some 150 in memory, so a file of modest size can fill any machine. The walk
counts fields; within what it does not know (types, functions, metadata) it takes every two bytes for a field. Arrays, as raw
bytes or packed floats, take in memory what they take in the file, and count as one field.

Source    the encoding: protobuf.dev, "Encoding"; the numbers of the fields: onnx.proto of ONNX
"""

from __future__ import annotations

from typing import Any

from qrobust.errors import BackendUnavailableError, ModelFileError

MOST_FIELDS = 2**21
MOST_DEPTH = 16
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# The fields of each message that are walked into, by their number; "text" and "array" are not.
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 2: "text", 3: "text", 4: "text", 6: "text"},
    "graph": {1: "node", 2: "text", 5: "tensor", 10: "text"},
    "node": {1: "text", 2: "text", 3: "text", 4: "text", 5: "attribute", 6: "text", 7: "text"},
    "attribute": {1: "text", 4: "text", 5: "tensor", 6: "graph", 7: "array", 10: "tensor", 11: "graph", 13: "text"},
    "tensor": {4: "array", 8: "text", 9: "array", 10: "array", 12: "text"},
}


def onnx_model(content: bytes) -> Any:
    """Return the model that a file's bytes hold, checked first. Raises ModelFileError, BackendUnavailableError."""
    check_structure(content)
    try:
        import onnx
    except ImportError:
        raise BackendUnavailableError("reading .onnx files needs `pip install qrobust[onnx]`") from None
    return onnx.load_model_from_string(content)


def check_structure(content: bytes) -> None:
    """Raise ModelFileError if an ONNX model has more fields than are read, is nested too deep, or is cut short."""
    waiting = [(0, len(content), "model", 0)]
    fields = 0
    while waiting:
        position, end, message, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise ModelFileError(f"its graphs are nested more than {MOST_DEPTH} deep")
        while position < end:
            key, position = _varint(content, position, end)
            kind = key & 7
            fields += 1
            if kind == VARINT:
                _, position = _varint(content, position, end)
            elif kind in (FIXED64, FIXED32):
                position += 8 if kind == FIXED64 else 4
            elif kind == BYTES:
                length, position = _varint(content, position, end)
                inner = MESSAGES[message].get(key >> 3)
                if inner in MESSAGES:
                    waiting.append((position, position + length, str(inner), depth + 1))
                elif inner is None:
                    fields += length // 2
                position += length
            else:
                raise ModelFileError(f"it is no protobuf: byte {position} starts a field of kind {kind}")
            if position > end:
                raise ModelFileError("it is cut short")
            if fields > MOST_FIELDS:
                raise ModelFileError(f"it has more than {MOST_FIELDS:,} fields, which is no network that can be read")


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number of variable length, and where the next byte is."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ModelFileError("it is cut short")
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ModelFileError(f"it is no protobuf: the number before byte {position} does not end")
