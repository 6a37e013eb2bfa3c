"""What the SDK promises, without a gateway: python3 -m unittest discover -s tests"""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "sdk"))

import gateway

types = gateway.install()
console = sys.stdout, sys.stderr
import foreign
import polygate

printed, (sys.stdout, sys.stderr) = (sys.stdout, sys.stderr), console


class TestLines(unittest.TestCase):
    def test_any_cut_gives_the_same_lines(self) -> None:
        stream = b"one\r\n\ntwo\nthr\ree\n\r\nrest"
        for first in range(len(stream) + 1):
            for second in range(first, len(stream) + 1):
                lines = polygate.Lines(10)
                pieces = stream[:first], stream[first:second], stream[second:]
                found = [line for piece in pieces for line in lines.push(piece)]
                self.assertEqual(found, [b"one", b"", b"two", b"thr\ree", b""])

    def test_a_line_may_reach_the_limit_and_not_pass_it(self) -> None:
        self.assertEqual(list(polygate.Lines(3).push(b"abc\r\n")), [b"abc"])
        for piece in b"abcd\n", b"abcd":
            with self.assertRaises(polygate.LineTooLong):
                list(polygate.Lines(3).push(piece))


class TestHandler(unittest.TestCase):
    def setUp(self) -> None:
        gateway.asked.clear()

    def test_every_connection_has_an_object_of_its_own_from_the_first_event_to_the_last(self) -> None:
        class Counting(polygate.Handler):
            count = 0

            def on_bytes(self, data: bytes) -> None:
                self.count += len(data)
                self.connection.send(str(self.count))

            def on_closed(self, reason: str) -> None:
                polygate.log("info", reason)

        handler = polygate.serve(Counting)()
        for conn in 1, 2:
            handler.on_socket_created(conn, None)
        for conn, data in (1, b"abc"), (2, b"abcd"), (1, b"abcde"):
            handler.on_received_bytes(conn, data)
        self.assertEqual(gateway.asked, [("send", 1, b"3"), ("send", 2, b"4"), ("send", 1, b"8")])
        gateway.asked.clear()
        handler.on_socket_closed(1, types.CloseReason_KeepaliveTimeout())
        handler.on_socket_closed(2, types.CloseReason_Error("of a kind"))
        reasons = [("log", types.Level.INFO, "keepalive-timeout"), ("log", types.Level.INFO, "error: of a kind")]
        self.assertEqual(gateway.asked, reasons)
        with self.assertRaises(KeyError):
            handler.on_received_bytes(1, b"late")

    def test_a_refusal_says_what_was_asked_and_why_it_was_not_done_and_a_second_close_is_none(self) -> None:
        connection = polygate.Connection(3, None)
        gateway.refusals.append(types.ErrorCode.PERMISSION_DENIED)
        with self.assertRaisesRegex(polygate.Refused, "^publish: permission-denied$"):
            connection.publish("t", "x", 1)
        self.assertEqual(gateway.asked, [("publish", 3, "t", types.Qos.AT_LEAST_ONCE, b"x")])
        gateway.refusals.append(types.ErrorCode.CONN_GONE)
        connection.close()
        gateway.refusals.append(types.ErrorCode.UNKNOWN)
        with self.assertRaises(polygate.Refused):
            connection.close()

    def test_an_exception_is_logged_with_its_place_and_goes_on(self) -> None:
        class Failing(polygate.Handler):
            def on_bytes(self, data: bytes) -> None:
                raise TypeError("no such thing")

        handler = polygate.serve(Failing)()
        handler.on_socket_created(4, None)
        with self.assertRaises(TypeError):
            handler.on_received_bytes(4, b"x")
        [(operation, level, text)] = gateway.asked
        self.assertEqual((operation, level), ("log", types.Level.ERROR))
        self.assertRegex(text, r"^TypeError: no such thing\n(?s:.*)on_bytes \(.*test_sdk.py:\d+\)$")

    def test_state_goes_from_one_version_to_the_next_and_what_cannot_be_restored_is_refused_in_words(self) -> None:
        class Old(polygate.Handler):
            def snapshot(self) -> tuple[int, bytes]:
                return 1, b"state"

        class New(polygate.Handler):
            def restore(self, state: tuple[int, bytes] | None) -> None:
                if state is None:
                    raise ValueError("no state")
                self.state = state

            def on_bytes(self, data: bytes) -> None:
                self.connection.send(self.state[1])

        polygate.serve(Old)().on_socket_created(5, None)
        state = polygate.migrating(Old)().snapshot(5)
        polygate.migrating(New)().restore(6, None, state)
        polygate.serve(New)().on_received_bytes(6, b"x")
        self.assertEqual(gateway.asked, [("send", 6, b"state")])
        with self.assertRaises(gateway.Err) as raised:
            polygate.migrating(New)().restore(7, None, None)
        self.assertEqual(raised.exception.value, "ValueError: no state")


class TestForeign(unittest.TestCase):
    def test_a_peer_of_another_protocol_is_ended_after_so_many_bytes_or_so_long(self) -> None:
        now_ms, foreign.now_ms = [1_000], lambda: now_ms[0]
        self.addCleanup(setattr, foreign, "now_ms", polygate.now_ms)
        gateway.asked.clear()
        peer = foreign.Foreign("NMEA 0183")
        self.assertFalse(peer.ends())
        peer.stray(b"GET / HTTP/1.1\r\n")
        now_ms[0] += foreign.AGE_MAX_MS - 1
        self.assertFalse(peer.ends())
        now_ms[0] += 1
        self.assertTrue(peer.ends())
        peer.log()
        line = "16 bytes that are no frame of NMEA 0183, beginning with 474554202f20485454502f312e310d0a; they look like HTTP"
        self.assertEqual(gateway.asked, [("log", types.Level.WARN, line)])
        peer.frame()
        self.assertEqual((peer.ends(), peer.framed), (False, True))
        peer.stray(bytes(foreign.BYTES_MAX))
        self.assertTrue(peer.ends())
        self.assertEqual([foreign.protocol_of(first) for first in (b"*HQ,1", b"\x68")], ["H02", None])


class TestPrint(unittest.TestCase):
    def test_what_is_printed_is_logged_line_by_line_and_however_long_a_line_gets(self) -> None:
        gateway.asked.clear()
        print("one\ntw", end="", file=printed[0])
        print("o", file=printed[0])
        print("x" * 5000, end="", file=printed[1])
        info, warn = types.Level.INFO, types.Level.WARN
        self.assertEqual(gateway.asked, [("log", info, "one"), ("log", info, "two"), ("log", warn, "x" * 5000)])


if __name__ == "__main__":
    unittest.main()
