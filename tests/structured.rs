//! Answers that must have a form: every finished answer validates for the schemas of `tests/data/schemas.jsonl`, what is not valid is not
//! allowed, hostile schemas end in an error, and one request has one answer whatever runs beside it. Grammars alone, over a vocabulary of
//! bytes and some words; then `llmopt run` with tiny models.

mod common;
#[path = "common/process.rs"]
mod process;
#[path = "common/textbook.rs"]
mod textbook;

use llmopt::text::{Constraint, Grammar, Grammars, Words};
use process::{Bench, essences, records};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// 0 ends an answer, 1 to 256 are bytes, then some words.
const WORDS: [&str; 24] = [
    "{\"", "\":", "\",\"", "\"}", "\":\"", "},{", "true", "false", "null", "ab", "name", "summary",
    "[{\"", "\"]", ":{\"", "12", "00", "-0", ".5", "é", "日本", " the", "\":[", ",\"",
];

fn words() -> Words {
    let bytes: Vec<Vec<u8>> = std::iter::once(Vec::new())
        .chain((0..=255u8).map(|b| vec![b]))
        .chain(WORDS.iter().map(|w| w.as_bytes().to_vec()))
        .collect();
    let known = bytes.clone();
    // The longest token first.
    let encode = move |text: &str| {
        let (mut ids, mut rest) = (Vec::new(), text.as_bytes());
        while !rest.is_empty() {
            let fitting = (1..known.len())
                .filter(|id| rest.starts_with(&known[*id]))
                .max_by_key(|id| known[*id].len());
            let id = fitting.expect("every byte is a token");
            ids.push(id as u32);
            rest = &rest[known[id].len()..];
        }
        ids
    };
    Words { bytes, eos: vec![0], encode: Box::new(encode) }
}

struct Case {
    name: String,
    schema: Value,
    good: Vec<Value>,
    bad: Vec<Value>,
}

fn cases() -> Vec<Case> {
    let list = |v: &Value| v.as_array().unwrap().clone();
    let case = |line: &str| {
        let v: Value = serde_json::from_str(line).unwrap();
        Case {
            name: v["name"].as_str().unwrap().into(),
            schema: v["schema"].clone(),
            good: list(&v["good"]),
            bad: list(&v["bad"]),
        }
    };
    let cases: Vec<Case> = include_str!("data/schemas.jsonl").lines().map(case).collect();
    assert!(cases.len() >= 30);
    cases
}

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap()
}

fn compile(grammars: &Grammars, schema: &Value) -> std::sync::Arc<Grammar> {
    grammars
        .compile(&Constraint::Schema(schema.to_string()))
        .unwrap_or_else(|e| panic!("{schema}: {e}"))
}

/// Whether a text is an answer in this form.
fn accepts(grammar: &Grammar, text: &str) -> bool {
    let ids: Vec<u32> = text.bytes().map(|b| u32::from(b) + 1).collect();
    let mut matching = grammar.start();
    matching.consume_all(&ids).is_ok_and(|n| n == ids.len()) && matching.is_complete()
}

/// Walks at random among the allowed tokens, most often by one that may come near the end; `None` if it does not end in time.
fn walk(grammar: &Grammar, random: &mut common::Random, most: usize) -> Option<String> {
    let Words { bytes, .. } = words();
    let mut matching = grammar.start();
    let mut text = Vec::new();
    for _ in 0..most {
        if matching.has_ended() {
            break;
        }
        let mask =
            matching.mask().unwrap_or_else(|e| panic!("{}: {e}", String::from_utf8_lossy(&text)));
        let allowed: Vec<u32> = (0..bytes.len() as u32).filter(|id| mask.allows(*id)).collect();
        let closing: Vec<u32> = allowed
            .iter()
            .copied()
            .filter(|id| *id == 0 || bytes[*id as usize].iter().all(|b| b"\"}]:,{[".contains(b)))
            .collect();
        let pick = |from: &[u32], random: &mut common::Random| {
            from[random.below(from.len() as u64) as usize]
        };
        let token = if !closing.is_empty() && random.below(3) > 0 {
            pick(&closing, random)
        } else {
            pick(&allowed, random)
        };
        if let Some(forced) = matching.forced() {
            assert!(
                mask.count() == 1 && mask.allows(forced),
                "the mask of forced text is its next token"
            );
        }
        if token == 0 {
            assert!(matching.is_complete(), "an end where the form is complete");
            return String::from_utf8(text).ok();
        }
        text.extend_from_slice(&bytes[token as usize]);
        matching.consume(token).unwrap();
    }
    matching.is_complete().then(|| String::from_utf8(text).unwrap())
}

