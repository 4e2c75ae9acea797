//! `llmopt compare`: settings, or results files, side by side. In: settings or paths, flags. Out: a report on standard output, a folder of
//! results, an exit status. Fresh processes tell load time, memory and the workload; then all settings are loaded here, and their
//! distributions and bare forward passes are measured in turns.

use super::Failure;
use super::args::{self, Shared};
use super::console::{Console, Level, Progress};
use super::files::Touched;
use super::loading;
use super::results::{self, Folder};
use super::run::signals::Signals;
use super::setting::{self, Setting};
use crate::bench::comparison::{self as comparison, Auto, ChildReport, Comparison, Figure, Plan, SCHEMA, Subject};
use crate::bench::lineup::{self, Results};
use crate::bench::quality::{self, Agreement, Quality, Windows};
use crate::bench::statistics::Random;
use crate::bench::verdict::{self, Verdict};
use crate::bench::workload::Workload;
use crate::decoder::Decoder;
use crate::machine::{Activity, Machine};
use crate::pipeline::{Control, DtypePolicy, Ended, Input, Loaded, Order, Pipeline, Prompt};
use crate::report::{self, Format, Report};
use crate::roofline::{Effort, Limits, Work};
use crate::units::{TokenId, counted, seconds, shown};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `compare`'s flags, as typed.
#[derive(clap::Args, Debug)]
#[command(after_help = "A setting is a dtype, or key=value,… over the flags of `run`, lists joined by '+':\n  \
                        llmopt compare f32 bf16\n  llmopt compare threads=1 threads=2\n  \
                        llmopt compare dtype=bf16 dtype=bf16,batch-size=4,without=queue+mask\n  llmopt compare old.json new.json")]
pub struct Args {
    /// Settings, or two or more results files or folders; the first is the reference
    #[arg(required = true, value_name = "A")]
    pub what: Vec<String>,
    /// Speed only, at most a minute
    #[arg(long, help_heading = "Compare")]
    pub quick: bool,
    /// Text for perplexity and divergence instead of the built-in one
    #[arg(long, value_name = "FILE", help_heading = "Compare")]
    pub text: Option<PathBuf>,
    /// How to show the report
    #[arg(long, value_name = "F", default_value = "table", help_heading = "Compare")]
    pub format: Format,
    /// Folder for results [default: results/; for results files: nothing is written]
    #[arg(long, value_name = "DIR", help_heading = "Compare")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub shared: Shared,
    /// A fresh process of a comparison: prompts and tokens of its workload
    #[arg(long, value_names = ["PROMPTS", "TOKENS"], num_args = 2, hide = true)]
    pub child: Option<Vec<usize>>,
}

/// Rounds between two looks at the machine's limits.
const PROBE_EVERY: usize = 2;

/// Written for this project: prompts/README.md.
const TEXT: &str = include_str!("../../prompts/perplexity.txt");

/// More of a text than this is not read: enough for the predictions of any tokenizer.
const MOST_TEXT: usize = 1 << 20;

/// What the time allows.
struct Budget {
    total: Duration,
    /// For fresh processes.
    children: Duration,
    passes: usize,
    prompts: usize,
    tokens: usize,
    /// Rounds of the forward passes.
    least: usize,
    most: usize,
}

impl Budget {
    fn of(args: &Args, settings: usize) -> Budget {
        let mut budget = match args.quick {
            true => Budget {
                total: Duration::from_secs(50),
                children: Duration::from_secs(15),
                passes: 1,
                prompts: 20,
                tokens: 12,
                least: 4,
                most: 8,
            },
            false => Budget {
                total: Duration::from_secs(220),
                children: Duration::from_secs(80),
                passes: 3,
                prompts: 24,
                tokens: 64,
                least: 5,
                most: 12,
            },
        };
        // Two settings are what the times are made for; more take longer.
        let scale = settings.max(2) as f64 / 2.0;
        budget.total = budget.total.mul_f64(if settings > 2 { scale } else { 1.0 });
        budget.children = budget.children.mul_f64(if settings > 2 { scale } else { 1.0 });
        if let Some(limit) = args.shared.limit {
            budget.prompts = budget.prompts.min(limit.max(1) as usize);
        }
        if let Some(most) = args.shared.max_time {
            let share = (most / budget.total.as_secs_f64()).min(1.0);
            budget.total = budget.total.mul_f64(share);
            budget.children = budget.children.mul_f64(share);
        }
        budget
    }
}

