"""Which step of a priority queue is asked, and when all are listened to."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import pytest

from celery_sqs import ConfigurationError, Options
from celery_sqs.transport import priorities
from celery_sqs.transport.priorities import EMPTY_FOR_S, Turns
from celery_sqs.transport.step_polls import StepPolls, Then

STEPS = (0, 3, 6, 9)
QUEUES = priorities.queues_of("orders", STEPS)


def test_a_step_is_a_queue_whose_name_says_it() -> None:
    assert QUEUES == ("orders", "orders-3", "orders-6", "orders-9")
    assert priorities.queues_of("orders.fifo", (0, 5)) == ("orders.fifo", "orders-5.fifo")
    assert priorities.queues_of("orders", ()) == ("orders",)


def test_a_priority_goes_to_the_last_step_that_is_not_above_it() -> None:
    """As kombu's Redis transport does it."""
    found = [priorities.queue_for("orders", n, STEPS) for n in (-1, 0, 2, 3, 5, 6, 8, 9, 255)]
    assert found == [*["orders"] * 3, *["orders-3"] * 2, *["orders-6"] * 2, *["orders-9"] * 2]
    assert priorities.queue_for("orders", 9, ()) == "orders"


@pytest.mark.parametrize("steps", [(3, 6), (0, 0), (6, 3, 0), (0, 10), (-1, 0)])
def test_steps_that_cannot_be_used_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="rising numbers from 0 to 9, the first being 0"):
        Options(prefix="p", priority_steps=steps)


def test_a_step_is_no_other_queue() -> None:
    with pytest.raises(ConfigurationError, match="orders-3 is a queue of its own, and a priority step of another"):
        Options(prefix="p", queues=("orders", "orders-3"), priority_steps=STEPS)


def test_every_queue_of_an_application_is_known() -> None:
    options = Options(prefix="shop", queues=("orders", "mail"), priority_steps=(0, 5))
    assert options.queue_names == ("shop-orders", "shop-orders-5", "shop-mail", "shop-mail-5")


def test_no_step_starves_and_the_highest_has_most_turns() -> None:
    turns = Turns(QUEUES)
    firsts = Counter(turns.next()[0] for _ in range(256))
    assert [firsts[each] for each in QUEUES] == [192, 48, 12, 4]


def test_a_turn_asks_all_the_highest_first() -> None:
    turns = Turns(QUEUES)
    assert [turns.next() for _ in range(4)] == [
        *[list(QUEUES)] * 3,
        ["orders-3", "orders", "orders-6", "orders-9"],
    ]


def test_a_step_that_had_nothing_is_asked_again_in_a_moment() -> None:
    now_s = 0.0
    turns = Turns(QUEUES, clock=lambda: now_s)
    turns.note("orders", empty=True)
    assert turns.next() == list(QUEUES[1:])
    now_s = EMPTY_FOR_S
    assert turns.next() == list(QUEUES)
    turns.note("orders", empty=True)
    turns.note("orders", empty=False)
    assert turns.next() == list(QUEUES)


class Queues:
    """A stand-in for a channel and for SQS: one message at a time, and long polls that end when they are told to."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.asked: list[tuple[str, int | None]] = []
        self.heard: dict[str, Then] = {}
        self.soon: deque[Callable[[], None]] = deque()
        self.room = 1_000_000
        self.polls = StepPolls(QUEUES, self)

    def ask(self, step: str, *, wait_s: int | None, share: int, then: Then) -> None:
        self.asked.append((step, wait_s))
        if wait_s is None and not self.waiting[step]:
            assert step not in self.heard, "two long polls of one step"
            self.heard[step] = then
            return
        count = min(1, self.waiting[step])
        self.waiting[step] -= count
        self.soon.append(lambda: then(count))

    def has_room(self) -> bool:
        return self.room > 0

    def go_on(self) -> None:
        self.room -= 1
        if self.room > 0:
            self.soon.append(self.polls.look)

    def pause(self, step: str, then: Callable[[], None]) -> None:
        self.soon.append(then)

    def run(self) -> None:
        while self.soon:
            self.soon.popleft()()

    def end(self, step: str, count: int) -> None:
        self.heard.pop(step)(count)
        self.run()


@pytest.fixture
def queues() -> Queues:
    found = Queues()
    found.soon.append(found.polls.look)
    return found


def test_when_nothing_waits_each_step_is_listened_to_with_one_poll(queues: Queues) -> None:
    queues.run()
    assert queues.asked == [*((each, 0) for each in QUEUES), *((each, None) for each in QUEUES)]
    queues.asked.clear()
    queues.end("orders-6", 0)
    assert queues.asked == [("orders-6", None)], "what ends without a message is begun again, and nothing else"


def test_everything_is_taken_the_highest_soonest(queues: Queues) -> None:
    queues.waiting.update(dict.fromkeys(QUEUES, 50))
    queues.run()
    assert not +queues.waiting
    order = [step for step, wait_s in queues.asked if wait_s == 0]
    places = [order.index(each) for each in QUEUES]
    assert places == sorted(places)
    assert order[:3] == ["orders"] * 3
    assert set(queues.heard) == set(QUEUES), "all are listened to in the end"


def test_what_is_heard_begins_a_look(queues: Queues) -> None:
    queues.run()
    queues.asked.clear()
    queues.waiting["orders-9"] = 3
    queues.end("orders-9", 1)
    assert queues.asked == [*[("orders-9", 0)] * 4, ("orders-9", None)], "the others are listened to meanwhile"
    assert not +queues.waiting


def test_long_polls_that_end_while_there_is_work_are_not_begun_again(queues: Queues) -> None:
    """A worker that is busy would take what another could begin."""
    queues.run()
    queues.room = 1
    queues.end("orders-9", 1)  # the prefetch is full
    queues.asked.clear()
    for each in ("orders", "orders-3", "orders-6"):
        queues.end(each, 0)
    assert queues.asked == []
    assert queues.heard == {}


def test_nothing_is_listened_to_while_another_queue_fills_the_prefetch(queues: Queues) -> None:
    queues.run()
    queues.room = 0
    queues.asked.clear()
    for each in QUEUES:
        queues.end(each, 0)
    assert queues.asked == []
    queues.room = 5
    queues.soon.append(queues.polls.look)  # as an acknowledgement does
    queues.run()
    assert set(queues.heard) == set(QUEUES)