#[test]
fn one_token_alone_is_told_as_the_mask_of_all_tells_it() {
    let grammars = Grammars::new(words);
    let Words { bytes, .. } = words();
    let ids = || 0..bytes.len() as u32;
    let mut random = common::Random::new(11, "alone");
    let (mut told, mut allowed) = (0, 0);
    let regexes = ["(?s:.){5,}", "[a-c]+(the|na\u{ef}ve)?", "abc|abd|xyz"]
        .map(|r| Constraint::Regex(r.into()));
    let schemas = cases().into_iter().map(|case| Constraint::Schema(case.schema.to_string()));
    for constraint in regexes.into_iter().chain(schemas) {
        let grammar = grammars.compile(&constraint).unwrap();
        for walk in 0..2 {
            let mut matching = grammar.start();
            for step in 0..60 {
                if matching.has_ended() {
                    break;
                }
                // Before the mask is made, and after.
                let early: Vec<_> = if (step + walk) % 2 == 0 {
                    ids().map(|id| matching.allows(id)).collect()
                } else {
                    Vec::new()
                };
                let mask = matching.mask().unwrap();
                let late: Vec<_> = ids().map(|id| matching.allows(id)).collect();
                for (id, alone) in ids().zip(&early).chain(ids().zip(&late)) {
                    if let Some(alone) = *alone {
                        assert_eq!(
                            alone,
                            mask.allows(id),
                            "{constraint:?}: token {id} at step {step}"
                        );
                        told += 1;
                        allowed += usize::from(alone);
                    }
                }
                let next: Vec<u32> = ids().filter(|id| *id != 0 && mask.allows(*id)).collect();
                if next.is_empty() {
                    break;
                }
                matching.consume(next[random.below(next.len() as u64) as usize]).unwrap();
            }
        }
    }
    assert!(told > 100_000 && allowed > 10_000, "{told} told, {allowed} allowed");
}

#[test]
fn every_finished_walk_validates_and_what_is_not_valid_is_not_allowed() {
    let grammars = Grammars::new(words);
    let mut random = common::Random::new(7, "walks");
    for case in cases() {
        let (grammar, validator) = (compile(&grammars, &case.schema), validator(&case.schema));
        for good in &case.good {
            assert!(validator.is_valid(good), "{}: the case itself: {good}", case.name);
            assert!(accepts(&grammar, &good.to_string()), "{}: {good} is not allowed", case.name);
        }
        for bad in &case.bad {
            assert!(!validator.is_valid(bad), "{}: the case itself: {bad}", case.name);
            assert!(!accepts(&grammar, &bad.to_string()), "{}: {bad} is allowed", case.name);
        }
        let mut finished = 0;
        for _ in 0..40 {
            let Some(text) = walk(&grammar, &mut random, 300) else { continue };
            finished += 1;
            let value: Value = serde_json::from_str(&text)
                .unwrap_or_else(|e| panic!("{}: {text}: {e}", case.name));
            assert!(validator.is_valid(&value), "{}: {text}", case.name);
            let mut inside = false;
            let mut before = ' ';
            for c in text.chars() {
                inside ^= c == '"' && before != '\\';
                assert!(inside || !c.is_whitespace(), "compact: {text}");
                before = if before == '\\' { ' ' } else { c };
            }
        }
        assert!(finished >= 10, "{}: {finished} walks of 40 ended", case.name);
    }
}

const KIND: &str = "whoever lists properties or items means an object or an array";
const CLOSED: &str = "an object that lists its properties has no others";
const ORDER: &str = "properties are written in the schema's order";
const SPELLING: &str = "a whole number is written without a fraction";
const LEAP: &str = "which minutes have a leap second is no matter of form; T and Z are capitals";
const EMAIL: &str = "no quoted local part, no address literal";
const MIXED: &str = "no dotted decimals at the end of an IPv6 address";

/// Valid instances that are not allowed, all by intent: file, beginning of the test's description, reason.
const NARROWER: [(&str, &str, &str); 26] = [
    ("additionalProperties", "ignores ", KIND),
    ("items", "ignores ", KIND),
    ("items", "JavaScript pseudo-array", KIND),
    ("prefixItems", "JavaScript pseudo-array", KIND),
    ("properties", "ignores ", KIND),
    ("required", "ignores ", KIND),
    ("ref", "match", KIND),
    ("ref", "recursive match", KIND),
    ("additionalProperties", "additional properties are allowed", CLOSED),
    ("properties", "doesn't invalidate other properties", CLOSED),
    ("allOf", "allOf", ORDER),
    ("allOf", "valid", ORDER),
    ("anyOf", "both anyOf valid (complex)", ORDER),
    ("const", "same object with different property order", ORDER),
    ("const", "float ", SPELLING),
    ("enum", "float ", SPELLING),
    ("enum", "[0.0] is valid", SPELLING),
    ("enum", "[1.0] is valid", SPELLING),
    ("type", "a float with zero fractional part", SPELLING),
    ("date-time", "a valid date-time with a leap second", LEAP),
    ("date-time", "case-insensitive T and Z", LEAP),
    ("time", "a valid time string with", LEAP),
    ("time", "valid leap second", LEAP),
    ("email", "a quoted string", EMAIL),
    ("email", "an IPv6-address-literal", EMAIL),
    ("ipv6", "", MIXED),
];

/// What the refusals of the suite's schemas name.
const REFUSED: [&str; 9] = [
    "'$ref'",
    "'$id'",
    "'oneOf'",
    "'multipleOf'",
    "'propertyNames'",
    "'dependentSchemas'",
    "'unevaluatedProperties'",
    "patternProperty",
    "schema is false",
];

