//! Fuel metering of untrusted templates: work is charged before it is done. minijinja's fuel counts instructions, the bytes of new
//! texts and the items of most loops, but not what a value is worth when it is written out, compared, looked into or thrown away:
//! `[[x] * 9999] * 9999` is two small objects, `s[999999]` walks a long text for the price of one instruction, and a list put into a
//! list a hundred thousand times takes a stack that deep to free. So the compiled program is written anew with checks before every
//! instruction whose cost depends on a value: they charge for each item and letter that it will visit, a fee for deepening a structure
//! (which bounds the depth), and they make lazy products, sums and slices of lists into plain lists, so that looking into those is one step.
//! In: a template's source. Out: a [`Program`]. What a template means is not changed. `tests/templates.rs` lists every operator, filter, test,
//! method and function with large values and holds each to its bound.
//!
//! Why not a child process with limits on time and memory: a limit in seconds refuses a template on a slow day that it takes on a quick one,
//! so that one request would not have one answer; fuel refuses at the same place everywhere. A child is also a program to be found (a library's
//! user or a test has none), started under limits on processes and memory that may forbid it, and asked twice for each prompt.
//! Over 500 lines: a rule for each instruction of minijinja, none of which is of use alone.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, ast, make_string_output, parse,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

/// Fuel for putting a container into another: with the budget of a rendering, nothing is nested deeper than some thousands.
const NESTING: u64 = 200;
/// Deepest value that is written out or compared.
const MAX_DEPTH: usize = 50;
/// A filter's slot that is looked up at every use.
const NO_SLOT: u8 = u8::MAX;

/// Filters that look at the first layer of their input only and make nothing deeper, or charge for themselves.
const SHALLOW: [&str; 10] =
    ["attr", "count", "d", "default", "first", "last", "length", "reverse", "string", "tojson"];
/// Tests that do.
const PLAIN: [&str; 18] = [
    "boolean",
    "defined",
    "escaped",
    "even",
    "false",
    "float",
    "int",
    "integer",
    "iterable",
    "mapping",
    "none",
    "number",
    "odd",
    "safe",
    "sequence",
    "string",
    "true",
    "undefined",
];

/// A compiled and guarded template.
pub(super) struct Program {
    instructions: Instructions<'static>,
}

impl Program {
    /// Compiles `source`; registers the checks in `environment`.
    pub(super) fn compile(
        environment: &mut Environment,
        source: &str,
        syntax: SyntaxConfig,
    ) -> Result<Program, Error> {
        let source = kept(source);
        let tree: ast::Stmt<'static> = parse(source, "chat", syntax)?;
        statement(&tree)?;
        let mut generator = CodeGenerator::new("chat", source);
        generator.compile_stmt(&tree);
        let (instructions, _) = generator.finish();
        environment.add_filter("!walk", walked);
        environment.add_filter("!text", written);
        environment.add_filter("!set", assigned);
        environment.add_filter("!nest", nested);
        environment.add_filter("!both", walked_and_nested);
        environment.add_filter("!add", added);
        environment.add_filter("!times", repeated);
        environment.add_filter("!map", mapped);
        environment.add_filter("!item", looked_up);
        environment.add_filter("!slice", sliced);
        Ok(Program { instructions: guarded(&instructions, source)? })
    }

    /// Runs it.
    pub(super) fn render(
        &self,
        environment: &Environment,
        context: Value,
    ) -> Result<String, Error> {
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let none = BTreeMap::new();
        minijinja::machinery::eval(
            environment,
            &self.instructions,
            context,
            &none,
            &mut out,
            AutoEscape::None,
        )?;
        drop(out);
        Ok(text)
    }
}

/// The text for as long as the process lives, once: a program borrows from its source, and a process sees few templates.
fn kept(source: &str) -> &'static str {
    static SOURCES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
    let sources = sources.get_or_insert_with(HashSet::new);
    if let Some(source) = sources.get(source) {
        return source;
    }
    let source: &'static str = Box::leak(source.to_string().into_boxed_str());
    sources.insert(source);
    source
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{what} is not supported"))
}

