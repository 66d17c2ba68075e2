//! What `--json` prints, held against the schema that `episteme schema output` gives.
#![allow(clippy::unwrap_used)]

use episteme_tests::{SMALL, Said, Scratch, finish};
use serde_json::Value;

/// A JSON Schema, as far as this one goes. Stricter than the standard: a key that no schema describes is wrong.
struct Schema {
    root: Value,
}

/// What the schemas that hold for a value say of its parts.
#[derive(Default)]
struct Parts<'a> {
    keys: Vec<(&'a str, &'a Value)>,
    /// Of every key, and of every item.
    each: Vec<&'a Value>,
    /// Anything may be in it.
    open: bool,
}

impl Schema {
    fn of_output(scratch: &Scratch) -> Self {
        Self { root: serde_json::from_str(&scratch.episteme(&["schema", "output"]).ok().stdout).unwrap() }
    }

    /// What is wrong with a value; nothing when it fits.
    fn wrong(&self, value: &Value) -> Option<String> {
        self.check(&self.root, value, "$").and_then(|()| self.described(&[&self.root], value, "$")).err()
    }

    fn referred(&self, schema: &Value) -> Option<&Value> {
        let name = schema.get("$ref")?.as_str()?;
        Some(self.root.pointer(name.trim_start_matches('#')).expect("a definition"))
    }

    /// As the standard has it.
    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        if let Some(referred) = self.referred(schema) {
            self.check(referred, value, at)?;
        }
        is_plainly(schema, value).then_some(()).ok_or_else(|| format!("{at} is {value}, and should be {schema}"))?;
        let cases = cases(schema);
        let tries: Vec<_> = cases.iter().map(|case| self.check(case, value, at)).collect();
        if !cases.is_empty() && tries.iter().all(Result::is_err) {
            // The case that came furthest tells most.
            let wrong = tries.into_iter().filter_map(Result::err);
            return Err(wrong.max_by_key(|wrong| wrong.split(' ').next().map(str::len)).unwrap_or_default());
        }
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        for name in required {
            value.get(name).ok_or_else(|| format!("{at}.{name} is not there"))?;
        }
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        for (name, property) in properties {
            value.get(name).map_or(Ok(()), |value| self.check(property, value, &format!("{at}.{name}")))?;
        }
        let each = if value.is_array() { "items" } else { "additionalProperties" };
        children(value)
            .into_iter()
            .filter_map(|(name, value)| Some((name, value, schema.get(each).filter(|each| each.is_object())?)))
            .try_for_each(|(name, value, each)| self.check(each, value, &format!("{at}.{name}")))
    }

    /// Whether each key of a value that fits is described by one of the schemas that hold for it.
    fn described(&self, schemas: &[&Value], value: &Value, at: &str) -> Result<(), String> {
        let mut parts = Parts::default();
        schemas.iter().for_each(|schema| self.parts(schema, value, &mut parts));
        children(value).into_iter().try_for_each(|(name, child)| {
            let own = parts.keys.iter().filter(|(key, _)| *key == name).map(|(_, schema)| *schema);
            let schemas: Vec<&Value> = own.chain(parts.each.iter().copied()).collect();
            match schemas.is_empty() {
                true if parts.open => Ok(()),
                true => Err(format!("{at}.{name} is not described")),
                false => self.described(&schemas, child, &format!("{at}.{name}")),
            }
        })
    }

    fn parts<'a>(&'a self, schema: &'a Value, value: &Value, parts: &mut Parts<'a>) {
        let annotations = ["description", "default", "title", "type"];
        parts.open |= schema.as_object().is_none_or(|keys| keys.keys().all(|key| annotations.contains(&key.as_str())));
        self.referred(schema).into_iter().for_each(|referred| self.parts(referred, value, parts));
        let holding = cases(schema).iter().filter(|case| self.check(case, value, "").is_ok());
        holding.for_each(|case| self.parts(case, value, parts));
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        parts.keys.extend(properties.map(|(name, schema)| (name.as_str(), schema)));
        parts.each.extend(["items", "additionalProperties"].iter().filter_map(|key| schema.get(*key)).filter(|each| !each.is_boolean()));
        parts.open |=
            schema.get("items").is_some_and(Value::is_boolean) || schema.get("additionalProperties").is_some_and(|more| *more == true);
    }
}

fn cases(schema: &Value) -> &[Value] {
    ["oneOf", "anyOf"].iter().find_map(|key| schema.get(*key)?.as_array()).map_or(&[], Vec::as_slice)
}

/// What is in a value, by key or number.
fn children(value: &Value) -> Vec<(String, &Value)> {
    match value {
        Value::Object(keys) => keys.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(number, value)| (number.to_string(), value)).collect(),
        _ => Vec::new(),
    }
}

