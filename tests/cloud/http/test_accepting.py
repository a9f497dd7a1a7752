"""Who takes a connection that any worker could take."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator

import pytest

from cloud.http import accepting
from cloud.http.accepting import Acceptor, Shares


class Greeting(asyncio.Protocol):
    """Says hello and counts."""

    def __init__(self, made: list[Greeting]) -> None:
        self.made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.append(self)
        transport.write(b"hello")
        self.transport = transport


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen(64)
        yield made


async def greeted(listener: socket.socket) -> None:
    async with asyncio.timeout(5.0):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert await reader.read(5) == b"hello"
        writer.close()
        await writer.wait_closed()


def run(listener, made, share, story) -> None:
    async def all_of_it() -> None:
        acceptor = Acceptor(listener, lambda: Greeting(made), share, lambda: len(made))
        try:
            await story(acceptor)
        finally:
            acceptor.close()
            await acceptor.wait_closed()
            for one in made:
                one.transport.close()
            await asyncio.sleep(0)

    asyncio.run(all_of_it())


def test_a_share_is_fair_while_nobody_present_has_fewer():
    shares = Shares(3)
    mine, other, absent = (shares.of(slot) for slot in range(3))
    mine.set(2)
    assert mine.fair and mine.left is False and absent.left
    other.set(2)
    assert mine.fair and other.fair
    other.set(1)
    assert not mine.fair and other.fair
    other.leave()
    assert mine.fair


def test_who_has_more_leaves_a_connection_to_the_other_but_not_for_ever(listener):
    """The other worker is stuck: it has fewer connections and takes none."""
    shares, made = Shares(2), []
    shares.of(1).set(0)
    looked = []

    async def story(acceptor: Acceptor) -> None:
        await greeted(listener)
        for _ in range(3):
            looked.append(shares.of(0).fair)
            await greeted(listener)

    run(listener, made, shares.of(0), story)
    assert len(made) == 4 and looked == [False] * 3


def test_a_process_without_descriptors_rests_and_then_goes_on(listener, monkeypatch, caplog):
    monkeypatch.setattr(accepting, "_NO_ROOM_S", 0.05)
    refusals = 3

    class Crowded:
        def __getattr__(self, name: str) -> object:
            return getattr(listener, name)

        def accept(self) -> object:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return listener.accept()

    made: list[Greeting] = []

    async def story(acceptor: Acceptor) -> None:
        await greeted(listener)

    run(Crowded(), made, Shares(1).of(0), story)
    assert len(made) == 1 and refusals == 0
    assert [record.message for record in caplog.records] == ["cannot accept"] * 3


def test_nothing_is_taken_after_the_end(listener):
    made: list[Greeting] = []

    async def story(acceptor: Acceptor) -> None:
        acceptor.close()
        with socket.create_connection(listener.getsockname()) as waiting:  # the kernel's queue has it
            waiting.setblocking(False)
            await asyncio.sleep(0.2)
            with pytest.raises(BlockingIOError):
                waiting.recv(5)

    run(listener, made, Shares(1).of(0), story)
    assert made == []
