#!/usr/bin/env python3
"""Writes tests/data/tokens-<pre>.jsonl: awkward texts with the token ids that llama.cpp gives them.

usage: scripts/make_token_fixtures.py LLAMA_SERVER MODEL.gguf [OUT_DIR]

The independent implementation is llama.cpp's server (any build with /tokenize). For each pre-tokenizer it loads a copy of the
model in which only `tokenizer.ggml.pre` is changed, so that one vocabulary shows all five. Each line is
{"text": ..., "ids": [...], "control": whether control tokens written in the text were parsed}. Only the standard library is used.
"""
import sys

if "--help" in sys.argv or "-h" in sys.argv:
    sys.exit(print(__doc__))

import json, os, random, struct, subprocess, tempfile, time, urllib.request

PRES = ["smollm", "gpt-2", "default", "llama-bpe", "qwen2"]


def texts():
    """At least 500 different awkward texts; the same ones each time."""
    out = ["", " ", "  ", "   ", "\n", "\n\n", "\n \n", " \n", "\t", "\t\t", "\r", "\r\n", "\r\n\r\n", "a", " a", "  a", "a ", "a  ", " a ", "\u00a0", "\u2003x", "\u3000日本"]
    words = ["Hello", "world", "the", "don't", "naïve", "日本語", "привет", "مرحبا", "שלום", "นี่", "한국어", "हिन्दी", "🦀", "x1", "42", "C++", "foo_bar", "e.g."]
    # Digits.
    out += [str(n) for n in (0, 7, 10, 99, 100, 123, 1234, 12345, 123456, 1234567, 1000000, 2**64)]
    out += ["3.14159", "1,234,567.89", "0x1F", "1e-10", "12:30:45", "2024-07-26", "v1.2.3", "a1b2c3", "1st 2nd 3rd", "²³¹", "½ ⅓", "Ⅳ Ⅻ", "٣٤٥", "१२३", "一二三", "①②③", "1 2  3   4", "1\n2\n\n3", " 1", "  12", "\t123", "$5.00", "100%", "#1", "(1)", "[12]", "x=1;y=22"]
    # Contractions.
    for s in ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]:
        out += ["I" + s, "I" + s.upper(), "it" + s + " ok", "x" + s + "y", s, " " + s, "'" + s, "’" + s[1:], "1" + s, "I'" + s[1:].capitalize()]
    # White space of all kinds between, before and after.
    for space in [" ", "  ", "   ", " " * 7, "\t", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\r\n", "\n\r", "\t \n\t ", "\u00a0", "\u2009 ", "\u3000", "\x0b", "\x0c", "\x85", "\u2028", " \u00a0 "]:
        out += ["a" + space + "b", space + "word", "word" + space, space, "1" + space + "2", "!" + space + "?", "日" + space + "本"]
    out += [" " * n for n in (4, 8, 15, 16, 17, 31, 33, 64, 79, 80, 81, 82, 100, 200)]
    out += ["\n" * n for n in (4, 5, 10)] + ["\n" + " " * n for n in (3, 4, 8, 79, 80)]
    # Code.
    out += ["def f(x):\n    return x + 1\n", "if (a && b || !c) { x->y = z[0]; }", "for i in range(10):\n\tprint(i)\n", "// comment\n/* block */", "<html><body class=\"x\">&amp;</body></html>", "SELECT * FROM t WHERE a='b';",
            "{\"key\": [1, 2.5, null, true]}", "#include <stdio.h>\nint main(void){return 0;}", "let s = \"\\n\\t\\\\\";", "https://example.org/a?b=c&d=%20#e", "user@example.org", "C:\\Users\\x\\y.txt", "/usr/local/bin", "a+=b--;c**=2", "x = {'a': 1, \"b\": 2}", "fn main() -> Result<(), Box<dyn Error>> {", "$HOME/${x:-y}", "`code` **bold** _it_ ~~no~~", "```py\nx\n```", "| a | b |\n|---|---|", "- [ ] todo", "^^^___^^^", "a|b|c", "~/x", "<=> != === !== >>= <<", "+-*/=", "$$$", "...", "…", "—–-", "!!!???", "“quoted” ‘text’ «x»", "© ® ™ § ¶ † ‡", "€100 £5 ¥9", "∀x∈ℝ: x²≥0", "→←↑↓⇒", "H₂O", "\\frac{a}{b}", "%d%s%%", "&nbsp;"]
    # Emoji, combining marks, scripts, joiners, right to left.
    out += ["🦀🦀", "👨‍👩‍👧‍👦", "👍🏽", "🇩🇪🇫🇷", "❤️", "☺", "a🦀b", " 🦀", "e\u0301", "n\u0303o\u0308", "Z̸̢a̷l̴g̵o̶", "\u0301", " \u0301x", "क्षि", "กำ", "ﷺ", "שָׁלוֹם", "اَلسَّلَامُ", "\u202eabc\u202c", "\u200f\u200eab", "a\u200bb", "a\u200db", "\ufeffx", "ﬁ ﬂ", "İı ſ K Å", "Ǆǅǆ", "ß ẞ", "Ω", "𝔘𝔫𝔦", "𠮷野家", "豈", "ㅎㅏㄴ", "ᄒ\u1161ᆫ", "ｶﾀｶﾅ", "ＡＢＣ１２３", "ნ", "ⴰⵣⵓⵍ", "ꙮ", "ᚠᛇᚻ", "𓀀", "𒀀", "᠊ᠮᠣᠩ", "བོད", "አማርኛ", "ខ្មែរ", "தமிழ்", "Việt Nam", "ÀÉÎÕÜ", "ñandú", "Łódź", "Ελληνικά", "Українська", "日本語のテキスト。句読点、カタカナ", "中文，标点。", "한국어 문장입니다.", "हिन्दी में 123", "العربية 123 نص", "עברית (abc) 12", "mixed日本mixed", "日本 日本", "ааа aaa"]
    # Control characters, unassigned and private code points, the ends of the planes.
    out += ["a%sb" % chr(c) for c in list(range(0, 32)) + [127, 128, 0x9F, 0xAD, 0x378, 0x2060, 0xE000, 0xFFF9, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1F9FF, 0x2FFFF, 0x30000, 0xE0001, 0xF0000, 0x10FFFF]]
    out += ["\x00", "\x1b[31mred\x1b[0m", "a\x00\x00b", "\x7f\x7f"]
    # Control tokens as text, whole, broken and nested.
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<empty_output>"]
    out += special + ["a" + s + "b" for s in special] + [" " + s + " " for s in special] + ["<|im_start|>user\nhi<|im_end|>\n", "<|im_", "im_end|>", "<|im_<|im_end|>end|>", "<|IM_END|>", "< |im_end|>", "<|im_end|><|im_end|>", "<s></s>", "[INST] x [/INST]", "<|eot_id|>", "</s>"]
    # Long runs.
    out += ["a" * 300, "ab" * 200, "1" * 50, "!" * 100, "-" * 81, "=" * 64, "日" * 60, "🦀" * 30, "é" * 100, ("word " * 60).strip(), "A" * 40, "aA" * 30, "\u0301" * 20]
    out += ["The quick brown fox jumps over the lazy dog.", "What is the capital of France?", "Write a short story about a robot who learns to paint.", "SHOUTING TEXT HERE", "CamelCaseIdentifierNames", "snake_case_name_2", "kebab-case-name", "e-mail's o'clock rock'n'roll", "I'll've done; they'd've", "\"Don't!\" she said.", "(parenthesis) [bracket] {brace}", "semi;colon:comma,dot.", "question?answer!", "a/b\\c", "Mr. O'Neil's 3rd-party"]
    # Words put together at random, with random white space.
    random.seed(7)
    for _ in range(120):
        out.append("".join(random.choice(words) + random.choice(["", " ", " ", "  ", "\n", ", ", ". ", "\t", "'s ", "-", "1", "\n\n "]) for _ in range(random.randint(1, 9))))
    seen, unique = set(), []
    for text in out:
        if text not in seen:
            seen.add(text)
            unique.append(text)
    assert len(unique) >= 500, len(unique)
    return unique


def with_pre(model, pre, out):
    """Copies a GGUF file with another `tokenizer.ggml.pre`; the tensor data moves by whole alignment blocks."""
    data = open(model, "rb").read()
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    at = 24

    def string():
        nonlocal at
        (n,) = struct.unpack_from("<Q", data, at)
        at += 8 + n
        return data[at - n : at]

    def skip(kind):
        nonlocal at
        if kind == 8:
            string()
        elif kind == 9:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(count):
                skip(inner)
        else:
            at += sizes[kind]

    tensors, keys = struct.unpack_from("<QQ", data, 8)
    alignment, place = 32, None
    for _ in range(keys):
        key = string()
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        start = at
        skip(kind)
        if key == b"tokenizer.ggml.pre":
            place = (start, at)
        if key == b"general.alignment":
            (alignment,) = struct.unpack_from("<I", data, start)
    for _ in range(tensors):
        string()
        (dims,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dims + 12
    old = at + -at % alignment
    head = data[: place[0]] + struct.pack("<Q", len(pre)) + pre.encode() + data[place[1] : at]
    with open(out, "wb") as f:
        f.write(head + b"\0" * (-len(head) % alignment) + data[old:])


def main():
    server, model = sys.argv[1:3]
    folder = sys.argv[3] if len(sys.argv) > 3 else "tests/data"
    cases = texts()
    for n, pre in enumerate(PRES):
        with tempfile.TemporaryDirectory() as scratch:
            path = os.path.join(scratch, "model.gguf")
            with_pre(model, pre, path)
            port = 18431 + n
            process = subprocess.Popen([server, "-m", path, "--port", str(port), "-c", "256", "-t", "1", "--no-warmup"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            url = "http://127.0.0.1:%d" % port

            def post(text, control):
                body = json.dumps({"content": text, "add_special": False, "parse_special": control}).encode()
                request = urllib.request.Request(url + "/tokenize", body, {"Content-Type": "application/json"})
                return json.load(urllib.request.urlopen(request, timeout=60))["tokens"]

            try:
                for _ in range(600):
                    try:
                        urllib.request.urlopen(url + "/health", timeout=5).read()
                        break
                    except OSError:
                        time.sleep(0.2)
                with open(os.path.join(folder, "tokens-%s.jsonl" % pre), "w") as f:
                    for text in cases:
                        for control in [False] + [True] * ("<" in text):
                            ids = post(text, control) if text else []
                            f.write(json.dumps({"text": text, "ids": ids, "control": control}, separators=(",", ":")) + "\n")
            finally:
                process.terminate()
                process.wait()
        print(pre, len(cases), "texts")


main()
