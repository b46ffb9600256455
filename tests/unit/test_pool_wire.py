# ruff: noqa: S302
"""The wire: whatever way the bytes are cut, the same messages come out."""

import marshal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs.errors import CommunicationError
from nbprocs.pool.wire import Decoder, frame
from nbprocs.pool.worker_main import HEADER

ATOM = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
MESSAGE = st.tuples(st.integers(0, 6), st.integers(0, 2**40), st.recursive(ATOM, lambda inner: st.lists(inner, max_size=4).map(tuple)))
BUFFERS = st.lists(st.binary(max_size=3000), max_size=3)


def wire(message, buffers):
    return b"".join(bytes(piece) for piece in frame(message, [memoryview(b) for b in buffers] if buffers else None))


def feed(decoder, data, sizes):
    """Give the decoder the data in pieces of these sizes, over and over."""
    found = []
    at = turn = 0
    while at < len(data):
        view = decoder.get_buffer()
        assert len(view), "there is always room"
        size = min(sizes[turn % len(sizes)], len(view), len(data) - at)
        view[:size] = data[at : at + size]
        found += decoder.received(size)
        at += size
        turn += 1
    return found


@given(
    st.lists(st.tuples(MESSAGE, BUFFERS), max_size=8),
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    st.sampled_from([64, 512, 4096]),
)
def test_any_cut_gives_the_same_messages(items, sizes, buffer_size):
    data = b"".join(wire(message, buffers) for message, buffers in items)
    found = feed(Decoder(buffer_size), data, sizes)
    assert found == [(*message, [bytearray(b) for b in buffers]) if buffers else message for message, buffers in items]


def test_a_large_frame_without_buffers_goes_through_a_small_decoder():
    message = (1, 2, "x" * 100_000)
    assert feed(Decoder(128), wire(message, []) * 3, [1000]) == [message] * 3


def test_buffers_arrive_writable_and_in_their_final_place():
    decoder = Decoder()
    data = wire((1, b"body"), [b"a" * 1_000_000])
    ((_, _, buffers),) = feed(decoder, data, [300_000])
    buffers[0][0] = 7
    assert type(buffers[0]) is bytearray


def test_what_is_no_frame_is_a_named_error():
    garbage = b"\xff garbage"
    decoder = Decoder()
    data = HEADER.pack(len(garbage), 0) + garbage
    decoder.get_buffer()[: len(data)] = data
    with pytest.raises(CommunicationError, match="no frame"):
        decoder.received(len(data))


def test_an_impossible_length_is_a_named_error():
    decoder = Decoder()
    data = HEADER.pack(2**62, 0)
    decoder.get_buffer()[: len(data)] = data
    with pytest.raises(CommunicationError, match="no frame"):
        decoder.received(len(data))


def test_atoms_keep_their_exact_type():
    values = (True, 1, 1.0, 1j, "é\ud800", b"\x00", None)
    ((back,),) = (feed(Decoder(), wire((values,), []), [7]),)
    assert [(type(v), v) for v in back[0]] == [(type(v), v) for v in values]
    assert marshal.loads(marshal.dumps(values, 2)) == values