/// `type`, `const`, `enum`.
fn is_plainly(schema: &Value, value: &Value) -> bool {
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("an unknown type `{other}`"),
    };
    let fits = match schema.get("type") {
        Some(Value::String(kind)) => is(kind),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).any(is),
        _ => true,
    };
    let one_of = |list: &Value| list.as_array().is_some_and(|list| list.contains(value));
    fits && schema.get("const").is_none_or(|constant| constant == value) && schema.get("enum").is_none_or(one_of)
}

const TWO: &str = "name = 'two'\nschedule = '15 2 * * *'\npromote = { tag = 'best', stage = 'say', if = 'n > 1' }\n\
                   [stages.raw]\nuses = 'collect.synthetic'\ntrain = 60\ntest = 20\n[stages.images]\nuses = 'store.idx'\ninput = 'raw'\n\
                   [stages.say]\nuses = 'command'\nfiles = ['n']\nmetrics = 'm.json'\n\
                   run = 'echo working; sleep 0.06; echo \"{\\\"n\\\": $(cat n)}\" > ${output}/m.json'\n\
                   [[alerts]]\non = ['failure']\ncommand = 'cat > alert.json'\n";

#[test]
fn everything_that_json_prints_fits_the_schema() {
    let scratch = Scratch::new();
    scratch.write("two.toml", TWO);
    scratch.write("n", "5\n");
    let schema = Schema::of_output(&scratch);
    let mut seen = std::collections::BTreeSet::new();
    let mut fits = |what: &str, value: Value| {
        assert_eq!(schema.wrong(&value), None, "{what}: {value:#}");
        seen.insert(value["type"].as_str().unwrap().to_owned());
    };
    let lines = |said: &Said| said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let told = |args: &[&str]| scratch.episteme(&[args, &["--json"]].concat());
    lines(&told(&["run", "two.toml"]).ok()).into_iter().for_each(|line| fits("run", line));
    lines(&told(&["reproduce", "last"]).ok()).into_iter().for_each(|line| fits("reproduce", line));
    scratch.write("n", "oops\n");
    lines(&told(&["run", "two.toml"])).into_iter().for_each(|line| fits("a run that fails", line));
    fits("an alert", serde_json::from_slice(&std::fs::read(scratch.path().join("alert.json")).unwrap()).unwrap());
    scratch.write("small.toml", SMALL);
    lines(&told(&["run", "small.toml"]).ok()).into_iter().for_each(|line| fits("a run that learns", line));
    for args in [
        &["plan", "two.toml"][..],
        &["status", "two.toml"],
        &["show", "images", "--pipeline", "two.toml"],
        &["show"],
        &["log"],
        &["diff", "last~3", "last~1"],
        &["diff", "raw", "images", "--pipeline", "two.toml"],
        &["why", "say", "two.toml"],
        &["tag", "first", "raw", "--pipeline", "two.toml"],
        &["tag"],
        &["tag", "first"],
        &["tag", "-d", "first"],
        &["verify"],
        &["gc", "--keep", "1"],
        &["graph", "two.toml"],
        &["check", "two.toml"],
        &["stages"],
        &["schedule", "print", "two.toml"],
        &["schedule", "print", "--systemd", "two.toml"],
        &["check", "not-there.toml"],
        &["show", "nothing", "--pipeline", "two.toml"],
    ] {
        let said = told(args);
        fits(&args.join(" "), serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", said.stdout)));
    }
    for args in [
        &["schedule", "install", "two.toml"][..],
        &["schedule", "install", "--systemd", "two.toml"],
        &["schedule", "list"],
        &["schedule", "remove", "two"],
        &["schedule", "remove", "two"],
    ] {
        let said = scratch.with_cron(&[args, &["--json"]].concat());
        fits(&args.join(" "), serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", said.stdout)));
    }
    scratch.write("wrong.toml", TWO.replace("train", "trian"));
    fits("check of what is wrong", serde_json::from_str(&finish(scratch.command(&["check", "wrong.toml", "--json"])).stdout).unwrap());
    let all = "run_started stage_started progress metric log stage_finished stage_failed promotion run_finished alert reproduced plan status \
               artifact run diff why tagged tags tag tag_removed verify gc graph check stages schedule \
               schedule_installed schedules schedule_removed error";
    let missing: Vec<&str> = all.split_whitespace().filter(|kind| !seen.contains(*kind)).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn the_check_itself_finds_what_does_not_fit() {
    let scratch = Scratch::new();
    let schema = Schema::of_output(&scratch);
    let wrong = |text: &str| schema.wrong(&serde_json::from_str(text).unwrap()).is_some();
    assert!(!wrong(r#"{"type": "check", "ok": true, "file": "x", "stages": 3}"#));
    assert!(wrong(r#"{"type": "chek", "ok": true, "file": "x", "stages": 3}"#), "no such type");
    assert!(wrong(r#"{"type": "check", "ok": true, "file": "x", "stages": "3"}"#), "a text is no number");
    assert!(wrong(r#"{"type": "check", "ok": true, "stages": 3}"#), "a key is missing");
    assert!(wrong(r#"{"type": "check", "ok": true, "file": "x", "stages": 3, "more": 1}"#), "a key is not described");
}