/// Refuses what the compiler would compute with constant lists: it does so before any fuel is counted.
fn statements(all: &[ast::Stmt]) -> Result<(), Error> {
    all.iter().try_for_each(statement)
}

fn statement(statement: &ast::Stmt) -> Result<(), Error> {
    use ast::Stmt as S;
    let all =
        |expressions: &[&ast::Expr]| expressions.iter().try_for_each(|e| constant(e).map(drop));
    match statement {
        S::Template(s) => statements(&s.children),
        S::EmitExpr(s) => all(&[&s.expr]),
        S::ForLoop(s) => {
            all(&[&s.target, &s.iter])?;
            s.filter_expr.iter().try_for_each(|e| all(&[e]))?;
            statements(&s.body)?;
            statements(&s.else_body)
        }
        S::IfCond(s) => {
            all(&[&s.expr])?;
            statements(&s.true_body)?;
            statements(&s.false_body)
        }
        S::WithBlock(s) => {
            s.assignments.iter().try_for_each(|(to, from)| all(&[to, from]))?;
            statements(&s.body)
        }
        S::Set(s) => all(&[&s.target, &s.expr]),
        S::SetBlock(s) => {
            s.filter.iter().try_for_each(|e| all(&[e]))?;
            statements(&s.body)
        }
        S::FilterBlock(s) => {
            all(&[&s.filter])?;
            statements(&s.body)
        }
        S::Macro(s) => {
            s.defaults.iter().try_for_each(|e| all(&[e]))?;
            statements(&s.body)
        }
        S::CallBlock(s) => {
            call(&s.call)?;
            s.macro_decl.defaults.iter().try_for_each(|e| all(&[e]))?;
            statements(&s.macro_decl.body)
        }
        S::Do(s) => call(&s.call),
        S::EmitRaw(_) | S::Continue(_) | S::Break(_) => Ok(()),
        S::AutoEscape(_) => Err(refused("autoescape")),
        S::Block(_) | S::Import(_) | S::FromImport(_) | S::Extends(_) | S::Include(_) => {
            Err(refused("a block or another template"))
        }
    }
}

fn call(call: &ast::Call) -> Result<(), Error> {
    constant(&call.expr)?;
    arguments(&call.args)
}

fn arguments(arguments: &[ast::CallArg]) -> Result<(), Error> {
    arguments.iter().try_for_each(|argument| {
        let (ast::CallArg::Pos(e)
        | ast::CallArg::Kwarg(_, e)
        | ast::CallArg::PosSplat(e)
        | ast::CallArg::KwargSplat(e)) = argument;
        constant(e).map(drop)
    })
}

