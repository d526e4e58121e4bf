"""The server's limits, over true sockets: half-sent requests, clients that take nothing, and too many of them."""

import socket

import pytest
from conftest import Address
from toys import DEADLINE_SECONDS, encoded, noise, wait_for

PNG = encoded(noise())


def connected(address: Address) -> socket.socket:
    return socket.create_connection(address.port, DEADLINE_SECONDS)


def everything(line: socket.socket) -> bytes:
    """What comes until the other side ends the connection, in whatever way."""
    got = b""
    try:
        while piece := line.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


@pytest.mark.parametrize("sent", [b"", b"GET", b"POST /denoise HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_a_head_that_does_not_come_is_not_waited_for(listening, sent):
    with listening(max_silence_seconds=0.2) as address, connected(address) as line:
        line.sendall(sent)
        assert everything(line) == b""


def test_a_head_that_comes_a_byte_at_a_time_is_cut_off_all_the_same(listening):
    def cut_off(line: socket.socket) -> bool:
        try:
            line.sendall(b"G")
            return line.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    with listening(max_silence_seconds=0.5) as address, connected(address) as line:
        line.settimeout(0.02)
        wait_for(lambda: cut_off(line), "the connection's end")


def test_a_body_that_stops_half_way_is_told_408_and_the_connection_ends(listening):
    with listening(max_silence_seconds=0.3) as address, connected(address) as line:
        line.sendall(b"POST /denoise HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + PNG[:50])
        answer = everything(line)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"max_silence_seconds = 0.3" in answer


def test_a_client_that_takes_nothing_is_given_up(listening):
    large = encoded(noise(2000, 2000), "bmp")  # 12 MB: more than the sockets' buffers hold
    with listening(max_silence_seconds=0.5) as address, connected(address) as line:
        line.sendall(b"POST /denoise HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
        wait_for(lambda: not address.server.server_state.connections, "the connection's end")


def test_a_whole_request_is_answered_and_the_next_on_the_same_connection_too(listening):
    with listening(max_silence_seconds=30) as address, connected(address) as line:
        for _ in range(2):
            line.sendall(b"POST /denoise HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG)
            assert line.recv(15) == b"HTTP/1.1 200 OK"
            head = b""
            while b"\r\n\r\n" not in head:
                head += line.recv(1)
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = b""
            while len(body) < size:
                body += line.recv(size - len(body))


def test_one_connection_too_many_is_told_429(listening):
    with listening(max_connections=2) as address, connected(address), connected(address), connected(address) as third:
        answer = everything(third)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After: 1" in answer
        assert b"max_connections = 2 are open" in answer


def test_a_refusal_reaches_a_client_that_sends_on_and_closes_at_once(listening):
    body = bytes(3_000_000)
    with listening(max_silence_seconds=30, api_keys="k" * 32) as address, connected(address) as line:
        line.sendall(b"POST /denoise HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert everything(line).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("limits", [{"max_upload_bytes": 1000}, {"max_connections": 1}])
def test_so_does_one_that_is_not_heard_out(listening, limits):
    body = bytes(30_000_000)  # more than the sockets' buffers hold
    with listening(max_silence_seconds=30, **limits) as address, connected(address) as first, connected(address) as line:
        if "max_connections" not in limits:
            first.close()
        line.sendall(b"POST /denoise HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        (name,) = limits
        answer = everything(line)
        assert answer.startswith(b"HTTP/1.1 413 " if name == "max_upload_bytes" else b"HTTP/1.1 429 ")
        assert f"{name} = {limits[name]}".encode() in answer


def test_a_client_that_sends_without_end_after_its_refusal_is_cut_off(listening, monkeypatch):
    monkeypatch.setattr("app.server.LINGER_SECONDS", 0.2)
    with listening(max_silence_seconds=30, max_upload_bytes=1000) as address, connected(address) as line:
        line.sendall(b"POST /denoise HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9999999\r\n\r\n")
        assert everything(line).startswith(b"HTTP/1.1 413 ")
        wait_for(lambda: not address.server.server_state.connections, "the connection's end")


def test_a_connection_that_lies_idle_makes_room_for_another(listening):
    ask = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with listening(max_connections=1) as address, connected(address) as idle:
        idle.sendall(ask)
        assert idle.recv(15) == b"HTTP/1.1 200 OK"
        with connected(address) as line:
            line.sendall(ask.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert everything(line).startswith(b"HTTP/1.1 200 OK")
        assert b"HTTP/1.1" not in everything(idle)
