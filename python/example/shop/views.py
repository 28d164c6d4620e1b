import asyncio

from django.http import HttpRequest, HttpResponse

from database_locks import LockTimeout, lock


async def recount(request: HttpRequest) -> HttpResponse:
    """Count the stock, one request at a time."""
    try:
        async with lock("recount", timeout=2, meta={"asked by": request.META["REMOTE_ADDR"]}):
            await asyncio.sleep(5)  # the work
    except LockTimeout as busy:
        return HttpResponse(f"Another request is counting: {busy}\n", status=409)
    return HttpResponse("Counted.\n")