/// Whether the compiler takes it for a constant, and then whether that is a list, tuple or dictionary.
fn constant(expression: &ast::Expr) -> Result<Option<bool>, Error> {
    use ast::Expr as E;
    let items = |items: &[ast::Expr]| {
        items.iter().try_for_each(|e| constant(e).map(drop))?;
        Ok(items.iter().all(|e| matches!(e, E::Const(_))).then_some(true))
    };
    let folded = |parts: &[&ast::Expr]| {
        let parts = parts.iter().map(|e| constant(e)).collect::<Result<Vec<_>, Error>>()?;
        match parts.into_iter().collect::<Option<Vec<bool>>>() {
            Some(lists) if lists.contains(&true) => Err(refused("computing with constant lists")),
            all => Ok(all.map(|_| false)),
        }
    };
    let each = |parts: &[Option<&ast::Expr>]| {
        parts.iter().flatten().try_for_each(|e| constant(e).map(drop))?;
        Ok(None)
    };
    match expression {
        E::Const(_) => Ok(Some(false)),
        E::Var(_) => Ok(None),
        E::List(e) => items(&e.items),
        E::Tuple(e) => items(&e.items),
        E::Map(e) => Ok(items(&e.keys)?.and(items(&e.values)?)),
        E::UnaryOp(e) => constant(&e.expr),
        E::BinOp(e) => folded(&[&e.left, &e.right]),
        E::Compare(e) => folded(
            &std::iter::once(&e.expr).chain(e.ops.iter().map(|op| &op.expr)).collect::<Vec<_>>(),
        ),
        E::Slice(e) => each(&[Some(&e.expr), e.start.as_ref(), e.stop.as_ref(), e.step.as_ref()]),
        E::IfExpr(e) => each(&[Some(&e.test_expr), Some(&e.true_expr), e.false_expr.as_ref()]),
        E::GetAttr(e) => each(&[Some(&e.expr)]),
        E::GetItem(e) => each(&[Some(&e.expr), Some(&e.subscript_expr)]),
        E::Filter(e) => arguments(&e.args).and_then(|()| each(&[e.expr.as_ref()])),
        E::Test(e) => arguments(&e.args).and_then(|()| each(&[Some(&e.expr)])),
        E::Call(e) => call(e).map(|()| None),
    }
}

/// Where an instruction jumps.
fn target<'a>(instruction: &'a mut Instruction<'static>) -> Option<&'a mut u32> {
    match instruction {
        Instruction::Iterate(to)
        | Instruction::Jump(to)
        | Instruction::JumpIfFalse(to)
        | Instruction::JumpIfFalseOrPop(to)
        | Instruction::JumpIfTrueOrPop(to)
        | Instruction::BuildMacro(_, to, _) => Some(to),
        _ => None,
    }
}

/// The check that an instruction needs, and how many values on the stack it is about.
fn check(instruction: &Instruction) -> Result<Option<(&'static str, usize)>, Error> {
    use Instruction as I;
    let known =
        |count: &Option<u16>| count.map(usize::from).ok_or_else(|| refused("a call with * or **"));
    Ok(match instruction {
        I::StringConcat => Some(("!text", 2)),
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::In | I::CompareAndPreserve(_) => {
            Some(("!walk", 2))
        }
        I::GetItem => Some(("!item", 2)),
        I::Add => Some(("!add", 2)),
        I::Mul => Some(("!times", 2)),
        I::Slice => Some(("!slice", 4)),
        I::SetAttr(_) => Some(("!set", 2)),
        I::BuildList(Some(count)) | I::BuildTuple(Some(count)) => Some(("!nest", *count)),
        I::BuildMap(count) => Some(("!map", 2 * count)),
        I::BuildKwargs(count) => Some(("!nest", 2 * count)),
        I::ApplyFilter(name, ..) if SHALLOW.contains(name) => None,
        I::ApplyFilter("list" | "items", count, _) => Some(("!nest", known(count)?)),
        I::ApplyFilter(_, count, _) => Some(("!both", known(count)?)),
        I::PerformTest(name, ..) if PLAIN.contains(name) => None,
        I::PerformTest(_, count, _) => Some(("!walk", known(count)?)),
        I::CallFunction("super", _) => return Err(refused("super()")),
        I::CallFunction(_, count) | I::CallMethod(_, count) | I::CallObject(count) => {
            Some(("!both", known(count)?))
        }
        // The list of the items for which a loop's condition holds is no deeper than the list that it goes through.
        I::BuildList(None) => None,
        I::BuildTuple(None) | I::UnpackLists(_) | I::MergeKwargs(_) => {
            return Err(refused("a call with * or **"));
        }
        I::PushAutoEscape => return Err(refused("autoescape")),
        I::Include(_) | I::LoadBlocks | I::ExportLocals | I::CallBlock(_) | I::FastSuper => {
            return Err(refused("a block or another template"));
        }
        _ => None,
    })
}

/// Whether the value is one that follows nothing.
fn is_scalar(value: &Value) -> bool {
    !matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain
    )
}

