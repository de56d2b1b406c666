"""Questions of many visitors, answered by one thread: together where they are of one step."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from undo_jax.demo.ask import Question

WAITING = 256  # questions that wait at most
REMEMBERED = 2048  # answers that are kept

Key = tuple[int, Question]  # the step, and what is asked then


class BusyError(Exception):
    """Too many questions are waiting."""


class Queue:
    """Answers questions in the order in which they come, at most `rows` of one step at a time.

    `compute(questions, step)` runs in a thread of its own, and gives an answer for each. Equal
    questions are computed once. All methods are called in one event loop.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Question], int], Sequence[Any]],
        rows: int,
        waiting: int = WAITING,
        remembered: int = REMEMBERED,
    ):
        self._compute, self._rows = compute, rows
        self._most, self._remembered = waiting, remembered
        self._known: OrderedDict[Key, Any] = OrderedDict()
        self._asked: OrderedDict[Key, asyncio.Future] = OrderedDict()  # until it is answered
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "demo")
        self._task: asyncio.Task | None = None

    async def answer(self, question: Question, step: int) -> Any:
        """The answer. Raises BusyError where too many wait, and what `compute` raises."""
        key = step, question
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if key not in self._asked:
            if len(self._asked) >= self._most:
                raise BusyError
            self._asked[key] = asyncio.get_running_loop().create_future()
            self._some.set()
        return await asyncio.shield(self._asked[key])  # others may wait for it, too

    def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answer no more; what is being computed is lost."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for future in self._asked.values():
            future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            await self._some.wait()
            keys = self._next()
            if not keys:
                self._some.clear()
                continue
            step, questions = keys[0][0], [question for _, question in keys]
            try:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self._thread, self._compute, questions, step)
            except Exception as error:
                self._settle(keys, error=error)
            else:
                self._settle(keys, found)

    def _next(self) -> list[Key]:
        """The longest waiting question, and others of its step."""
        step = next((at for at, _ in self._asked), None)
        return [key for key in self._asked if key[0] == step][: self._rows]

    def _settle(
        self, keys: Sequence[Key], found: Sequence[Any] = (), error: Exception | None = None
    ) -> None:
        for i, key in enumerate(keys):
            future = self._asked.pop(key)
            if error is not None:
                future.set_exception(error)
                future.exception()  # nobody may be left to be told
                continue
            self._known[key] = found[i]
            future.set_result(found[i])
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)
