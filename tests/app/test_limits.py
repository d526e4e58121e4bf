"""Bytes counted as they arrive, pictures counted as they wait."""

import threading

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.requests import ClientDisconnect, Request
from toys import DEADLINE_SECONDS

from app.errors import Busy, TimedOut, TooLarge
from app.limits import SMALL_PIXELS, BodyLimit, Workers
from app.limits import Body as Limit
from core import hardware


class Body:
    """A request's body in pieces, which counts how many were taken."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.taken = 0

    async def receive(self):
        self.taken += 1
        return {"type": "http.request", "body": self.pieces[self.taken - 1], "more_body": self.taken < len(self.pieces)}


async def read_body(scope, receive, send):
    await Request(scope, receive).body()


def limited(body: Body, path: str = "/denoise", **headers: str) -> None:
    scope = {"type": "http", "method": "POST", "path": path}
    scope["headers"] = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    anyio.run(bounded(read_body), scope, body.receive, None)


def bounded(app, held: int = 1000, silence: float = 60, receive: float = 60) -> BodyLimit:
    limits = {"/denoise": Limit("max_upload_bytes", 10, held=True)}
    return BodyLimit(app, limits, Limit("max_other_bytes", 20), held, silence, receive)


def test_a_body_of_exactly_the_limit_is_let_through():
    body = Body(b"12345", b"67890")
    limited(body, content_length="10")
    assert body.taken == 2


def test_no_more_is_taken_of_a_body_than_shows_that_it_is_too_large():
    body = Body(b"12345", b"678901", b"never taken")
    with pytest.raises(TooLarge, match="max_upload_bytes = 10: send a smaller one, or raise CLEARFOLD_MAX_UPLOAD_BYTES"):
        limited(body)
    assert body.taken == 2


def test_nothing_is_taken_of_a_body_that_says_it_is_too_large():
    body = Body(b"never taken")
    with pytest.raises(TooLarge):
        limited(body, content_length="11")
    assert body.taken == 0


def test_every_other_path_has_a_limit_too():
    limited(Body(b"more than ten bytes"), path="/elsewhere", content_length="19")
    with pytest.raises(TooLarge, match="max_other_bytes = 20"):
        limited(Body(b"more than twenty bytes"), path="/elsewhere")


@pytest.mark.parametrize(("declared", "pieces", "taken"), [("9", 3, 3), ("99", 3, 0)])
def test_an_early_answer_waits_for_the_rest_of_a_body_that_is_not_too_large(declared, pieces, taken):
    body = Body(*[b"123"] * pieces)
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 429, "headers": []})

    async def send(message):
        sent.append((message["status"], body.taken))

    scope = {"type": "http", "method": "POST", "path": "/denoise", "headers": [(b"content-length", declared.encode())]}
    anyio.run(bounded(app), scope, body.receive, send)
    assert sent == [(429, taken)]


def test_bodies_in_memory_are_counted_over_all_requests_until_they_are_answered():
    scope = {"type": "http", "method": "POST", "path": "/denoise", "headers": []}

    async def scene():
        arrived, answered = anyio.Event(), anyio.Event()

        async def app(scope, receive, send):
            await receive()
            arrived.set()
            await answered.wait()

        limit = bounded(app, held=10)
        async with anyio.create_task_group() as group:
            group.start_soon(limit, scope, Body(b"12345").receive, None)
            await arrived.wait()
            with pytest.raises(Busy, match="max_held_bytes = 10"):
                await limit(scope, Body(b"123456").receive, None)
            answered.set()
        await limit(scope, Body(b"1234567890").receive, None)

    anyio.run(scene)


def test_of_a_body_that_is_too_large_no_more_is_given_back_than_was_counted():
    scope = {"type": "http", "method": "POST", "path": "/denoise", "headers": []}

    async def scene():
        limit = bounded(read_body, held=15)
        for _ in range(3):
            with pytest.raises(TooLarge):
                await limit(scope, Body(b"12345", b"678901", b"").receive, None)
        assert limit._held == 0

    anyio.run(scene)


@pytest.mark.parametrize(
    ("silence", "receive", "words"),
    [(0.01, 60, "max_silence_seconds = 0.01"), (60, 0.01, "max_receive_seconds = 0.01")],
)
def test_a_body_that_does_not_come_is_not_waited_for(silence, receive, words):
    async def nothing():
        await anyio.sleep_forever()

    scope = {"type": "http", "method": "POST", "path": "/denoise", "headers": []}
    with pytest.raises(TimedOut, match=f"within {words}: send it again"):
        anyio.run(bounded(read_body, silence=silence, receive=receive), scope, nothing, None)


def test_nor_once_more_for_the_answer_that_says_so():
    waits = []

    async def nothing():
        waits.append(1)
        await anyio.sleep_forever()

    async def app(scope, receive, send):
        with pytest.raises(TimedOut):
            await receive()
        await send({"type": "http.response.start", "status": 408, "headers": []})

    async def send(message):
        pass

    scope = {"type": "http", "method": "POST", "path": "/denoise", "headers": [(b"content-length", b"9")]}
    anyio.run(bounded(app, silence=0.01), scope, nothing, send)
    assert len(waits) == 1


def test_a_body_that_has_come_is_followed_by_a_wait_without_end():
    scope = {"type": "http", "method": "POST", "path": "/denoise", "headers": []}

    async def scene():
        body, left = Body(b"12345"), anyio.Event()

        async def receive():
            if not body.taken:
                return await body.receive()
            await left.wait()
            return {"type": "http.disconnect"}

        async def app(scope, receive, send):
            await receive()
            with anyio.move_on_after(0.1):
                await receive()
            left.set()
            assert (await receive())["type"] == "http.disconnect"

        await bounded(app, silence=0.01, receive=0.02)(scope, receive, None)

    anyio.run(scene)


def still_here() -> Request:
    async def receive():
        await anyio.sleep_forever()

    return Request({"type": "http", "headers": []}, receive)


def leaves_when(left: anyio.Event) -> Request:
    async def receive():
        await left.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


def test_pictures_wait_up_to_the_limit_and_one_more_is_refused():
    async def scene():
        workers, gate = Workers(1, max_queued_pictures=2), threading.Event()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(workers.run, still_here(), lambda going: gate.wait(DEADLINE_SECONDS))
            await wait_all_tasks_blocked()
            with pytest.raises(Busy, match=r"^2 pictures are waiting, and max_queued_pictures = 2: try again in \d+ sec"):
                await workers.run(still_here(), lambda going: None)
            gate.set()
        return await workers.run(still_here(), lambda going: "done")

    assert anyio.run(scene) == "done"


def test_a_batch_takes_no_place_in_the_queue_from_others():
    async def scene():
        workers, gate = Workers(1, max_queued_pictures=1), threading.Event()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(workers.run_in_turn, lambda going: gate.wait(DEADLINE_SECONDS))
            await wait_all_tasks_blocked()
            for _ in range(2):
                group.start_soon(workers.run, still_here(), lambda going: None)
            await wait_all_tasks_blocked()
            with pytest.raises(Busy, match="max_queued_pictures = 1"):
                await workers.run(still_here(), lambda going: None)
            gate.set()

    anyio.run(scene)


def test_pixels_wait_up_to_the_limit_but_a_picture_alone_is_always_let_in():
    async def scene():
        workers, gate = Workers(1, max_queued_pictures=9, max_queued_pixels=100), threading.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(workers.run, still_here(), lambda going: gate.wait(DEADLINE_SECONDS), 150)
            await wait_all_tasks_blocked()
            with pytest.raises(Busy, match=r"^150 pixels are waiting or worked on, and max_queued_pixels = 100: try again in"):
                await workers.run(still_here(), lambda going: None, 1)
            gate.set()
        assert (workers.pixels, workers.admitted) == (0, 0)

    anyio.run(scene)


def test_never_more_threads_work_than_there_are_workers():
    at_work = threading.Semaphore(2)

    def work(going):
        assert at_work.acquire(blocking=False), "a third thread is at work"
        at_work.release()

    async def scene():
        workers = Workers(2, max_queued_pictures=50)
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(workers.run, still_here(), work)

    anyio.run(scene)


def test_all_that_have_the_cores_to_themselves_have_one_team_of_threads():
    """Or none of the teams would wait awake for its next piece of work: see `core.hardware.on_one_thread`."""
    at_work, crowd = set(), [SMALL_PIXELS + 1, 1, 1, SMALL_PIXELS + 1, 1, SMALL_PIXELS + 1]

    async def scene():
        workers = Workers(1, max_queued_pictures=9, cores=2)

        def work(going):
            at_work.add((threading.get_ident(), hardware.threads()))

        for _ in range(5):
            async with anyio.create_task_group() as group:
                for pixels in crowd:
                    group.start_soon(workers.run, still_here(), work, pixels)

    anyio.run(scene)
    assert len({ident for ident, threads in at_work if threads == 2}) == 1
    assert {threads for _, threads in at_work} == {1, 2}


def test_small_pictures_share_the_cores_when_others_wait_and_a_large_one_has_them_all():
    LARGE = SMALL_PIXELS + 1
    at_work, seen = set(), {}

    async def scene():
        workers = Workers(1, max_queued_pictures=9, cores=2)
        gates, begun = ({pixels: kind() for pixels in (1, 2, 3, LARGE)} for kind in (threading.Event, anyio.Event))
        loop = anyio.lowlevel.current_token()

        def work(pixels):
            def run(going):
                at_work.add(pixels)
                seen[pixels] = hardware.threads(), set(at_work)
                anyio.from_thread.run_sync(begun[pixels].set, token=loop)
                assert gates[pixels].wait(DEADLINE_SECONDS)
                at_work.remove(pixels)

            return run

        async with anyio.create_task_group() as group:
            for pixels in gates:
                group.start_soon(workers.run, still_here(), work(pixels), pixels)
                await wait_all_tasks_blocked()
            for together in ((1,), (2, 3), (LARGE,)):
                for pixels in together:
                    await begun[pixels].wait()
                for pixels in together:
                    gates[pixels].set()
        assert (workers.pixels, workers.admitted) == (0, 0)

    anyio.run(scene)
    assert {pixels: threads for pixels, (threads, _) in seen.items()} == {1: 2, 2: 1, 3: 1, LARGE: 2}
    assert (seen[1][1], seen[LARGE][1]) == ({1}, {LARGE})
    assert {2, 3} in (seen[2][1], seen[3][1])


def test_one_small_picture_more_than_there_are_cores_is_worked_on_at_once_and_no_other():
    """While one waits for its decoder, the others keep the cores busy."""
    together, most = threading.Barrier(3), []
    lock, at_work = threading.Lock(), []

    def work(going):
        with lock:
            at_work.append(hardware.threads())
            most.append(len(at_work))
        if len(most) <= 3:
            together.wait(DEADLINE_SECONDS)
        with lock:
            at_work.pop()

    async def scene():
        workers, gate = Workers(1, max_queued_pictures=20, cores=2), threading.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(workers.run, still_here(), lambda going: gate.wait(DEADLINE_SECONDS), SMALL_PIXELS + 1)
            for _ in range(9):
                group.start_soon(workers.run, still_here(), work)
            await wait_all_tasks_blocked()
            assert not most
            gate.set()

    anyio.run(scene)
    assert max(most) == 3


def test_a_client_that_leaves_while_waiting_frees_its_place_and_its_picture_is_never_begun():
    async def scene():
        workers, gate, left = Workers(1, max_queued_pictures=1), threading.Event(), anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(workers.run, still_here(), lambda going: gate.wait(DEADLINE_SECONDS))
            await wait_all_tasks_blocked()

            async def waiter():
                with pytest.raises(ClientDisconnect):
                    await workers.run(leaves_when(left), lambda going: pytest.fail("begun for nobody"))
                group.start_soon(workers.run, still_here(), lambda going: None)  # the place is free
                gate.set()

            group.start_soon(waiter)
            await wait_all_tasks_blocked()
            left.set()

    anyio.run(scene)


def test_a_failure_of_the_work_is_the_callers():
    async def scene():
        await Workers(1, 0).run(still_here(), lambda going: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        anyio.run(scene)