/// The instructions with checks before those that need one: the values are taken off the stack, looked at and put back.
fn guarded(
    program: &Instructions<'static>,
    source: &'static str,
) -> Result<Instructions<'static>, Error> {
    let old: Vec<Instruction<'static>> = (0..).map_while(|at| program.get(at).cloned()).collect();
    let targets: BTreeSet<u32> =
        old.iter().filter_map(|i| target(&mut i.clone()).copied()).collect();
    let mut checks = Vec::with_capacity(old.len());
    for (at, instruction) in old.iter().enumerate() {
        let mut check = check(instruction)?.filter(|(_, count)| *count > 0);
        // Most comparisons are with a constant text, and most sums have one: nothing can be followed then.
        if let Some(Instruction::LoadConst(right)) =
            at.checked_sub(1).and_then(|before| old.get(before))
            && is_scalar(right)
            && !targets.contains(&(at as u32))
        {
            use Instruction as I;
            let plain = match instruction {
                I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte => true,
                I::Add | I::Mul | I::GetItem => right.as_str().is_some(),
                _ => false,
            };
            check = check.filter(|_| !plain);
        }
        checks.push(check);
    }
    let mut places = Vec::with_capacity(old.len() + 1);
    let mut next = 0u32;
    for check in &checks {
        places.push(next);
        next += match check {
            None => 1,
            Some((_, 1)) => 2,
            Some(_) => 3,
        };
    }
    places.push(next);
    let mut new = Instructions::new("chat", source);
    for (at, (mut instruction, check)) in old.into_iter().zip(checks).enumerate() {
        let at = at as u32;
        let mut add = |instruction| match (program.get_span(at), program.get_line(at)) {
            (Some(span), _) => new.add_with_span(instruction, span),
            (None, Some(line)) => new.add_with_line(instruction, line as u16),
            (None, None) => new.add(instruction),
        };
        if let Some((name, count)) = check {
            let arguments = u16::try_from(count).map_err(|_| refused("so long a list"))?;
            add(Instruction::ApplyFilter(name, Some(arguments), NO_SLOT));
            if count > 1 {
                add(Instruction::UnpackList(count));
            }
        }
        if let Some(to) = target(&mut instruction) {
            *to = places.get(*to as usize).copied().unwrap_or(next);
        }
        add(instruction);
    }
    Ok(new)
}

/// Letters for one fuel: when they are compared, searched or handed on, and when they are written out, perhaps with escapes.
const READ: u64 = 64;
const WRITTEN: u64 = 8;

/// Charges every item and letter in a value before it is written out. A text that stands by itself is charged by the crate.
pub(super) fn walk(state: &State, value: &Value) -> Result<(), Error> {
    follow(state, value, Price { letters: WRITTEN, indent: 0, bare: false }, 0)
}

/// The same where each item goes on a line of its own, `indent` spaces in for each level.
pub(super) fn walk_indented(state: &State, value: &Value, indent: u64) -> Result<(), Error> {
    follow(state, value, Price { letters: WRITTEN, indent, bare: false }, 0)
}

/// Charges for reading all of a value, a text that stands by itself included.
fn read(state: &State, value: &Value) -> Result<(), Error> {
    follow(state, value, Price { letters: READ, indent: 0, bare: true }, 0)
}

/// What following a value costs.
#[derive(Clone, Copy)]
struct Price {
    /// Letters for one fuel.
    letters: u64,
    /// Spaces before an item for each level.
    indent: u64,
    /// Whether a text or number that is no item of anything costs too.
    bare: bool,
}

