//! The pipeline file described from the config types: JSON Schema for editors, Markdown for docs.

use artifact::StageType;
use serde_json::{Map, Value, json};

use crate::pipeline::needs;

/// The JSON Schema of pipeline files: each stage checked against the type that its `uses` names.
pub fn schema(types: &[StageType]) -> Value {
    let mut definitions = Map::new();
    let mut cases = Vec::new();
    for kind in types {
        let mut schema = (kind.schema)().to_value();
        if let Some(inner) = schema.as_object_mut().and_then(|schema| schema.remove("$defs")).and_then(|inner| inner.as_object().cloned()) {
            definitions.extend(inner);
        }
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.values_mut().for_each(or_reference);
            properties.insert("uses".into(), json!({ "const": kind.uses }));
            for (key, mut schema) in needs::schema() {
                or_reference(&mut schema);
                properties.insert(key.into(), schema);
            }
        }
        definitions.insert(kind.uses.to_owned(), schema);
        cases.push(json!({
            "if": { "properties": { "uses": { "const": kind.uses } }, "required": ["uses"] },
            "then": { "$ref": format!("#/$defs/{}", kind.uses) },
        }));
    }
    definitions.values_mut().filter(|schema| schema.get("properties").is_none_or(|keys| keys.get("uses").is_none())).for_each(within);
    definitions.insert("reference".into(), json!({ "type": "string", "pattern": "\\$\\{(params|env|matrix)\\." }));
    let uses: Vec<&str> = types.iter().map(|kind| kind.uses).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Episteme pipeline",
        "type": "object",
        "additionalProperties": false,
        "required": ["stages"],
        "properties": {
            "name": { "type": "string", "description": "Names the pipeline's lock and runs; the file's name without ending if absent." },
            "description": { "type": "string", "description": "What it is for." },
            "schedule": { "type": "string", "description": "When it runs, in crontab's five fields." },
            "seed": { "type": ["integer", "string"], "minimum": 0, "default": 0, "description": "The seed of every stage that uses chance and states none of its own." },
            "promote": rule(promotion_schema(), "A tag that moves to a run's artifact when its metrics say so; one table, or several."),
            "alerts": rule(alert_schema(), "Who is told of failures, recoveries, and metrics that cross a bound; `[[alerts]]`."),
            "params": { "type": "object", "description": "Values that ${params.NAME} stands for; --params FILE and --set params.NAME=VALUE replace them." },
            "env": { "type": "array", "items": { "type": "string" }, "description": "Environment variables that ${env.NAME} may refer to." },
            "include": { "type": "array", "items": { "type": "string" }, "description": "Files whose stages, params and env are added; relative to this file." },
            "limits": {
                "type": "object",
                "propertyNames": { "enum": uses },
                "additionalProperties": { "anyOf": [{ "type": "integer", "minimum": 1 }, { "$ref": "#/$defs/reference" }] },
                "description": "How many stages of a type may run at the same time.",
            },
            "stages": {
                "type": "object",
                "minProperties": 1,
                "description": "The stages, by name.",
                "additionalProperties": { "type": "object", "required": ["uses"], "properties": { "uses": { "enum": uses } }, "allOf": cases },
            },
        },
        "$defs": definitions,
    })
}

/// One table of this schema, or a list of them.
fn rule(schema: Value, about: &str) -> Value {
    json!({ "description": about, "oneOf": [schema, { "type": "array", "items": schema }] })
}

fn promotion_schema() -> Value {
    json!({ "type": "object", "additionalProperties": false, "required": ["tag"], "properties": {
        "tag": { "type": "string", "description": "The tag, such as `model:best`." },
        "stage": { "type": "string", "description": "The stage whose artifact it names; the tag's word before `:`, or the only model, if absent." },
        "if": { "type": "string", "description": "When: `test.accuracy >= current`; always, if absent." },
    } })
}

fn alert_schema() -> Value {
    let secret = json!({ "oneOf": [
        { "type": "object", "additionalProperties": false, "required": ["env"], "properties": { "env": { "type": "string" } } },
        { "type": "object", "additionalProperties": false, "required": ["file"], "properties": { "file": { "type": "string" } } },
    ] });
    json!({ "type": "object", "additionalProperties": false, "properties": {
        "on": { "type": "array", "items": { "enum": ["failure", "recovery"] }, "description": "What it is on." },
        "if": { "type": "string", "description": "A bound that a metric crosses: `test.accuracy < 0.97`." },
        "command": { "type": "string", "description": "A line of shell that gets the alert as JSON on its standard input." },
        "webhook": { "description": "A URL that the alert is posted to, or where it is to be found.", "oneOf": [{ "type": "string" }, secret] },
        "secret": { "description": "What the webhook is signed with: `{ env = \"NAME\" }` or `{ file = \"PATH\" }`.", "oneOf": [secret] },
        "retries": { "type": "integer", "minimum": 0, "default": 4, "description": "How often a webhook is tried again." },
    } })
}

/// Lets a reference such as `${params.epochs}` stand for a value of any type, here and within it.
fn or_reference(schema: &mut Value) {
    within(schema);
    if schema["type"] == "string" && schema.get("enum").is_none() {
        return;
    }
    let mut outer = Map::new();
    if let Some(schema) = schema.as_object_mut() {
        outer.extend(["description", "default"].into_iter().filter_map(|key| Some((key.to_owned(), schema.remove(key)?))));
    }
    outer.insert("anyOf".into(), json!([schema.take(), { "$ref": "#/$defs/reference" }]));
    *schema = Value::Object(outer);
}

