//! Rows in, rows out: templates over the columns of tables, the columns that come back, files that are made from a journal, parts of a
//! run that are joined, a worker that answers line by line. From the outside, with tiny models.

mod common;
#[path = "common/process.rs"]
mod process;

use process::{Bench, essences, finish, records};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::Duration;

/// Tickets as a spreadsheet writes them: a customer, a text with line ends and quotes, a column that is called like one of ours.
fn tickets(rows: usize) -> String {
    let row = |i: usize| format!("T{i},\"c, {i}\",\"it \"\"fails\"\"\nagain {i}\",m{i}\n");
    "id,customer,ticket_text,model\n".to_string() + &(0..rows).map(row).collect::<String>()
}

const TEMPLATE: &str = "Summarise this ticket: {{ ticket_text }}";

fn rows(text: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().unwrap().iter().map(String::from).collect();
    (header, reader.records().map(|r| r.unwrap().iter().map(String::from).collect()).collect())
}

#[test]
fn a_table_of_tickets_comes_back_with_an_answer_to_each() {
    let bench = Bench::new();
    bench.file("tickets.csv", tickets(9));
    let args = ["tickets.csv", "-q", "--template", TEMPLATE];
    let lines = bench.run(&args).expect(0).records();
    assert_eq!(lines.len(), 9);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["prompt"], format!("Summarise this ticket: it \"fails\"\nagain {i}"));
        assert_eq!(line["id"], format!("T{i}"), "the table's order");
        let input = serde_json::json!({"customer": format!("c, {i}"), "ticket_text": format!("it \"fails\"\nagain {i}"), "model": format!("m{i}")});
        assert_eq!(line["input"], input);
    }
    bench
        .run(
            &[&args[..], &["-o", "out.csv", "--columns", "id,customer,answer,model,llmopt.model"]]
                .concat(),
        )
        .expect(0);
    let (header, out) = rows(&bench.text("out.csv"));
    assert_eq!(header, ["id", "customer", "answer", "model", "llmopt.model"]);
    for (i, row) in out.iter().enumerate() {
        let model = lines[i]["model"].as_str().unwrap();
        assert_eq!(
            row[..],
            [
                format!("T{i}"),
                format!("c, {i}"),
                lines[i]["answer"].as_str().unwrap().into(),
                format!("m{i}"),
                model.into()
            ]
        );
    }
    assert!(!bench.path("out.csv.journal.jsonl").exists(), "nothing is missing");
    bench
        .run(&[&args[..], &["-o", "out.csv", "--columns", "id,answer"]].concat())
        .refused("--resume");
    bench
        .run(&[&args[..], &["-o", "out.csv", "--columns", "id,answer", "--resume"]].concat())
        .expect(0);
    // Fewer rows than records, and nothing to go on with.
    bench.file("short.csv", "id,answer\nT0,x\n");
    bench
        .run(&[&args[..], &["-o", "short.csv", "--columns", "id,answer", "--resume"]].concat())
        .refused("1 row, the input 9 records");
    // All columns, ours under another name where the input has it; separated as the input is.
    bench.file("semi.csv", "id;text;answer\na;\"x;y\";old\n");
    bench.run(&["semi.csv", "-q", "--prompt-field", "text", "-o", "all.csv"]).expect(0);
    let text = bench.text("all.csv");
    assert!(
        text.starts_with("id;prompt;llmopt.answer;finish_reason;")
            && text.contains(";error;text;answer\n"),
        "{text}"
    );
    bench.run(&["semi.csv", "-q", "--prompt-field", "text", "-o", "all.tsv"]).expect(0);
    assert!(bench.text("all.tsv").starts_with("id\tprompt\tllmopt.answer\t"));
    // JSON lines with chosen fields; those that failed say so.
    bench.file("some.jsonl", "{\"n\":1,\"t\":\"x\"}\n{\"n\":[2],\"t\":\"\"}\n");
    let ran = bench
        .run(&["some.jsonl", "-q", "--ordered", "--template", "{{ t }}", "--columns", "n,answer"])
        .expect(4);
    let text = ran.stdout;
    assert!(
        text.starts_with("{\"n\":1,\"answer\":\"")
            && text.contains("\n{\"n\":[2],\"answer\":null,\"error\":{\"code\":\"empty_prompt\","),
        "{text}"
    );
}

