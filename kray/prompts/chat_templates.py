"""What a chat template reads: its variables, and the messages that it passes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kray.config.prompts_schema import SourceConfig
from kray.errors import ConfigError
from kray.prompts.tokenize import messages_of, render_chat
from kray.records import Prompt

# What transformers gives every template besides the special tokens of the tokenizer.
SUPPLIED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
LOOKED_AT = 1000  # prompts of a source whose messages are searched for in what the template makes of them
ASKING = (
    "system",
    "developer",
    "user",
)  # roles whose messages a template may not leave out; old answers it may shorten


def check_template(source: SourceConfig, tokenizer: Any, key: str) -> None:
    """Refuse names in chat_template_kwargs that have no effect, or that transformers sets itself.

    Args:
        source: Whose chat_template_kwargs are looked at.
        tokenizer: With the template.
        key: Of the source in the configuration, for messages.

    Raises:
        ConfigError: Names the variable.
    """
    if not source.chat_template_kwargs:
        return
    where = f"{key}.chat_template_kwargs"
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"{where}: the tokenizer has no chat template that could read them")
    supplied = {*SUPPLIED, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *tokenizer.special_tokens_map}
    known = template_variables(tokenizer, where) - supplied
    for name in map(str, source.chat_template_kwargs):
        if name in supplied:
            raise ConfigError(f"{where}.{name}: transformers sets it itself; only other variables can be given")
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{where}.{name}: the tokenizer's chat template has no such variable; there are: {there}")


def template_variables(tokenizer: Any, where: str) -> set[str]:
    """The variables that the tokenizer's chat template reads and does not set before. where: the key, for messages.

    Raises:
        ConfigError: The template cannot be parsed.
    """
    from jinja2 import Environment, TemplateError, meta, nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}, as transformers knows it; what is inside counts."""

        tags = {"generation"}  # noqa: RUF012 -- as jinja declares it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    environment = Environment(extensions=[Generation, "jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True)
    try:
        return meta.find_undeclared_variables(environment.parse(tokenizer.get_chat_template()))
    except (TemplateError, ValueError) as error:
        raise ConfigError(f"{where}: the tokenizer's chat template cannot be read: {error}") from error


def lost_messages(prompts: Sequence[Prompt], tokenizer: Any, source: SourceConfig) -> dict[str, tuple[int, int, str]]:
    """Which messages the chat template leaves out or cuts.

    Returns:
        For each role whose text is not found whole: (in how many prompts, of how many looked at, the first one's id). The
        longest prompt is among those looked at.
    """
    step = -(-len(prompts) // LOOKED_AT) if prompts else 1
    longest = max(prompts, key=lambda prompt: sum(len(m["content"]) for m in messages_of(prompt, source)), default=None)
    chosen = [p for i, p in enumerate(prompts) if i % step == 0 or p is longest]
    lost: dict[str, list[str]] = {}
    for prompt in chosen:
        messages = messages_of(prompt, source)
        rendered = render_chat(messages, tokenizer, prompt.id, source.chat_template_kwargs)
        missing = {m["role"] for m in messages if m["role"] in ASKING and m["content"].strip() not in rendered}
        for role in missing:
            lost.setdefault(role, []).append(prompt.id)
    return {role: (len(ids), len(chosen), ids[0]) for role, ids in sorted(lost.items())}