fn within(schema: &mut Value) {
    for key in ["properties", "anyOf", "oneOf"] {
        match schema.get_mut(key) {
            Some(Value::Object(entries)) => entries.values_mut().for_each(or_reference),
            Some(Value::Array(cases)) => cases.iter_mut().for_each(within),
            _ => {}
        }
    }
    for key in ["items", "additionalProperties"] {
        schema.get_mut(key).filter(|inner| inner.is_object()).into_iter().for_each(or_reference);
    }
}

/// `docs/pipeline-reference.md`.
pub fn markdown(types: &[StageType]) -> String {
    let mut text = String::from(
        "# Pipeline reference\n\nMade from the config types by `cargo xtask docs`; do not edit.\n\n\
         A pipeline file is TOML with these keys:\n\n\
         | key | type | meaning |\n|---|---|---|\n\
         | `name` | text | names the pipeline's lock and runs; the file's name if absent |\n\
         | `description` | text | what it is for |\n\
         | `schedule` | text | when it runs, in crontab's five fields |\n\
         | `seed` | whole number | the seed of every stage that uses chance and states none of its own; default 0 |\n\
         | `promote` | table of `tag`, `stage`, `if` | a tag that moves to a run's artifact: `{ tag = \"model:best\", if = \"test.accuracy >= current\" }` |\n\
         | `[[alerts]]` | tables of `on`, `if`, `command`, `webhook`, `secret`, `retries` | who is told of failures, recoveries, and metrics that cross a bound |\n\
         | `[params]` | table | values that `${params.NAME}` stands for |\n\
         | `env` | list of text | environment variables that `${env.NAME}` may refer to |\n\
         | `include` | list of text | files whose stages, params and env are added |\n\
         | `limits` | table of whole number | how many stages of a type may run at the same time |\n\
         | `[stages.NAME]` | table | a stage: `uses = \"…\"`, the keys below, and those of its type |\n\n\
         Every stage takes these; none of them is part of its cache key:\n\n\
         | key | meaning |\n|---|---|\n",
    );
    for (key, schema) in needs::schema() {
        text.push_str(&format!("| `{key}` | {} |\n", cell(schema["description"].as_str().unwrap_or_default())));
    }
    text.push_str(
        "\n\
         `episteme schema` prints the same as JSON Schema, for editors.\n",
    );
    for kind in types {
        text.push_str(&format!("\n## {}\n\n{} Gives: {}.\n\n", kind.uses, sentence(kind.summary), kind.gives));
        text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for key in keys(kind) {
            let default =
                key.default.map_or_else(|| if key.required { "required".to_owned() } else { String::new() }, |value| format!("`{value}`"));
            text.push_str(&format!("| `{}` | {} | {} | {} |\n", key.name, key.kind, cell(&default), cell(&key.about)));
        }
    }
    text
}

/// One stage type's keys, for a terminal.
pub fn stage(kind: &StageType) -> String {
    let mut text = format!("{}: {} Gives: {}.\n", kind.uses, sentence(kind.summary), kind.gives);
    for key in keys(kind) {
        let default = key
            .default
            .map_or_else(|| if key.required { " (required)".to_owned() } else { String::new() }, |value| format!(" (default {value})"));
        text.push_str(&format!("\n  {} : {}{default}\n      {}\n", key.name, key.kind, key.about));
    }
    text
}

fn sentence(text: &str) -> String {
    format!("{}.", text.trim_end_matches('.'))
}

/// A table cell: one line, bars escaped.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

struct Key {
    name: String,
    kind: String,
    required: bool,
    default: Option<String>,
    about: String,
}

/// A config's keys: required ones first, then by name.
fn keys(kind: &StageType) -> Vec<Key> {
    let schema = (kind.schema)().to_value();
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().cloned().unwrap_or_default();
    let mut keys: Vec<Key> = properties
        .iter()
        .map(|(name, property)| Key {
            name: name.clone(),
            kind: kind_of(property, &schema, 0),
            required: required.contains(&name.as_str()),
            default: property.get("default").filter(|value| !value.is_null()).map(Value::to_string),
            about: property.get("description").and_then(Value::as_str).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "),
        })
        .collect();
    keys.sort_by_key(|key| !key.required);
    keys
}

/// A schema's type in words; definitions are looked up, three deep at most.
fn kind_of(schema: &Value, root: &Value, depth: usize) -> String {
    if depth > 3 {
        return "table".into();
    }
    if schema["format"] == "stage" {
        return "stage name".into();
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return kind_of(&root["$defs"][name], root, depth + 1);
    }
    if let Some(texts) = schema["enum"].as_array() {
        return texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(" or ");
    }
    if let Some(value) = schema.get("const") {
        return format!("`{value}`");
    }
    if let Some(cases) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        let mut kinds: Vec<String> = cases.iter().filter(|case| case["type"] != "null").map(|case| kind_of(case, root, depth)).collect();
        kinds.dedup();
        return kinds.join(" or ");
    }
    let named = |name: &str| match name {
        "string" => "text".to_owned(),
        "integer" => "whole number".to_owned(),
        "number" => "number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => format!("list of {}", kind_of(&schema["items"], root, depth)),
        _ => table(schema, root, depth),
    };
    match &schema["type"] {
        Value::String(name) => named(name),
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).filter(|name| *name != "null").map(named).collect::<Vec<_>>().join(" or ")
        }
        _ => "value".to_owned(),
    }
}

fn table(schema: &Value, root: &Value, depth: usize) -> String {
    match schema["properties"].as_object() {
        Some(properties) if !properties.is_empty() => {
            let keys: Vec<String> = properties.keys().map(|key| format!("`{key}`")).collect();
            format!("table of {}", keys.join(", "))
        }
        _ if schema["additionalProperties"].is_object() => {
            format!("table of {}", kind_of(&schema["additionalProperties"], root, depth))
        }
        _ => "table".into(),
    }
}
