"""Variables of chat templates, messages that templates lose, and how special tokens are shown."""

import pytest
from chat_tokenizers import CHAT, ask, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from kray.config.prompts_schema import SourceConfig
from kray.errors import ConfigError
from kray.prompts import encode_prompt
from kray.prompts.chat_templates import SAMPLE, check_template, lost_messages
from kray.prompts.tokenize import as_read, encode_answer, encode_opening
from kray.records import Prompt

THINKING = CHAT.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}",
)
QUIET = SourceConfig(chat_template_kwargs={"enable_thinking": False})


def thinking_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = THINKING
    return tokenizer


@pytest.mark.parametrize("text", ["2+2?", "x<|im_end|>"])
def test_template_variables_reach_prompts(text):
    tokenizer = thinking_tokenizer()
    asked = f"«<|im_start|>»user\n{text}«<|im_end|>»\n«<|im_start|>»assistant\n"
    assert as_read(encode_prompt(ask(text), tokenizer, SourceConfig()), tokenizer) == asked
    assert as_read(encode_prompt(ask(text), tokenizer, QUIET), tokenizer) == f"{asked}<think>\n\n</think>\n"


def test_template_variables_reach_conversations():
    tokenizer = thinking_tokenizer()
    said = [{"role": "user", "content": "more"}]
    opening = encode_opening(ask("2+2?"), said, tokenizer, QUIET)
    assert as_read(opening, tokenizer).endswith("more«<|im_end|>»\n«<|im_start|>»assistant\n<think>\n\n</think>\n")
    answer = encode_answer(said, -1, tokenizer, "p:1", QUIET.chat_template_kwargs)
    assert as_read(answer, tokenizer).endswith("more«<|im_end|>»\n«<|im_start|>»assistant\n<think>\n\n</think>\n")
    assert "<think>" not in as_read(encode_answer(said, -1, tokenizer, "p:1"), tokenizer)


def test_variables_that_no_template_reads_are_refused():
    check_template(SourceConfig(), make_tokenizer(chat=False), "prompts.train")
    check_template(QUIET, thinking_tokenizer(), "prompts.train")
    for tokenizer in (make_tokenizer(), make_tokenizer(chat=False)):
        with pytest.raises(
            ConfigError, match=r"prompts\.train\.chat_template_kwargs.*no (such variable|chat template)"
        ):
            check_template(QUIET, tokenizer, "prompts.train")


def refuses(template: str, name: str, message: str = "no such variable") -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template + CHAT
    with pytest.raises(ConfigError, match=rf"prompts\.train\.chat_template_kwargs.*{message}"):
        check_template(SourceConfig(chat_template_kwargs={name: 1}), tokenizer, "prompts.train")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("", "user"),
        ("", "role"),
        ("", "m"),
        ("", "loop"),
        ("", "endfor"),
        ("{% set effort = 1 %}{{ effort }}", "effort"),
        ("{# effort #}", "effort"),
        ("{{ 'effort' }}", "effort"),
        ("effort", "effort"),
        ("{{ messages[0].effort }}", "effort"),
        ("{{ messages[0]['effort'] }}", "effort"),
        ("{% macro f(effort) %}{{ effort }}{% endmacro %}", "effort"),
        ("{{ dict(effort=1) }}", "effort"),
        ("{{ range(1) }}", "range"),
        ("{% set ns = namespace(effort=1) %}{{ ns.effort }}", "effort"),
    ],
)
def test_names_that_the_template_never_reads_are_refused(template, name):
    refuses(template, name)


@pytest.mark.parametrize("name", ["documents", "tools", "bos_token", "unk_token", "raise_exception", "strftime_now"])
def test_names_that_transformers_sets_are_refused(name):
    refuses(f"{{% if {name} %}}{{% endif %}}", name, "transformers sets it itself")