#[test]
fn mistakes_in_fields_are_told_before_the_model_is_looked_for() {
    let bench = Bench::new();
    bench.file("t.csv", tickets(2));
    for (args, words) in [
        (&["--template", "{{ body }}"][..], "asks for body"),
        (&["--template", "{{ ticket_text"], "--template"),
        (&["--template", "@none.txt"], "none.txt"),
        (&["--template", "hello"], "names no field"),
        (&["--template", "{{ ticket_text | nosuchfilter }}"], "nosuchfilter"),
        (&["--prompt-field", "body"], "asks for body"),
        (&["--id-field", "key", "--template", TEMPLATE], "asks for key"),
        (&["--template", TEMPLATE, "--columns", "id,custmer"], "custmer is neither"),
        (&["--template", TEMPLATE, "--setting-fields", "heat"], "heat"),
        (&["--template", TEMPLATE, "-o", "out.xlsx"], ".xlsx"),
        (&[], "--prompt-field ticket_text"),
    ] {
        bench.run(&[&["t.csv", "-m", "none.gguf"], args].concat()).refused(words);
    }
    bench.run(&["t.csv", "--template", "x", "--prompt-field", "y"]).expect(2);
}

#[test]
fn a_prompt_can_be_typed_and_packed_files_and_folders_be_read() {
    let bench = Bench::new();
    let ran = bench.run(&["-p", "one", "-p", "two", "-q", "--ordered"]).expect(0);
    let ids: Vec<String> =
        ran.records().iter().map(|r| format!("{} {}", r["id"], r["prompt"])).collect();
    assert_eq!(ids, ["\"prompt:1\" \"one\"", "\"prompt:2\" \"two\""]);
    std::fs::create_dir(bench.path("letters")).unwrap();
    bench.file("letters/a.txt", "A");
    bench.file("letters/b.md", "B");
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(b"{\"prompt\":\"C\"}\n").unwrap();
    bench.file("c.jsonl.gz", packer.finish().unwrap());
    let ran = bench.run(&["letters", "c.jsonl.gz", "-q", "--ordered"]).expect(0);
    let ids: Vec<String> =
        ran.records().iter().map(|r| format!("{} {}", r["id"], r["prompt"])).collect();
    assert_eq!(ids, ["\"letters/a.txt\" \"A\"", "\"letters/b.md\" \"B\"", "\"c.jsonl:1\" \"C\""]);
    let shown = bench.run(&["letters", "--dry-run", "--template", "Say {{ prompt }}"]).expect(0);
    assert!(
        shown.stderr.contains("the first prompt, letters/a.txt:\n    Say A\n"),
        "{}",
        shown.stderr
    );
}

#[test]
fn answers_that_lie_among_the_texts_of_a_folder_are_gone_on_with_and_links_in_circles_are_no_texts()
{
    let bench = Bench::new();
    std::fs::create_dir_all(bench.path("letters/sub")).unwrap();
    bench.file("letters/a.txt", "A");
    bench.file("letters/sub/b.md", "B");
    (0..10).for_each(|n| {
        std::os::unix::fs::symlink(".", bench.path(&format!("letters/sub/round{n}"))).unwrap()
    });
    bench.run(&["letters", "-q", "-o", "letters/out.csv", "--columns", "id,answer"]).expect(0);
    bench
        .run(&["letters", "-q", "-o", "letters/out.csv", "--columns", "id,answer", "--resume"])
        .expect(0);
    bench.run(&["letters", "-q", "-o", "letters/out.jsonl"]).expect(0);
    bench.run(&["letters", "-q", "-o", "letters/out.jsonl", "--resume"]).expect(0);
    assert_eq!(
        (
            rows(&bench.text("letters/out.csv")).1.len(),
            records(&bench.text("letters/out.jsonl")).len()
        ),
        (2, 2)
    );
    bench
        .run(&["letters", "-q", "--stats", "letters/sub/b.md", "--overwrite"])
        .refused("letters/sub/b.md, which is read");
    // What cannot be read has its place told, in a folder of thousands.
    std::os::unix::fs::symlink("nowhere", bench.path("letters/sub/Broken.txt")).unwrap();
    bench.run(&["letters", "-m", "none.gguf"]).refused("letters/sub/Broken.txt: no such file");
}

