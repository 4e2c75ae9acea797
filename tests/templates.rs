//! No untrusted template takes more than its bound, whatever it does with whatever value: every operator, filter, test, method and
//! function that a template can name, applied to large values of every kind, over and over until its fuel is used up.
#![cfg(target_os = "linux")]

use llmopt::text::{ChatTemplate, Date, RenderLimits, Template, TemplateStyle};
use serde_json::{Map, json};

/// The share of a rendering's fuel that each case here may use, so that all of them fit into a test.
const SHARE: u64 = 10;
/// The promise for a model's template: processor time and memory.
const SECONDS: f64 = 2.0;
const MEMORY: u64 = 700 << 20;

/// Processor time of this process so far, in seconds.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after = stat.rsplit_once(") ").unwrap().1;
    // Fields 14 and 15, counted from 3 after the name; ticks of 10 ms.
    let ticks: f64 = after.split(' ').skip(11).take(2).map(|n| n.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

/// The most resident memory so far.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// Statements that make large values; they leave most of the fuel. `v` is the value, `w` an equal one made apart.
const VALUES: &[(&str, &str)] = &[
    ("ASCII text", "{% set v = 'a' * 400000 %}{% set w = 'a' * 400000 %}"),
    ("other text", "{% set v = 'é' * 200000 %}{% set w = 'é' * 200000 %}"),
    ("lines", "{% set v = 'a\n' * 100000 %}{% set w = 'a\n' * 100000 %}"),
    ("range", "{% set v = range(30000) %}{% set w = range(30000) %}"),
    ("list", "{% set v = range(8000)|list %}{% set w = range(8000)|list %}"),
    (
        "list of texts",
        "{% set v = ('ab ' * 4000).split(' ') %}{% set w = ('ab ' * 4000).split(' ') %}",
    ),
    ("repeated list", "{% set v = [x, x] * 10000 %}{% set w = [x, x] * 10000 %}"),
    (
        "list of one long text",
        "{% set t = 'a' * 20000 %}{% set v = [t, x] * 20 %}{% set w = [t, x] * 20 %}",
    ),
    ("slice", "{% set v = range(20000)[19000:] %}{% set w = range(20000)[19000:] %}"),
    ("backward slice", "{% set v = range(20000)[::-2] %}{% set w = range(20000)[::-2] %}"),
    ("reversed", "{% set v = range(8000)|reverse %}{% set w = range(8000)|reverse %}"),
    ("tuple", "{% set v = (x, x) * 2000 %}{% set w = (x, x) * 2000 %}"),
    ("nested", "{% set v = [[[[x] * 9] * 9] * 9] * 9 %}{% set w = [[[[x] * 9] * 9] * 9] * 9 %}"),
    ("map", "{% set v = big %}{% set w = big2 %}"),
    (
        "list of maps",
        "{% set v = [{'a': x, 'b': 'c'}] * 3000 %}{% set w = [{'a': x, 'b': 'c'}] * 3000 %}",
    ),
    ("large number", "{% set v = 10 ** 30 %}{% set w = 1e300 %}"),
];

/// What is done with them: an expression, or a statement where it begins with `{`.
#[allow(clippy::too_many_lines, reason = "a list of cases")]
fn operations() -> Vec<String> {
    let mut all: Vec<String> = [
        // Operators.
        "v + w",
        "v + ''",
        "v ~ w",
        "v ~ ''",
        "v - 1",
        "v * 2",
        "2 * v",
        "v * 100000",
        "v * 1000000000",
        "v * 10000000000000000000",
        "v / 2",
        "v // 2",
        "v % 7",
        "v ** 2",
        "2 ** 100000",
        "-v",
        "not v",
        "v == w",
        "v != w",
        "v < w",
        "v <= w",
        "v > w",
        "v >= w",
        "v < w < v",
        "x in v",
        "v in w",
        "'zz' in v",
        "[v] == [w]",
        "[v, v] + [w]",
        "(v, w)",
        "[v]",
        "{'a': v}",
        "{v: 1}",
        "v and w",
        "v or w",
        "v if v else w",
        // Looking into values.
        "v[0]",
        "v[1]",
        "v[-1]",
        "v[999]",
        "v[99999999]",
        "v[-99999999]",
        "v['a']",
        "v[v]",
        "v[w]",
        "v.a",
        "v.a.b",
        "big[v]",
        "{'a': 1}[v]",
        "v[1:]",
        "v[:1]",
        "v[999:1000]",
        "v[::2]",
        "v[::-1]",
        "v[1:][1:][1:]",
        "v[:-1]",
        "v[500:]|first",
        "v[::-1]|last",
        "(v[500:])[0]",
        // Functions and what is called on objects.
        "range(v)",
        "range(100000)",
        "range(100000)[99999]",
        "range(100000)|last",
        "range(0, 1000000000, 1000000)",
        "dict(a=v)",
        "dict(big)",
        "namespace(a=v)",
        "raise_exception(v)",
        "strftime_now(v)",
        "strftime_now('%c' * 10000)",
        "lipsum()",
        "cycler(v)",
        "joiner(v)",
        "v()",
        "v(v)",
        // Named filters with arguments.
        "v|attr('a')",
        "v|batch(3)",
        "v|batch(1000000000, x)",
        "v|slice(3)",
        "v|slice(1000000000)",
        "v|slice(1000000000, x)",
        "v|default(w)",
        "v|d(w, true)",
        "v|dictsort(by='value')",
        "v|dictsort(reverse=true)",
        "v|format(1, 2)",
        "'%s' * 9999|format(v)",
        "'%s %s'|format(v, w)",
        "'%999999999s'|format(v)",
        "'%.999999999f'|format(1.5)",
        "v|indent(1000000000)",
        "v|indent(4, true, true)",
        "('\n' * 10000)|indent(100000)",
        "v|join(', ')",
        "v|join(w)",
        "v|join(attribute='a')",
        "v|map('upper')",
        "v|map(attribute='a')",
        "v|map('default', w)|list",
        "v|map('join', w)|list",
        "v|map('batch', 1000000000, x)",
        "v|map('tojson', 32)|list",
        "v|map('indent', 1000000000)|list",
        "v|map('replace', 'a', w)|list",
        "v|map('string')|list",
        "v|map('list')|list",
        "v|map('reverse')|list",
        "v|map('length')|list",
        "v|select('in', w)|list",
        "v|reject('in', w)|list",
        "v|select('eq', w)|list",
        "v|selectattr('a', 'in', w)|list",
        "v|rejectattr('a')|list",
        "v|groupby('a')",
        "v|groupby(0)",
        "v|replace('a', w)",
        "v|replace('', w)",
        "v|replace('a', '')",
        "v|replace(v, w)",
        "v|round(1000000000)",
        "v|sort(attribute='a')",
        "v|sort(reverse=true, case_sensitive=true)",
        "v|split('a')",
        "v|split('', 5)",
        "v|split(w)",
        "v|sum(start=1)",
        "v|tojson(indent=2)",
        "v|tojson(indent=1000000000)",
        "v|tojson(indent=v)",
        "{'a': [1]}|tojson(indent=1000000000)",
        "[v, [w]]|tojson(32)",
        "v|trim('a')",
        "v|trim(w)",
        "v|unique(attribute='a')",
        "v|min(attribute='a')",
        "v|max(attribute='a')",
        "v|zip(w)",
        "v|chain(w)",
        "v|truncate(1000000000)",
        "v|wordwrap(1)",
        "v|center(1000000000)",
        "v|filesizeformat",
        "v|random",
        "v|xmlattr",
        "v|striptags",
        // Statements.
        "{{ v }}",
        "{{ [v] }}",
        "{% for i in v %}{% break %}{% endfor %}",
        "{% for i in v %}{{ i }}{% endfor %}",
        "{% for i in v|reverse %}{{ loop.last }}{% break %}{% endfor %}",
        "{% for i in v if i == w %}{% break %}{% endfor %}",
        "{% for a, b in v %}{% break %}{% endfor %}",
        "{% for a, b in v|items %}{% break %}{% endfor %}",
        "{% for i in [v] %}{{ loop.changed(v) }}{% endfor %}",
        "{% for i in [v] %}{{ loop.cycle(v, w) }}{% endfor %}",
        "{% for i in [1] %}{{ loop }}{% endfor %}",
        "{% for i in v recursive %}{{ loop(v) }}{% endfor %}",
        "{% if v %}{% endif %}",
        "{% if v == w and v in w %}{% endif %}",
        "{% with a = v %}{{ a }}{% endwith %}",
        "{% set a %}{{ v }}{% endset %}",
        "{% set a, b = v %}",
        "{% filter upper %}{{ v }}{% endfilter %}",
        "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(v) }}",
        "{% macro m(a) %}{{ caller() }}{% endmacro %}{% call m(v) %}{{ v }}{% endcall %}",
        "{% set ns.a = v %}",
        "{% set ns.a = [ns.a, v] %}",
        "{% set ns.a = ns.a ~ v %}",
        "{% set ns.a = ns.a + [1] %}{{ ns.a[0] }}",
        "{% set ns.a = ns.a[0:] %}{{ ns.a[0] }}",
        "{% set ns.a = ns.a|reverse %}{{ ns.a[0] }}",
        "{% set ns.a = ns.a * 2 %}",
        "{% set ns.a = {'a': ns.a} %}",
        "{% set ns.a = v|map('list') %}",
        "{% set ns.s = ns.s + ns.s %}",
        "{% set ns.s = ns.s ~ v %}{% set ns.s = ns.s[1:] %}",
        "{% autoescape true %}{{ v }}{% endautoescape %}",
    ]
    .iter()
    .map(|text| text.to_string())
    .collect();
    for filter in [
        "abs",
        "bool",
        "capitalize",
        "count",
        "dictsort",
        "e",
        "escape",
        "first",
        "float",
        "int",
        "items",
        "last",
        "length",
        "lines",
        "list",
        "lower",
        "max",
        "min",
        "pprint",
        "reject",
        "reverse",
        "safe",
        "select",
        "sort",
        "split",
        "string",
        "sum",
        "title",
        "tojson",
        "trim",
        "unique",
        "upper",
        "urlencode",
    ] {
        all.push(format!("v|{filter}"));
        all.push(format!("[v, w]|{filter}"));
    }
    for test in [
        "boolean",
        "defined",
        "escaped",
        "even",
        "false",
        "float",
        "int",
        "integer",
        "iterable",
        "lower",
        "mapping",
        "none",
        "number",
        "odd",
        "safe",
        "sequence",
        "string",
        "true",
        "undefined",
        "upper",
        "filter",
        "test",
        "divisibleby(w)",
        "endingwith(w)",
        "startingwith(w)",
        "eq(w)",
        "equalto(w)",
        "ne(w)",
        "lt(w)",
        "le(w)",
        "gt(w)",
        "ge(w)",
        "in(w)",
        "sameas(w)",
        "lessthan(w)",
        "greaterthan(w)",
    ] {
        all.push(format!("v is {test}"));
    }
    for method in [
        "capitalize()",
        "casefold()",
        "center(1000000000)",
        "count('a')",
        "count(w)",
        "encode()",
        "endswith('a')",
        "endswith(w)",
        "endswith((w, w))",
        "expandtabs(1000000000)",
        "find('b')",
        "find(w)",
        "format(1)",
        "format(v)",
        "index('b')",
        "isalnum()",
        "isalpha()",
        "isascii()",
        "isdigit()",
        "islower()",
        "isnumeric()",
        "isspace()",
        "isupper()",
        "join(v)",
        "join(w)",
        "ljust(1000000000)",
        "lower()",
        "lstrip()",
        "lstrip('a')",
        "lstrip(w)",
        "replace('a', w)",
        "replace('', w)",
        "replace('a', 'b', 5)",
        "rfind('b')",
        "rfind(w)",
        "rjust(1000000000)",
        "rsplit('a')",
        "rstrip()",
        "rstrip(w)",
        "split()",
        "split('a')",
        "split('a', 1)",
        "split(w)",
        "splitlines()",
        "splitlines(true)",
        "startswith('a')",
        "startswith(w)",
        "startswith((w, w))",
        "strip()",
        "strip('a')",
        "strip(w)",
        "title()",
        "translate(w)",
        "upper()",
        "zfill(1000000000)",
        "keys()",
        "values()",
        "items()",
        "get('a')",
        "get(v)",
        "get('a', w)",
        "pop()",
        "append(w)",
        "copy()",
        "update(w)",
        "count(x)",
        "index(x)",
    ] {
        all.push(format!("v.{method}"));
    }
    all
}

#[test]
fn no_operation_on_a_large_value_does_more_work_than_is_paid_for() {
    let limits =
        RenderLimits { fuel: RenderLimits::default().fuel / SHARE, ..RenderLimits::default() };
    let style = TemplateStyle { name: "the template", trim: true, strict: false };
    let big: Map<String, serde_json::Value> =
        (0..4000).map(|i| (format!("key {i}"), json!([i]))).collect();
    let values = Map::from_iter([
        ("x".to_string(), json!(1)),
        ("big".to_string(), json!(big)),
        ("big2".to_string(), json!(big)),
    ]);
    let (mut slowest, mut too_slow, mut worked) = ((0.0, String::new()), Vec::new(), 0);
    let operations = operations();
    let only = std::env::var("ONLY").ok();
    for (kind, make) in VALUES {
        for operation in
            operations.iter().filter(|o| only.as_ref().is_none_or(|only| o.contains(only.as_str())))
        {
            let body = if operation.starts_with("{%") || operation.starts_with("{{") {
                operation.clone()
            } else {
                format!("{{% set y = {operation} %}}")
            };
            let source = format!(
                "{make}{{% set ns = namespace(a=v, s='ab') %}}{{% for i in range(99999) %}}{body}{{% endfor %}}"
            );
            let before = processor();
            let rendered = Template::compile(&source, limits, style, Date::FIXED)
                .map_err(|e| e.to_string())
                .and_then(|template| template.render(&values));
            let used = processor() - before;
            let error = rendered.as_ref().err().cloned().unwrap_or_default();
            worked += usize::from(error.is_empty() || error.contains("too much work"));
            assert!(
                !error.contains("panic") && !error.contains('\n'),
                "{kind}: {operation}: {error}"
            );
            if used > slowest.0 {
                slowest = (used, format!("{kind}: {operation}"));
            }
            if used > SECONDS / SHARE as f64 {
                too_slow.push(format!("{used:.2} s  {kind}: {operation}: {error}"));
            }
            assert!(peak() < MEMORY, "{} MB after {kind}: {operation}", peak() >> 20);
        }
    }
    println!(
        "{} cases, {worked} of them work to the end or to the end of their fuel; slowest {:.2} s: {}; peak {} MB",
        VALUES.len() * operations.len(),
        slowest.0,
        slowest.1,
        peak() >> 20
    );
    assert!(
        too_slow.is_empty(),
        "more than {} s for a tenth of the fuel:\n{}",
        SECONDS / SHARE as f64,
        too_slow.join("\n")
    );
    assert!(only.is_some() || worked > 1500, "{worked}: most operations do work on some value");
}

#[test]
fn the_hostile_templates_of_the_attack_are_refused_within_the_promise() {
    const CHAT: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}";
    for (hostile, word) in [
        ("{{ {\"a\":[1]}|tojson(indent=1000000000) }}", "indent"),
        (
            "{% set s = \"é\"*1000000 %}{% for i in range(20000) %}{{ s[999999] }}{% endfor %}",
            "too much work",
        ),
        (
            "{% set s = 'a'*1000000 %}{% for i in range(20000) %}{{ s[999998:999999] }}{% endfor %}",
            "too much work",
        ),
        (
            "{% set s = range(99999)[99998:] %}{% for i in range(20000) %}{% set t = range(99999)[99998:] %}{{ s[0] }}{% endfor %}",
            "too much work",
        ),
        (
            "{% set s = 'a'*1000000 %}{% for i in range(99999) %}{% if s is upper %}{% endif %}{% endfor %}",
            "too much work",
        ),
        (
            "{% set s = 'a'*9000000 %}{% set d = {s: 1} %}{% for i in range(99999) %}{% set t = d[s ~ ''] %}{% endfor %}",
            "too much work",
        ),
    ] {
        let before = processor();
        let error = ChatTemplate::compile(&format!("{hostile}{CHAT}"), "", "")
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        let used = processor() - before;
        assert!(error.contains(word), "{hostile}: {error}");
        assert!(used < SECONDS && peak() < MEMORY, "{hostile}: {used} s, {} MB", peak() >> 20);
    }
    assert!(ChatTemplate::compile(CHAT, "", "").is_ok());
}

