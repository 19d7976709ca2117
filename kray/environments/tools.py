"""Tool calls as chat models write them: functions are called with JSON arguments, results come back as messages.

    <tool_call>
    {"name": "calculate", "arguments": {"expression": "3 * (4 + 5)"}}
    </tool_call>

is what Qwen's and Hermes's templates teach. How the tools are described to the policy is the prompt's business
(prompts.train.system).
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
    """Done when the policy's turn holds no call; the prompt's verifier judges that turn.

    tools: functions as pkg.module:function, known to the policy by the function's name; text in, anything out, which is
    answered as text. A call that cannot be read, or that fails, is answered with the reason. role: of the answers.
    characters: of an answer are kept.
    """

    stops: tuple[str, ...] = ()

    def __init__(self, tools: Sequence[str], role: str = "tool", characters: int = 2000):
        self.paths = {path.rpartition(":")[2]: path for path in tools}
        self.role, self.characters = role, characters
        for path in self.paths.values():
            load_object(path)

    def reset(self, prompt: Prompt, seed: int) -> str:
        return ""

    def step(self, action: str) -> tuple[list[dict[str, str]], bool]:
        calls = _CALL.findall(action)
        return [{"role": self.role, "content": self._answer(call)[: self.characters]} for call in calls], not calls

    def reward(self) -> None:
        return None

    def _answer(self, text: str) -> str:
        try:
            call: Any = json.loads(text)
            name, arguments = call["name"], call.get("arguments") or {}
            if name not in self.paths:
                return f"error: no tool {name!r:.60}; there are {', '.join(self.paths)}"
            return str(load_object(self.paths[name])(**arguments))
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"
