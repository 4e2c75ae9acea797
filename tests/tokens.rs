//! Text to ids and conversations to text, against independent implementations: llama.cpp's tokenizer (`scripts/make_token_fixtures.py`)
//! and transformers' chat templates (`scripts/make_template_fixtures.py`). The vocabulary is the default model's.

use llmopt::model::{self, Model, OpenOptions};
use llmopt::text::prompts::{InputFormat, PromptFiles};
use llmopt::text::{
    ChatTemplate, Content, Message, PromptEncoder, RenderLimits, TextSegment, Tokenizer, Turn,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::LazyLock;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    model::open("smollm2-135m", &OpenOptions::default()).expect("the default model")
});

fn data(name: &str) -> Vec<Value> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect()
}

#[test]
fn awkward_texts_have_the_ids_that_llama_cpp_gives_them() {
    for pre in ["smollm", "gpt-2", "default", "llama-bpe", "qwen2"] {
        let vocabulary = MODEL.vocabulary.with_pre_tokenizer(pre).unwrap();
        let tokenizer = Tokenizer::build(&vocabulary).unwrap();
        let cases = data(&format!("tokens-{pre}.jsonl"));
        assert!(cases.iter().filter(|c| c["control"] == false).count() >= 500);
        let mut wrong = Vec::new();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            let control = case["control"] == true;
            let got =
                if control { tokenizer.encode_with_control(text) } else { tokenizer.encode(text) }
                    .unwrap();
            if got != ids(&case["ids"]) {
                wrong.push(format!("{text:?} (control {control}): {got:?} for {}", case["ids"]));
            }
            assert!(tokenizer.least_tokens(text) <= got.len());
            if !control {
                assert!(got.iter().all(|&i| !tokenizer.is_control(i)), "{text:?}");
                // Eight bytes that can occur in text have no token in this vocabulary.
                let whole = !text
                    .bytes()
                    .any(|b| matches!(b, 0x04 | 0x06 | 0x13 | 0x14 | 0x16 | 0x1d | 0xf1 | 0xf2));
                assert!(
                    !whole || tokenizer.decode(&got) == text,
                    "{text:?} came back as {:?}",
                    tokenizer.decode(&got)
                );
            }
        }
        assert!(
            wrong.is_empty(),
            "{pre}: {} of {} differ:\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }
}

#[test]
fn conversations_are_rendered_and_tokenized_as_transformers_does_it() {
    let prompt_encoder = PromptEncoder::new(&MODEL).unwrap();
    let mut template: Option<(String, ChatTemplate)> = None;
    let (mut rendered, mut raised, mut tokenized) = (0, 0, 0);
    for case in data("templates.jsonl") {
        let name = case["template"].as_str().unwrap();
        if let Some(source) = case["source"].as_str() {
            let text = |field: &str| case[field].as_str().unwrap();
            template = Some((
                name.to_string(),
                ChatTemplate::compile(source, text("bos"), text("eos"))
                    .unwrap_or_else(|e| panic!("{name}: {e}")),
            ));
            continue;
        }
        let (owner, template) = template.as_ref().unwrap();
        assert_eq!(owner, name);
        let text = |v: &Value| v.as_str().unwrap().to_string();
        let turns = case["messages"].as_array().unwrap();
        let messages: Vec<Message> = turns
            .iter()
            .map(|m| Message { role: text(&m["role"]), content: text(&m["content"]) })
            .collect();
        let Some(expected) = case["rendered"].as_str() else {
            assert!(
                template.splice(&messages).is_err(),
                "{name}: transformers raises for {messages:?}"
            );
            raised += 1;
            continue;
        };
        assert_eq!(template.render(&messages).as_deref(), Ok(expected), "{name}: {messages:?}");
        rendered += 1;
        // Where no message is dropped or rewritten, the parts put together are the text.
        match template.splice(&messages) {
            Ok(segments) => {
                let whole: String = segments
                    .iter()
                    .map(|s| match s {
                        TextSegment::Scaffold(t) | TextSegment::Content(t) => &t[..],
                    })
                    .collect();
                assert_eq!(whole, expected, "{name}: {messages:?}");
            }
            Err(error) => assert!(
                ["leaves out", "rewrites", "repeats"].iter().any(|w| error.contains(w)),
                "{name}: {error}"
            ),
        }
        if case["ids"].is_array() {
            assert_eq!(
                prompt_encoder
                    .prompt_ids(&Content::Messages(messages.clone()), None, false)
                    .unwrap(),
                ids(&case["ids"]),
                "{name}: {messages:?}"
            );
            tokenized += 1;
        }
    }
    assert!(rendered >= 150 && raised >= 10 && tokenized >= 15, "{rendered} {raised} {tokenized}");
}

/// Of the conversations of `templates-published.jsonl`: equal ones, those that both refuse, those whose contents cannot be told apart
/// (equal where that can be seen), those that transformers alone refuses, by template, and those that differ.
fn beside_transformers(
    lines: &[Value],
) -> (usize, usize, usize, BTreeMap<String, usize>, Vec<String>) {
    let text = |v: &Value| v.as_str().unwrap().to_string();
    let (first, lines) = lines.split_first().unwrap();
    let (_, lines) = lines.split_first().unwrap();
    let conversation = |turns: &Value| -> Vec<Message> {
        let message = |m: &Value| Message { role: text(&m["role"]), content: text(&m["content"]) };
        turns.as_array().unwrap().iter().map(message).collect()
    };
    let conversations: Vec<Vec<Message>> =
        first["conversations"].as_array().unwrap().iter().map(conversation).collect();
    let (mut equal, mut refused, mut apart, mut lenient, mut wrong) =
        (0, 0, 0, BTreeMap::new(), Vec::new());
    let mut template = &Value::Null;
    for line in lines {
        if line["source"].is_string() {
            template = line;
            continue;
        }
        let variables = line["variables"].as_object().unwrap();
        let [source, bos, eos, name] =
            ["source", "bos", "eos", "template"].map(|field| text(&template[field]));
        let compiled = match ChatTemplate::compile_with(
            &source,
            &bos,
            &eos,
            variables,
            RenderLimits::default(),
        ) {
            Ok(compiled) => compiled,
            Err(error) => {
                wrong.push(format!("{name} {variables:?}: {error}"));
                continue;
            }
        };
        let turn = match &text(&line["turn"])[..] {
            "new" => Turn::default(),
            "closed" => Turn { generation_prompt: false, ..Turn::default() },
            _ => Turn { generation_prompt: false, continue_final: true, ..Turn::default() },
        };
        for (messages, hash) in conversations.iter().zip(line["sha256"].as_array().unwrap()) {
            let spliced = compiled.splice_turn(messages, &turn).map(|segments| {
                let whole = segments.iter().map(|s| match s {
                    TextSegment::Scaffold(t) | TextSegment::Content(t) => &t[..],
                });
                whole.collect::<String>()
            });
            // A new turn that cannot be told apart can still be rendered.
            let told = !matches!(&spliced, Err(e) if ["leaves out", "rewrites", "repeats"].iter().any(|w| e.contains(w)));
            let got =
                if !told && turn == Turn::default() { compiled.render(messages) } else { spliced };
            let sum = |got: &String| {
                Sha256::digest(got).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            };
            match (&got, hash.as_str()) {
                (Ok(got), Some(hash)) if sum(got) == hash && told => equal += 1,
                (Ok(got), Some(hash)) if sum(got) == hash => apart += 1,
                (Err(_), Some(_)) if !told => apart += 1,
                (Err(_), None) => refused += 1,
                (Ok(_), None) => *lenient.entry(name.clone()).or_default() += 1,
                _ => wrong.push(format!(
                    "{name} {} {variables:?} {messages:?}\n  -> {got:?}",
                    line["turn"]
                )),
            }
        }
    }
    (equal, refused, apart, lenient, wrong)
}

#[test]
fn tests_of_values_say_what_they_say_in_transformers() {
    let line = &data("templates-published.jsonl")[1];
    let text = |field: &str| line[field].as_str().unwrap();
    let message = Message { role: "user".into(), content: "What is the capital of France?".into() };
    // It cannot be a chat template, which has each content once.
    let template = ChatTemplate::compile(
        &format!("{}{{{{ messages[0].content }}}}", text("tests")),
        text("bos"),
        text("eos"),
    );
    let got = template.unwrap().render(std::slice::from_ref(&message)).unwrap();
    // The last line end of a source does not count in Jinja.
    assert_eq!(got, format!("{}\n{}", text("rendered"), message.content));
}

#[test]
fn published_templates_of_the_families_render_as_transformers_does() {
    let (equal, refused, apart, lenient, wrong) =
        beside_transformers(&data("templates-published.jsonl"));
    println!(
        "{equal} equal, {refused} refused by both, {apart} whose contents cannot be told apart; transformers alone refuses {lenient:?}"
    );
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    // A loop over no tools at all is an error in Jinja and no round here.
    assert!(
        lenient.keys().all(|name| name == "NousResearch-Hermes-3-Llama-3.1-8B-tool_use"),
        "{lenient:?}"
    );
    assert!(equal >= 1990 && refused >= 60 && apart <= 60, "{equal} {refused} {apart}");
}

#[test]
fn huge_texts_are_refused_with_a_count_before_any_work_and_never_cut() {
    let prompt_encoder = PromptEncoder::new(&MODEL).unwrap();
    for text in [
        " ".repeat(1_200_000),
        "x".repeat(100_000_000),
        "a ".repeat(256_000),
        "\u{4}".repeat(1_200_000) + &"é".repeat(600_000),
    ] {
        let error = prompt_encoder.prompt_ids(&Content::Text(text), None, false).unwrap_err();
        assert_eq!(error.code(), "prompt_too_long");
        let message = error.to_string();
        let limit = MODEL.spec.context.to_string();
        assert!(message.contains(&limit) && message.contains("tokens"), "{message}");
    }
    // Half a million spaces are few tokens, and all of them.
    let spaces = " ".repeat(500_000);
    let ids = prompt_encoder.tokenizer().encode(&spaces).unwrap();
    assert_eq!(prompt_encoder.tokenizer().decode(&ids), spaces);
}

#[test]
fn a_batch_and_a_tokenizer_for_one_request_give_the_ids_of_the_shared_one() {
    let prompt_encoder = PromptEncoder::new(&MODEL).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.txt");
    std::fs::write(&path, "What is 2+2?\n <|im_end|>\nprivé 🦀\n").unwrap();
    let files = PromptFiles::open(&[path], Some(InputFormat::Txt)).unwrap();
    for record in files.reader() {
        let content = record.unwrap().request.unwrap().content;
        let shared = prompt_encoder.prompt_ids(&content, Some("Be brief."), false).unwrap();
        let turn = llmopt::text::Turn::default();
        let again = llmopt::text::ToEncode {
            content: &content,
            system: Some("Be brief."),
            raw: false,
            turn: &turn,
        };
        assert_eq!(prompt_encoder.prompt_ids_rebuilt(again).unwrap(), shared);
        assert_eq!(
            prompt_encoder.prompt_ids_batch(&[again, again]),
            [Ok(shared.clone()), Ok(shared.clone())]
        );
        assert_eq!(shared.iter().filter(|&&i| i == 1).count(), 3, "one <|im_start|> a turn");
    }
}

#[path = "common/mod.rs"]
mod common;

/// A fixture of `scripts/make_vocab_fixtures.py` as a model file of its own.
fn model_of(fixture: &Value, folder: &std::path::Path) -> Model {
    use common::{Tiny, Value as Gguf};
    let texts = |field: &str| -> Vec<String> {
        fixture[field]
            .as_array()
            .into_iter()
            .flatten()
            .map(|t| t.as_str().unwrap().to_string())
            .collect()
    };
    let whole = ids(&fixture["ids"]);
    let at = |id: &Value| id.as_u64().map(|id| whole.binary_search(&(id as u32)).unwrap() as u32);
    let tiny = Tiny { vocab: whole.len(), chat_template: None, ..Tiny::fuzzed() };
    let mut file = tiny.container();
    let types =
        fixture["types"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect();
    file.set("tokenizer.ggml.model", Gguf::Str(fixture["model"].as_str().unwrap().into()))
        .set("tokenizer.ggml.tokens", Gguf::Strings(texts("tokens")))
        .set("tokenizer.ggml.token_type", Gguf::I32s(types))
        .set("tokenizer.ggml.bos_token_id", Gguf::U32(at(&fixture["bos"]).unwrap()))
        .set("tokenizer.ggml.eos_token_id", Gguf::U32(at(&fixture["eos"]).unwrap()))
        .unset("tokenizer.ggml.unknown_token_id")
        .unset("tokenizer.ggml.padding_token_id")
        .unset("tokenizer.ggml.add_bos_token");
    match fixture["pre"].as_str() {
        Some(pre) => file.set("tokenizer.ggml.pre", Gguf::Str(pre.into())),
        None => file.unset("tokenizer.ggml.pre"),
    };
    if let Some(unknown) = at(&fixture["unknown"]) {
        file.set("tokenizer.ggml.unknown_token_id", Gguf::U32(unknown));
    }
    match fixture["scores"].as_array() {
        Some(scores) => file
            .set(
                "tokenizer.ggml.scores",
                Gguf::F32s(scores.iter().map(|s| s.as_f64().unwrap() as f32).collect()),
            )
            .unset("tokenizer.ggml.merges"),
        None => file.set("tokenizer.ggml.merges", Gguf::Strings(texts("merges"))),
    };
    let path = folder.join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    model::open(path.to_str().unwrap(), &OpenOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}", fixture["name"]))
}

#[test]
fn vocabularies_of_other_models_give_the_ids_of_their_own_tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}/tests/data", env!("CARGO_MANIFEST_DIR"));
    let mut checked = 0;
    let mut names = Vec::new();
    for file in std::fs::read_dir(path).unwrap() {
        let file = file.unwrap();
        if !file.file_name().to_string_lossy().starts_with("vocab-") {
            continue;
        }
        let fixture: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        let name = fixture["name"].as_str().unwrap().to_string();
        let whole = ids(&fixture["ids"]);
        let model = model_of(&fixture, folder.path());
        // What llama.cpp's loader sets where the file does not say.
        assert_eq!(
            model.vocabulary.add_bos,
            matches!(&name[..], "llama-bpe" | "llama-spm" | "phi-3" | "gemma-4" | "trained"),
            "{name}"
        );
        let tokenizer = Tokenizer::build(&model.vocabulary).unwrap();
        for case in fixture["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let got = tokenizer.encode(text).unwrap();
            let of_whole: Vec<u32> = got.iter().map(|id| whole[*id as usize]).collect();
            assert_eq!(of_whole, ids(&case["ids"]), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&got), text, "{name}");
            assert!(tokenizer.least_tokens(text) <= got.len(), "{name}: {text:?}");
            assert!(got.iter().all(|id| !tokenizer.is_control(*id)), "{name}: {text:?}");
            checked += 1;
        }
        names.push(name);
    }
    assert!(names.len() >= 14 && checked >= 640, "{names:?}: {checked}");
}
