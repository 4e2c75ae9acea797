#!/usr/bin/env python3
"""Writes tests/data/templates.jsonl: conversations as transformers' apply_chat_template renders and tokenizes them.

usage: scripts/make_template_fixtures.py MODEL.gguf [OUT]     (needs the packages transformers, jinja2, gguf; torch is not needed)
       scripts/make_template_fixtures.py --published FOLDER [OUT] [--every]

The second form writes tests/data/templates-published.jsonl from FOLDER, vendor/llama.cpp/models/templates of llama-cpp-python's
source package (pip download --no-binary llama-cpp-python --no-deps llama-cpp-python==0.3.36; llama.cpp is MIT): the templates of
supported families (or all that are there), each with several conversations and the variables that it knows. Of what transformers
renders, dated 2024-07-26, the SHA-256 is kept, one for each conversation; null where it raises.

Lines are {"template": name, "source": ..., "bos": ..., "eos": ...} before those that use it:
{"template": name, "messages": [...], "rendered": text or null where transformers raises, "ids": [...] or absent}.
Ids are given for the model's own template only, by a transformers tokenizer built from the vocabulary and merges of the model file.
"""
import sys

if "--help" in sys.argv or "-h" in sys.argv:
    sys.exit(print(__doc__))

import hashlib
import json
import os
from datetime import datetime
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

LLAMA3 = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- System message #}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN2 = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content']}}{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\n'}}{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<|im_start|>assistant\n' }}{% endif %}"
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- tools | tojson }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
MISTRAL = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
ZEPHYR = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
GEMMA = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
LLAMA2 = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
PHI3 = "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
NAMESPACE = "{%- set ns = namespace(system='', first=true) -%}\n{%- for m in messages -%}\n  {%- if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endif -%}\n{%- endfor -%}\n{{ bos_token }}{{ ns.system }}\n{% for m in messages if m.role != 'system' %}\n    {% if m.role == 'user' %}\n<|User|>{{ m.content }}\n    {% else %}\n<|Assistant|>{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}\n    {% endif %}\n    {% if not loop.last %}{% continue %}{% endif %}\n{{ m | length }}{{ messages | length }}{{ m.role.upper() }}{{ m.role.startswith('u') }}{{ none }}\n{% endfor %}\n<|Assistant|>"


def conversations():
    def chat(*turns):
        return [{"role": role, "content": content} for role, content in turns]

    return [
        chat(("user", "What is the capital of France?")),
        chat(("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Tell me a joke.")),
        chat(("system", "You are terse."), ("user", "Hi"), ("assistant", "Hello."), ("user", "And now?")),
        chat(("system", "Answer in French.\nBe kind."), ("user", "What is 2 + 2?")),
        chat(("user", "  leading and trailing  ")),
        chat(("user", "\n\nnewlines\n\n")),
        chat(("user", "two\n\nparagraphs\n\n\nand a list:\n- a\n- b\n")),
        chat(("user", "digits 1234567890, don't, naïve, 日本語, 🦀, \u00a0 nbsp")),
        chat(("user", "{{ bos_token }} {% raw %} {# comment #} ${x}")),
        chat(("user", 'quotes " and \' and \\ and \\n')),
        chat(("user", "<b>&amp;</b>")),
        chat(("user", "a"), ("user", "b")),
        chat(("assistant", "I begin."), ("user", "Oh?")),
        chat(("system", "Only a system message.")),
        chat(("user", "x"), ("assistant", "y")),
        chat(("user", "x"), ("tool", "42"), ("user", "z")),
        chat(("system", "s"), ("user", " u1"), ("assistant", " a1 "), ("user", "u2\n"), ("assistant", "a2"), ("user", "u3")),
        chat(("user", "word " * 200)),
    ]


