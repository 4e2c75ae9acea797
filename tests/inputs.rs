//! What `llmopt run` takes: files told by their content, wholly wrong ones refused before any work, ids as they were given, OpenAI's
//! requests with OpenAI's defaults, conversations that end with the assistant. From the outside, with tiny models.

mod common;
#[path = "common/process.rs"]
mod process;

use process::{Bench, Ran, feed, finish, model, records};
use serde_json::{Value, json};
use std::process::{Command, Stdio};

fn request(id: &str, body: Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body})
        .to_string()
        + "\n"
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// `llmopt run` with no generation flag typed.
fn plain(bench: &Bench, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
    command
        .current_dir(&bench.folder)
        .stdin(Stdio::null())
        .args(["run", "-m"])
        .arg(model())
        .args(arguments);
    finish(bench.start(command))
}

/// `llmopt run` with this on standard input.
fn piped(bench: &Bench, arguments: &[&str], text: &str) -> Ran {
    let mut command = bench.command(arguments);
    command.stdin(Stdio::piped());
    let mut child = bench.start(command);
    feed(&mut child, text);
    finish(child)
}

#[test]
fn a_wholly_wrong_file_is_refused_before_the_model_is_looked_for() {
    let bench = Bench::new();
    bench.file("good.txt", "hello\n");
    for (name, text, word) in [
        (
            "alpaca.jsonl",
            "{\"instruction\":\"Name a fruit.\",\"input\":\"\",\"output\":\"Apple\"}\n",
            "Alpaca",
        ),
        (
            "sharegpt.jsonl",
            "{\"conversations\":[{\"from\":\"human\",\"value\":\"Hi\"}]}\n",
            "ShareGPT",
        ),
        ("question.jsonl", "{\"question\":\"a\"}\n", "question"),
        ("empty.jsonl", "", "no record"),
        ("empty.json", "[]", "no record"),
        ("header.csv", "id,prompt\n", "no record"),
    ] {
        bench.file(name, text);
        bench.run(&[name, "-m", "none.gguf", "-o", "out.jsonl"]).refused(word);
        bench.run(&["good.txt", name, "-m", "none.gguf"]).refused(name);
        assert!(!bench.path("out.jsonl").exists());
    }
}

#[test]
fn the_flag_that_a_refusal_names_can_be_copied_into_a_shell() {
    let bench = Bench::new();
    bench.file(
        "alpaca.jsonl",
        "{\"instruction\":\"Translate.\",\"input\":\"chat\",\"output\":\"\"}\n",
    );
    let refused = bench.run(&["alpaca.jsonl"]).refused("Alpaca").stderr;
    let flag = &refused[refused.find("--template").unwrap()..refused.find(" reads it").unwrap()];
    let mut shell = std::process::Command::new("sh");
    let run = format!(
        "exec {} run -q -m {} alpaca.jsonl {flag}",
        env!("CARGO_BIN_EXE_llmopt"),
        process::model().display()
    );
    shell.current_dir(&bench.folder).args(["-c", &run]).stdin(std::process::Stdio::null());
    assert_eq!(
        process::finish(bench.start(shell)).expect(0).records()[0]["prompt"],
        "Translate.\n\nchat"
    );
}

#[test]
fn what_follows_a_json_array_is_told_and_an_object_on_many_lines_is_known() {
    let bench = Bench::new();
    // Two files put together.
    bench.file("both.json", "[{\"prompt\":\"a\"}]\n[{\"prompt\":\"b\"}]\n");
    let ran = bench.run(&["both.json", "--ordered"]).expect(4);
    let records = ran.records();
    assert!(
        records.len() == 2
            && records[0]["error"].is_null()
            && records[1]["error"]["code"] == "bad_json",
        "{records:?}"
    );
    assert!(
        records[1]["error"]["message"].as_str().unwrap().contains("follows the array"),
        "{records:?}"
    );
    bench.file("pretty.jsonl", "{\n  \"prompt\": \"a\"\n}\n");
    bench.run(&["pretty.jsonl"]).refused("several lines");
}