/// Runs it; the result is the exit status.
pub fn main(args: &Args) -> Result<u8, Failure> {
    if let Some([prompts, tokens]) = args.child.as_deref() {
        super::leave_with_parent();
        return child(args, *prompts, *tokens);
    }
    match classify(&args.what)? {
        true => files(args),
        false => settings(args),
    }
}

/// Whether these are results files (else settings); a mixture is bad usage.
fn classify(what: &[String]) -> Result<bool, Failure> {
    let is_file = |text: &String| {
        let path_like = text.ends_with(".json") || text.contains('/') || text.contains(std::path::MAIN_SEPARATOR);
        // `model=a/b.gguf` has a slash too. A dtype is a dtype even if a file is called so.
        let dtype = args::dtype(text).is_ok();
        !dtype && (path_like && !text.contains('=') || Path::new(text).exists())
    };
    let count = what.iter().filter(|w| is_file(w)).count();
    if count == 0 {
        return Ok(false);
    }
    if let Some(odd) = what.iter().find(|w| !is_file(w)) {
        return Err(Failure::usage(format!("'{}' is a setting and the others are files; give only one kind", shown(odd))));
    }
    if what.len() < 2 {
        return Err(Failure::usage(format!("{}: one results file alone; two or more are compared", shown(&what[0]))));
    }
    Ok(true)
}

fn files(args: &Args) -> Result<u8, Failure> {
    let mut touched = Touched::default();
    args.what.iter().for_each(|path| touched.reads("", Path::new(path)));
    touched.writes_standard_output();
    touched.check()?;
    let results: Vec<Results> =
        args.what.iter().map(|w| Results::read(Path::new(w))).collect::<Result<_, _>>().map_err(Failure::usage)?;
    let lined_up = lineup::line_up(&results).map_err(Failure::usage)?;
    let report = report::lineup::report(&lined_up);
    let json = serde_json::to_value(&lined_up).unwrap_or_default();
    if let Some(out) = &args.out {
        let folder = Folder::new(out, "line-up")?;
        folder.write("compare.csv", &report.render(Format::Csv, 0))?;
        folder.write("result.json", &pretty(&json))?;
        folder.write("report.md", &report.render(Format::Md, 0))?;
        folder.write("report.html", &report.page())?;
    }
    show(args.format, &report, &json)?;
    Ok(0)
}