#[test]
fn columns_of_json_records_hold_what_they_are_called_by_or_are_refused() {
    let bench = Bench::new();
    let schema = r#"{"properties": {"kind": {"enum": ["ab", "cd"]}}, "required": ["kind"], "additionalProperties": false}"#;
    let shape = ["-q", "--json-schema", schema, "--max-tokens", "40"];
    let line = |n: usize| format!("{{\"id\":\"r{n}\",\"prompt\":\"number {n}\"}}\n");
    bench.file(
        "in.jsonl",
        (0..150).map(line).collect::<String>() + "{\"prompt\":\"last\",\"note\":\"N\"}\n",
    );
    bench.file("two.jsonl", line(0) + &line(1));
    bench
        .run(
            &[
                &["two.jsonl", "-o", "out.csv", "--columns", "id,answer.kind,llmopt.answer"],
                &shape[..],
            ]
            .concat(),
        )
        .expect(0);
    let (header, table) = rows(&bench.text("out.csv"));
    assert_eq!(header, ["id", "answer.kind", "llmopt.answer"]);
    for row in &table {
        assert!(
            ["ab", "cd"].contains(&&row[1][..]) && row[2] == format!("{{\"kind\":\"{}\"}}", row[1]),
            "{row:?}"
        );
    }
    // Columns of the input that are called like ours keep their names, and no two have one.
    bench.file("t.csv", "id,prompt,answer,answer.kind,llmopt.answer\n1,hi,A,K,L\n");
    bench.run(&[&["t.csv", "-o", "same.csv"], &shape[..]].concat()).expect(0);
    bench.run(&[&["t.csv", "-o", "same.csv", "--resume"], &shape[..]].concat()).expect(0);
    let (header, table) = rows(&bench.text("same.csv"));
    let row: BTreeMap<String, String> = header.iter().cloned().zip(table[0].clone()).collect();
    assert!(row.len() == header.len() && table.len() == 1, "{header:?}");
    assert_eq!(
        (&row["answer"][..], &row["answer.kind"][..], &row["llmopt.answer"][..]),
        ("A", "K", "L")
    );
    assert_eq!(
        row["llmopt.llmopt.answer"],
        format!("{{\"kind\":\"{}\"}}", row["llmopt.answer.kind"])
    );
    // Of a stream too, whose records are not known before they come.
    let mut command = bench.command(
        &[&["-", "--input-format", "jsonl", "--columns", "id,answer.kind"], &shape[..]].concat(),
    );
    command.stdin(Stdio::piped());
    let mut child = bench.start(command);
    process::feed(&mut child, &line(0));
    let streamed = finish(child).expect(0).records();
    assert!(["ab", "cd"].contains(&streamed[0]["answer.kind"].as_str().unwrap()), "{streamed:?}");
    // A name that no record has would be a column of nothing, and the answers gone; one that a late record has is a column.
    bench
        .run(&["in.jsonl", "-m", "none.gguf", "--columns", "id,anser", "-o", "x.csv"])
        .refused("anser is neither");
    bench
        .run(&["in.jsonl", "-q", "--columns", "id,note", "-o", "late.csv", "--max-tokens", "1"])
        .expect(0);
    let (_, late) = rows(&bench.text("late.csv"));
    assert!(
        late.len() == 151 && late[150] == ["in.jsonl:151", "N"] && late[0] == ["r0", ""],
        "{late:?}"
    );
}

