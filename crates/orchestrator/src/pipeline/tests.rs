#![allow(clippy::unwrap_used)]
//! What users see of their mistakes.

use super::*;
use crate::every_stage_type;
use crate::plan::Plan;

fn plan(text: &str, sets: &[&str]) -> Result<Plan, Problems> {
    let types = every_stage_type();
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Plan::new(Pipeline::parse(Path::new("p.toml"), text.to_owned(), Given { sets: &sets, params: &[] }, &types), &types)
}

/// The report as it stands on a terminal 100 wide, without colours.
fn shown(text: &str, sets: &[&str]) -> String {
    let Err(problems) = plan(text, sets) else { return "nothing wrong".into() };
    let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor()).with_width(100);
    let mut report = String::new();
    handler.render_report(&mut report, &problems).unwrap();
    report.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

const RAW: &str = "[stages.raw]\nuses = \"collect.synthetic\"\n";
const IMAGES: &str = "[stages.images]\nuses = \"store.idx\"\ninput = \"raw\"\n";

fn messages(text: &str, sets: &[&str]) -> Vec<String> {
    plan(text, sets).err().map(|found| found.problems.into_iter().map(|problem| problem.message).collect()).unwrap_or_default()
}

#[test]
fn mistakes_of_every_kind_are_told_at_once_each_with_its_caret() {
    let text = r#"name = "p"
sead = 3
schedule = "0 15 2 * * *"

[stages.raw]
uses = "collect.synthetic"
train = "many"

[stages.images]
uses = "store.idx"
input = "rwa"

[stages.clean]
uses = "process.images"
input = "raw"

[stages.model]
uses = "learn.classifier"
input = "clena"
layers = ["dense 10"]
epoch = 2
"#;
    assert_eq!(shown(text, &[]), include_str!("all_mistakes.txt"));
}

#[test]
fn a_mistake_on_the_command_line_points_into_it() {
    let expected = "  × p.toml: one thing to mend before anything can run

Error:
  × `train` is the text \"many\", and a whole number, zero or more, is needed
   ╭─[--set:1:18]
 1 │ stages.raw.train=many
   ·                  ────
   ╰────
";
    assert_eq!(shown(RAW, &["stages.raw.train=many"]), expected);
}

#[test]
fn of_several_assignments_the_wrong_one_is_named() {
    let found = shown(RAW, &["stages.raw.train=100", "stages.raw.tests=3", "seed=5"]);
    assert!(found.contains("has no key `tests`") && found.contains("1 │ stages.raw.tests=3"), "{found}");
    assert!(found.contains("one thing to mend") && found.contains("did you mean `test`?"), "{found}");
}

#[test]
fn an_assignment_can_name_another_stage_and_is_checked_like_the_file() {
    let found = shown(&format!("{RAW}{IMAGES}"), &["stages.images.input=rwa"]);
    assert!(found.contains("1 │ stages.images.input=rwa") && found.contains("did you mean `raw`?"), "{found}");
}

#[test]
fn without_a_fitting_stage_the_types_that_would_fit_are_named() {
    let model = "[stages.model]\nuses = \"learn.classifier\"\ninput = \"images\"\nlayers = [\"dense 10\"]\n";
    let expected = "  × p.toml: one thing to mend before anything can run

Error:
  × `input` of `model` takes processed, and `images` gives dataset
   ╭─[p.toml:8:9]
 7 │ uses = \"learn.classifier\"
 8 │ input = \"images\"
   ·         ────────
 9 │ layers = [\"dense 10\"]
   ╰────
  help: put a stage that gives processed between: `process.images` or `process.table`
";
    assert_eq!(shown(&format!("{RAW}{IMAGES}{model}"), &[]), expected);
}

#[test]
fn every_cycle_is_named_along_its_path() {
    let stage = |name: &str, uses: &str, input: &str| format!("[stages.{name}]\nuses = '{uses}'\ninput = '{input}'\n");
    // The kinds do not fit either, which is beside the point here.
    let two = [
        stage("a", "store.idx", "c"),
        stage("b", "store.idx", "a"),
        stage("c", "store.idx", "b"),
        stage("d", "store.idx", "d"),
        stage("e", "store.idx", "b"),
    ]
    .concat();
    let cycles: Vec<String> = messages(&two, &[]).into_iter().filter(|message| message.contains("cycle")).collect();
    assert_eq!(cycles, ["the stages form a cycle: a → b → c → a", "the stages form a cycle: d → d"]);
}

#[test]
fn a_cycle_is_seen_through_a_stage_whose_config_is_wrong() {
    let text = "[stages.a]\nuses = 'store.idx'\ninput = 'b'\n[stages.b]\nuses = 'store.idx'\ninput = 'a'\ninputs = 3\n";
    let found = messages(text, &[]);
    assert!(found.iter().any(|message| message == "the stages form a cycle: a → b → a"), "{found:?}");
    assert!(found.iter().any(|message| message == "`store.idx` has no key `inputs`"), "{found:?}");
}

#[test]
fn every_line_that_is_no_toml_is_told_and_nothing_is_made_of_the_rest() {
    let found = messages("name = 'p\nseed = = 3\n[stages.raw]\nuses = 'nothing'\n", &[]);
    assert!(found.len() >= 2 && found.iter().all(|message| message.starts_with("this is no TOML: ")), "{found:?}");
}

#[test]
fn names_that_could_leave_the_store_are_refused() {
    for name in ["../up", "", ".hidden", "a\\nb"] {
        assert_eq!(messages(&format!("name = \"{name}\"\n{RAW}"), &[]).len(), 1, "{name}");
    }
    assert_eq!(messages("[stages.\"a.b\"]\nuses = 'collect.synthetic'\n[stages.\"../c\"]\nuses = 'collect.synthetic'\n", &[]).len(), 2);
}

#[test]
fn a_pipeline_without_stages_says_how_to_declare_one() {
    for text in ["", "name = 'p'", "[stages]", "stages = 3", "[stages.raw]", "stages.raw = 3"] {
        assert!(shown(text, &[]).contains("help: a stage is `[stages.NAME]` with `uses = \"…\"`"), "{text}: {}", shown(text, &[]));
    }
}

#[test]
fn a_file_that_is_not_there_says_which_and_what_to_write() {
    let Err(problems) = Pipeline::load(Path::new("not/there.toml"), Given::default(), &[]) else { panic!("it is there") };
    assert!(problems.problems[0].message.starts_with("cannot read not/there.toml: "));
    assert!(problems.problems[0].help.is_some());
}

#[test]
fn stages_stand_after_what_they_take_from_and_otherwise_as_in_the_file() {
    let plan = plan(&format!("{IMAGES}[stages.other]\nuses = 'collect.synthetic'\nseed = 2\n{RAW}"), &[]).unwrap_or_else(|_| panic!());
    let names: Vec<&str> = plan.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["other", "raw", "images"]);
    assert_eq!(plan.stages[2].upstream().collect::<Vec<_>>(), [1]);
}

#[test]
fn every_pipeline_of_the_project_is_right() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../pipelines"));
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()) {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(shown(&text, &[]), "nothing wrong", "{}", path.display());
        files += 1;
    }
    assert!(files >= 4);
}
