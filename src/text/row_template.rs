//! A user's template over the fields of a record: `Summarise: {{ ticket_text }}`. In: a source, then records as names and values. Out: the
//! prompt's text. Which fields it needs is known before any record is read. Bounded like the templates of models.
// A template file may be anybody's, and the values are untrusted.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::date::Date;
use super::rendering::{RenderLimits, Template, TemplateStyle, from_json, within_stack};
use crate::model::ModelError;
use minijinja::machinery::{ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use std::collections::BTreeSet;

/// All fields together.
const ROW: &str = "row";
/// Names that the template language has itself.
const GLOBALS: [&str; 8] =
    ["range", "dict", "namespace", "loop", "caller", "raise_exception", "strftime_now", "self"];

/// A compiled template; rendered by many threads.
pub struct RowTemplate {
    template: Template,
    needed: Vec<String>,
    /// Every field that it names.
    names: Vec<String>,
    /// It uses `row` as a whole.
    all: bool,
}

/// What a template asks of its record.
#[derive(Default)]
struct Names {
    /// Variables and items of `row` that are used.
    used: BTreeSet<String>,
    /// Those that are asked for with `is defined` or `default` somewhere.
    optional: BTreeSet<String>,
    /// Names that the template sets itself.
    bound: BTreeSet<String>,
}

impl RowTemplate {
    /// Compiles `source`. Errors are one line.
    pub fn compile(source: &str) -> Result<RowTemplate, ModelError> {
        let (limits, style) = (
            RenderLimits::default(),
            TemplateStyle { name: "the template", trim: false, strict: true },
        );
        within_stack(source, limits, || {
            let template = Template::compile_here(source, limits, style, Date::FIXED)?;
            let mut names = Names::default();
            let tree = parse(source, "template", SyntaxConfig::default())
                .map_err(|e| format!("the template fails: {e}"))?;
            names.statement(&tree);
            let own =
                |name: &&String| !names.bound.contains(*name) && !GLOBALS.contains(&name.as_str());
            let all = names.used.contains(ROW) && !names.bound.contains(ROW);
            let own_names: Vec<String> =
                names.used.iter().filter(own).filter(|name| *name != ROW).cloned().collect();
            let needed =
                own_names.iter().filter(|name| !names.optional.contains(*name)).cloned().collect();
            Ok(RowTemplate { needed, names: own_names, all, template })
        })
    }

    /// Fields that every record must have: those that are not asked for with `is defined` or `default`.
    pub fn needed(&self) -> &[String] {
        &self.needed
    }

    /// Every field that it names, needed or not.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether records can differ in what they make of it.
    pub fn looks_at_fields(&self) -> bool {
        self.all || !self.names.is_empty()
    }

    /// Whether it uses all fields together.
    pub fn sees_all(&self) -> bool {
        self.all
    }

    /// The text for a record's fields. `null` is a field that is not there.
    pub fn render(&self, fields: &[(&str, serde_json::Value)]) -> Result<String, String> {
        let there = |name: &String| fields.iter().any(|(n, value)| n == name && !value.is_null());
        if let Some(missing) = self.needed.iter().find(|name| !there(name)) {
            return Err(format!(
                "the record has no {}, which the template asks for",
                crate::units::shown(missing)
            ));
        }
        let mut pairs: Vec<(&str, Value)> = fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (*name, from_json(value)))
            .collect();
        let row = Value::from_pairs(pairs.clone());
        pairs.retain(|(name, _)| *name != ROW);
        pairs.push((ROW, row));
        self.template.render_values(Value::from_pairs(pairs))
    }
}

fn is_row(expression: &ast::Expr) -> bool {
    matches!(expression, ast::Expr::Var(v) if v.id == ROW)
}

/// The field that an expression stands for: a variable, `row.name` or `row["name"]`.
fn field<'a>(expression: &'a ast::Expr) -> Option<std::borrow::Cow<'a, str>> {
    match expression {
        ast::Expr::Var(v) => Some(v.id.into()),
        ast::Expr::GetAttr(e) if is_row(&e.expr) => Some(e.name.into()),
        ast::Expr::GetItem(e) if is_row(&e.expr) => match &e.subscript_expr {
            ast::Expr::Const(name) => name.value.as_str().map(|name| name.to_string().into()),
            _ => None,
        },
        _ => None,
    }
}

impl Names {
    fn statements(&mut self, all: &[ast::Stmt]) {
        all.iter().for_each(|s| self.statement(s));
    }

