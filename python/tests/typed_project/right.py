"""A small project that uses locks in every way; `assert_type` is what a checker has to see."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from django.core.management.base import BaseCommand

from database_locks import Held, Term, connect, is_locked, leader, lock, locked, semaphore


@locked
def plain(a: int, *, b: str = "") -> str:
    return b * a


@locked("name")
def named(a: int) -> int:
    return a


@locked(timeout=5, lock_ttl=None, on_busy="raise")
async def task(a: int) -> int:
    return a


@locked("skip", on_busy="skip")
def skipped(a: int) -> int:
    return a


@locked("skip", on_busy="skip")
async def askipped(a: int) -> int:
    return a


@locked("gen-{n}")
def gen(n: int) -> Iterator[int]:
    yield n


@locked
async def agen(n: int) -> AsyncIterator[int]:
    yield n


class Job:
    @locked
    def method(self, a: int) -> int:
        return a

    @classmethod
    @locked("cls")
    def build(cls, a: int) -> Job:
        return cls()

    @lock("other")
    def other(self) -> None: ...


@locked
class Command(BaseCommand):
    def handle(self, *args: object, **options: object) -> None:
        plain(1)


assert_type(plain(1, b="x"), str)
assert_type(named(1), int)
assert_type(skipped(1), int | None)
assert_type(Job().method(1), int)
assert_type(Job.build(1), Job)
assert_type(Command(), Command)


def returns() -> int:
    with lock("a"):
        return 1


async def areturns() -> int:
    async with lock("a") as held:
        assert_type(held, Held)
        assert_type(await task(1), int)
        assert_type(await askipped(1), int | None)
        async for n in agen(1):
            assert_type(n, int)
        return 1


def tries() -> None:
    with lock("a").try_() as held:
        assert_type(held, Held | None)
    locks = connect("memory:")
    with locks.lock("a", timeout=5) as mine:
        assert_type(mine.token, int | None)
        mine.release()
    assert_type(locks.is_locked("a"), bool)
    assert_type(is_locked("a"), bool)
    it = locks.lock("b").acquire()
    it.release()

    with locks.lock("a", shared=True) as reader:
        assert_type(reader.shared, bool)
        assert_type(locks.show_shared("a"), list[dict[str, Any]])
    with lock("a", on_busy="raise", shared=True) as mine:
        mine.downgrade()

    @locked("a", shared=True)
    def read(n: int) -> str:
        return str(n)

    assert_type(read(1), str)

    with locks.semaphore("api", 3, timeout=5) as permit:
        assert_type(permit.slot, int | None)
    with semaphore("api", 3).try_() as attempt:
        assert_type(attempt, Held | None)

    @semaphore("api {n}", 2, on_busy="raise")
    def limited(n: int) -> str:
        return str(n)

    assert_type(limited(1), str)

    @locks.locked("x", timeout=3)
    def inner(a: str) -> str:
        return a

    assert_type(inner("a"), str)
    for i in gen(3):
        assert_type(i, int)


def lead(term: Term) -> int:
    assert_type(term.token, int | None)
    assert_type(term.is_leader, bool)
    return 1


async def alead(term: Term) -> str:
    return ""


async def elect() -> None:
    assert_type(leader("name").run(lead), int)
    assert_type(await connect("memory:").leader("name", lock_ttl=5).arun(alead), str)
