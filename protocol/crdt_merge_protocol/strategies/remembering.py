"""Answers that a strategy gives again for every block of a tensor, kept while one merge is under way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .contract import MergeContext

F = TypeVar("F", bound=Callable[..., Any])


def remembered(method: F) -> F:
    """Have a method of (context, hashable arguments) answer each question once per context.

    What it returns is shared: nobody may write to it. The answers for one context are kept until it is asked
    about another.
    """
    latest: list[tuple[MergeContext | None, dict[Any, Any]]] = [(None, {})]

    @functools.wraps(method)
    def answer(self: Any, context: MergeContext, *arguments: Any) -> Any:
        owner, answers = latest[0]
        if owner is not context:
            answers = {}
            latest[0] = context, answers
        question = self, *arguments
        if question not in answers:
            answers[question] = method(self, context, *arguments)
        return answers[question]

    return cast(F, answer)