# File of llama.cpp's collection: the texts of its family's first and end-of-answer tokens.
PUBLISHED = {
    "ByteDance-Seed-OSS": ("<seed:bos>", "<seed:eos>"),
    "HuggingFaceTB-SmolLM3-3B": (None, "<|im_end|>"),
    "LFM2-8B-A1B": ("<|startoftext|>", "<|im_end|>"),
    "LFM2.5-8B-A1B": ("<|startoftext|>", "<|im_end|>"),
    "LFM2.5-Instruct": ("<|startoftext|>", "<|im_end|>"),
    "Mistral-Small-3.2-24B-Instruct-2506": ("<s>", "</s>"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("<|begin_of_text|>", "<|im_end|>"),
    "Qwen-QwQ-32B": (None, "<|im_end|>"),
    "Qwen-Qwen2.5-7B-Instruct": (None, "<|im_end|>"),
    "Qwen-Qwen3-0.6B": (None, "<|im_end|>"),
    "Qwen3-Coder": (None, "<|im_end|>"),
    "Qwen3.5-4B": (None, "<|im_end|>"),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "google-gemma-2-2b-it": ("<bos>", "<eos>"),
    "ibm-granite-granite-3.3-2B-Instruct": ("<|end_of_text|>", "<|end_of_text|>"),
    "ibm-granite-granite-4.0": ("<|end_of_text|>", "<|end_of_text|>"),
    "ibm-granite-granite-4.1": ("<|end_of_text|>", "<|end_of_text|>"),
    "meta-llama-Llama-3.1-8B-Instruct": ("<|begin_of_text|>", "<|eot_id|>"),
    "meta-llama-Llama-3.2-3B-Instruct": ("<|begin_of_text|>", "<|eot_id|>"),
    "meta-llama-Llama-3.3-70B-Instruct": ("<|begin_of_text|>", "<|eot_id|>"),
    "microsoft-Phi-3.5-mini-instruct": ("<s>", "<|endoftext|>"),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("<s>", "</s>"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("<s>", "</s>"),
    "openai-gpt-oss-120b": ("<|startoftext|>", "<|return|>"),
    "unsloth-mistral-Devstral-Small-2507": ("<s>", "</s>"),
}

# Variables that templates ask for, with values to try.
VARIABLES = {
    "enable_thinking": [False, True],
    "thinking": [False, True],
    "reasoning_effort": ["low", "high"],
    "thinking_budget": [0, 512],
    "date_string": ["26 Jul 2024"],
    "model_identity": ["You are terse."],
    "preserve_thinking": [True],
    "keep_past_thinking": [True],
}


# What tests of values say, all in one template.
VALUES = ["none", "true", "false", "0", "1", "-2", "1.5", "''", "'ab'", "'AB'", "'aB 1'", "[]", "[1, 2]", "(1, 2)", "{}", "{'a': 1}"]
VALUES += ["nosuch", "range(2)", "messages", "messages[0]", "tools", "messages[0].nosuch", "bos_token"]
TESTS = ["defined", "undefined", "none", "boolean", "true", "false", "integer", "float", "number", "string", "mapping"]
TESTS += ["sequence", "iterable"]


class FixedDate(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, 12, tzinfo=tz)


def published(folder, out, every):
    chat_template_utils.datetime = FixedDate
    thought = "<think>\nThey greet.\n</think>\n\nHello."
    turns = [("user", "Hi"), ("assistant", thought), ("user", "And <think>now</think>?")]
    chats = conversations()[:-1] + [[{"role": role, "content": content} for role, content in turns]]
    inner = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    total, raised = 0, 0
    with open(out, "w") as file:

        def write(line):
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

        write({"conversations": chats})
        source = "".join(f"{test}: " + " ".join(f"{{{{ ({v}) is {test} }}}}" for v in VALUES) + "\n" for test in TESTS)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", chat_template=source)
        text = tokenizer.apply_chat_template(chats[0], tokenize=False)
        write({"tests": source, "bos": "<s>", "eos": "</s>", "rendered": text})
        names = sorted(n.removesuffix(".jinja") for n in os.listdir(folder) if n.endswith(".jinja"))
        for name in names if every else sorted(PUBLISHED):
            source = open(f"{folder}/{name}.jinja").read()
            bos, eos = PUBLISHED.get(name, ("<s>", "</s>"))
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token=eos, chat_template=source)
            write({"template": name, "source": source, "bos": bos or "", "eos": eos or ""})
            known = [{key: value} for key, values in VARIABLES.items() if key in source for value in values]
            cases = [("new", {}), ("closed", {}), ("continued", {})] + [("new", variables) for variables in known]
            flags = {"new": {"add_generation_prompt": True}, "closed": {}, "continued": {"continue_final_message": True}}
            for turn, variables in cases:
                hashes = []
                for messages in chats:
                    try:
                        text = tokenizer.apply_chat_template(messages, tokenize=False, **flags[turn], **variables)
                        hashes.append(hashlib.sha256(text.encode()).hexdigest())
                    except Exception:
                        hashes.append(None)
                        raised += 1
                    total += 1
                write({"turn": turn, "variables": variables, "sha256": hashes})
    print(f"{total} conversations, {raised} of them refused")


def main():
    from gguf import GGUFReader

    reader = GGUFReader(sys.argv[1])
    field = lambda name: reader.fields["tokenizer." + name].contents()
    tokens, types = field("ggml.tokens"), field("ggml.token_type")
    merges = [tuple(m.split(" ")) for m in field("ggml.merges")]
    inner = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == 3])
    own = (field("chat_template"), tokens[field("ggml.bos_token_id")], tokens[field("ggml.eos_token_id")])
    templates = {
        "smollm2": own,
        "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
        "llama3.1": (LLAMA31, "<|begin_of_text|>", "<|eot_id|>"),
        "qwen2": (QWEN2, None, "<|im_end|>"),
        "qwen2.5": (QWEN25, None, "<|im_end|>"),
        "mistral": (MISTRAL, "<s>", "</s>"),
        "zephyr": (ZEPHYR, "<s>", "</s>"),
        "gemma": (GEMMA, "<bos>", "<eos>"),
        "llama2": (LLAMA2, "<s>", "</s>"),
        "phi3": (PHI3, "<s>", "<|endoftext|>"),
        "namespace": (NAMESPACE, "<s>", "</s>"),
    }
    with open(sys.argv[2] if len(sys.argv) > 2 else "tests/data/templates.jsonl", "w") as out:

        def write(line):
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

        for name, (source, bos, eos) in templates.items():
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token=eos, chat_template=source)
            write({"template": name, "source": source, "bos": bos or "", "eos": eos or ""})
            for messages in conversations():
                line = {"template": name, "messages": messages}
                try:
                    line["rendered"] = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                    if name == "smollm2":
                        line["ids"] = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
                except Exception as error:
                    line["rendered"] = None
                    print(name, repr(error)[:100])
                write(line)


if "--published" in sys.argv:
    rest = [a for a in sys.argv[1:] if not a.startswith("--")]
    published(rest[0], rest[1] if len(rest) > 1 else "tests/data/templates-published.jsonl", "--every" in sys.argv)
else:
    main()