/// The JSON-Schema-Test-Suite as far as it is about keywords that are claimed (`scripts/make_schema_suite.py`).
#[test]
fn of_the_json_schema_test_suite_no_invalid_instance_is_allowed_and_valid_ones_are_but_for_those_listed()
 {
    let grammars = Grammars::new(words);
    let (mut compiled, mut refused, mut allowed, mut rejected) = (0, 0, 0, 0);
    let (mut wrong, mut used) = (Vec::new(), [0; NARROWER.len()]);
    for line in include_str!("data/schema-suite.jsonl").lines().skip(1) {
        let of: Value = serde_json::from_str(line).unwrap();
        let (file, group) = (of["file"].as_str().unwrap(), of["group"].as_str().unwrap());
        let grammar = match grammars.compile(&Constraint::Schema(of["schema"].to_string())) {
            Ok(grammar) => grammar,
            Err(error) => {
                assert!(
                    REFUSED.iter().any(|word| error.contains(word)),
                    "{file}, {group}: {error}"
                );
                refused += 1;
                continue;
            }
        };
        compiled += 1;
        for test in of["tests"].as_array().unwrap() {
            let (valid, name, data) =
                (test[0].as_bool().unwrap(), test[1].as_str().unwrap(), &test[2]);
            let intent =
                NARROWER.iter().position(|(f, start, _)| *f == file && name.starts_with(start));
            match (valid, accepts(&grammar, &data.to_string()), intent) {
                (true, true, _) => allowed += 1,
                (false, false, _) => rejected += 1,
                (true, false, Some(n)) => used[n] += 1,
                (_, accepted, _) => {
                    wrong.push(format!("{file}, {group}, {name}: {data} is allowed: {accepted}"))
                }
            }
        }
    }
    let narrower: usize = used.iter().sum();
    println!(
        "{compiled} schemas compiled, {refused} refused; {rejected} invalid instances rejected, {allowed} valid ones allowed, {narrower} not"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (entry, count) in NARROWER.iter().zip(used) {
        assert!(count > 0, "{entry:?} is allowed now");
    }
    assert!(compiled > 150 && rejected > 350 && allowed > 350, "{compiled} {rejected} {allowed}");
}

#[test]
fn compiling_again_or_beside_others_gives_the_same_masks() {
    let case = cases().into_iter().find(|c| c.name == "ticket").unwrap();
    let masks = |grammars: &Grammars| -> Vec<_> {
        let grammar = compile(grammars, &case.schema);
        let mut matching = grammar.start();
        let ids = "{\"summary\":\"The page".bytes().map(|b| u32::from(b) + 1);
        ids.map(|id| {
            let mask = matching.mask().unwrap();
            matching.consume_all(&[id]).unwrap();
            mask
        })
        .collect()
    };
    let fresh = masks(&Grammars::new(words));
    let used = Grammars::new(words);
    for other in cases() {
        let mut random = common::Random::new(3, &other.name);
        walk(&compile(&used, &other.schema), &mut random, 100);
    }
    // More grammars than are kept.
    for n in 0..70 {
        used.compile(&Constraint::Regex(format!("a{{{}}}", n + 1))).unwrap();
    }
    assert_eq!(masks(&used), fresh);
    let once = compile(&used, &case.schema);
    assert!(
        std::sync::Arc::ptr_eq(&once, &compile(&used, &case.schema)),
        "compiled once for one content"
    );
}

#[test]
fn other_forms_are_kept_too() {
    let grammars = Grammars::new(words);
    let fits =
        |constraint: Constraint, text: &str| accepts(&grammars.compile(&constraint).unwrap(), text);
    let regex = |re: &str, text: &str| fits(Constraint::Regex(re.into()), text);
    assert!(regex("(yes|no)( really)?", "no really") && !regex("(yes|no)( really)?", "maybe"));
    assert!(regex("a/b\\d+", "a/b12") && !regex("a/b\\d+", "a/b"));
    assert!(
        fits(Constraint::Object, "{\"a\":[1,{\"b\":null}]}") && !fits(Constraint::Object, "[1]")
    );
    let one = || Constraint::OneOf(vec!["a \"b\"".into(), "c\\d".into(), "é".into()]);
    assert!(fits(one(), "a \"b\"") && fits(one(), "c\\d") && fits(one(), "é") && !fits(one(), "a"));
    let lark =
        || Constraint::Lark("start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/\n".into());
    assert!(fits(lark(), "1+22+3") && !fits(lark(), "1+"));
    for (bad, word) in [
        (Constraint::Regex("(a".into()), "regular expression"),
        (Constraint::Regex("(a".into()), "unclosed group"),
        (Constraint::Lark("start: start".into()), "no text satisfies it"),
        (Constraint::Schema("{\"$ref\":\"#\"}".into()), "no text satisfies it"),
        (Constraint::Lark("start: <|im_end|>".into()), "it names tokens"),
        (Constraint::Regex("a\\".into()), "escape"),
        (Constraint::Regex(String::new()), "empty"),
        (Constraint::Lark("start: missing".into()), "grammar"),
        (Constraint::Lark("start: %json {}".into()), "%json"),
        (Constraint::Schema("{\"oneOf\":[{\"minimum\":1},{\"maximum\":3}]}".into()), "oneOf"),
        (Constraint::Schema("{\"type\":\"string\",\"pattern\":\"(?=a)b\"}".into()), "schema"),
        (Constraint::Schema("{\"type\":\"integer\",\"minimum\":3,\"maximum\":2}".into()), "schema"),
        (
            Constraint::Schema("{\"allOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}".into()),
            "schema",
        ),
    ] {
        let error = grammars.compile(&bad).map(|_| ()).unwrap_err();
        assert!(
            error.contains(word) && !error.contains('\n') && error.len() < 500,
            "{bad:?}: {error}"
        );
    }
}

#[test]
fn hostile_forms_end_within_their_limits() {
    let nested = |n: usize| format!("{}{}", "(".repeat(n), ")".repeat(n));
    let wide = (0..60_000).map(|i| format!("\"v{i}\"")).collect::<Vec<_>>().join(",");
    let chain: serde_json::Map<String, Value> = (0..3_000)
        .map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", (i + 1) % 3_000)})))
        .collect();
    let product = json!({"allOf": (0..14).map(|i| json!({"anyOf": [{"minimum": i}, {"maximum": 100 - i}]})).collect::<Vec<_>>()});
    let circle = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b", "minimum": 1}, "b": {"$ref": "#/$defs/a", "maximum": 2}}});
    let forms = [
        ("a huge enum", Constraint::Schema(format!("{{\"enum\":[{wide}]}}"))),
        ("a chain of references", Constraint::Schema(json!({"$ref": "#/$defs/d0", "$defs": chain}).to_string())),
        ("a circle of references", Constraint::Schema(circle.to_string())),
        ("a product of alternatives", Constraint::Schema(product.to_string())),
        ("repeats of repeats", Constraint::Regex("((a{1,500}){1,500}){1,500}".into())),
        ("a pattern with repeats", Constraint::Schema(json!({"type": "string", "pattern": "^(([a-z]{1,99}){1,99} ){1,99}$"}).to_string())),
        ("nested quantifiers", Constraint::Regex("(((a+)+)+)+b".into())),
        ("a long list", Constraint::Schema(json!({"type": "array", "items": {"type": "integer"}, "minItems": 200_000}).to_string())),
        ("brackets", Constraint::Regex(nested(100_000))),
        ("brackets of a grammar", Constraint::Lark(format!("start: {}", nested(100_000)))),
        ("an endless grammar", Constraint::Lark("start: start start | \"a\" | start \"b\" start".into())),
        ("a rule without an end", Constraint::Lark("start: \"a\" start".into())),
        ("lookbehind by intersection", Constraint::Regex("(.*a.{20})".into())),
        ("many properties", Constraint::Schema(
            json!({"type": "object", "properties": (0..3_000).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect::<serde_json::Map<_, _>>()}).to_string(),
        )),
    ];
    for (name, form) in forms {
        let grammars = Grammars::new(words);
        let since = Instant::now();
        let outcome = grammars.compile(&form);
        // What compiles may still go past its limits later, in an error of one line.
        if let Ok(grammar) = &outcome {
            let mut matching = grammar.start();
            for _ in 0..40 {
                let Ok(mask) = matching.mask() else { break };
                let Some(token) = (0..281).rev().find(|id| mask.allows(*id)) else { break };
                if matching.consume(token).is_err() || matching.has_ended() {
                    break;
                }
            }
        }
        if let Err(error) = &outcome {
            assert!(
                !error.is_empty() && !error.contains('\n') && error.len() < 500,
                "{name}: {error}"
            );
        }
        // Work is counted, so this holds a computer of any speed to account for loops that count nothing; the bound is generous.
        assert!(since.elapsed() < Duration::from_secs(60), "{name}: {:?}", since.elapsed());
    }
}

/// A record for each schema, sampled warmly.
fn schema_records(max_tokens: usize) -> String {
    let record = |(n, case): (usize, Case)| {
        json!({"id": case.name, "prompt": format!("Give me {n}."), "json_schema": case.schema, "temperature": 1.2, "seed": n, "max_tokens": max_tokens})
            .to_string()
    };
    cases().into_iter().enumerate().map(record).map(|line| line + "\n").collect()
}

#[test]
fn every_finished_answer_of_a_model_validates_and_an_unfinished_one_is_an_error_with_its_text() {
    let bench = Bench::new();
    bench.file("in.jsonl", schema_records(60));
    let ran = bench.run(&["in.jsonl", "-o", "out.jsonl"]);
    assert!([0, 4].contains(&ran.status), "{}", ran.stderr);
    let schemas: BTreeMap<String, Value> =
        cases().into_iter().map(|c| (c.name, c.schema)).collect();
    let answers = records(&bench.text("out.jsonl"));
    assert_eq!(answers.len(), schemas.len());
    let mut finished = 0;
    for record in &answers {
        let name = record["id"].as_str().unwrap();
        match record["error"]["code"].as_str() {
            None => {
                finished += 1;
                assert_eq!(
                    record["parsed"],
                    serde_json::from_str::<Value>(record["answer"].as_str().unwrap()).unwrap()
                );
                assert!(validator(&schemas[name]).is_valid(&record["parsed"]), "{record}");
            }
            Some("incomplete") => {
                assert!(record["answer"].is_string() && record["parsed"].is_null(), "{record}")
            }
            Some(_) => panic!("{record}"),
        }
    }
    assert!(finished >= 15, "{finished} finished");
    // The same request has the same answer in any company.
    for arguments in
        [["--batch-size", "1", "--threads", "1"], ["--batch-size", "5", "--threads", "2"]]
    {
        bench
            .run(&[&["in.jsonl", "-o", "again.jsonl", "--overwrite"][..], &arguments[..]].concat());
        assert_eq!(
            essences(&bench.text("again.jsonl")),
            essences(&bench.text("out.jsonl")),
            "{arguments:?}"
        );
    }
    bench.run(&[
        "in.jsonl",
        "-o",
        "again.jsonl",
        "--overwrite",
        "--without",
        "queue,mask,static-memory,shared-prefix,cache",
    ]);
    assert_eq!(essences(&bench.text("again.jsonl")), essences(&bench.text("out.jsonl")));
}

#[test]
fn forms_of_flags_are_checked_before_the_model_is_looked_for_and_those_of_records_are_their_errors()
{
    let bench = Bench::new();
    bench.file("in.txt", "hello\n");
    bench.file("bad.json", r#"{"type": "array", "uniqueItems": true}"#);
    bench.file("gbnf.lark", "root ::= \"a\"");
    let lost = |arguments: &[&str], word: &str| {
        bench
            .run(&[&["in.txt", "-m", "none.gguf", "-o", "out.jsonl"][..], arguments].concat())
            .refused(word);
    };
    lost(&["--json-schema", "bad.json"], "uniqueItems");
    lost(&["--json-schema", "none.json"], "none.json");
    lost(&["--choices", "yes"], "--choices");
    lost(&["--choices", "yes,yes"], "'yes'");
    lost(&["--grammar", "none.lark"], "none.lark");
    bench.run(&["in.txt", "-o", "out.jsonl", "--regex", "(a"]).refused("--regex");
    bench.run(&["in.txt", "-o", "out.jsonl", "--grammar", "gbnf.lark"]).refused("--grammar");
    assert!(!bench.path("out.jsonl").exists());
    assert_eq!(bench.run(&["in.txt", "--json", "--regex", "a"]).status, 2, "two forms");
    assert_eq!(bench.run(&["in.txt", "--logprobs", "21"]).status, 2);
    let record = |id: &str, more: Value| {
        let mut record = json!({"id": id, "prompt": "x"});
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        record.to_string() + "\n"
    };
    bench.file(
        "in.jsonl",
        record("unique", json!({"json_schema": {"type": "array", "uniqueItems": true}}))
            + &record("regex", json!({"regex": "(a"}))
            + &record("one", json!({"choices": ["a"]}))
            + &record("both", json!({"choices": ["a", "b"], "regex": "a"}))
            + &record("fine", json!({"regex": "[ab]{2}"})),
    );
    for answer in bench.run(&["in.jsonl"]).expect(4).records() {
        let (id, error) = (answer["id"].as_str().unwrap(), &answer["error"]);
        let code = match id {
            "fine" => None,
            "unique" | "regex" => Some("constraint"),
            _ => Some("bad_field"),
        };
        assert_eq!(error["code"].as_str(), code, "{answer}");
        assert!(
            id != "unique" || error["message"].as_str().unwrap().contains("'uniqueItems'"),
            "{answer}"
        );
        assert!(id != "fine" || answer["answer"].as_str().unwrap().len() == 2, "{answer}");
    }
}

#[test]
fn a_records_form_takes_the_place_of_the_flags_and_both_are_part_of_its_settings() {
    let bench = Bench::new();
    let line = |id: &str, more: &str| format!("{{\"id\":\"{id}\",\"prompt\":\"x\"{more}}}\n");
    bench.file(
        "in.jsonl",
        line("a", "")
            + &line("b", ",\"choices\":[\"left\",\"right\"]")
            + &line("c", ",\"json_schema\":{\"const\":5}"),
    );
    let run = |arguments: &[&str]| -> BTreeMap<String, Value> {
        let ran = bench.run(&[&["in.jsonl"][..], arguments].concat()).expect(0);
        ran.records().into_iter().map(|r| (r["id"].as_str().unwrap().to_string(), r)).collect()
    };
    let with = run(&["--regex", "[xy]{3}"]);
    assert_eq!(with["a"]["answer"].as_str().unwrap().trim_matches(['x', 'y']), "");
    assert_eq!(with["a"]["finish_reason"], "stop");
    assert!(["left", "right"].contains(&with["b"]["answer"].as_str().unwrap()), "{}", with["b"]);
    assert_eq!(with["c"]["parsed"], 5);
    let plain = run(&[]);
    assert_ne!(plain["a"]["settings"], with["a"]["settings"]);
    assert_eq!(
        (&plain["b"]["settings"], &plain["c"]["settings"]),
        (&with["b"]["settings"], &with["c"]["settings"])
    );
    assert!(plain["a"]["parsed"].is_null() && plain["a"].get("choice_probs").is_none());
}

#[test]
fn choices_are_scored_by_the_log_probabilities_that_the_model_tells_of_their_tokens() {
    let bench = Bench::new();
    bench.file("in.jsonl", "{\"id\":\"s\",\"prompt\":\"Is it so?\"}\n");
    let choices = ["ab", "abc", "b", "abd e"];
    let scored =
        bench.run(&["in.jsonl", "--choices", &choices.join(",")]).expect(0).records().remove(0);
    assert_eq!(
        (&scored["finish_reason"], &scored["completion_tokens"]),
        (&json!("choice"), &json!(0)),
        "{scored}"
    );
    // By a forward pass in f64 that shares nothing with the decoder.
    let model =
        llmopt::model::open(process::model().to_str().unwrap(), &Default::default()).unwrap();
    let prompt_encoder = llmopt::text::PromptEncoder::new(&model).unwrap();
    let prompt = prompt_encoder
        .prompt_ids(&llmopt::text::Content::Text("Is it so?".into()), None, false)
        .unwrap();
    let end = prompt_encoder.tokenizer().special("<|im_end|>").unwrap();
    let sum = |choice: &str| -> f64 {
        let said =
            [prompt_encoder.tokenizer().encode_continued(choice).unwrap(), vec![end]].concat();
        let ids = [&prompt[..], &said].concat();
        let rows = textbook::logits(&model.spec, &*model.weights, &ids, ids.len());
        said.iter()
            .zip(&rows[prompt.len() - 1..])
            .map(|(token, row)| {
                row[*token as usize] - row.iter().map(|x| x.exp()).sum::<f64>().ln()
            })
            .sum()
    };
    let sums = choices.map(sum);
    let probs = scored["choice_probs"].as_object().unwrap();
    assert_eq!(probs.keys().collect::<Vec<_>>(), choices.iter().collect::<Vec<_>>());
    let total: f64 = probs.values().map(|p| p.as_f64().unwrap()).sum();
    assert!((total - 1.0).abs() < 1e-9, "{scored}");
    let best = probs
        .iter()
        .max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap()))
        .unwrap()
        .0;
    assert_eq!(scored["answer"], *best);
    let all: f64 = sums.iter().map(|sum| sum.exp()).sum();
    for (choice, sum) in choices.iter().zip(sums) {
        let (got, expected) = (probs[*choice].as_f64().unwrap(), sum.exp() / all);
        assert!((got - expected).abs() < 1e-4 * expected, "{choice}: {got} and {expected}");
    }
    // In any company the same bits.
    let crowd: String = (0..9)
        .map(|i| {
            json!({"id": i, "prompt": format!("Is it {i}?"), "choices": choices, "max_tokens": 3})
                .to_string()
                + "\n"
        })
        .collect();
    bench.file("crowd.jsonl", crowd + "{\"id\":\"s\",\"prompt\":\"Is it so?\",\"choices\":[\"ab\",\"abc\",\"b\",\"abd e\"]}\n");
    for arguments in
        [["--batch-size", "1", "--threads", "1"], ["--batch-size", "6", "--threads", "2"]]
    {
        let ran = bench.run(&[&["crowd.jsonl"][..], &arguments[..]].concat()).expect(0).records();
        let same = ran.iter().find(|r| r["id"] == "s").unwrap();
        assert_eq!(
            (&same["choice_probs"], &same["settings"]),
            (&scored["choice_probs"], &scored["settings"])
        );
    }
}

