//! Text in and out: prompt files, chat template, tokenizer, incremental detokenizer. In: bytes and strings. Out: token ids and strings.