    fn statement(&mut self, statement: &ast::Stmt) {
        use ast::Stmt as S;
        match statement {
            S::Template(s) => self.statements(&s.children),
            S::EmitExpr(s) => self.expression(&s.expr),
            S::ForLoop(s) => {
                self.bind(&s.target);
                self.expression(&s.iter);
                s.filter_expr.iter().for_each(|e| self.expression(e));
                self.statements(&s.body);
                self.statements(&s.else_body);
            }
            S::IfCond(s) => {
                self.expression(&s.expr);
                self.statements(&s.true_body);
                self.statements(&s.false_body);
            }
            S::WithBlock(s) => {
                for (to, from) in &s.assignments {
                    self.bind(to);
                    self.expression(from);
                }
                self.statements(&s.body);
            }
            S::Set(s) => {
                self.bind(&s.target);
                self.expression(&s.expr);
            }
            S::SetBlock(s) => {
                self.bind(&s.target);
                s.filter.iter().for_each(|e| self.expression(e));
                self.statements(&s.body);
            }
            S::FilterBlock(s) => {
                self.expression(&s.filter);
                self.statements(&s.body);
            }
            S::Macro(s) => self.declaration(s),
            S::CallBlock(s) => {
                self.call(&s.call);
                self.declaration(&s.macro_decl);
            }
            S::Do(s) => self.call(&s.call),
            // What is left has no expressions, or the compiler has refused it.
            _ => {}
        }
    }

    fn declaration(&mut self, declared: &ast::Macro) {
        self.bound.insert(declared.name.to_string());
        declared.args.iter().for_each(|e| self.bind(e));
        declared.defaults.iter().for_each(|e| self.expression(e));
        self.statements(&declared.body);
    }

    fn bind(&mut self, target: &ast::Expr) {
        match target {
            ast::Expr::Var(v) => drop(self.bound.insert(v.id.to_string())),
            ast::Expr::List(e) => e.items.iter().for_each(|e| self.bind(e)),
            ast::Expr::Tuple(e) => e.items.iter().for_each(|e| self.bind(e)),
            other => self.expression(other),
        }
    }

    fn call(&mut self, call: &ast::Call) {
        match &call.expr {
            // A function, and a method such as `row.items()`, are no fields.
            ast::Expr::Var(_) => {}
            ast::Expr::GetAttr(e) => self.expression(&e.expr),
            other => self.expression(other),
        }
        self.arguments(&call.args);
    }

    fn arguments(&mut self, arguments: &[ast::CallArg]) {
        for argument in arguments {
            let (ast::CallArg::Pos(e)
            | ast::CallArg::Kwarg(_, e)
            | ast::CallArg::PosSplat(e)
            | ast::CallArg::KwargSplat(e)) = argument;
            self.expression(e);
        }
    }

    fn may_be_absent(&mut self, expression: &ast::Expr) {
        if let Some(name) = field(expression) {
            self.optional.insert(name.into_owned());
        }
    }