/// Each row that runs is a token of the prompt or of the tree of choices: shared beginnings once, the last token of each never.
#[test]
fn choices_cost_the_rows_of_the_prompt_and_of_their_own_tokens_shared_beginnings_once() {
    let bench = Bench::new();
    let choices = ["the billing", "the bug", "the bug report", "a question", "a quote", "other"];
    let record = |i: usize| {
        json!({"id": i, "prompt": format!("Ticket {i}: what is this about? {}", "x".repeat(3 * i))})
            .to_string()
            + "\n"
    };
    bench.file("in.jsonl", (0..9).map(record).collect::<String>());
    let model =
        llmopt::model::open(process::model().to_str().unwrap(), &Default::default()).unwrap();
    let prompt_encoder = llmopt::text::PromptEncoder::new(&model).unwrap();
    let tokens = choices.map(|choice| prompt_encoder.tokenizer().encode_continued(choice).unwrap());
    let beginnings: std::collections::HashSet<&[u32]> =
        tokens.iter().flat_map(|ids| (1..=ids.len()).map(move |n| &ids[..n])).collect();
    let all: usize = tokens.iter().map(Vec::len).sum();
    assert!(beginnings.len() + 8 < all, "they share beginnings: {} of {all}", beginnings.len());
    for arguments in [["--batch-size", "1"], ["--batch-size", "4"]] {
        let given = [
            "in.jsonl",
            "--choices",
            &choices.join(","),
            "--stats",
            "s.json",
            "--overwrite",
            "-o",
            "out.jsonl",
        ];
        bench
            .run(&[&given[..], &arguments[..], &["--without", "shared-prefix,cache"]].concat())
            .expect(0);
        let records = records(&bench.text("out.jsonl"));
        let own: u64 = records
            .iter()
            .map(|r| r["prompt_tokens"].as_u64().unwrap() + beginnings.len() as u64)
            .sum();
        let stats: Value = serde_json::from_str(&bench.text("s.json")).unwrap();
        let rows = stats["prefill_rows"].as_u64().unwrap() + stats["decode_rows"].as_u64().unwrap();
        assert_eq!((records.len(), rows), (9, own), "{arguments:?}");
    }
}