#[test]
fn the_kind_of_input_is_told_without_a_flag() {
    let bench = Bench::new();
    let body = json!({"model": "m", "messages": user("hi"), "max_tokens": 2});
    let requests = request("a", body.clone()) + &request("b", body);
    bench.file("requests.jsonl", &requests);
    for ran in [bench.run(&["requests.jsonl"]), piped(&bench, &["-"], &requests)] {
        assert!(ran.expect(0).records().iter().all(|r| r["response"]["status_code"] == 200));
    }
    bench.file("array.json", "[\n {\"prompt\": \"a\"},\n {\"id\": 7, \"prompt\": \"b\"}\n]\n");
    let ids =
        |ran: Ran| ran.expect(0).records().iter().map(|r| r["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(bench.run(&["array.json", "--ordered"])), [json!("array.json:1"), json!(7)]);
    assert_eq!(
        ids(piped(
            &bench,
            &["-", "--ordered"],
            "{\"prompt\":\"a\"}\n{\"id\":\"x\",\"prompt\":\"b\"}\n"
        )),
        [json!("-:1"), json!("x")]
    );
    assert_eq!(ids(piped(&bench, &["-"], "id,prompt\n5,a\n")), [json!("5")]);
    assert_eq!(ids(piped(&bench, &["-"], "plain text\n")), [json!("-:1")]);
    let ran = piped(&bench, &["-"], "").expect(0);
    assert!(
        ran.stdout.is_empty() && ran.stderr.contains("warning: standard input is empty"),
        "{}",
        ran.stderr
    );
}

#[test]
fn ids_come_back_as_they_were_given_and_are_found_again() {
    let bench = Bench::new();
    bench.file("in.jsonl", "{\"id\":1,\"prompt\":\"a\"}\n{\"id\":\"1\",\"prompt\":\"b\"}\n{\"id\":2.0,\"prompt\":\"\"}\n");
    bench.run(&["in.jsonl", "-o", "out.jsonl", "--ordered"]).expect(4);
    let text = bench.text("out.jsonl");
    let starts: Vec<&str> = text.lines().map(|l| l.split(",\"prompt\"").next().unwrap()).collect();
    assert_eq!(starts, ["{\"id\":1", "{\"id\":\"1\"", "{\"id\":2.0"]);
    // Complete but for the error, which a resume keeps.
    bench.run(&["in.jsonl", "-o", "out.jsonl", "--resume"]).expect(4);
    assert_eq!(bench.text("out.jsonl"), text);
    // In CSV the number and the text are one id.
    bench.run(&["in.jsonl", "-o", "out.csv", "--ordered"]).expect(4);
    assert!(bench.text("out.csv").contains("duplicate_id"), "{}", bench.text("out.csv"));
}

#[test]
fn a_resume_by_another_spelling_of_the_path_finds_everything() {
    let bench = Bench::new();
    bench.file("p.txt", "one\ntwo\n\nthree\n");
    std::fs::create_dir(bench.path("sub")).unwrap();
    bench.run(&["p.txt", "-o", "out.jsonl"]).expect(4);
    let text = bench.text("out.jsonl");
    assert!(text.contains("\"id\":\"p.txt:1\""), "{text}");
    let whole = bench.path("p.txt").to_string_lossy().into_owned();
    for path in ["./p.txt", "sub/../p.txt", &whole] {
        let ran = bench.run(&[path, "-o", "out.jsonl", "--resume"]).expect(4);
        assert!(ran.stderr.contains("nothing to do"), "{}", ran.stderr);
        assert_eq!(bench.text("out.jsonl"), text);
    }
}

#[test]
fn openai_requests_have_openais_defaults_and_its_two_ends() {
    let bench = Bench::new();
    bench.file(
        "in.jsonl",
        request("a", json!({"messages": user("hi")}))
            + &request("b", json!({"messages": user("ho")})),
    );
    let ran = plain(&bench, &["in.jsonl"]).expect(0);
    assert_eq!(ran.stderr.matches("2 requests give no max_tokens").count(), 1, "{}", ran.stderr);
    for record in ran.records() {
        let body = &record["response"]["body"];
        let (reason, usage) =
            (body["choices"][0]["finish_reason"].as_str().unwrap(), &body["usage"]);
        let whole = usage["total_tokens"] == 512;
        assert!(reason == if whole { "length" } else { "stop" }, "{record}");
    }
    // A flag that is typed stands, also at its default.
    let typed =
        plain(&bench, &["in.jsonl", "--max-tokens", "128", "--temperature", "0.2"]).expect(0);
    assert!(
        typed
            .records()
            .iter()
            .all(|r| r["response"]["body"]["usage"]["completion_tokens"].as_u64().unwrap() <= 128)
    );
    assert!(!typed.stderr.contains("max_tokens"), "{}", typed.stderr);
    // A tiny model goes round in circles: cut, and said to be.
    bench.file(
        "loop.jsonl",
        request("a", json!({"messages": user("hi"), "temperature": 0, "max_tokens": 400})),
    );
    let looped = plain(&bench, &["loop.jsonl", "--stop-on", "loop"]).expect(0).records().remove(0);
    let body = &looped["response"]["body"];
    assert!(body["usage"]["completion_tokens"].as_u64().unwrap() < 400, "{looped}");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[test]
fn fields_that_would_change_an_openai_answer_are_400_and_name_themselves() {
    let bench = Bench::new();
    let fields = [
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("ignore_eos", json!(true)),
        ("guided_choice", json!(["a", "b"])),
        ("n", json!(17)),
        ("response_format", json!({"type": "xml"})),
        ("structured_outputs", json!({"structural_tag": {}})),
        ("top_logprobs", json!(2)),
        ("tools", json!([{}])),
    ];
    let mut text =
        request("good", json!({"messages": user("hi"), "max_tokens": 2, "n": 1, "tools": []}));
    for (name, value) in &fields {
        let mut body = json!({"messages": user("hi"), "max_tokens": 2});
        body[*name] = value.clone();
        text += &request(name, body);
    }
    bench.file("in.jsonl", text);
    for record in bench.run(&["in.jsonl"]).expect(4).records() {
        let id = record["custom_id"].as_str().unwrap();
        let status = if id == "good" { 200 } else { 400 };
        assert_eq!(record["response"]["status_code"], status, "{record}");
        assert!(
            id == "good" || record["error"]["message"].as_str().unwrap().contains(id),
            "{record}"
        );
    }
}

#[test]
fn a_conversation_that_ends_with_the_assistant_gets_a_new_turn_with_one_warning_or_is_continued() {
    let bench = Bench::new();
    let messages = json!([{"role": "user", "content": "Name one."}, {"role": "assistant", "content": "Sure, it is"}]);
    let line = |id: &str, more: Value| {
        let mut record = json!({"id": id, "messages": messages});
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        record.to_string() + "\n"
    };
    bench.file(
        "in.jsonl",
        line("a", json!({}))
            + &line("b", json!({}))
            + &line("c", json!({"continue_final_message": true})),
    );
    let by_id = |ran: &Ran| -> Vec<(u64, String)> {
        let mut all = ran.records();
        all.sort_by_key(|r| r["id"].to_string());
        all.iter()
            .map(|r| {
                (r["prompt_tokens"].as_u64().unwrap(), r["settings"].as_str().unwrap().to_string())
            })
            .collect()
    };
    let ran = bench.run(&["in.jsonl"]).expect(0);
    assert_eq!(
        ran.stderr.matches("2 conversations end with the assistant").count(),
        1,
        "{}",
        ran.stderr
    );
    let one = by_id(&ran);
    assert!(one[0] == one[1] && one[2].0 < one[0].0 && one[2].1 != one[0].1, "{one:?}");
    let flagged = bench.run(&["in.jsonl", "--continue-final-message"]).expect(0);
    assert!(!flagged.stderr.contains("new turn"), "{}", flagged.stderr);
    assert!(by_id(&flagged).iter().all(|r| *r == one[2]));
    // The end of the prompt is the message's own: the same ids as the text typed raw.
    let raw = "<|im_start|>user Name one.<|im_end|><|im_start|>assistant Sure, it is";
    bench.file("raw.jsonl", json!({"prompt": raw, "raw": true}).to_string());
    let (raw, c) = (
        bench.run(&["raw.jsonl"]).expect(0).records().remove(0),
        ran.records().into_iter().find(|r| r["id"] == "c").unwrap(),
    );
    assert_eq!((&raw["answer"], &raw["prompt_tokens"]), (&c["answer"], &c["prompt_tokens"]));
}

#[test]
fn a_stop_string_that_spells_a_control_token_stops_on_it() {
    let bench = Bench::new();
    let line =
        |i: usize| json!({"id": format!("r{i}"), "prompt": "hi", "seed": i}).to_string() + "\n";
    bench.file("in.jsonl", (0..10).map(line).collect::<String>());
    let run = |how: &[&str]| -> Vec<Value> {
        let args = [
            &[
                "in.jsonl",
                "--ordered",
                "--temperature",
                "3",
                "--top-k",
                "0",
                "--top-p",
                "1",
                "--max-tokens",
                "300",
            ],
            how,
        ]
        .concat();
        bench.run(&args).expect(0).records()
    };
    // Both of these are ends of the tiny model, by its keys or by their text.
    let (by_eos, by_text) = (
        run(&["--stop-on", "eos"]),
        run(&["--stop-on", "strings", "--stop", "<|im_end|>", "--stop", "<|endoftext|>"]),
    );
    assert!(
        by_eos.iter().filter(|r| r["finish_reason"] == "stop").count() > 2,
        "the tiny model ends now and then"
    );
    for (eos, text) in by_eos.iter().zip(&by_text) {
        assert_eq!(
            (&eos["answer"], &eos["completion_tokens"]),
            (&text["answer"], &text["completion_tokens"])
        );
        let reason = if eos["finish_reason"] == "stop" { "stop_string" } else { "length" };
        assert_eq!(text["finish_reason"], reason);
    }
}

#[test]
fn error_records_keep_what_could_be_read() {
    let bench = Bench::new();
    bench.file(
        "in.csv",
        "id,prompt,topic,max_tokens,seed\n1,Name a fruit.,t,4.0,\n2,Name, a tree.,t,x,y\n3,short\n4,bad,t,many,\n",
    );
    bench.run(&["in.csv", "-o", "out.csv", "--ordered"]).expect(4);
    let mut reader = csv::Reader::from_path(bench.path("out.csv")).unwrap();
    let rows: Vec<Vec<String>> =
        reader.records().map(|r| r.unwrap().iter().map(String::from).collect()).collect();
    let told: Vec<[&str; 3]> = rows.iter().map(|r| [&r[0][..], &r[1], &r[15]]).collect();
    assert_eq!(
        told,
        [["1", "Name a fruit.", "t"], ["2", "", ""], ["3", "short", ""], ["4", "bad", "t"]]
    );
    let failed: Vec<bool> = rows.iter().map(|r| !r[14].is_empty()).collect();
    assert_eq!(failed, [false, true, false, true]);
    bench.file("in.jsonl", "{\"id\":5,\"prompt\":\"x\",\"temperature\":-1}\n{\"id\":6,\"prompt\":\"half \\ud83d emoji\"}\n");
    let bad = records(&bench.run(&["in.jsonl", "--ordered"]).expect(4).stdout);
    assert_eq!(
        (&bad[0]["id"], &bad[0]["prompt"], &bad[1]["id"]),
        (&json!(5), &json!("x"), &json!(6))
    );
    assert!(
        bad[1]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("\\ud83d is half of a surrogate pair"),
        "{}",
        bad[1]
    );
}
