"""A WebSocket client from the standard library alone, enough to listen to ComfyUI (RFC 6455)."""

from __future__ import annotations

import base64
import os
import socket
import struct

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    """An open connection; every wait is bounded by the timeout."""

    def __init__(self, port: int, path: str, timeout: float) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self._socket.sendall("\r\n".join(lines).encode())
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        if b" 101 " not in status:
            raise ConnectionError(status.decode())
        while self._stream.readline().strip():
            pass

    def send(self, text: str) -> None:
        """Send one text message."""
        self._send(TEXT, text.encode())

    def receive(self) -> str | bytes:
        """The next message: text as str, binary as bytes. Pings are answered on the way."""
        message, kind = b"", TEXT
        while True:
            first, second = self._read(2)
            opcode, length = first & 15, second & 127
            if length > 125:
                length = (
                    struct.unpack(">H", self._read(2))[0] if length == 126 else struct.unpack(">Q", self._read(8))[0]
                )
            payload = self._read(length)
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode == CLOSE:
                raise ConnectionError("the server closed the connection")
            elif opcode != PONG:
                kind, message = opcode or kind, message + payload
                if first & 128:
                    return message.decode() if kind == TEXT else message

    def close(self) -> None:
        """Close without ceremony."""
        self._stream.close()
        self._socket.close()

    def _read(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise ConnectionError("the connection ended")
        return data

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        head = bytes([128 | opcode, 128 | min(size, 126)]) + (struct.pack(">H", size) if size > 125 else b"")
        self._socket.sendall(head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))
