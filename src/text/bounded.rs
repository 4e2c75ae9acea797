//! A chat template's program with bounds on what it can make of nested values. The crate's fuel counts instructions, characters and
//! items, but not what a value is worth when it is written out, compared or thrown away: `[[x] * 9999] * 9999` is two small objects,
//! and a list put into a list a hundred thousand times takes a stack that deep to free. So the compiled program is written anew with
//! checks before every instruction that could follow such a structure (they charge for each item and letter in it) or deepen it
//! (they charge a fee, which bounds the depth). In: a template's source. Out: a [`Program`]. What a template means is not changed.
// What it reads is a stranger's.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, ast, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

/// Fuel for putting a container into another: with the budget of a rendering, nothing is nested deeper than some thousands.
const NESTING: u64 = 200;
/// Deepest value that is written out or compared.
const DEEPEST: usize = 50;
/// A filter's slot that is looked up at every use.
const NO_SLOT: u8 = u8::MAX;

/// Filters that look at the first layer of their input only and make nothing deeper.
const SHALLOW: [&str; 9] = ["attr", "count", "d", "default", "first", "last", "length", "string", "tojson"];
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
    pub(super) fn compile(environment: &mut Environment, source: &str, syntax: SyntaxConfig) -> Result<Program, Error> {
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
        Ok(Program { instructions: guarded(&instructions, source)? })
    }

    /// Runs it.
    pub(super) fn render(&self, environment: &Environment, context: Value) -> Result<String, Error> {
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let none = BTreeMap::new();
        minijinja::machinery::eval(environment, &self.instructions, context, &none, &mut out, AutoEscape::None)?;
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
    let all = |expressions: &[&ast::Expr]| expressions.iter().try_for_each(|e| constant(e).map(drop));
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
        let (ast::CallArg::Pos(e) | ast::CallArg::Kwarg(_, e) | ast::CallArg::PosSplat(e) | ast::CallArg::KwargSplat(e)) =
            argument;
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
        E::Compare(e) => folded(&std::iter::once(&e.expr).chain(e.ops.iter().map(|op| &op.expr)).collect::<Vec<_>>()),
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
    let known = |count: &Option<u16>| count.map(usize::from).ok_or_else(|| refused("a call with * or **"));
    Ok(match instruction {
        I::StringConcat => Some(("!text", 2)),
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::In | I::CompareAndPreserve(_) => Some(("!walk", 2)),
        // The key only; what it is looked up in is not followed.
        I::GetItem => Some(("!walk", 1)),
        I::Add => Some(("!add", 2)),
        I::Mul => Some(("!times", 2)),
        I::Slice => Some(("!nest", 4)),
        I::SetAttr(_) => Some(("!set", 2)),
        I::BuildList(Some(count)) | I::BuildTuple(Some(count)) => Some(("!nest", *count)),
        I::BuildMap(count) => Some(("!map", 2 * count)),
        I::BuildKwargs(count) => Some(("!nest", 2 * count)),
        I::ApplyFilter(name, ..) if SHALLOW.contains(name) => None,
        I::ApplyFilter("list" | "reverse" | "items", count, _) => Some(("!nest", known(count)?)),
        I::ApplyFilter(_, count, _) => Some(("!both", known(count)?)),
        I::PerformTest(name, ..) if PLAIN.contains(name) => None,
        I::PerformTest(_, count, _) => Some(("!walk", known(count)?)),
        I::CallFunction("super", _) => return Err(refused("super()")),
        I::CallFunction(_, count) | I::CallMethod(_, count) | I::CallObject(count) => Some(("!both", known(count)?)),
        // What a loop with a condition is left with is no deeper than what it goes through.
        I::BuildList(None) => None,
        I::BuildTuple(None) | I::UnpackLists(_) | I::MergeKwargs(_) => return Err(refused("a call with * or **")),
        I::PushAutoEscape => return Err(refused("autoescape")),
        I::Include(_) | I::LoadBlocks | I::ExportLocals | I::CallBlock(_) | I::FastSuper => {
            return Err(refused("a block or another template"));
        }
        _ => None,
    })
}

/// Whether the value is one that follows nothing.
fn is_scalar(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain)
}

/// The instructions with checks before those that need one: the values are taken off the stack, looked at and put back.
fn guarded(program: &Instructions<'static>, source: &'static str) -> Result<Instructions<'static>, Error> {
    let old: Vec<Instruction<'static>> = (0..).map_while(|at| program.get(at).cloned()).collect();
    let targets: BTreeSet<u32> = old.iter().filter_map(|i| target(&mut i.clone()).copied()).collect();
    let mut checks = Vec::with_capacity(old.len());
    for (at, instruction) in old.iter().enumerate() {
        let mut check = check(instruction)?.filter(|(_, count)| *count > 0);
        // Most comparisons are with a constant text, and most sums have one: nothing can be followed then.
        if let Some(Instruction::LoadConst(right)) = at.checked_sub(1).and_then(|before| old.get(before))
            && is_scalar(right)
            && !targets.contains(&(at as u32))
        {
            use Instruction as I;
            let plain = match instruction {
                I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::Add | I::GetItem => true,
                I::Mul => right.as_str().is_some(),
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

/// Letters in a list for one fuel: when it is compared or handed on, and when it is written out, perhaps with escapes.
const READ: u64 = 64;
const WRITTEN: u64 = 8;

/// Charges every item and letter in a value before it is written out. What stands by itself is charged by the crate.
pub(super) fn walk(state: &State, value: &Value) -> Result<(), Error> {
    follow(state, value, WRITTEN, 0)
}

fn follow(state: &State, value: &Value, letters: u64, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(Error::new(ErrorKind::InvalidOperation, "nested too deeply"));
    }
    let kind = value.kind();
    match kind {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            for item in value.try_iter()? {
                state.consume_fuel(1)?;
                follow(state, &item, letters, depth + 1)?;
                if kind == ValueKind::Map {
                    follow(state, &value.get_item(&item)?, letters, depth + 1)?;
                }
            }
        }
        ValueKind::String | ValueKind::Bytes if depth > 0 => {
            let length = value.as_str().map_or_else(|| value.as_bytes().map_or(0, <[u8]>::len), str::len);
            state.consume_fuel(length as u64 / letters)?;
        }
        // Up to 311 digits.
        ValueKind::Number if depth > 0 => state.consume_fuel(4)?,
        _ => {}
    }
    Ok(())
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
    values.iter().try_for_each(|value| follow(state, value, READ, 0))?;
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
    values.iter().try_for_each(|value| follow(state, value, READ, 0))?;
    Ok(back(values))
}

fn length(value: &Value) -> u64 {
    if is_scalar(value) { 0 } else { value.len().unwrap_or(0) as u64 }
}

/// A sum of lists may be written out item by item at any later time.
fn added(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    fee(state, &values)?;
    state.consume_fuel(values.iter().map(length).fold(0, u64::saturating_add) / 4)?;
    Ok(back(values))
}

/// So may a product.
fn repeated(state: &State, values: Stacked) -> Result<Value, Error> {
    let values = values.into_values();
    fee(state, &values)?;
    let times = values.iter().filter_map(|v| u64::try_from(v.clone()).ok()).max().unwrap_or(0);
    state.consume_fuel(values.iter().map(length).max().unwrap_or(0).saturating_mul(times) / 4)?;
    Ok(back(values))
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