    fn expression(&mut self, expression: &ast::Expr) {
        use ast::Expr as E;
        if let Some(name) = field(expression) {
            self.used.insert(name.into_owned());
        }
        match expression {
            E::Const(_) | E::Var(_) => {}
            E::List(e) => e.items.iter().for_each(|e| self.expression(e)),
            E::Tuple(e) => e.items.iter().for_each(|e| self.expression(e)),
            E::Map(e) => e.keys.iter().chain(&e.values).for_each(|e| self.expression(e)),
            E::UnaryOp(e) => self.expression(&e.expr),
            E::BinOp(e) => [&e.left, &e.right].into_iter().for_each(|e| self.expression(e)),
            E::Compare(e) => {
                self.expression(&e.expr);
                e.ops.iter().for_each(|op| self.expression(&op.expr));
            }
            E::Slice(e) => {
                self.expression(&e.expr);
                [&e.start, &e.stop, &e.step].into_iter().flatten().for_each(|e| self.expression(e));
            }
            E::IfExpr(e) => {
                self.expression(&e.test_expr);
                self.expression(&e.true_expr);
                e.false_expr.iter().for_each(|e| self.expression(e));
            }
            E::GetAttr(e) if is_row(&e.expr) => {}
            E::GetItem(e) if is_row(&e.expr) && matches!(e.subscript_expr, E::Const(_)) => {}
            E::GetAttr(e) => self.expression(&e.expr),
            E::GetItem(e) => {
                self.expression(&e.expr);
                self.expression(&e.subscript_expr);
            }
            E::Filter(e) => {
                if let Some(inner) = &e.expr {
                    if matches!(e.name, "default" | "d") {
                        self.may_be_absent(inner);
                    }
                    self.expression(inner);
                }
                self.arguments(&e.args);
            }
            E::Test(e) => {
                if matches!(e.name, "defined" | "undefined") {
                    self.may_be_absent(&e.expr);
                }
                self.expression(&e.expr);
                self.arguments(&e.args);
            }
            E::Call(e) => self.call(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn needed(source: &str) -> Vec<String> {
        RowTemplate::compile(source).unwrap().needed().to_vec()
    }

    fn rendered(source: &str, fields: &Json) -> Result<String, String> {
        let fields: Vec<(&str, Json)> =
            fields.as_object().unwrap().iter().map(|(n, v)| (&n[..], v.clone())).collect();
        RowTemplate::compile(source).unwrap().render(&fields)
    }

    #[test]
    fn a_template_says_which_fields_it_needs() {
        for (source, fields) in [
            ("Summarise: {{ ticket_text }}", &["ticket_text"][..]),
            (
                "{{ a }}{{ row.b }}{{ row[\"Ticket text\"] }}{{ row['c'] | upper }}",
                &["Ticket text", "a", "b", "c"],
            ),
            ("{% for item in items %}{{ loop.index }} {{ item.name }}{% endfor %}", &["items"]),
            (
                "{% if note is defined and note %}{{ note }}{% endif %}{{ a | default('x') }}{{ b | d }}{{ c }}",
                &["c"],
            ),
            (
                "{% if row.note is defined %}{{ row.note }}{% endif %}{{ row['x'] | default(y) }}",
                &["y"],
            ),
            (
                "{% set n = text | length %}{{ n }}{{ range(3) | join }}{{ row | tojson }}",
                &["text"],
            ),
            ("{% for name, value in row | items %}{{ name }}: {{ value }}\n{% endfor %}", &[]),
            ("{% for name, value in row.items() %}{{ name }}: {{ value }}\n{% endfor %}", &[]),
            ("{% macro m(x) %}{{ x }}{{ z }}{% endmacro %}{{ m(w) }}", &["w", "z"]),
            (
                "{{ a[b:c] ~ (d if e else f) }}{{ [g, (h, i), {'k': j}] }}{{ not l }}{{ 1 < m }}",
                &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "l", "m"],
            ),
        ] {
            assert_eq!(needed(source), fields, "{source}");
        }
        assert!(
            !RowTemplate::compile("the same for all {{ range(2) | join }}")
                .unwrap()
                .looks_at_fields()
        );
        let (all, some) = (
            RowTemplate::compile("{{ row | tojson }}").unwrap(),
            RowTemplate::compile("{{ row.a }}").unwrap(),
        );
        assert!(
            all.looks_at_fields() && all.sees_all() && some.looks_at_fields() && !some.sees_all()
        );
    }

    #[test]
    fn fields_are_seen_as_the_file_has_them() {
        let fields = json!({"text": "a\n", "n": 7, "big": 18446744073709551615u64, "x": 2.5, "tags": ["a", "b"], "o": {"k": [1]}, "gone": null, "Ticket text": "t"});
        for (source, expected) in [
            ("{{ text }}|{{ n + 1 }}|{{ big }}|{{ x }}", "a\n|8|18446744073709551615|2.5"),
            ("{{ tags[1] }}{{ tags | length }}{{ o.k[0] }}", "b21"),
            ("{{ row['Ticket text'] }}{{ row.n }}", "t7"),
            (
                "{{ gone | default('none') }}{{ gone is defined }}{{ other is defined }}",
                "noneFalseFalse",
            ),
            ("{{ text | trim }}\n", "a"),
        ] {
            assert_eq!(rendered(source, &fields).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_a_record_lacks_is_named() {
        let error = rendered("{{ a }} {{ b }}", &json!({"a": "x", "b": null})).unwrap_err();
        assert!(error.contains("no b"), "{error}");
        let error = rendered("{{ row[a] }}", &json!({"a": "x"})).unwrap_err();
        assert!(error.contains("undefined"), "{error}");
    }

    #[test]
    fn a_hostile_template_is_an_error_and_never_a_panic_or_a_long_wait() {
        for source in
            ["{{ a", "{% for %}", "{% include 'x' %}", &"{{ -".repeat(2000), &"x".repeat(1 << 17)]
        {
            assert!(RowTemplate::compile(source).is_err());
        }
        for source in [
            "{% for i in range(99999) %}{% for j in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
            "{{ a * 999999999 }}",
        ] {
            let error = rendered(source, &json!({"a": "x"})).unwrap_err();
            assert!(!error.is_empty());
        }
        let error = rendered(
            "{% set x = a * 99999 %}{% for i in range(9999) %}{{ x }}{% endfor %}",
            &json!({"a": "x"}),
        )
        .unwrap_err();
        assert!(error.contains("too much work"), "{error}");
    }
}
