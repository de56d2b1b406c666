"""Questions of many visitors, answered by one thread: together where they are of one step."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from undo_jax.demo.ask import DemoQuestion

WAITING = 256  # the most questions that wait
REMEMBERED = 2048  # the most answers that are cached

Key = tuple[int, DemoQuestion]  # the step of the attack, and the question


class BusyError(Exception):
    """Too many questions are waiting."""


class Queue:
    """Answers questions in the order in which they come, at most `rows` of one step at a time.

    Equal questions are computed once. All methods are called in one event loop.

    Args:
        compute: returns an answer for each of its questions at a step; it runs in a thread.
        rows: the most questions at a time.
        waiting: the most questions that wait.
        remembered: the most answers that are cached.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[DemoQuestion], int], Sequence[Any]],
        rows: int,
        waiting: int = WAITING,
        remembered: int = REMEMBERED,
    ):
        self._compute, self._rows = compute, rows
        self._waiting, self._remembered = waiting, remembered
        self._cache: OrderedDict[Key, Any] = OrderedDict()
        self._futures: OrderedDict[Key, asyncio.Future] = OrderedDict()  # of unanswered questions
        self._not_empty = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "demo")
        self._task: asyncio.Task | None = None

    async def answer(self, question: DemoQuestion, step: int) -> Any:
        """Returns the answer. Raises BusyError if too many wait, and what `compute` raises."""
        key = step, question
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if key not in self._futures:
            if len(self._futures) >= self._waiting:
                raise BusyError
            self._futures[key] = asyncio.get_running_loop().create_future()
            self._not_empty.set()
        return await asyncio.shield(self._futures[key])  # others may wait for it, too

    def start(self) -> None:
        """Begins to answer."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stops answering; what is being computed is lost."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for future in self._futures.values():
            future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._not_empty.wait()
            if not self._futures:
                self._not_empty.clear()
                continue
            step, _ = next(iter(self._futures))  # of the question that has waited longest
            keys = [key for key in self._futures if key[0] == step][: self._rows]
            questions = [question for _, question in keys]
            try:
                answers = await loop.run_in_executor(self._thread, self._compute, questions, step)
            except Exception as error:
                for key in keys:
                    future = self._futures.pop(key)
                    future.set_exception(error)
                    future.exception()  # retrieved: its visitor may have left
                continue
            for key, answer in zip(keys, answers, strict=True):
                self._cache[key] = answer
                self._futures.pop(key).set_result(answer)
            while len(self._cache) > self._remembered:
                self._cache.popitem(last=False)
