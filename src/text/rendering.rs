//! Untrusted templates, compiled and rendered within limits: the chat templates of models and the templates that users give.
//! In: a source, limits, values as JSON. Out: text, or one line that says what fails. Python's methods and printing are there as transformers
//! has them. It knows no messages and no model.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::date::Date;
use super::metering::{Program, reversed, walk, walk_indented};
use crate::model::ModelError;
use crate::units::{Bytes, shown};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stack for compiling and probing an untrusted template, for each byte of its source: parsing recurses once for a byte at worst
/// (`{{ ------1 }}`).
const STACK: usize = 1 << 11;
/// Bytes of source that every template has stack for.
const SHORT: usize = 1 << 12;
/// Most spaces for a level of JSON.
const WIDEST: usize = 32;

/// What a template may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenderLimits {
    /// Instructions, and 64 bytes of text each, of one rendering.
    pub fuel: u64,
    /// Nested calls and blocks.
    pub recursion: usize,
    /// Bytes of the source.
    pub longest: usize,
}

impl Default for RenderLimits {
    /// About 50 ms and 100 MB at most; sources twice as long as the longest in use.
    fn default() -> Self {
        RenderLimits { fuel: 500_000, recursion: 100, longest: 1 << 16 }
    }
}

/// How a template is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateStyle {
    /// What an error calls it.
    pub name: &'static str,
    /// `trim_blocks` and `lstrip_blocks`: a tag on a line of its own leaves no empty line. Transformers sets both.
    pub trim: bool,
    /// A variable that is not there is an error also where it is only printed; `is defined` and `default` may ask for it.
    pub strict: bool,
}

/// A compiled template; rendered by many threads.
pub struct Template {
    environment: Environment<'static>,
    program: Program,
    style: TemplateStyle,
    asks_for_date: Arc<AtomicBool>,
}

impl Template {
    /// Compiles `source`; `strftime_now` in it tells `date` at noon. Errors are one line.
    pub fn compile(
        source: &str,
        limits: RenderLimits,
        style: TemplateStyle,
        date: Date,
    ) -> Result<Template, ModelError> {
        within_stack(source, limits, || Self::compile_here(source, limits, style, date))
    }

    /// The same on the caller's stack, which [`within_stack`] has made deep enough.
    pub(super) fn compile_here(
        source: &str,
        limits: RenderLimits,
        style: TemplateStyle,
        date: Date,
    ) -> Result<Template, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(style.trim)
            .lstrip_blocks(style.trim)
            .build()
            .map_err(|e| e.to_string())?;
        environment.set_fuel(Some(limits.fuel));
        environment.set_recursion_limit(limits.recursion);
        if style.strict {
            environment.set_undefined_behavior(UndefinedBehavior::Strict);
        }
        environment.set_unknown_method_callback(method);
        environment.set_formatter(format_as_python);
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", string);
        environment.add_filter("reverse", reversed);
        environment.add_test("iterable", |value: &Value| is_iterable(value));
        environment.add_test("sequence", |value: &Value| {
            is_iterable(value) && (value.kind() != ValueKind::Iterable || value.len().is_some())
        });
        // They are lazy, and Jinja has none of them.
        for filter in ["chain", "pprint", "zip"] {
            environment.remove_filter(filter);
        }
        environment.remove_global("debug");
        environment.add_function("raise_exception", raise_exception);
        let asks_for_date = Arc::new(AtomicBool::new(false));
        let asked = asks_for_date.clone();
        environment.add_function(
            "strftime_now",
            move |state: &State, format: &str| -> Result<String, Error> {
                asked.store(true, Ordering::Relaxed);
                state.consume_fuel(format.len() as u64)?;
                date.format(format).map_err(|why| {
                    Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {why}"))
                })
            },
        );
        let program = guarded(style.name, || {
            Program::compile(&mut environment, &without_generation_tags(source), syntax)
        })?;
        Ok(Template { environment, program, style, asks_for_date })
    }

    /// The text for these values.
    pub fn render(
        &self,
        values: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, String> {
        let pairs = values.iter().map(|(name, value)| (&name[..], from_json(value)));
        self.render_values(Value::from_pairs(pairs.collect::<Vec<_>>()))
    }

    /// The same for values that are there as the crate has them.
    pub(super) fn render_values(&self, context: Value) -> Result<String, String> {
        guarded(self.style.name, || self.program.render(&self.environment, context))
    }

    /// Whether a rendering so far has asked for today's date.
    pub fn asks_for_date(&self) -> bool {
        self.asks_for_date.load(Ordering::Relaxed)
    }
}

/// Whether Python goes through it: texts, lists, maps, what is not there; not `none`, which the crate takes for an empty list.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Bytes | Iterable | Map | Seq | String | Undefined)
}

/// A JSON value as templates see it. JSON that was read from a text is at most 128 levels deep.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(&text[..]),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(
            map.iter().map(|(name, value)| (&name[..], from_json(value))).collect::<Vec<_>>(),
        ),
    }
}

