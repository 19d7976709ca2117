"""Tool calls as chat models write them: functions are called with JSON arguments and results are returned as messages.

The format is the one that the chat templates of Qwen and Hermes describe to the model:

    <tool_call>
    {"name": "calculate", "arguments": {"expression": "3 * (4 + 5)"}}
    </tool_call>

The prompts describe the tools to the policy (prompts.train.system).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from kray.environments.registry import load_object
from kray.records import Prompt

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class Tools:
    """Calls functions for the policy; done when a turn holds no call, which the prompt's verifier then scores.

    A call that cannot be parsed, or that fails, is answered with the reason.
    """

    stops: tuple[str, ...] = ()

    def __init__(self, tools: Sequence[str], role: str = "tool", characters: int = 2000):
        """Create an environment with these tools.

        Args:
            tools: Functions as pkg.module:function, known to the policy by the function's name; what they return is
                converted to text.
            role: Role of the messages with the results.
            characters: Characters of a result that are kept.

        Raises:
            ValueError: A function cannot be imported.
        """
        self.paths = {path.rpartition(":")[2]: path for path in tools}
        self.role, self.characters = role, characters
        for path in self.paths.values():
            load_object(path)

    def reset(self, prompt: Prompt, seed: int) -> str:
        """Add nothing to the prompt."""
        return ""

    def step(self, action: str) -> tuple[list[dict[str, str]], bool]:
        """Run the calls of the turn in order and return one message each; a turn without calls is the last."""
        calls = _CALL.findall(action)
        return [{"role": self.role, "content": self._result(call)[: self.characters]} for call in calls], not calls

    def reward(self) -> None:
        """Leave the reward to the prompt's verifier."""
        return None

    def _result(self, text: str) -> str:
        try:
            call: Any = json.loads(text)
            name, arguments = call["name"], call.get("arguments") or {}
            if name not in self.paths:
                return f"error: no tool {name!r:.60}; there are {', '.join(self.paths)}"
            return str(load_object(self.paths[name])(**arguments))
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"
