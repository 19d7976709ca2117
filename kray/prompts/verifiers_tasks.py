"""Prompts from a taskset of the verifiers library; the environment `verifiers` plays them.

A prompt holds what the task's first model call would: its system prompt, with a description of its tools, and its messages.
Its metadata says which task it is.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from kray.config.prompts_schema import SourceConfig
from kray.errors import DataError
from kray.records import Prompt
from kray.text import well_formed

# How tools are described to the policy, which calls them in the form that the templates of Qwen and Hermes teach.
TOOLS = """You may call these tools. Each line describes one:
<tools>
{tools}
</tools>
Call a tool by writing its name and its arguments as a JSON object between <tool_call> and </tool_call>:
<tool_call>
{{"name": "the tool's name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def verifiers_prompts(source: SourceConfig, verifier: str) -> list[Prompt]:
    """Return the tasks of an installed taskset as prompts.

    Args:
        source: path (the taskset's id), tasks (its configuration), subset (a range of tasks, such as 0:1000), limit, size (of a
            taskset without an end), answer_field and kind_field (fields of a task's data), chat.
        verifier: Verifier of the prompts, for environments that give no reward.

    Raises:
        DataError: verifiers or the taskset is not installed, or a task cannot be a prompt.
    """
    try:
        from verifiers.v1.utils.loaders import load_taskset, taskset_config_type
    except ImportError as error:
        raise DataError(f'kind verifiers: {error}: pip install "kray[verifiers]"') from None
    try:
        config = taskset_config_type(source.path).model_validate({"id": source.path, **source.tasks})
        taskset = load_taskset(config)
    except Exception as error:
        hint = (
            " A module in a folder is found with PYTHONPATH=FOLDER." if isinstance(error, ModuleNotFoundError) else ""
        )
        raise DataError(f"verifiers taskset {source.path}: {type(error).__name__}: {error}{hint}") from error
    first, last = _range(source)
    most = last if last is not None else None if taskset.bounded else first + source.size
    tools = _tools(taskset.toolsets(config))
    prompts = []
    for task in itertools.islice(taskset, first, most):
        prompts.append(_prompt(task, source, verifier, {**tools, **_tools(task.toolsets(task.config))}))
        if len(prompts) == source.limit:
            break
    return prompts


def _prompt(task: Any, source: SourceConfig, verifier: str, tools: Mapping[str, str]) -> Prompt:
    data, place = task.data, f"{source.path}:{task.data.idx}"
    system = "\n\n".join(
        filter(None, [data.system_prompt, TOOLS.format(tools="\n".join(tools.values())) if tools else ""])
    )
    messages = [{"role": "system", "content": system}] if system else []
    given = [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else data.prompt or []
    for message in given:
        role, content = (
            (message["role"], message["content"]) if isinstance(message, dict) else (message.role, message.content)
        )
        if not isinstance(content, str):
            raise DataError(f"{place}: a message of the task's prompt holds more than text, or is a call of a tool")
        if content != well_formed(content):
            raise DataError(f"{place}: a message of the task's prompt holds half a character")
        messages.append({"role": role, "content": content})
    if not messages:
        raise DataError(f"{place}: the task has neither prompt nor system prompt, so that there is nothing to plan by")
    if not source.chat and tools:
        raise DataError(f"{place}: the task has tools, which take chat messages: chat must be true")
    answer = getattr(data, source.answer_field, None) if source.answer_field else None
    # What the environment needs to find the task again, and what of the conversation the policy has read.
    found = {"taskset": source.path, "config": dict(source.tasks), "idx": data.idx, "key": task.key}
    metadata: dict[str, Any] = {"verifiers": {**found, "messages": messages}}
    if source.kind_field:
        metadata["kind"] = str(getattr(data, source.kind_field, ""))
    return Prompt(
        id=str(getattr(data, source.id_field)) if source.id_field else place,
        answer=str(answer) if answer not in (None, "") else place,
        verifier=verifier,
        source=source.path,
        text=None if source.chat else "\n\n".join(message["content"] for message in messages),
        messages=tuple(messages) if source.chat else None,
        metadata=metadata,
    )


def _range(source: SourceConfig) -> tuple[int, int | None]:
    """Return subset as the first task and the one after the last; None for no end."""
    begin, colon, end = source.subset.partition(":")
    try:
        first, last = int(begin or 0), int(end) if end else None
    except ValueError:
        first, last = -1, None
    if first < 0 or (last is not None and last <= first) or (source.subset and not colon):
        raise DataError(f'subset "{source.subset}": write the range of tasks as first:end, such as 0:1000')
    return first, last


def _tools(toolsets: Iterable[Any]) -> dict[str, str]:
    """Return the tools of servers, which are not started: name -> JSON of its description."""
    from mcp.server.mcpserver import MCPServer

    found: dict[str, str] = {}
    for toolset in toolsets:
        if toolset.config.url:
            raise DataError(f"tool server {toolset.server_name}: tools behind a url cannot be described to the policy")
        name = toolset.server_name
        server = MCPServer(name or "tools")
        toolset.register(server)
        for tool in asyncio.run(server.list_tools()):
            full = f"{name}_{tool.name}" if name else tool.name
            description = {"name": full, "description": tool.description or "", "parameters": tool.input_schema}
            found[full] = json.dumps({"type": "function", "function": description}, ensure_ascii=False)
    return found