#[test]
fn what_a_template_means_is_what_python_says() {
    let style = TemplateStyle { name: "the template", trim: false, strict: false };
    let render = |source: &str| {
        let values = json!({"l": [1, 2, 3, 4, 5], "s": "héllo", "d": {"a": 1, "b": [2]}, "n": 0});
        Template::compile(source, RenderLimits::default(), style, Date::FIXED)
            .unwrap()
            .render(values.as_object().unwrap())
    };
    for (source, expected) in [
        // As Python's Jinja2 3.1 renders them.
        (
            "{{ l[1:] }}|{{ l[::-1] }}|{{ l[-2:] }}|{{ l[3:1:-1] }}|{{ l[:99] }}|{{ l[9:] }}",
            "[2, 3, 4, 5]|[5, 4, 3, 2, 1]|[4, 5]|[4, 3]|[1, 2, 3, 4, 5]|[]",
        ),
        ("{{ s[1:] }}|{{ s[::-1] }}|{{ s[0] }}|{{ s[-1] }}|{{ s[1] }}", "éllo|olléh|h|o|é"),
        (
            "{{ l + [6] }}|{{ [n] * 3 }}|{{ 2 * [1, l[1]] }}|{{ l + [] }}|{{ [n] * 0 }}",
            "[1, 2, 3, 4, 5, 6]|[0, 0, 0]|[1, 2, 1, 2]|[1, 2, 3, 4, 5]|[]",
        ),
        ("{{ (1, l[1]) + (3,) }}|{{ (1, l[1])[1:] }}|{{ (1, 2, 3)[0] }}", "(1, 2, 3)|(2,)|1"),
        (
            "{{ l[1:][0] }}|{{ (l + l)[7] }}|{{ ([1, l[1]] * 3)[5] }}|{{ l|reverse|first }}|{{ 'abc'|reverse }}|{{ l[1:]|length }}",
            "2|3|2|5|cba|4",
        ),
        (
            "{{ d['b'][0] }}|{{ d.a }}|{{ d['x'] is defined }}|{{ l[99] is defined }}|{{ l[-1] }}",
            "2|1|False|False|5",
        ),
        ("{{ l | tojson(indent=2) }}", "[\n  1,\n  2,\n  3,\n  4,\n  5\n]"),
        (
            "{{ d | tojson }}|{{ 'a' * 3 }}|{{ l[1:] == [2, 3, 4, 5] }}|{{ 3 in l[1:] }}",
            "{\"a\": 1, \"b\": [2]}|aaa|True|True",
        ),
        (
            "{% for x in l[1:3] %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}",
            "1:2/2 2:3/2 ",
        ),
        ("{{ strftime_now('%-d %B %Y') }}", "26 July 2024"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn a_users_template_reports_a_field_that_is_not_there_and_may_ask_for_it() {
    let style = TemplateStyle { name: "--template", trim: false, strict: true };
    let template = |source: &str| {
        Template::compile(source, RenderLimits::default(), style, Date::FIXED).unwrap()
    };
    let values = json!({"ticket": "It broke", "row": {"Ticket text": "It broke"}, "n": 8});
    let values = values.as_object().unwrap();
    assert_eq!(
        template("Summarise: {{ ticket }} ({{ n + 1 }})\n").render(values).as_deref(),
        Ok("Summarise: It broke (9)")
    );
    assert_eq!(template("{{ row['Ticket text'] }}").render(values).as_deref(), Ok("It broke"));
    let error = template("{{ tikcet }}").render(values).unwrap_err();
    assert!(error.starts_with("--template fails") && error.contains("undefined"), "{error}");
    assert_eq!(
        template("{{ a | default('-') }}{{ b is defined }}").render(values).as_deref(),
        Ok("-False")
    );
}

#[test]
fn a_chat_template_sees_the_callers_variables_and_its_date() {
    const CHAT: &str = "{{ date_string or strftime_now('%-d %b %Y') }} {% for m in messages %}{{ m.content }}{% endfor %} {{ enable_thinking }}";
    let compile = |arguments: serde_json::Value| {
        ChatTemplate::compile_with(
            CHAT,
            "",
            "",
            arguments.as_object().unwrap(),
            RenderLimits::default(),
        )
    };
    let text = |template: &ChatTemplate| {
        template
            .render(&[llmopt::text::Message { role: "user".into(), content: "hi".into() }])
            .unwrap()
    };
    let plain = compile(json!({})).unwrap();
    assert_eq!(text(&plain), "26 Jul 2024 hi ");
    assert!(plain.date_notice().unwrap().contains("2024-07-26"));
    let given = compile(json!({"date_string": "1 Jan 2026", "enable_thinking": false})).unwrap();
    assert_eq!(text(&given), "1 Jan 2026 hi False");
    assert_eq!(given.date_notice(), None);
    let now = ChatTemplate::compile_with(
        "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}",
        "",
        "",
        json!({"date_string": "1 Jan 2026"}).as_object().unwrap(),
        RenderLimits::default(),
    );
    assert_eq!(text(&now.unwrap()), "2026-01-01 hi");
    let error = compile(json!({"messages": []})).err().unwrap().to_string();
    assert!(error.contains("variable messages"), "{error}");
}