fn settings(args: &Args) -> Result<u8, Failure> {
    let begin = Instant::now();
    let mut console = Console::new(args.shared.level());
    let mut settings = Setting::parse_all(&args.what, &args.shared)?;
    let machine = Machine::detect();
    add_emulated(&mut settings, &machine, &args.shared)?;
    let mut touched = Touched::default();
    args.text.iter().for_each(|path| touched.reads("--text", path));
    settings.iter().for_each(|s| touched.reads_model(&s.shared.model));
    settings.iter().flat_map(|s| &s.shared.chat_template).for_each(|path| touched.reads("--chat-template", path));
    touched.writes_standard_output();
    touched.check()?;
    let text = read_text(args)?;
    let signals = Signals::watch(Arc::default())?;
    signals.advise("; nothing was measured to its end, and nothing is written");
    let loaded = open_models(&settings)?;
    let windows = if args.quick { None } else { Some(windows(&text, &settings, &loaded, args)?) };
    let budget = Budget::of(args, args.what.len());
    // Before anything is measured, so that minutes of work have a place to go.
    let folder = match args.shared.dry_run {
        true => None,
        false => Some(Folder::new(args.out.as_deref().unwrap_or(Path::new("results")), &format!("{}-compare", machine.label()))?),
    };
    signals.created(folder.as_ref().map(|f| f.path().to_path_buf()));
    console.release();
    let plan = format!(
        "llmopt: {}: {}, {}rounds of forward passes; about {}",
        task(&settings),
        counted((budget.passes * settings.len()) as u64, "fresh process"),
        windows.as_ref().map_or(String::new(), |w| format!("{} tokens of text, ", w.predictions())),
        seconds(budget.total.as_secs_f64())
    );
    console.say(plan);
    let Some(folder) = folder else {
        let prompts = workload(&settings[0], budget.prompts, budget.tokens);
        let prompts = counted(prompts.len() as u64, "prompt");
        console.say(format!("llmopt: {prompts} of at most {} each; nothing was run", counted(budget.tokens as u64, "token")));
        return Ok(0);
    };
    let measured = measure(args, &mut console, &settings, &loaded, machine, windows.as_ref(), &budget, begin);
    let comparison = match measured {
        Ok(comparison) => comparison,
        Err(failure) => {
            folder.remove_if_empty();
            // Ctrl-C in a terminal ends the fresh processes too: their end is no failure of its own.
            if let Some((_, status)) = signals.got() {
                std::thread::sleep(Duration::from_secs(2));
                return Ok(status);
            }
            return Err(failure);
        }
    };
    // From here on there is something to write, which takes no time.
    signals.begin();
    let verdicts = verdict::verdicts(&comparison);
    let report = report::compare::report(&comparison, &verdicts);
    let json = as_json(&comparison, &verdicts);
    folder.write("result.json", &pretty(&json))?;
    folder.write("compare.csv", &report.render(Format::Csv, 0))?;
    folder.write("report.md", &report.render(Format::Md, 0))?;
    folder.write("report.html", &report.page())?;
    console.say(format!("llmopt: results in {}", folder.shown()));
    show(args.format, &report, &json)?;
    Ok(0)
}

/// What is done with these settings.
fn task(settings: &[Setting]) -> String {
    match settings {
        [alone] => format!("measuring {} alone (no ratios, no verdict)", alone.name),
        [first, others @ ..] => {
            let others: Vec<&str> = others.iter().map(|s| s.name.as_str()).collect();
            format!("comparing {} with {}", first.name, others.join(", "))
        }
        [] => "nothing to measure".into(),
    }
}

/// `f32 bf16` alone, on a CPU that cannot multiply bf16: what most programs do there comes along.
fn add_emulated(settings: &mut Vec<Setting>, machine: &Machine, base: &Shared) -> Result<(), Failure> {
    let both = settings.len() == 2 && ["f32", "bf16"].iter().all(|d| settings.iter().any(|s| s.is_dtype(d)));
    if both && !machine.native_bf16() {
        let mut emulated = Setting::parse("bf16-emulated", base)?;
        emulated.added = Some(
            "added because this CPU has no bf16 instructions: programs that compute in bf16 widen or emulate it there, which is what makes \
             bf16 slow; `bf16` here only stores weights so"
                .into(),
        );
        settings.push(emulated);
    }
    Ok(())
}

fn read_text(args: &Args) -> Result<String, Failure> {
    let Some(path) = &args.text else { return Ok(TEXT.into()) };
    let name = shown(&path.display().to_string());
    let told = |e: std::io::Error| Failure::usage(format!("--text {name}: cannot be read: {e}"));
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::open(path).map_err(told)?, MOST_TEXT as u64), &mut bytes)
        .map_err(told)?;
    // The limit may have cut a character in two.
    let valid = match std::str::from_utf8(&bytes) {
        Err(e) if bytes.len() == MOST_TEXT && e.valid_up_to() + 4 > MOST_TEXT => e.valid_up_to(),
        Err(e) => return Err(Failure::usage(format!("--text {name}: is not UTF-8 (byte {})", e.valid_up_to()))),
        Ok(_) => bytes.len(),
    };
    bytes.truncate(valid);
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|e| Failure::usage(format!("--text {name}: {e}")))
}

/// Each model once; the index of each setting's.
struct Models {
    loaded: Vec<(String, Arc<Loaded>)>,
}