#[test]
fn a_killed_run_into_chosen_columns_goes_on_from_its_journal() {
    let bench = Bench::new();
    bench.file("tickets.csv", tickets(400));
    let args = [
        "tickets.csv",
        "-q",
        "--template",
        TEMPLATE,
        "--max-tokens",
        "12",
        "--columns",
        "id,customer,answer",
    ];
    bench.run(&[&args[..], &["-o", "whole.csv"]].concat()).expect(0);
    let mut random = common::Random::new(7, "journal kills");
    let mut killed = 0;
    for round in 0..3 {
        let name = format!("out{round}.csv");
        let journal = bench.path(&format!("{name}.journal.jsonl"));
        let lines =
            || std::fs::read_to_string(&journal).map_or(0, |text| text.matches('\n').count());
        let args = [&args[..], &["-o", &name, "--resume"]].concat();
        let mut kept = 0;
        loop {
            // Each is killed some answers further on, wherever it is then.
            let wanted = kept + random.below(90) as usize;
            let mut child = bench.start(bench.command(&args));
            while lines() < wanted
                && child.try_wait().unwrap().is_none()
                && !bench.path(&name).exists()
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_millis(random.below(20)));
            child.kill().unwrap();
            let ran = finish(child);
            // Before the end there is no file, never a part of one.
            if bench.path(&name).exists() {
                assert_eq!(bench.text(&name), bench.text("whole.csv"));
            }
            if ran.status == 0 {
                break;
            }
            ran.expect(1009);
            assert!(
                lines() >= kept || bench.path(&name).exists(),
                "a line that was written is gone"
            );
            kept = lines();
            killed += 1;
        }
        assert_eq!(bench.text(&name), bench.text("whole.csv"));
        assert!(!journal.exists());
    }
    assert!(killed >= 6, "{killed} kills");
}

#[test]
fn errors_get_a_column_and_their_journal_stays_for_another_try() {
    let bench = Bench::new();
    bench.file("in.csv", "id,text\na,x\nb,\nc,z\n");
    let args =
        ["in.csv", "-q", "--template", "{{ text }}", "-o", "out.csv", "--columns", "id,answer"];
    bench.run(&args).expect(4);
    let (header, out) = rows(&bench.text("out.csv"));
    assert_eq!(header, ["id", "answer", "error"]);
    assert!(
        out[1][2].starts_with("empty_prompt: ") && out[0][2].is_empty() && !out[2][1].is_empty(),
        "{out:?}"
    );
    assert!(bench.path("out.csv.journal.jsonl").exists());
    bench.run(&[&args[..], &["--resume"]].concat()).expect(4);
    // Another setting's journal, and what is none of ours.
    bench.run(&[&args[..], &["--resume", "--max-tokens", "3"]].concat()).refused("--max-tokens");
    bench.file("out.csv.journal.jsonl", "garbage\n");
    for flag in ["--resume", "--overwrite"] {
        bench.run(&[&args[..], &[flag]].concat()).refused("is no journal of llmopt");
    }
    assert_eq!(bench.text("out.csv.journal.jsonl"), "garbage\n");
    std::fs::remove_file(bench.path("out.csv.journal.jsonl")).unwrap();
    bench.run(&[&args[..], &["--overwrite", "--limit", "1"]].concat()).expect(0);
    assert_eq!(rows(&bench.text("out.csv")).1.len(), 1);
}

