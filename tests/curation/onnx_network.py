"""A network small enough for a test, as an ONNX file: the foreground is what is brighter than grey."""

from __future__ import annotations

from pathlib import Path

FLOAT, SIDE = 1, 64


def brightness_network(path: Path, side: int = SIDE) -> Path:
    """(1, 3, side, side) in, with pixels as (x - 128) / 256; (1, 1, side, side) out: a sigmoid of the channels' mean.

    Written byte by byte as protobuf, for the package onnx is not needed otherwise. Source: onnx/onnx.proto3.
    """
    axes = _text(1, "axes") + _number(8, 1) + _number(20, 7)
    mean = _text(1, "x") + _text(2, "mean") + _text(4, "ReduceMean") + _part(5, axes)
    sigmoid = _text(1, "mean") + _text(2, "y") + _text(4, "Sigmoid")
    graph = (
        _part(1, mean)
        + _part(1, sigmoid)
        + _text(2, "brightness")
        + _part(11, _value("x", (1, 3, side, side)))
        + _part(12, _value("y", (1, 1, side, side)))
    )
    path.write_bytes(_number(1, 8) + _part(8, _number(2, 13)) + _part(7, graph))
    return path


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    sides = b"".join(_part(1, _number(1, side)) for side in shape)
    return _text(1, name) + _part(2, _part(1, _number(1, FLOAT) + _part(2, sides)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _part(field, value.encode())


def _part(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