impl Models {
    fn of(&self, setting: &Setting) -> &Arc<Loaded> {
        let at = self.loaded.iter().position(|(name, _)| *name == loaded_as(&setting.shared));
        &self.loaded[at.unwrap_or(0)].1
    }
}

/// A model and the variables of its template, as far as they are given.
fn loaded_as(shared: &Shared) -> String {
    shared.template_arg.iter().fold(shared.model.clone(), |all, (name, value)| format!("{all} --template-arg {name}={value}"))
}

fn open_model(shared: &Shared) -> Result<Arc<Loaded>, Failure> {
    Ok(Loaded::open(loading::open_model(shared, shared.level())?)?)
}

fn open_models(settings: &[Setting]) -> Result<Models, Failure> {
    let mut models = Models { loaded: Vec::new() };
    for setting in settings {
        let name = loaded_as(&setting.shared);
        if models.loaded.iter().all(|(n, _)| *n != name) {
            models.loaded.push((name, open_model(&setting.shared)?));
        }
    }
    let (first, others) = models.loaded.split_first().ok_or_else(|| Failure::failed("no model"))?;
    for (name, other) in others {
        if other.model.vocabulary.tokenizer.tokens != first.1.model.vocabulary.tokenizer.tokens
            || other.model.spec.vocab != first.1.model.spec.vocab
        {
            return Err(Failure::usage(format!(
                "{} and {}: have different vocabularies, so their tokens cannot be compared",
                shown(&first.0),
                shown(name)
            )));
        }
    }
    Ok(models)
}

fn windows(text: &str, settings: &[Setting], models: &Models, args: &Args) -> Result<Windows, Failure> {
    let loaded = models.of(&settings[0]);
    let name =
        args.text.as_ref().map_or("the built-in text".to_string(), |p| format!("--text {}", shown(&p.display().to_string())));
    let fail = |e: String| Failure::usage(format!("{name}: {e}"));
    let ids: Vec<TokenId> = loaded.prompting().tokenizer().encode(text).map_err(|e| fail(e.to_string()))?;
    let context = settings.iter().map(|s| models.of(s).model.spec.context).min().unwrap_or(0);
    Windows::cut(&ids, context).map_err(fail)
}

/// The first prompts of the built-in workload with a setting's generation flags.
fn workload(setting: &Setting, prompts: usize, tokens: usize) -> Vec<Prompt> {
    let mut generation = setting.shared.generation();
    generation.max_tokens = generation.max_tokens.min(tokens);
    Workload::built_in(&generation).slices.into_iter().flatten().take(prompts).collect()
}

/// A fresh process: loads one setting, answers the workload, prints a report as JSON.
fn child(args: &Args, prompts: usize, tokens: usize) -> Result<u8, Failure> {
    let begin = Instant::now();
    let typed = args.what.first().map(String::as_str).unwrap_or_default();
    let setting = Setting::parse(typed, &args.shared)?;
    let loaded = open_model(&setting.shared)?;
    let mut pipeline = Pipeline::new(&loaded, &setting.config(), &setting.shared.options())?;
    let load_s = begin.elapsed().as_secs_f64();
    let source = workload(&setting, prompts, tokens).into_iter().map(|prompt| Input::Prompt(prompt, ()));
    let (mut answers, mut latencies_ms, mut failed) = (Vec::new(), Vec::new(), None);
    let report = pipeline.run(source, Order::Input, &Control::default(), &mut |answer, ()| {
        latencies_ms.push(answer.latency_ms);
        failed = failed.take().or(answer.error.map(|e| e.message));
        answers.push(answer.tokens);
        ControlFlow::Continue(())
    })?;
    if let Some(message) = failed {
        return Err(Failure::failed(format!("a prompt of the workload failed: {message}")));
    }
    if report.ended != Ended::Complete {
        return Err(Failure::failed("the workload was not answered to its end"));
    }
    let report = ChildReport {
        load_s,
        peak_rss_bytes: crate::machine::peak_rss().map(|b| b.0),
        wall_s: report.wall_s,
        tokens: report.completion_tokens,
        latencies_ms,
        answers,
    };
    let text = serde_json::to_string(&report).map_err(|e| Failure::failed(e.to_string()))?;
    results::print(&text)?;
    Ok(0)
}