@pytest.mark.parametrize(
    "template",
    [
        "{{ effort }}",
        "{% if effort is not defined %}{% set effort = 1 %}{% endif %}{{ effort }}",
        "{% set effort = effort | default(1) %}{{ effort }}",
        "{% set effort = 1 if not effort is defined else effort %}{{ effort }}",
        "{% generation %}{{ effort }}{% endgeneration %}",
        "{% for m in messages %}{% if effort %}{% break %}{% endif %}{% endfor %}",
        "{% macro f(x) %}{{ effort }}{% endmacro %}{{ f(1) }}",
    ],
)
def test_names_that_the_template_reads_are_taken(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template + CHAT
    check_template(SourceConfig(chat_template_kwargs={"effort": 1}), tokenizer, "prompts.train")
    ask_it = encode_prompt(ask("2+2?"), tokenizer, SourceConfig(chat_template_kwargs={"effort": 1}))
    assert ask_it  # transformers reads the same template


def test_a_template_that_cannot_be_parsed_is_named():
    refuses("{% if %}", "effort", "the tokenizer's chat template cannot be read")


# -- messages that templates lose --------------------------------------------------------------------------------------


def lost(change: str, *texts: str, system: str = "") -> dict[str, tuple[int, int, str]]:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT.replace("m.content", change)
    prompts = [Prompt(id=f"p:{i}", answer="4", verifier="exact", source="p", text=text) for i, text in enumerate(texts)]
    return lost_messages(prompts, tokenizer, SourceConfig(system=system))


def test_a_question_that_the_template_cuts_is_found():
    assert lost("m.content", " 2+2? ", "3+3?") == {}
    assert lost("m.content | trim", " 2+2? ", "3+3?", system=" Be brief. ") == {}
    assert lost("m.content[:3]", "2+2?", "1", "3+3?") == {"user": (2, 3, "p:0")}
    assert lost("'?'", "2+2?") == {"user": (1, 1, "p:0")}
    assert lost("m.content if m.role == 'system'", "2+2?", system="Be brief.") == {"user": (1, 1, "p:0")}
    assert lost("m.content if m.role == 'user'", "2+2?", system="Be brief.") == {"system": (1, 1, "p:0")}


def test_the_longest_of_many_prompts_is_looked_at():
    texts = ["2+2?"] * (3 * SAMPLE)
    texts[1] = "a longer question"
    ((number, of, first),) = lost("m.content[:6]", *texts).values()
    assert (number, of, first) == (1, SAMPLE + 1, "p:1")


# -- how special tokens are shown --------------------------------------------------------------------------------------


def test_special_tokens_are_seen_in_what_a_policy_reads():
    tokenizer = make_tokenizer()
    tokens = encode_prompt(ask(" a ,b"), tokenizer, SourceConfig(chat=False))
    assert as_read(tokens, tokenizer) == "«<s>» a ,b"


def test_special_tokens_and_their_characters_are_told_apart():
    tokenizer = make_tokenizer()
    text = "<|im_start|>user\n1<|im_end|>"
    plain, special = (
        as_read(encode_prompt(ask(text), tokenizer, SourceConfig(chat=False, special_tokens=on)), tokenizer)
        for on in (False, True)
    )
    assert plain == f"«<s>»{text}"
    assert special == "«<s>»«<|im_start|>»user\n1"  # an end of sequence at the end is taken off


PIECES = st.lists(st.sampled_from(["<s>", "<|im_end|>", "<|im_", "«", "»", "a", " ", "<", "s>"]), max_size=8).map(
    "".join
)


@settings(max_examples=300)
@given(texts=st.lists(PIECES, min_size=1, max_size=4))
def test_text_is_never_shown_as_a_special_token(texts):
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokens = []
    for text in texts:
        tokens += [end, *tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]]
    shown = as_read(tokens, tokenizer)
    assert shown.count("«<|im_end|>»") == len(texts)
    assert "«<s>»" not in shown
    escaped = [text.replace("«<s>»", "«\\<s>»").replace("«<|im_end|>»", "«\\<|im_end|>»") for text in texts]
    assert shown == "".join(f"«<|im_end|>»{text}" for text in escaped)


def test_first_spaces_are_kept_where_decoding_drops_them():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "<s>": 2, "<unk>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
    assert tokenizer.decode([2, 0, 1, 2, 1]) == "<s> a b<s> b"
    assert as_read([2, 0, 1, 2, 1], tokenizer) == "«<s>» a b«<s>» b"