fn request(id: &str, url: &str, body: Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
}

#[test]
fn openai_requests_are_answered_n_times_in_their_form_with_log_probabilities() {
    let bench = Bench::new();
    let user = json!([{"role": "user", "content": "hi"}]);
    let chat = |id: &str, more: Value| {
        let mut body = json!({"messages": user, "max_tokens": 8, "seed": 3, "temperature": 1.5});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request(id, "/v1/chat/completions", body)
    };
    let schema = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"enum": ["aa", "bb", "ab"]}}});
    bench.file(
        "in.jsonl",
        chat("n", json!({"n": 4}))
            + &chat("second", json!({"seed": 4}))
            + &chat("schema", json!({"response_format": schema, "logprobs": true, "top_logprobs": 2}))
            + &chat("choice", json!({"structured_outputs": {"choice": ["left", "right"]}}))
            + &chat("cut", json!({"structured_outputs": {"regex": "[a-z]{30}"}}))
            + &chat(
                "refused",
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}),
            )
            + &chat(
                "penalised",
                json!({"temperature": 0, "frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 10}),
            )
            + &request("plain", "/v1/completions", json!({"prompt": "a", "max_tokens": 3, "temperature": 0, "logprobs": 1})),
    );
    let ran = bench.run(&["in.jsonl", "-o", "out.jsonl"]).expect(4);
    assert!(ran.stderr.contains("constraint"), "{}", ran.stderr);
    let out: BTreeMap<String, Value> = records(&bench.text("out.jsonl"))
        .into_iter()
        .map(|r| (r["custom_id"].as_str().unwrap().to_string(), r))
        .collect();
    let body = |id: &str| &out[id]["response"]["body"];
    let said = |id: &str, n: usize| {
        body(id)["choices"][n]["message"]["content"].as_str().unwrap().to_string()
    };
    let four: Vec<String> = (0..4).map(|n| said("n", n)).collect();
    assert_eq!(body("n")["choices"].as_array().unwrap().len(), 4);
    assert!(
        four.iter().collect::<std::collections::HashSet<_>>().len() > 1,
        "different seeds: {four:?}"
    );
    assert_eq!(said("second", 0), four[1], "choice i draws with seed + i");
    let tokens = body("n")["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(tokens > 8, "all of them count: {tokens}");
    assert!(["\"aa\"", "\"bb\"", "\"ab\""].contains(&said("schema", 0).as_str()));
    let content = body("schema")["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert!(content.iter().all(|t| t["top_logprobs"].as_array().unwrap().len() == 2
        && t["logprob"].as_f64().unwrap() <= 0.0));
    assert_eq!(
        content.iter().map(|t| t["token"].as_str().unwrap()).collect::<String>(),
        said("schema", 0)
    );
    assert!(
        ["left", "right"].contains(&said("choice", 0).as_str())
            && body("choice")["choices"][0]["finish_reason"] == "stop"
    );
    let cut = &body("cut")["choices"][0];
    assert_eq!(
        (out["cut"]["response"]["status_code"].as_u64(), &cut["finish_reason"]),
        (Some(200), &json!("length"))
    );
    assert!(out["cut"]["error"].is_null() && !said("cut", 0).is_empty());
    assert_eq!(out["refused"]["response"]["status_code"], 400);
    assert!(out["refused"]["error"]["message"].as_str().unwrap().contains("'not'"));
    let plain = &body("plain")["choices"][0]["logprobs"];
    assert!(
        plain["tokens"].as_array().unwrap().len() == 3
            && plain["top_logprobs"][0].as_object().unwrap().len() == 1,
        "{plain}"
    );
    // With such penalties no token comes twice.
    let once: Vec<char> = said("penalised", 0).chars().collect();
    assert!(
        once.iter().collect::<std::collections::HashSet<_>>().len() * 2 > once.len(),
        "{once:?}"
    );
}

