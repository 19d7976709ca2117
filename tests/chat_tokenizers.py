"""Byte-level tokenizers with and without a chat template, and prompts to encode with them."""

from __future__ import annotations

from kray.records import Prompt

CHAT = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


NAMELESS = "<|start_header_id|>"  # special, but none of the tokenizer's attributes names it: as Llama 3's are


def make_tokenizer(chat: bool = True, closes: bool = False):
    """A byte-level tokenizer with Qwen's markers; closes: it ends every text with its end of sequence, as some do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<|im_start|>", "<|im_end|>", NAMELESS])
    single = "<s> $A <|im_end|>" if closes else "<s> $A"
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "<|im_end|>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    if chat:
        fast.chat_template = CHAT
    return fast


def ask(text=None, messages=None) -> Prompt:
    return Prompt(id="p:1", answer="4", verifier="exact", source="p", text=text, messages=messages)
