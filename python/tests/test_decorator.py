"""`locked`: functions, methods, coroutines, generators, and names from arguments."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from database_locks import LockConfigError, Locks, LockTimeout, connect, locked
from support import in_thread


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


def held_names(locks: Locks) -> list[str]:
    return [lock["name"] for lock in locks.list() if lock["state"] == "held"]


def test_a_function_runs_under_the_lock_of_its_name(here: Locks) -> None:
    @here.locked
    def job(a: int, *, b: int) -> tuple[int, list[str]]:
        """What it does."""
        return a + b, held_names(here)

    own = "test_a_function_runs_under_the_lock_of_its_name.<locals>.job"
    assert job(1, b=2) == (3, [f"{__name__}.{own}"])
    assert held_names(here) == []
    assert (job.__name__, job.__doc__) == ("job", "What it does.")


@pytest.mark.parametrize(
    "decorate",
    [
        lambda locks: locks.locked("other"),
        lambda locks: locks.locked(lock_name="other"),
        lambda locks: locks.locked("other", timeout=5, lock_ttl=60),
        lambda locks: locks.lock("other"),
    ],
)
def test_the_decorator_takes_a_name(here: Locks, decorate: Callable[[Locks], Any]) -> None:
    @decorate(here)
    def job() -> list[str]:
        return held_names(here)

    assert job() == ["other"]


def test_the_decorator_may_be_called_without_arguments(here: Locks) -> None:
    for decorator in (here.locked(), here.lock()):

        @decorator
        def job() -> list[str]:
            return held_names(here)

        assert job()[0].endswith("test_the_decorator_may_be_called_without_arguments.<locals>.job")


def test_methods_of_all_kinds_can_be_locked(here: Locks) -> None:
    class Job:
        @here.locked
        def method(self) -> list[str]:
            return held_names(here)

        @classmethod
        @here.locked
        def below(cls) -> list[str]:
            return held_names(here)

        @here.locked
        @classmethod
        def above(cls) -> tuple[type, list[str]]:
            return cls, held_names(here)

        @here.locked
        @staticmethod
        def static() -> list[str]:
            return held_names(here)

    class Other:
        @here.locked
        def method(self) -> list[str]:
            return held_names(here)

    prefix = f"{__name__}.test_methods_of_all_kinds_can_be_locked.<locals>"
    assert Job().method() == [f"{prefix}.Job.method"]
    assert Other().method() == [f"{prefix}.Other.method"]
    assert Job.below() == [f"{prefix}.Job.below"]
    assert Job().above() == (Job, [f"{prefix}.Job.above"])
    assert Job.static() == [f"{prefix}.Job.static"]


def test_a_coroutine_holds_the_lock_until_its_end(here: Locks) -> None:
    @here.locked("job")
    async def job() -> list[str]:
        await asyncio.sleep(0.01)
        return [lock["name"] for lock in await here.alist() if lock["state"] == "held"]

    assert asyncio.iscoroutinefunction(job)
    assert asyncio.run(job()) == ["job"]
    assert held_names(here) == []


def test_a_generator_holds_the_lock_while_it_runs(here: Locks) -> None:
    @here.locked("job")
    def job(most: int) -> Iterator[tuple[int, list[str]]]:
        for i in range(most):
            sent = yield i, held_names(here)
            if sent:
                return sent

    steps = job(5)
    assert held_names(here) == []
    assert next(steps) == (0, ["job"])
    assert held_names(here) == ["job"]
    with pytest.raises(StopIteration) as ended:
        steps.send("enough")  # type: ignore[attr-defined]
    assert ended.value.value == "enough"
    assert held_names(here) == []

    half = job(5)
    next(half)
    half.close()  # type: ignore[attr-defined]
    assert held_names(here) == []

    forgotten = job(5)
    next(forgotten)
    del forgotten
    here.drain()
    assert held_names(here) == []


def test_an_exception_thrown_into_a_generator_arrives(here: Locks) -> None:
    @here.locked("job")
    def job() -> Iterator[str]:
        try:
            yield "first"
        except ValueError as error:
            yield str(error)

    steps = job()
    next(steps)
    assert steps.throw(ValueError("thrown")) == "thrown"  # type: ignore[attr-defined]
    steps.close()  # type: ignore[attr-defined]


def test_a_generator_may_go_on_in_another_thread(here: Locks) -> None:
    @here.locked("job")
    def job() -> Iterator[int]:
        yield 1
        yield 2

    steps = job()
    assert next(steps) == 1
    assert in_thread(lambda: list(steps)) == [2]
    assert held_names(here) == []


def test_an_asynchronous_generator_holds_the_lock_while_it_runs(here: Locks) -> None:
    @here.locked("job")
    async def job() -> AsyncIterator[list[str]]:
        yield [lock["name"] for lock in await here.alist() if lock["state"] == "held"]

    async def main() -> None:
        async for names in job():
            assert names == ["job"]

    asyncio.run(main())
    assert held_names(here) == []


def test_a_busy_function_may_be_skipped(here: Locks) -> None:
    calls = []

    @here.locked("job", on_busy="skip")
    def job() -> str:
        calls.append(1)
        return "ran"

    @here.locked("job", on_busy="skip")
    async def task() -> str:
        calls.append(2)
        return "ran"

    with here.lock("job"):
        assert in_thread(job) is None
        assert in_thread(lambda: asyncio.run(task())) is None
    assert calls == []
    assert job() == "ran"
    assert asyncio.run(task()) == "ran"


def test_a_busy_function_may_raise(here: Locks) -> None:
    @here.locked("job", on_busy="raise")
    def job() -> None:
        pytest.fail("ran")

    with here.lock("job"), pytest.raises(LockTimeout):
        in_thread(job)


def test_recursion_nests(here: Locks) -> None:
    @here.locked("job")
    def job(depth: int) -> list[str]:
        return job(depth - 1) if depth else held_names(here)

    assert job(5) == ["job"]
    assert held_names(here) == []


def test_one_decorated_function_in_many_threads_runs_once_at_a_time(here: Locks) -> None:
    inside, most = [], []

    @here.locked
    def job() -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    threads = [threading.Thread(target=lambda: [job() for _ in range(20)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 100


def test_a_partial_takes_the_name_of_its_function(here: Locks) -> None:
    def job(n: int) -> list[str]:
        return held_names(here)

    assert here.locked(functools.partial(job, 1))()[0].endswith("<locals>.job")


def test_other_classes_are_refused(here: Locks) -> None:
    with pytest.raises(NotImplementedError, match="only django BaseCommand subclasses"):
        here.locked(type("Other", (), {}))
    with pytest.raises(TypeError, match="cannot"):
        here.locked(property(lambda self: None))


def test_two_names_and_unknown_arguments_are_refused_when_decorating() -> None:
    with pytest.raises(LockConfigError, match="twice"):
        locked("a", lock_name="b")
    with pytest.raises(TypeError, match="tiemout"):
        locked("a", tiemout=5)
    with pytest.raises(LockConfigError, match="on_busy"):
        locked("a", on_busy="sometimes")


def test_a_name_may_have_fields_from_the_arguments(here: Locks) -> None:
    @here.locked("tenant-{tenant_id}-{kind:>3}")
    def job(tenant_id: int, kind: str = "x", **more: Any) -> list[str]:
        return held_names(here)

    assert job(5) == ["tenant-5-  x"]
    assert job(kind="abc", tenant_id=7) == ["tenant-7-abc"]

    class Jobs:
        region = "eu"

        @here.locked("{self.region}/{n}")
        def method(self, n: int) -> list[str]:
            return held_names(here)

        @here.locked("{n}")
        async def task(self, n: int) -> list[str]:
            return [row["name"] for row in await here.alist() if row["state"] == "held"]

        @here.lock("{n}")
        def steps(self, n: int) -> Iterator[list[str]]:
            yield held_names(here)

    assert Jobs().method(1) == ["eu/1"]
    assert asyncio.run(Jobs().task(2)) == ["2"]
    assert list(Jobs().steps(3)) == [["3"]]

    @here.locked("{{braces}}")
    def braces() -> list[str]:
        return held_names(here)

    assert braces() == ["{braces}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tenant-{tenant}", "job has no parameter 'tenant': use one of tenant_id"),
        ("tenant-{}", "has no parameter ''"),
        ("tenant-{0}", "has no parameter '0'"),
        ("tenant-{tenant_id", "cannot be parsed"),
    ],
)
def test_a_field_that_is_no_parameter_is_refused_when_decorating(
    here: Locks, name: str, message: str
) -> None:
    with pytest.raises(LockConfigError, match=message):

        @here.locked(name)
        def job(tenant_id: int) -> None:
            pytest.fail("ran")


def test_an_invalid_name_from_arguments_is_refused_at_the_call(here: Locks) -> None:
    @here.locked("{name}")
    def job(name: str) -> None:
        pytest.fail("ran")

    for name, message in (("", "empty"), ("x" * 256, "256 characters"), ("a\0", "NUL")):
        with pytest.raises(LockConfigError, match=message):
            job(name)

    @here.locked("{missing}")
    def open_ended(**fields: Any) -> list[str]:
        return held_names(here)

    assert open_ended(missing=1) == ["1"]
    with pytest.raises(LockConfigError, match="missing"):
        open_ended()


def test_a_name_may_come_from_a_function_of_the_arguments(here: Locks) -> None:
    @here.locked(lock_name=lambda a, b=2: f"{a + b}", timeout=5)
    def job(a: int, b: int = 2) -> list[str]:
        return held_names(here)

    assert job(1) == ["3"]
    assert job(1, b=5) == ["6"]
    with pytest.raises(LockConfigError, match="a lambda has no name"):
        here.locked(lambda tenant_id: f"tenant-{tenant_id}")
    assert here.locked("named")(lambda: held_names(here))() == ["named"]


def test_each_class_that_a_method_decorator_decorates_has_a_lock_of_its_own(here: Locks) -> None:
    from django.utils.decorators import method_decorator

    class View:
        def dispatch(self) -> list[str]:
            return held_names(here)

    @method_decorator(here.locked, name="dispatch")
    class First(View):
        pass

    @method_decorator(here.locked, name="dispatch")
    class Second(View):
        pass

    class Below(First):
        def dispatch(self) -> list[str]:
            return super().dispatch()

    class Own(View):
        @method_decorator(here.locked)
        def dispatch(self) -> list[str]:
            return held_names(here)

    prefix = "test_each_class_that_a_method_decorator_decorates_has_a_lock_of_its_own.<locals>"
    assert First().dispatch() == [f"{__name__}.{prefix}.First"]
    assert Second().dispatch() == [f"{__name__}.{prefix}.Second"]
    assert Below().dispatch() == [f"{__name__}.{prefix}.First"]
    assert Own().dispatch() == [f"{__name__}.{prefix}.Own.dispatch"]