#[test]
fn tables_have_a_column_for_each_property_and_go_on_after_a_kill_by_them() {
    let bench = Bench::new();
    bench.file("in.csv", "id,prompt,customer\n1,hello,Ann\n2,there,Bo\n3,you,Cy\n");
    let schema = r#"{"properties": {"kind": {"enum": ["ab", "cd"]}, "tags": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}}, "required": ["kind", "tags"]}"#;
    let arguments = ["in.csv", "-o", "out.csv", "--json-schema", schema, "--max-tokens", "40"];
    bench.run(&arguments).expect(0);
    let rows = |name: &str| -> Vec<BTreeMap<String, String>> {
        let text = bench.text(name);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        reader.deserialize().map(Result::unwrap).collect()
    };
    let whole = rows("out.csv");
    for row in &whole {
        let value: Value = serde_json::from_str(&row["answer"]).unwrap();
        assert_eq!(
            (row["answer.kind"].as_str(), row["answer.tags"].clone()),
            (value["kind"].as_str().unwrap(), value["tags"].to_string())
        );
    }
    let text = bench.text("out.csv");
    let header = text.lines().next().unwrap();
    assert!(
        header.starts_with("id,prompt,answer,answer.kind,answer.tags,")
            && header.ends_with("customer"),
        "{header}"
    );
    // Cut in the last row: the rest is answered again, to the same bytes of answers.
    std::fs::write(bench.path("out.csv"), &text[..text.len() - 9]).unwrap();
    bench.run(&[&arguments[..], &["--resume"]].concat()).expect(0);
    let kept = |rows: Vec<BTreeMap<String, String>>| {
        rows.into_iter().map(|r| (r["id"].clone(), r["answer"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(kept(rows("out.csv")), kept(whole.clone()));
    bench
        .run(&[
            "in.csv",
            "-o",
            "few.csv",
            "--json-schema",
            schema,
            "--max-tokens",
            "40",
            "--columns",
            "customer,answer.kind",
        ])
        .expect(0);
    let few = rows("few.csv");
    assert_eq!(few.iter().map(|r| r["customer"].as_str()).collect::<Vec<_>>(), ["Ann", "Bo", "Cy"]);
    assert!(
        few.iter()
            .zip(&whole)
            .all(|(few, whole)| few["answer.kind"] == whole["answer.kind"] && few.len() == 2)
    );
    bench
        .run(&["in.csv", "-o", "x.csv", "--json-schema", schema, "--columns", "answer.none"])
        .refused("answer.none");
    bench.run(&["in.csv", "-o", "probs.csv", "--choices", "a,b"]).expect(0);
    assert!(
        rows("probs.csv")
            .iter()
            .all(|r| r["choice_probs"].starts_with("{\"a\":") && r["finish_reason"] == "choice")
    );
}

/// `kill -9` again and again, some lines further on each time, until a run comes to its end.
#[test]
fn a_structured_run_that_is_killed_goes_on_to_the_bytes_of_one_that_was_not() {
    let bench = Bench::new();
    let row = |i: usize| format!("{i},\"please, \"\"{i}\"\"\nagain\",Ann {i}\n");
    bench.file(
        "in.csv",
        "id,prompt,customer\n".to_string() + &(0..150).map(row).collect::<String>(),
    );
    let schema = r#"{"properties": {"kind": {"enum": ["ab", "cd"]}, "note": {"type": "string", "pattern": "^[a-z ,]{0,3}$"}, "tags": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}}, "required": ["kind", "note", "tags"]}"#;
    let form = [
        "in.csv",
        "-q",
        "--json-schema",
        schema,
        "--max-tokens",
        "60",
        "--temperature",
        "1",
        "--threads",
        "1",
    ];
    // Times differ from run to run, so that all columns are compared without them; chosen ones byte by byte.
    let essence = |name: &str| -> Vec<BTreeMap<String, String>> {
        let text = bench.text(name);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let rows: Vec<BTreeMap<String, String>> =
            reader.deserialize().map(Result::unwrap).collect();
        let times = ["queue_ms", "ttft_ms", "latency_ms", "cached"];
        rows.into_iter()
            .map(|row| row.into_iter().filter(|(k, _)| !times.contains(&&k[..])).collect())
            .collect()
    };
    let chosen = ["--columns", "id,customer,answer.kind,answer.note,answer.tags,answer"];
    for (name, more) in [("all.csv", &[][..]), ("chosen.csv", &chosen[..])] {
        let whole = format!("whole-{name}");
        let arguments = [&form[..], more].concat();
        bench.run(&[&arguments[..], &["-o", &whole]].concat()).expect(0);
        let growing = bench.path(&if more.is_empty() {
            name.to_string()
        } else {
            format!("{name}.journal.jsonl")
        });
        let bytes = || std::fs::metadata(&growing).map_or(0, |meta| meta.len());
        let (mut random, mut kills, mut kept) = (common::Random::new(11, name), 0, 0);
        loop {
            let mut child =
                bench.start(bench.command(&[&arguments[..], &["-o", name, "--resume"]].concat()));
            let wanted = kept + 1_000 + random.below(6_000);
            while bytes() < wanted && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_millis(random.below(20)));
            child.kill().unwrap();
            let status = process::finish(child).status;
            if status == 0 {
                break;
            }
            assert_eq!(status, 1009, "killed");
            (kills, kept) = (kills + 1, bytes());
        }
        assert!(kills >= 3, "{name}: {kills} kills");
        let (got, expected) = (essence(name), essence(&whole));
        assert_eq!((got.len(), got), (150, expected), "{name}");
        if !more.is_empty() {
            assert!(!growing.exists());
            assert_eq!(bench.text(name), bench.text(&whole), "byte by byte");
        }
    }
}

#[test]
fn what_cannot_be_compiled_is_tried_once_however_often_it_comes() {
    let grammars = Grammars::new(words);
    // Refused before, while and after it is compiled.
    let hostile = ["", "(a", "[a&&b]", "([a-z]{1,200}){1,3000}", "(a?){9000}a{9000}"]
        .map(|re| Constraint::Regex(re.into()));
    let first: Vec<String> = hostile.iter().filter_map(|c| grammars.compile(c).err()).collect();
    assert!(first.len() >= 3, "{first:?}");
    assert_eq!(grammars.compilations(), hostile.len() as u64);
    for _ in 0..1000 {
        let again: Vec<String> = hostile.iter().filter_map(|c| grammars.compile(c).err()).collect();
        assert_eq!(again, first);
    }
    assert_eq!(
        grammars.compilations(),
        hostile.len() as u64,
        "1,000 records cost one attempt each"
    );
}
