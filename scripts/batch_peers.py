#!/usr/bin/env python3
"""A file of prompts through OpenVINO GenAI or mistral.rs, for the table of peers: wall time and answer tokens, after a warm-up.

    scripts/batch_peers.py openvino|mistralrs MODEL.gguf PROMPTS.jsonl [--threads N] [--max-tokens 64] [--batch 16]

PROMPTS: records with `prompt` or `messages`; greedy answers of at most --max-tokens, --batch sequences at once (mistral.rs: one). Needs the PyPI package
`openvino-genai` or `mistralrs`. Beside it: `llmopt run PROMPTS --temperature 0 --max-tokens 64 --stop-on eos --without cache --stats FILE`.
Prints one line of JSON: {"program", "version", "load_s", "wall_s", "tokens"}.
"""
import argparse
import importlib.metadata
import json
import os
import pathlib
import time


def openvino(args, chats, warm):
    import openvino_genai as ov

    scheduler = ov.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 2, args.batch, 512
    scheduler.enable_prefix_caching = True
    begun = time.time()
    pipe = ov.LLMPipeline(str(args.model), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=args.threads)
    load = time.time() - begun
    config = ov.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = args.max_tokens, False, False
    tokenizer = pipe.get_tokenizer()
    text = lambda chat: tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    pipe.generate([text(c) for c in warm], config)
    begun = time.time()
    answers = pipe.generate([text(c) for c in chats], config)
    wall = time.time() - begun
    return load, wall, sum(len(tokenizer.encode(t).input_ids.data[0]) for t in answers.texts)


def mistralrs(args, chats, warm):
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    from mistralrs import ChatCompletionRequest, Runner, Which

    begun = time.time()
    runner = Runner(which=Which.GGUF(quantized_model_id=str(args.model.parent), quantized_filename=args.model.name), max_seqs=args.batch)
    load = time.time() - begun

    def answer(chat):
        request = ChatCompletionRequest(model="default", messages=chat, max_tokens=args.max_tokens, temperature=0.0)
        return runner.send_chat_completion_request(request).usage.completion_tokens

    # One after the other: its Runner refuses a second caller ("Already borrowed").
    for chat in warm[:2]:
        answer(chat)
    begun = time.time()
    tokens = sum(answer(chat) for chat in chats)
    return load, time.time() - begun, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=["openvino", "mistralrs"])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("prompts", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    args.model = args.model.resolve()
    records = [json.loads(line) for line in args.prompts.read_text().splitlines() if line.strip()]
    chats = [r.get("messages") or [{"role": "user", "content": r["prompt"]}] for r in records]
    warm = [[{"role": "user", "content": f"Warm {i} " + "x " * i}] for i in range(args.batch)]
    load, wall, tokens = {"openvino": openvino, "mistralrs": mistralrs}[args.program](args, chats, warm)
    version = importlib.metadata.version({"openvino": "openvino-genai", "mistralrs": "mistralrs"}[args.program])
    print(json.dumps({"program": args.program, "version": version, "load_s": round(load, 2), "wall_s": round(wall, 2), "tokens": tokens}))


if __name__ == "__main__":
    main()