#[test]
fn parts_of_a_run_are_those_of_the_whole_and_are_joined_without_the_model_being_kept() {
    let bench = Bench::new();
    let input: String = (0..24)
        .map(|i| format!("{{\"id\":\"r{i}\",\"prompt\":\"question {i}\"}}\n"))
        .collect::<String>()
        + "{\"prompt\":\"\"}\n";
    bench.file("in.jsonl", input);
    let whole = bench.run(&["in.jsonl", "-q", "--ordered"]).expect(4).stdout;
    let part = |i: usize| {
        let ran = bench.run(&["in.jsonl", "-q", "--shard", &format!("{i}/3")]);
        assert!(ran.status == 0 || ran.status == 4);
        ran.stdout
    };
    let parts: Vec<String> = (0..3).map(part).collect();
    assert!(parts.iter().all(|p| !p.is_empty()));
    let mut joined: Vec<String> = parts.iter().flat_map(|p| essences(p)).collect();
    let mut expected = essences(&whole);
    joined.sort();
    expected.sort();
    assert_eq!(joined, expected, "each record once, with the same answer");
    // cat, in any order; what is missing is answered, and all are put in order.
    let resume = ["in.jsonl", "-o", "all.jsonl", "--resume", "--ordered"];
    for kept in [vec![2, 0, 1], vec![1], vec![0, 2]] {
        bench.file("all.jsonl", kept.iter().map(|&i| &parts[i][..]).collect::<String>());
        bench.run(&resume).expect(4);
        assert_eq!(
            essences_in_order(&bench.text("all.jsonl")),
            essences_in_order(&whole),
            "{kept:?}"
        );
    }
    let again = bench.run(&resume).expect(4);
    assert!(again.stderr.contains("complete"), "{}", again.stderr);
    // A part twice, a part of other settings, a part of another file.
    bench.file("all.jsonl", parts[0].clone() + &parts[1] + &parts[0]);
    bench.run(&resume).refused("more than once");
    let other = bench.run(&["in.jsonl", "-q", "--shard", "2/3", "--max-tokens", "3"]).stdout;
    bench.file("all.jsonl", parts[0].clone() + &parts[1] + &other);
    bench.run(&resume).refused("--max-tokens");
    bench.file("other.jsonl", "{\"id\":\"s1\",\"prompt\":\"question 1\"}\n");
    let other = bench.run(&["other.jsonl", "-q"]).expect(0).stdout;
    bench.file("all.jsonl", parts[0].clone() + &other + &parts[1]);
    bench.run(&resume).refused("'s1' is no record of these prompts");
    // The limit is counted before the part is taken.
    let limited: Vec<String> = (0..3)
        .flat_map(|i| {
            bench
                .run(&["in.jsonl", "-q", "--limit", "5", "--shard", &format!("{i}/3")])
                .expect(0)
                .records()
        })
        .map(|r| r["id"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(limited.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    let mut command = bench.command(&["in.jsonl", "-q", "--shard", "auto", "--ordered"]);
    command.env("JOB_COMPLETION_INDEX", "1").env("JOB_COMPLETIONS", "3");
    let mut auto = essences(&finish(bench.start(command)).stdout);
    let mut second = essences(&parts[1]);
    auto.sort();
    second.sort();
    assert_eq!(auto, second);
    bench.run(&["in.jsonl", "--shard", "3/3"]).expect(2);
}

/// What records say, in their order.
fn essences_in_order(text: &str) -> Vec<String> {
    records(text).iter().map(process::essence).collect()
}

#[test]
fn a_worker_is_ready_and_answers_a_line_before_the_next_is_sent() {
    let bench = Bench::new();
    let mut command = bench.command(&["-", "--input-format", "jsonl", "-o", "-"]);
    command.stdin(Stdio::piped());
    let mut child = bench.start(command);
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while line != "ready\n" {
        line.clear();
        assert!(errors.read_line(&mut line).unwrap() > 0, "it never was ready");
    }
    let mut sink = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    let mut seen = BTreeMap::new();
    for i in 0..5 {
        writeln!(sink, "{{\"id\":{i},\"prompt\":\"question {i}\"}}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        let record: serde_json::Value = serde_json::from_str(&answer).unwrap();
        seen.insert(record["id"].as_u64().unwrap(), record["answer"].as_str().unwrap().to_string());
        assert_eq!(seen.len(), i + 1);
    }
    drop(sink);
    let mut rest = String::new();
    answers.read_to_string(&mut rest).unwrap();
    assert!(rest.is_empty() && child.wait().unwrap().success());
}

#[cfg(feature = "parquet")]
mod parquet {
    use super::*;
    use ::parquet::file::reader::{FileReader, SerializedFileReader};

    fn read(bench: &Bench, name: &str) -> Vec<String> {
        let reader =
            SerializedFileReader::new(std::fs::File::open(bench.path(name)).unwrap()).unwrap();
        reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect()
    }

    #[test]
    fn a_parquet_file_is_written_by_journal_and_read_with_its_types() {
        let bench = Bench::new();
        let lines: String = (0..7)
            .map(|i| {
                format!("{{\"id\":{i},\"text\":\"t{i}\",\"x\":{i}.5,\"ok\":true,\"tags\":[{i}]}}\n")
            })
            .collect();
        bench.file("in.jsonl", lines);
        let args = [
            "in.jsonl",
            "-q",
            "--ordered",
            "--template",
            "say {{ text }}",
            "--columns",
            "id,text,x,ok,tags,answer",
        ];
        let answers = bench.run(&args).expect(0).records();
        bench.run(&[&args[..], &["-o", "a.parquet"]].concat()).expect(0);
        assert!(!bench.path("a.parquet.journal.jsonl").exists());
        let rows = read(&bench, "a.parquet");
        assert_eq!(rows.len(), 7);
        assert!(
            rows[3]
                .starts_with("{id: 3, text: \"t3\", x: 3.5, ok: true, tags: \"[3]\", answer: \""),
            "{}",
            rows[3]
        );
        // Read again as input: the same prompts, the same answers, numbers as numbers.
        let again =
            ["a.parquet", "-q", "--template", "say {{ text }}", "--columns", "id,text,x,ok,tags"];
        let seen = bench.run(&again).expect(0).records();
        for (record, answer) in seen.iter().zip(&answers) {
            assert_eq!(
                (&record["id"], &record["x"], &record["ok"]),
                (&answer["id"], &answer["x"], &answer["ok"])
            );
        }
        bench
            .run(&["a.parquet", "--prompt-field", "txt", "-m", "none.gguf"])
            .refused("asks for txt");
        bench.run(&[&args[..], &["-o", "a.parquet", "--resume"]].concat()).expect(0);
        // A damaged file ends in one line.
        let bytes = std::fs::read(bench.path("a.parquet")).unwrap();
        let mut random = common::Random::new(3, "parquet");
        for cut in [5, bytes.len() / 2, bytes.len() - 9] {
            bench.file("cut.parquet", &bytes[..cut]);
            bench
                .run(&["cut.parquet", "--prompt-field", "text", "-m", "none.gguf"])
                .refused("cut.parquet");
        }
        for _ in 0..20 {
            let mut bytes = bytes.clone();
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
            bench.file("bad.parquet", bytes);
            let ran = bench.run(&["bad.parquet", "-q", "--prompt-field", "text"]);
            assert!(
                [0, 1, 2, 4].contains(&ran.status) && !ran.stderr.contains("panicked"),
                "{ran:?}"
            );
        }
    }

    #[test]
    fn a_killed_run_into_parquet_goes_on_from_its_journal_to_the_same_bytes() {
        let bench = Bench::new();
        bench.file("tickets.csv", tickets(60));
        let schema = r#"{"properties": {"kind": {"enum": ["ab", "cd"]}, "n": {"enum": [1, 2]}}, "required": ["kind", "n"]}"#;
        let form = [
            "tickets.csv",
            "-q",
            "--template",
            TEMPLATE,
            "--json-schema",
            schema,
            "--max-tokens",
            "30",
        ];
        let args = [&form[..], &["--columns", "id,customer,answer.kind,answer.n,answer"]].concat();
        bench.run(&[&args[..], &["-o", "whole.parquet"]].concat()).expect(0);
        let args = [&args[..], &["-o", "out.parquet", "--resume"]].concat();
        let journal = bench.path("out.parquet.journal.jsonl");
        let lines =
            || std::fs::read_to_string(&journal).map_or(0, |text| text.matches('\n').count());
        let mut kept = 0;
        for _ in 0..3 {
            let mut child = bench.start(bench.command(&args));
            while lines() < kept + 5 && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
            child.kill().unwrap();
            finish(child);
            assert!(!bench.path("out.parquet").exists() || read(&bench, "out.parquet").len() == 60);
            assert!(
                lines() >= kept || bench.path("out.parquet").exists(),
                "a line that was written is gone"
            );
            kept = lines();
        }
        bench.run(&args).expect(0);
        let rows = read(&bench, "out.parquet");
        assert!(
            rows.len() == 60
                && rows
                    .iter()
                    .enumerate()
                    .all(|(i, row)| row.starts_with(&format!("{{id: \"T{i}\", "))),
            "{rows:?}"
        );
        let bytes = |name: &str| std::fs::read(bench.path(name)).unwrap();
        assert!(
            bytes("out.parquet") == bytes("whole.parquet"),
            "the bytes of a run that was not killed"
        );
        assert!(!journal.exists());
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_names_the_feature() {
    let bench = Bench::new();
    bench.file("in.txt", "x\n");
    bench.file("in.parquet", "PAR1");
    bench.run(&["in.txt", "-o", "out.parquet", "-m", "none.gguf"]).refused("--features parquet");
    bench.run(&["in.parquet", "-m", "none.gguf"]).refused("--features parquet");
}

#[test]
fn a_column_that_no_record_of_a_stream_has_is_told() {
    let bench = Bench::new();
    let run = |args: &[&str], input: &str| {
        let mut command = bench.command(&[&["-", "--columns"], args].concat());
        command.stdin(Stdio::piped());
        let mut child = bench.start(command);
        process::feed(&mut child, input);
        finish(child)
    };
    // A header is known before the model is.
    let refused = run(&["id,anser", "-m", "none.gguf"], "id,prompt,town\n1,x,Ulm\n")
        .refused("--columns: anser is neither");
    assert!(refused.stderr.contains("town"), "{}", refused.stderr);
    run(&["id,twon", "-m", "none.gguf", "--input-format", "txt"], "x\n")
        .refused("--columns: twon is neither");
    // What records of a stream have shows as they come.
    let line =
        |n: usize, field: &str| format!("{{\"id\":{n},\"prompt\":\"x\",\"{field}\":\"Ulm\"}}\n");
    let ran = run(&["id,anser,twon,town"], &(line(1, "town") + &line(2, "land"))).expect(0);
    assert_eq!(ran.records()[0]["town"], "Ulm");
    let said: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("--columns")).collect();
    assert_eq!(said.len(), 2, "{}", ran.stderr);
    assert!(
        said[0].contains("no record has anser; did you mean 'answer'? records have land, town"),
        "{said:?}"
    );
    assert!(said[1].contains("no record has twon; did you mean 'town'?"), "{said:?}");
    let ran = run(
        &["id,land"],
        &(0..300).map(|n| line(n, if n == 299 { "land" } else { "town" })).collect::<String>(),
    );
    assert!(!ran.expect(0).stderr.contains("--columns"), "a late record has it");
    let ran = run(&["id,anser"], "").expect(0);
    assert!(
        !ran.stderr.contains("--columns") && ran.stderr.contains("standard input is empty"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_line_in_which_a_spreadsheet_names_its_separator_is_no_header() {
    let bench = Bench::new();
    bench.file("t.csv", "sep=;\r\nid;prompt;town\r\n1;a, b;Ulm\r\n");
    bench.run(&["t.csv", "-q", "-o", "out.csv", "--columns", "id,town,answer"]).expect(0);
    assert!(
        bench.text("out.csv").starts_with("id;town;answer\n1;Ulm;"),
        "{}",
        bench.text("out.csv")
    );
    let mut command = bench.command(&["-", "-q"]);
    command.stdin(Stdio::piped());
    let mut child = bench.start(command);
    process::feed(&mut child, "sep=;\nid;prompt\n1;a, b\n");
    let records = finish(child).expect(0).records();
    assert!(
        records.len() == 1 && records[0]["prompt"] == "a, b" && records[0]["id"] == "1",
        "{records:?}"
    );
}