fn follow(state: &State, value: &Value, price: Price, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "nested too deeply"));
    }
    let kind = value.kind();
    match kind {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            let item_cost = 1 + price.indent.saturating_mul(depth as u64 + 1) / READ;
            for item in value.try_iter()? {
                state.consume_fuel(item_cost)?;
                follow(state, &item, price, depth + 1)?;
                if kind == ValueKind::Map {
                    follow(state, &value.get_item(&item)?, price, depth + 1)?;
                }
            }
        }
        ValueKind::String | ValueKind::Bytes if depth > 0 || price.bare => {
            state.consume_fuel(letters(value) / price.letters)?;
        }
        // Up to 311 digits.
        ValueKind::Number if depth > 0 => state.consume_fuel(4)?,
        _ => {}
    }
    Ok(())
}

/// Bytes of a text.
fn letters(value: &Value) -> u64 {
    value.as_str().map_or_else(|| value.as_bytes().map_or(0, <[u8]>::len), str::len) as u64
}

/// The values as the next instruction finds them on the stack: unpacking puts the first on top.
fn back(mut values: Vec<Value>) -> Value {
    if values.len() == 1 {
        return values.remove(0);
    }
    values.reverse();
    Value::from(values)
}

fn fee(state: &State, values: &[Value]) -> Result<(), Error> {
    if values.iter().all(is_scalar) { Ok(()) } else { state.consume_fuel(NESTING) }
}

/// What stands on the stack, named arguments of a call included.
type Stacked = Rest<ValueOrKwargs>;

fn walked(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    values.iter().try_for_each(|value| read(state, value))?;
    Ok(back(values))
}

fn written(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    values.iter().try_for_each(|value| walk(state, value))?;
    Ok(back(values))
}

/// The value and the namespace that it is put into.
fn assigned(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    fee(state, values.get(..1).unwrap_or_default())?;
    Ok(back(values))
}

fn nested(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    fee(state, &values)?;
    Ok(back(values))
}

fn walked_and_nested(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    fee(state, &values)?;
    values.iter().try_for_each(|value| read(state, value))?;
    Ok(back(values))
}

fn length(value: &Value) -> u64 {
    if is_scalar(value) { 0 } else { value.len().unwrap_or(0) as u64 }
}

/// Whether the crate takes it for a list that is read item by item: adding, repeating and slicing such are lazy there.
fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !value.is_tuple()
}

/// The items of a list, half a fuel each.
fn items(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    state.consume_fuel(length(value) / 2)?;
    let mut items = Vec::new();
    for (n, item) in value.try_iter()?.enumerate() {
        if n as u64 >= length(value) {
            state.consume_fuel(1)?;
        }
        items.push(item);
    }
    Ok(items)
}

/// A sum of lists becomes one plain list, to which the instruction adds an empty one.
fn added(state: &State, values: Stacked) -> Result<Value, Error> {
    let mut values = values.into_values();
    fee(state, &values)?;
    if let [left, right] = &mut values[..]
        && is_list(left)
        && is_list(right)
    {
        let mut all = items(state, left)?;
        all.append(&mut items(state, right)?);
        (*left, *right) = (Value::from(all), Value::from(Vec::<Value>::new()));
    }
    Ok(back(values))
}

/// A product becomes one plain list, which the instruction takes once.
fn repeated(state: &State, values: Stacked) -> Result<Value, Error> {
    let mut values = values.into_values();
    fee(state, &values)?;
    let number = |value: &Value| u64::try_from(value.clone()).ok();
    let times = values.iter().filter_map(number).max().unwrap_or(0);
    state.consume_fuel(values.iter().map(length).max().unwrap_or(0).saturating_mul(times) / 4)?;
    if let [left, right] = &mut values[..] {
        let (list, factor) = if is_list(left) { (left, right) } else { (right, left) };
        if is_list(list) && number(factor).is_some() {
            let all = items(state, list)?;
            let times = usize::try_from(times).unwrap_or(usize::MAX);
            let size =
                all.len().checked_mul(times).ok_or_else(|| Error::from(ErrorKind::OutOfFuel))?;
            *list = Value::from(all.iter().cycle().take(size).cloned().collect::<Vec<_>>());
            *factor = Value::from(1);
        }
    }
    Ok(back(values))
}

