"""Check a tokenizer's chat template: the variables that it reads, and the messages that it renders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kray.config.prompts_schema import SourceConfig
from kray.errors import ConfigError
from kray.prompts.tokenize import messages_of, render_chat
from kray.records import Prompt

# Variables that transformers passes to every template, besides the tokenizer's special tokens.
SUPPLIED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
# Prompts of a source that are rendered to check that their messages are not lost.
SAMPLE = 1000
# Roles whose messages a template must render; it may shorten old answers.
REQUIRED_ROLES = ("system", "developer", "user")


def check_template(source: SourceConfig, tokenizer: Any, key: str) -> None:
    """Refuse names in chat_template_kwargs that have no effect, or that transformers sets itself.

    Args:
        source: The source with the chat_template_kwargs.
        tokenizer: The tokenizer with the template.
        key: Configuration key of the source, for messages.

    Raises:
        ConfigError: A variable has no effect or is reserved; the message names it.
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
    """Return the variables that the tokenizer's chat template reads without setting them.

    Args:
        tokenizer: The tokenizer with the template.
        where: Configuration key, for messages.

    Raises:
        ConfigError: The template cannot be parsed.
    """
    from jinja2 import Environment, TemplateError, meta, nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """The tag {% generation %} ... {% endgeneration %} of transformers; its content is parsed like other text."""

        # Declared as jinja declares it.
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    environment = Environment(extensions=[Generation, "jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True)
    try:
        return meta.find_undeclared_variables(environment.parse(tokenizer.get_chat_template()))
    except (TemplateError, ValueError) as error:
        raise ConfigError(f"{where}: the tokenizer's chat template cannot be read: {error}") from error


def lost_messages(prompts: Sequence[Prompt], tokenizer: Any, source: SourceConfig) -> dict[str, tuple[int, int, str]]:
    """Find messages that the chat template leaves out or cuts, in at most about SAMPLE prompts.

    Args:
        prompts: The prompts of a source; the longest is always checked.
        tokenizer: The tokenizer with the template.
        source: Their source.

    Returns:
        Role -> (number of prompts in which its text is incomplete, number of prompts checked, id of the first) for each role
        with incomplete text.

    Raises:
        DataError: The template refuses a prompt's messages.
    """
    step = -(-len(prompts) // SAMPLE) if prompts else 1
    longest = max(prompts, key=lambda prompt: sum(len(m["content"]) for m in messages_of(prompt, source)), default=None)
    chosen = [p for i, p in enumerate(prompts) if i % step == 0 or p is longest]
    lost: dict[str, list[str]] = {}
    for prompt in chosen:
        messages = messages_of(prompt, source)
        rendered = render_chat(messages, tokenizer, prompt.id, source.chat_template_kwargs)
        missing = {m["role"] for m in messages if m["role"] in REQUIRED_ROLES and m["content"].strip() not in rendered}
        for role in missing:
            lost.setdefault(role, []).append(prompt.id)
    return {role: (len(ids), len(chosen), ids[0]) for role, ids in sorted(lost.items())}