/// Runs `work`, which compiles or probes `source`, on a thread whose stack a source of this length cannot exhaust.
pub(super) fn within_stack<T: Send>(
    source: &str,
    limits: RenderLimits,
    work: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, ModelError> {
    if source.len() > limits.longest {
        return Err(ModelError::Invalid(format!(
            "it has {} bytes; the limit is {}",
            source.len(),
            limits.longest
        )));
    }
    let stack = source.len().max(SHORT) * STACK;
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("template".to_string())
            .stack_size(stack)
            .spawn_scoped(scope, work)
            .map_err(|e| {
                let stack = Bytes(stack as u64);
                ModelError::Memory(format!(
                    "no thread with a stack of {stack} can be started to compile it ({e}): free some memory"
                ))
            })?
            .join()
            .unwrap_or_else(|_| Err("compiling it failed".to_string()))
            .map_err(ModelError::Invalid)
    })
}

/// One line for every way in which a template can fail, a panic included.
fn guarded<T>(name: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            let line = error.line().map(|l| format!(" (its line {l})")).unwrap_or_default();
            let text = match (error.kind(), error.detail()) {
                (ErrorKind::OutOfFuel, _) => "it does too much work".to_string(),
                (_, Some(detail)) => detail.to_string(),
                (kind, None) => kind.to_string(),
            };
            let text: String = text.chars().take(300).collect();
            Err(format!("{name} fails{line}: {}", shown(&text)))
        }
        Err(_) => Err(format!("{name} fails: it made the renderer panic")),
    }
}

/// `{% generation %}` marks answers for training; to transformers' rendering it is nothing.
#[cfg_attr(not(test), expect(clippy::expect_used, reason = "the pattern is a constant"))]
fn without_generation_tags(source: &str) -> String {
    let tag = regex::Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
        .expect("a constant pattern");
    tag.replace_all(source, |c: &regex::Captures| {
        let word = if c.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {word} {}%}}", &c[1], &c[3])
    })
    .into_owned()
}

/// Python's methods of strings, lists and dictionaries, with their work charged: those of the crate cost one instruction whatever they do.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let size = value.as_str().map(str::len).or_else(|| value.len()).unwrap_or(0);
    // A piece of a text takes 24 bytes, however short it is.
    state.consume_fuel(size as u64 / if name.contains("split") { 8 } else { 64 })?;
    if value.kind() == ValueKind::String {
        match (name, args) {
            ("replace", [from, to]) => {
                return state.apply_filter("replace", &[value.clone(), from.clone(), to.clone()]);
            }
            ("join", [values]) => {
                return state.apply_filter("join", &[values.clone(), value.clone()]);
            }
            // Widths ask for as much memory as they like.
            ("format" | "replace" | "join" | "center" | "ljust" | "rjust" | "zfill", _) => {
                return Err(Error::new(
                    ErrorKind::UnknownMethod,
                    format!("the string method {name} is not supported with these arguments"),
                ));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Values print as in Python: `True`, `False`, `None`.
fn format_as_python(
    out: &mut minijinja::Output,
    state: &mut State,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => {
            out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from)
        }
        ValueKind::None => out.write_str("None").map_err(Error::from),
        _ => {
            walk(state, value)?;
            minijinja::escape_formatter(out, state, value)
        }
    }
}

/// Transformers' `tojson`: `json.dumps(x, ensure_ascii=False, indent=…)`: the crate's, without its escapes for HTML.
fn tojson(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let width = indent.as_ref().and_then(|width| usize::try_from(width.clone()).ok()).unwrap_or(0);
    if width > WIDEST {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("tojson: an indent of more than {WIDEST} is not supported"),
        ));
    }
    // Before the work is done: a repeated list is as large as it says only when it is written out.
    walk_indented(state, value, width as u64)?;
    let json = minijinja::filters::tojson(value, indent, options)?;
    let json = json.as_str().unwrap_or_default();
    state.consume_fuel(json.len() as u64 / 16)?;
    let (mut out, mut rest) = (String::with_capacity(json.len()), json);
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let (escape, letter) = match rest.get(at..at + 6) {
            Some("\\u003c") => (6, "<"),
            Some("\\u003e") => (6, ">"),
            Some("\\u0026") => (6, "&"),
            Some("\\u0027") => (6, "'"),
            _ => (2, &rest[at..at + 2]),
        };
        out.push_str(letter);
        rest = &rest[at + escape..];
    }
    out.push_str(rest);
    Ok(Value::from(out))
}

/// The `string` filter.
fn string(state: &State, value: &Value) -> Result<String, Error> {
    walk(state, value)?;
    Ok(value.to_string())
}

fn raise_exception(state: &State, message: Value) -> Result<Value, Error> {
    walk(state, &message)?;
    Err(Error::new(ErrorKind::InvalidOperation, message.to_string()))
}