/// Starts a fresh process of this program for a setting and reads its report.
fn spawn(args: &Args, setting: &Setting, budget: &Budget) -> Result<ChildReport, Failure> {
    let failed = |why: String| Failure::failed(format!("a fresh process for {}: {}", shown(&setting.name), shown(&why)));
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let output = Command::new(program)
        .args(["compare", "--child", &budget.prompts.to_string(), &budget.tokens.to_string(), "--quiet"])
        .args(setting::as_arguments(&args.shared))
        .args(["--", &setting.typed])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = stderr.lines().next().unwrap_or("it ended without a word").trim_start_matches("llmopt: error: ");
        // Its own status says what kind of trouble it was: bad usage (2) or not enough memory (75).
        let status = output.status.code().filter(|c| [2, 75].contains(c)).unwrap_or(1) as u8;
        return Err(Failure { status, ..failed(line.to_string()) });
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(e.to_string()))
}

/// Rounds of fresh processes, the settings in random order within each. `reports[setting]` has one report a round.
fn children(
    args: &Args,
    console: &mut Console,
    settings: &[Setting],
    budget: &Budget,
    random: &mut Random,
) -> Result<Vec<Vec<ChildReport>>, Failure> {
    let mut reports = vec![Vec::new(); settings.len()];
    let since = Instant::now();
    for pass in 0..budget.passes {
        // Another round only if it will fit, judged by those before.
        if pass > 0 && since.elapsed().mul_f64((pass + 1) as f64 / pass as f64) > budget.children {
            break;
        }
        let mut order: Vec<usize> = (0..settings.len()).collect();
        random.shuffle(&mut order);
        for s in order {
            tell(args, console, &format!("fresh process {} of {}: {}", pass + 1, budget.passes, settings[s].name));
            reports[s].push(spawn(args, &settings[s], budget)?);
        }
    }
    Ok(reports)
}

/// A line of progress.
fn tell(args: &Args, console: &mut Console, text: &str) {
    match (args.shared.progress, console.level) {
        (Progress::Never, _) | (Progress::Auto, Level::Quiet) => {}
        _ => console.say(format!("llmopt: {text}")),
    }
}

