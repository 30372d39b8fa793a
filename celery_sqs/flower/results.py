"""Flower's REST API of results, where a result comes once, to the process that asked.

Flower sends a task, drops what Celery gave it for that, and asks by the task's id later. Our backend forgets a result
that nobody holds any more. So the last ones are held here.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any

from celery.exceptions import TimeoutError as CeleryTimeoutError
from flower.api import tasks

MOST_HELD = 1000


class Held:
    """The results of the tasks that were sent last, by the tasks' ids."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, Any] = OrderedDict()

    def add(self, result: Any) -> None:
        self._results[result.id] = result
        while len(self._results) > MOST_HELD:
            self._results.popitem(last=False)

    def get(self, task_id: str) -> Any | None:
        return self._results.get(task_id)


class _Holding:
    application: Any

    async def run_blocking(self, operation: str, *args: Any, **named: Any) -> Any:
        answer = await super().run_blocking(operation, *args, **named)  # type: ignore[misc]
        if operation == "task.publish":
            self.application.results.add(answer)
        return answer


class TaskAsyncApply(_Holding, tasks.TaskAsyncApply):
    """Sends a task and holds its result."""


class TaskSend(_Holding, tasks.TaskSend):
    """Sends a task by its name and holds its result."""


class TaskResult(tasks.TaskResult):
    """The result of a task that this Flower sent; what the events tell of one that somebody else did."""

    def read_result(self, result: Any, timeout: float | None) -> Any:
        result.backend = None  # or the backend would forget what comes for it
        held = self.application.results.get(result.id)
        if held is None:
            return self._seen(result.id)
        if timeout:
            with suppress(CeleryTimeoutError):
                held.get(timeout=timeout, propagate=False)
        return super().read_result(held, None)

    def _seen(self, task_id: str) -> dict[str, Any]:
        task = self.application.events.state.tasks.get(task_id)
        answer = {"task-id": task_id, "state": task.state if task else "PENDING"}
        return {**answer, "result": task.result} if task and task.ready else answer


HANDLERS: list[Any] = [
    (r"/api/task/async-apply/(.+)", TaskAsyncApply),
    (r"/api/task/send-task/(.+)", TaskSend),
    (r"/api/task/result/(.+)", TaskResult),
]
