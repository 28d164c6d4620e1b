"""What a type checker has to find: each line ends with the code of its error."""

from database_locks import connect, lock, locked

lock("a", on_busy="fail")  # [arg-type]
lock("a", until="comit")  # [arg-type]
lock("a", timeot=3)  # [call-arg]
lock("a", shared="yes")  # [arg-type]
locked("a", shared="yes")  # [call-overload]
locked("a", timeot=3)  # [call-overload]
locked("a", on_busy="fail")  # [call-overload]
locked(timeout="5")  # [call-overload]


@locked("x")
def job(a: int) -> int:
    return a


job("a")  # [arg-type]
job(1).upper()  # [attr-defined]
connect("memory:").lock("a", timeot=3)  # [call-arg]
connect("memory:").locked("a", on_busy="no")  # [call-overload]
