"""How a file of golden vectors is laid out: one step a line, so that a change of one step is a change of one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any


def laid_out(schema: int, balancer: str, groups: Sequence[dict[str, Any]]) -> str:
    """The JSON text of one balancer's groups. The last entry of a group has its steps: ``vectors``, or ``sequences`` of steps."""
    return "\n".join(
        [
            json.dumps({"schema": schema, "balancer": balancer})[:-1] + ', "groups": [',
            *_separated(_group(group) for group in groups),
            "]}\n",
        ]
    )


def _group(group: dict[str, Any]) -> list[str]:
    *head, (key, rows) = group.items()
    steps = [[json.dumps(row)] if key == "vectors" else ["[", *_separated([json.dumps(step)] for step in row), "]"] for row in rows]
    return [f'{json.dumps(dict(head))[:-1]}, "{key}": [', *_separated(steps), "]}"]


def _separated(blocks: Sequence[list[str]] | Iterator[list[str]]) -> Iterator[str]:
    """The lines of all blocks, with a comma after each block but the last."""
    before: list[str] = []
    for block in blocks:
        if before:
            yield from (*before[:-1], before[-1] + ",")
        before = block
    yield from before