#[allow(clippy::too_many_arguments)]
fn measure(
    args: &Args,
    console: &mut Console,
    settings: &[Setting],
    models: &Models,
    machine: Machine,
    windows: Option<&Windows>,
    budget: &Budget,
    begin: Instant,
) -> Result<Comparison, Failure> {
    let activity = Activity::now();
    let threads = settings.iter().map(|s| s.shared.sizes().threads).max().unwrap_or(1);
    tell(args, console, "measuring the machine's limits");
    let mut limits = Limits::measure(threads, if args.quick { Effort::Quick } else { Effort::Thorough });
    let mut random = Random::new(args.shared.seed ^ 0x00c0_ffee);
    let reports = children(args, console, settings, budget, &mut random)?;

    tell(args, console, "loading all settings side by side");
    let mut subjects = Vec::new();
    let mut found = Vec::new();
    for s in settings {
        let pipeline = Pipeline::new(models.of(s), &s.config(), &s.shared.options())?;
        for note in &pipeline.dtype().notes {
            console.detail(format!("llmopt: {}: {note}", s.name));
        }
        let formats = pipeline.formats();
        let dtype = pipeline.dtype().clone();
        let mut reason = dtype.reason.clone();
        dtype.notes.iter().for_each(|n| reason.push_str(&format!("; {n}")));
        found.push(comparison::Setting {
            name: s.name.clone(),
            flags: s.flags(),
            added: s.added.clone(),
            dtype: dtype.name,
            dtype_reason: reason,
            formats,
            threads: s.shared.sizes().threads,
            batch: s.shared.sizes().batch,
            kernels: pipeline.kernels().to_vec(),
            bytes_per_token: Work::decode(&models.of(s).model.spec, formats, 1).weight_bytes,
            figures: Vec::new(),
            agreement: None,
            quality: None,
        });
        subjects.push(Subject {
            name: s.name.clone(),
            batch: s.shared.batch_size,
            threads: s.shared.sizes().threads,
            formats,
            decoder: pipeline.into_decoder(),
        });
    }
    let auto = auto(settings, models);

    let mut qualities: Vec<Option<Quality>> = vec![None; settings.len()];
    let mut agreements: Vec<Option<Agreement>> = vec![None; settings.len()];
    if let Some(windows) = windows {
        tell(args, console, &format!("{} tokens of text with every setting", windows.predictions()));
        let mut decoders: Vec<&mut dyn Decoder> = subjects.iter_mut().map(|s| s.decoder.as_mut() as &mut dyn Decoder).collect();
        let rows = quality::measure(&mut decoders, windows, &mut |_| {}).map_err(|e| Failure::failed(e.to_string()))?;
        for (s, r) in rows.iter().enumerate() {
            qualities[s] = Some(Quality::of(r, &rows[0]));
            agreements[s] = Some(Agreement::of(&reports[0][0].answers, &reports[s][0].answers));
        }
    }

    tell(args, console, "rounds of forward passes");
    let plan = Plan {
        budget: budget.total.saturating_sub(begin.elapsed()),
        least: budget.least,
        most: budget.most,
        seed: args.shared.seed,
    };
    // Memory is not equally fast from minute to minute where others use it too: the limits are looked at again between rounds.
    let mut between = |rounds: usize, _: usize| {
        if rounds.is_multiple_of(PROBE_EVERY) {
            limits.raise(&Limits::measure(threads, Effort::Quick));
        }
    };
    let forward = comparison::forward(&mut subjects, &plan, &mut between).map_err(|e| Failure::failed(e.to_string()))?;
    let cached = cached_bytes(&machine);
    for (s, setting) in found.iter_mut().enumerate() {
        let mut figures = forward.figures(s, &subjects[s], &limits, cached);
        figures.extend(comparison::child_figures(&reports[s], &reports[0], s == 0));
        figures.extend(comparison::quality_figures(agreements[s].as_ref(), qualities[s].as_ref()));
        figures.sort_by_key(|f: &Figure| f.measure);
        setting.figures = figures;
        setting.agreement = agreements[s].take();
        setting.quality = qualities[s].take();
    }
    let first = &models.of(&settings[0]).model;
    let busy = activity.zip(Activity::now()).and_then(|(a, b)| b.since(&a));
    let mut notes = vec![
        format!(
            "{} rounds; in each every forward measure was taken of every setting before the next one, in random order; intervals are 95 %, \
             ratios of neighbours in time.",
            forward.rounds
        ),
        "Forward passes: fixed token ids, no stop, no cache, no shared prefix. Workload: the first prompts of the built-in one, all \
         optimizations on unless the setting says otherwise."
            .into(),
        format!("It took {}.", seconds(begin.elapsed().as_secs_f64())),
    ];
    if forward.amounts != comparison::Amounts::FULL {
        notes.push(format!(
            "Shortened to fit the time or the model's context: decode_1 has {} steps instead of 128, decode_batch {} instead of 64 after prompts \
             of {} tokens instead of 64.",
            forward.amounts.decode, forward.amounts.batch, forward.amounts.prompt
        ));
    }
    if let Some(b) = busy {
        notes.push(format!(
            "Meanwhile other processes used {:.0} % of the machine, other guests took {:.0} %.",
            b.others * 100.0,
            b.stolen * 100.0
        ));
    }
    if windows.is_some() {
        let text = args.text.as_ref().map_or("prompts/perplexity.txt".into(), |p| shown(&p.display().to_string()));
        notes.push(format!("Text for distributions: {text}, in windows that each begin with an empty context."));
    }
    Ok(Comparison {
        kind: "compare".into(),
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        commit: results::commit(),
        command: std::env::args().collect(),
        started: results::utc_now(),
        model: first.name.clone(),
        model_digest: first.digest.clone(),
        machine,
        limits,
        busy,
        quick: args.quick,
        rounds: forward.rounds,
        amounts: forward.amounts,
        auto,
        settings: found,
        notes,
    })
}