/// What is looked up in a text walks to it; a key that is a text is compared.
fn looked_up(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    if let [container, key] = &values[..] {
        state.consume_fuel(letters(container) / READ)?;
        // Counted from the end, a lazy list is walked from its beginning; the crate charges for the number only.
        if container.kind() == ValueKind::Iterable && key.as_i64().is_some_and(|at| at < 0) {
            state.consume_fuel(length(container) / 2)?;
        }
        read(state, key)?;
    }
    Ok(back(values))
}

/// A part of a text walks to it; a part of a list becomes a plain list, of which the instruction takes all.
fn sliced(state: &State, values: Stacked) -> Result<Value, Error> {
    let mut values = values.into_values();
    fee(state, &values)?;
    if let [value, start, stop, step] = &mut values[..] {
        state.consume_fuel(letters(value) / READ)?;
        let bound =
            |value: &Value| if value.is_none() { Some(None) } else { value.as_i64().map(Some) };
        if is_list(value)
            && let (Some(first), Some(last), Some(by)) = (bound(start), bound(stop), bound(step))
            && by != Some(0)
        {
            let all = items(state, value)?;
            let part = places(all.len(), first, last, by.unwrap_or(1))
                .filter_map(|at| all.get(at).cloned());
            *value = Value::from(part.collect::<Vec<_>>());
            (*start, *stop, *step) = (Value::from(()), Value::from(()), Value::from(()));
        }
    }
    Ok(back(values))
}

/// The places that Python's slice `[first:last:step]` of `len` items names, in its order (the language reference's "slicings").
fn places(
    len: usize,
    first: Option<i64>,
    last: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let within = |at: i64| if at < 0 { at.saturating_add(len) } else { at }.clamp(low, high);
    let first = first.map_or(if step > 0 { low } else { high }, within);
    let last = last.map_or(if step > 0 { high } else { low }, within);
    let inside = move |at: &i64| if step > 0 { *at < last } else { *at > last };
    std::iter::successors(Some(first), move |at| at.checked_add(step))
        .take_while(inside)
        .filter_map(|at| usize::try_from(at).ok())
}

/// The `reverse` filter: of a list, a plain list.
pub(super) fn reversed(state: &State, value: &Value) -> Result<Value, Error> {
    fee(state, std::slice::from_ref(value))?;
    if !is_list(value) {
        return minijinja::filters::reverse(value);
    }
    let mut all = items(state, value)?;
    all.reverse();
    Ok(Value::from(all))
}

/// Keys are compared at every look-up.
fn mapped(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    if values.iter().step_by(2).any(|key| !is_scalar(key)) {
        return Err(refused("a list as the key of a dictionary"));
    }
    fee(state, &values)?;
    Ok(back(values))
}

#[cfg(test)]
mod tests {
    use super::places;

    #[test]
    fn slices_are_those_of_python() {
        let of = |first, last, step| places(5, first, last, step).collect::<Vec<_>>();
        assert_eq!(of(None, None, 1), [0, 1, 2, 3, 4]);
        assert_eq!(of(None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(of(Some(1), Some(-1), 1), [1, 2, 3]);
        assert_eq!(of(Some(-2), None, 1), [3, 4]);
        assert_eq!(of(Some(-99), Some(99), 2), [0, 2, 4]);
        assert_eq!(of(Some(99), Some(-99), -2), [4, 2, 0]);
        assert_eq!(of(Some(3), Some(0), -1), [3, 2, 1]);
        assert_eq!(of(Some(3), Some(1), 1), [0usize; 0]);
        assert_eq!(of(Some(i64::MIN), Some(i64::MAX), i64::MAX), [0]);
        assert_eq!(of(Some(i64::MAX), Some(i64::MIN), i64::MIN), [4]);
        assert_eq!(places(0, None, None, -1).count(), 0);
    }
}