/// What `--dtype auto` would choose, where only dtypes are compared; nothing if that cannot be found out.
fn auto(settings: &[Setting], models: &Models) -> Option<Auto> {
    let first = settings.first().filter(|_| settings.iter().all(Setting::is_only_dtype))?;
    let mut shared = first.shared.clone();
    shared.dtype = DtypePolicy::Auto;
    let pipeline = Pipeline::new(models.of(first), &shared.config(first.on), &shared.options()).ok()?;
    let dtype = pipeline.dtype();
    Some(Auto { dtype: dtype.name.clone(), reason: dtype.reason.clone() })
}

/// Bytes that the last level of caches holds for all usable cores.
fn cached_bytes(machine: &Machine) -> f64 {
    machine.caches.last().map_or(0.0, |c| {
        let instances = machine.logical_cpus.div_ceil(c.shared_by.max(1));
        (c.size.0 * instances as u64) as f64
    })
}

fn as_json(comparison: &Comparison, verdicts: &[Verdict]) -> serde_json::Value {
    let mut value = serde_json::to_value(comparison).unwrap_or_default();
    value["verdicts"] = serde_json::to_value(verdicts).unwrap_or_default();
    if comparison.auto.is_some() {
        value["auto"]["agrees"] = verdict::auto_agrees(comparison, verdicts).into();
    }
    value["sentences"] = report::compare::sentences(comparison, verdicts).into();
    value
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// The report on standard output.
fn show(format: Format, report: &Report, json: &serde_json::Value) -> Result<(), Failure> {
    match format {
        Format::Json => results::print(&pretty(json)),
        format => results::print(&report.render(format, results::width())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_settings_are_told_apart_and_not_mixed() {
        let what = |list: &[&str]| classify(&list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        assert_eq!(what(&["f32", "bf16"]), Ok(false));
        assert_eq!(what(&["threads=1", "model=a/b.gguf"]), Ok(false));
        assert_eq!(what(&["a.json", "results/x"]), Ok(true));
        assert!(what(&["a.json", "f32"]).unwrap_err().message.contains("'f32' is a setting"));
        assert!(what(&["a.json"]).unwrap_err().message.contains("two or more"));
    }

    #[test]
    fn a_setting_alone_is_not_compared_with_nothing() {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            shared: Shared,
        }
        let shared = <Flags as clap::Parser>::parse_from(["x"]).shared;
        let said = |typed: &[&str]| {
            let typed: Vec<String> = typed.iter().map(|s| s.to_string()).collect();
            task(&Setting::parse_all(&typed, &shared).unwrap())
        };
        assert_eq!(said(&["f32"]), "measuring f32 alone (no ratios, no verdict)");
        assert_eq!(said(&["f32", "bf16", "q8_0"]), "comparing f32 with bf16, q8_0");
    }

    #[test]
    fn bf16_emulated_joins_f32_and_bf16_only_where_the_cpu_has_no_bf16() {
        let shared = || {
            #[derive(clap::Parser)]
            struct Flags {
                #[command(flatten)]
                shared: Shared,
            }
            <Flags as clap::Parser>::parse_from(["x"]).shared
        };
        let names = |typed: &[&str], native: bool| {
            let mut machine = Machine::detect();
            machine.features.iter_mut().for_each(|f| f.detected = native && f.name.contains("bf16"));
            let typed: Vec<String> = typed.iter().map(|s| s.to_string()).collect();
            let mut settings = Setting::parse_all(&typed, &shared()).unwrap();
            add_emulated(&mut settings, &machine, &shared()).unwrap();
            settings.iter().map(|s| (s.name.clone(), s.added.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(names(&["f32", "bf16"], true).len(), if cfg!(target_arch = "x86_64") { 2 } else { 3 });
        assert_eq!(names(&["bf16", "f32"], false)[2], ("bf16-emulated".to_string(), true));
        assert_eq!(names(&["f32", "bf16", "q8_0"], false).len(), 3);
        assert_eq!(names(&["f32", "bf16-emulated"], false).len(), 2);
    }
}
