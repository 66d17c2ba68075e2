//! Parameters, includes, variants, limits and selections, as a user writes them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::Instant;

use episteme_tests::{SMALL, Said, Scratch, finish, wait_until};

fn scratch(pipeline: &str) -> Scratch {
    let scratch = Scratch::new();
    scratch.write("p.toml", pipeline);
    scratch
}

fn statuses(said: &Said) -> BTreeMap<String, String> {
    said.stages().into_iter().map(|(name, (status, _))| (name, status)).collect()
}

#[track_caller]
fn made(scratch: &Scratch, said: &Said, stage: &str) -> String {
    let digest = said.stages()[stage].1.clone();
    fs::read_to_string(scratch.store().join("objects").join(&digest[..2]).join(&digest).join("o")).unwrap()
}

/// A stage that writes this to `o`.
fn stage(name: &str, text: &str, rest: &str) -> String {
    format!("[stages.{name}]\nuses = 'command'\nrun = '''{text}'''\n{rest}\n")
}

// --- parameters and includes ---------------------------------------------------------------------------------------------

#[test]
fn parameters_come_with_their_types_from_the_file_a_params_file_and_the_command_line() {
    let scratch = scratch(
        "[params]\ntrain = 60\ntest = 20\nwho = 'x${params.train}'\n[stages.raw]\nuses = 'collect.synthetic'\ntrain = '${params.train}'\n\
         test = '${params.test}'\n[stages.say]\nuses = 'command'\nrun = \"echo ${params.who} '$${params.who}' ${HOME} > ${output}/o\"\nenv = { HOME = 'h' }\n",
    );
    scratch.write("more.toml", "train = 70");
    let run = |more: &[&str]| scratch.episteme(&[&["run", "p.toml", "--json"], more].concat()).ok();
    assert_eq!(made(&scratch, &run(&[]), "say"), "x60 ${params.who} h\n");
    assert_eq!(made(&scratch, &run(&["--params", "more.toml"]), "say"), "x70 ${params.who} h\n");
    let set = run(&["--params", "more.toml", "--set", "params.train=80"]);
    assert_eq!((made(&scratch, &set, "say").as_str(), statuses(&set)["raw"].as_str()), ("x80 ${params.who} h\n", "ran"));
}

#[test]
fn a_parameter_that_is_not_there_is_told_with_the_nearest_one_and_its_place() {
    let scratch =
        scratch("[params]\nepochs = 3\n[stages.say]\nuses = 'command'\nrun = 'echo ${params.epoch} ${env.HOME} ${parms.epochs}'\n");
    scratch.write("wrong.toml", "epoch = 5\n");
    scratch.episteme(&["run", "p.toml", "--params", "wrong.toml"]).fails(
        2,
        &["no parameter `epoch`", "did you mean `epochs`?", "p.toml:5", "wrong.toml:1:1", "env = [\"HOME\"]", "did you mean `params`?"],
    );
}

#[test]
fn included_stages_are_added_and_their_mistakes_are_shown_in_their_own_file() {
    let scratch = scratch(
        "include = ['lib/raw.toml']\n[stages.say]\nuses = 'command'\nrun = 'cat ${inputs.raw}/o > ${output}/o'\ninputs = { raw = 'raw' }\n",
    );
    scratch.write("lib/raw.toml", "include = ['deep.toml']\n".to_owned() + &stage("raw", "echo ${params.n} > ${output}/o", ""));
    scratch.write("lib/deep.toml", "[params]\nn = 5\n");
    let said = scratch.episteme(&["run", "p.toml", "--json"]).ok();
    assert_eq!(made(&scratch, &said, "say"), "5\n");
    scratch.write("lib/deep.toml", "[params]\nn = 5\n[stages.raw]\nuses = 'command'\nrum = 'x'\n[stages.other]\nuses = 'comand'\n");
    scratch
        .episteme(&["check", "p.toml"])
        .fails(2, &["lib/deep.toml:3", "`raw` is declared twice", "lib/deep.toml:7:8", "did you mean `command`?"]);
    scratch.write("lib/raw.toml", "include = ['not-there.toml']\n");
    scratch.episteme(&["check", "p.toml"]).fails(2, &["lib/raw.toml:1", "cannot read", "not-there.toml"]);
}

#[test]
fn paths_in_an_included_stage_are_relative_to_the_pipeline_that_is_run() {
    let scratch = scratch("include = ['lib/raw.toml']\n");
    let taken = "[stages.taken]\nuses = 'collect.files'\npath = 'data'\n";
    scratch.write("lib/raw.toml", taken.to_owned() + &stage("read", "pwd > ${output}/o; cat data/o >> ${output}/o", "files = ['data/*']"));
    scratch.write("data/o", "of the pipeline\n");
    scratch.write("lib/data/o", "of the included file\n");
    let here = scratch.path().canonicalize().unwrap();
    let run = |file: &str| scratch.episteme(&["run", file, "--json"]).ok();
    let said = run("p.toml");
    assert_eq!(made(&scratch, &said, "taken"), "of the pipeline\n");
    assert_eq!(made(&scratch, &said, "read"), format!("{}\nof the pipeline\n", here.display()));
    assert_eq!(made(&scratch, &run("lib/raw.toml"), "taken"), "of the included file\n", "run by itself, it is the pipeline");
}

// --- variants ------------------------------------------------------------------------------------------------------------

fn matrix() -> Scratch {
    scratch(
        &[
            "limits = { command = 2 }\n".to_owned(),
            stage("model", "echo ${matrix.x}-${matrix.s} > ${output}/o", "matrix = { x = [1, 0.5], s = ['a', 'b'] }"),
            stage("up", "tr a-z A-Z < ${inputs.m}/o > ${output}/o", "inputs = { m = 'model' }"),
            stage("all", "for i in ${inputs.ups}; do cat $i/o; done > ${output}/o", "inputs = { ups = 'up@*' }"),
            stage("some", "for i in ${inputs.ups}; do cat $i/o; done > ${output}/o", "inputs = { ups = ['up@x=0.5,s=*'] }"),
            stage("one", "cat ${inputs.m}/o > ${output}/o", "inputs = { m = 'model@x=1,s=b' }"),
        ]
        .concat(),
    )
}

#[test]
fn a_stage_is_multiplied_by_its_matrix_and_so_is_what_takes_from_it() {
    let scratch = matrix();
    let said = scratch.episteme(&["run", "p.toml", "--json"]).ok();
    assert_eq!(said.stages().len(), 4 + 4 + 3);
    let made = |stage: &str| made(&scratch, &said, stage);
    assert_eq!(made("up@s=a,x=0.5"), "0.5-A\n");
    assert_eq!(made("all").split_whitespace().collect::<Vec<_>>(), ["1-A", "0.5-A", "1-B", "0.5-B"]);
    assert_eq!(made("some").split_whitespace().collect::<Vec<_>>(), ["0.5-A", "0.5-B"]);
    assert_eq!(made("one"), "1-b\n");
    scratch.sound();
    let more = scratch.episteme(&["run", "p.toml", "--json", "--set", "stages.model.matrix.x=[1, 0.5, 2]"]).ok();
    let ran = statuses(&more).into_iter().filter(|(_, status)| status == "ran").map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(ran, ["all", "model@s=a,x=2", "model@s=b,x=2", "up@s=a,x=2", "up@s=b,x=2"]);
}

#[test]
fn all_variants_of_a_model_judge_together_and_stand_in_one_report() {
    let models = "seed = \"${matrix.seed}\"\nmatrix = { seed = [1, 2] }\nepochs = 2";
    let scratch = scratch(&SMALL.replace("epochs = 2", models).replace("model = \"model\"", "model = \"model@*\""));
    let said = scratch.episteme(&["run", "p.toml", "--json"]).ok();
    let names: Vec<String> = said.stages().into_keys().collect();
    assert_eq!(names, ["clean", "images", "model@seed=1", "model@seed=2", "predictions", "raw", "report"]);
    let digest = said.stages()["report"].1.clone();
    let report = scratch.store().join("objects").join(&digest[..2]).join(&digest).join("report.html");
    let report = fs::read_to_string(report).unwrap();
    assert!(report.contains("Model 1: 2 epochs") && report.contains("Model 2: 2 epochs"));
    assert!(report.contains("models that judge together"));
    scratch.sound();
}

#[test]
fn variants_are_reproduced_and_the_one_that_parts_is_named() {
    let scratch = scratch(
        &[
            stage("model", "cat mood > ${output}/o; echo ${matrix.x} >> ${output}/o", "matrix = { x = [1, 0.5] }"),
            stage("up", "tr a-z A-Z < ${inputs.m}/o > ${output}/o", "inputs = { m = 'model' }"),
            stage("all", "for i in ${inputs.ups}; do cat $i/o; done > ${output}/o", "inputs = { ups = 'up@*' }"),
        ]
        .concat(),
    );
    scratch.write("mood", "fair\n");
    scratch.episteme(&["run", "p.toml"]).ok();
    let again = scratch.episteme(&["reproduce", "last", "--json"]).ok();
    let told = |text: &str| serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap()).unwrap();
    let reproduced = told(&again.stdout);
    let names: Vec<&str> = reproduced["stages"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["model@x=1", "model@x=0.5", "up@x=1", "up@x=0.5", "all"]);
    assert!(reproduced["ok"] == true && reproduced["stages"].as_array().unwrap().iter().all(|stage| stage["same"] == true), "{reproduced}");
    // The file has changed since, and the variants have gone: what is reproduced is the run, not the file.
    scratch.write("p.toml", stage("model", "true", ""));
    scratch.write("mood", "foul\n");
    let other = scratch.episteme(&["reproduce", "last", "--json"]);
    assert_eq!(other.code, 1, "{}", other.stderr);
    let parts = told(&other.stdout)["stages"].as_array().unwrap().iter().map(|stage| stage["parts_here"] == true).collect::<Vec<_>>();
    assert_eq!(parts, [true, true, false, false, false], "an undeclared file is found out where it is read");
}

#[test]
fn mistakes_with_variants_are_told_once_each() {
    let scratch = scratch(
        &[
            stage("model", "echo ${matrix.y} > ${output}/o", "matrix = { x = [1, 2], empty = [] }"),
            stage("one", "true", "inputs = { m = 'model@z=1', n = 'model@x=3', o = 'other@*' }"),
            stage("other", "true", ""),
        ]
        .concat(),
    );
    let said = scratch.episteme(&["check", "p.toml"]);
    said.fails(
        2,
        &[
            "stands for an axis",
            "`empty` must be a list",
            "`model` has no axis `z`",
            "the axis `x` has no value `3`",
            "`other` has no variants",
        ],
    );
    assert_eq!(said.stderr.matches("stands for an axis").count(), 1, "{}", said.stderr);
}

// --- which stages --------------------------------------------------------------------------------------------------------

fn chain() -> Scratch {
    let from = |name: &str, input: &str| {
        stage(name, "cat ${inputs.i}/o > ${output}/o; date +%N >> ${output}/o", &format!("inputs = {{ i = '{input}' }}"))
    };
    scratch(
        &[
            stage("a", "date +%N > ${output}/o", ""),
            from("b", "a"),
            from("c", "b"),
            stage("d", "cp ${inputs.i}/o ${output}/o", "inputs = { i = 'a' }"),
        ]
        .concat(),
    )
}

#[test]
fn a_run_can_be_about_a_part_of_the_pipeline() {
    let scratch = chain();
    let run = |args: &[&str]| scratch.episteme(&[&["run", "p.toml", "--json"], args].concat());
    let names = |said: Said| statuses(&said.ok()).into_iter().map(|(name, status)| format!("{name} {status}")).collect::<Vec<_>>();
    run(&["--only", "b"]).fails(2, &["`b` takes from `a`, which has not run", "--until a"]);
    assert_eq!(names(run(&["--until", "b"])), ["a ran", "b ran"]);
    assert_eq!(names(run(&["--from", "b"])), ["b cached", "c ran"]);
    assert_eq!(names(run(&["--only", "d"])), ["d ran"]);
    assert_eq!(names(run(&["--only", "c", "--force"])), ["c ran"]);
    assert_eq!(names(run(&["--force=b"])), ["a cached", "b ran", "c ran", "d cached"]);
    run(&["--from", "e"]).fails(2, &["`e` is no stage of p.toml"]);
}

// --- failure and limits --------------------------------------------------------------------------------------------------

#[test]
fn after_a_failure_no_new_stage_starts_unless_told_to_keep_going() {
    let scratch = scratch(&[stage("bad", "false", ""), stage("other", "true", "")].concat());
    let run = |more: &[&str]| statuses(&scratch.episteme(&[&["run", "p.toml", "--json", "--jobs", "1"], more].concat()));
    let expected = |other: &str| BTreeMap::from([("bad".to_owned(), "failed".to_owned()), ("other".to_owned(), other.to_owned())]);
    assert_eq!(run(&[]), expected("skipped"));
    assert_eq!(run(&["--keep-going"]), expected("ran"));
    assert_eq!(run(&[]), expected("cached"), "what is there is told of");
}

#[test]
fn a_stage_is_tried_again_as_often_as_it_says_and_no_oftener() {
    let scratch = scratch(&stage(
        "bad",
        "echo x >> tries; test $(wc -l < tries) -ge 3; echo done > ${output}/o",
        "retry = { times = 2, wait = '10ms' }",
    ));
    let said = scratch.episteme(&["run", "p.toml"]).ok();
    assert!(said.stderr.contains("again in 10 ms, 2 more times") && said.stderr.contains("again in 20 ms, 1 more time"), "{}", said.stderr);
    fs::remove_file(scratch.path().join("tries")).unwrap();
    let said = scratch.episteme(&["run", "p.toml", "--force", "--set", "stages.bad.retry=1"]);
    said.fails(1, &["exit code 1"]);
    let back = scratch.episteme(&["run", "p.toml", "--json", "--set", "stages.bad.retry=9", "--set", "stages.bad.cores=1"]).ok();
    assert_eq!(statuses(&back)["bad"], "cached", "how a stage is run is no part of its key");
}

#[test]
fn a_stage_that_takes_too_long_or_too_much_is_ended_and_told_so() {
    let slow = scratch(&stage("slow", "sleep 1000", "timeout = '300ms'"));
    let clock = Instant::now();
    slow.episteme(&["run", "p.toml"]).fails(1, &["longer than its `timeout` of 300 ms"]);
    assert!(clock.elapsed().as_secs() < 30);
    let large = scratch(&stage("large", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); sleep 1000", "memory = '50 MB'"));
    large.episteme(&["run", "p.toml"]).fails(1, &["of memory, more than its `memory` of"]);
    large.episteme(&["run", "p.toml", "--memory", "10MB"]).fails(2, &["`large` asks for", "--memory"]);
}

#[test]
fn what_excludes_each_other_does_not_run_at_the_same_time_in_any_run_on_the_store() {
    let lone = "mkdir alone; sleep 0.2; rmdir alone; echo $0 > ${output}/o";
    let scratch = scratch(
        &[stage("a", &format!("{lone}; echo a"), "mutex = 'gpu0'"), stage("b", &format!("{lone}; echo b"), "mutex = ['gpu0']")].concat(),
    );
    scratch.write("q.toml", stage("c", &format!("{lone}; echo c"), "mutex = ['gpu0']"));
    let other = scratch.command(&["run", "q.toml"]).spawn().unwrap();
    scratch.episteme(&["run", "p.toml", "--jobs", "2"]).ok();
    assert!(other.wait_with_output().unwrap().status.success());
}

#[test]
fn a_stage_that_waits_for_another_run_says_so() {
    let scratch = scratch(&stage("b", "true", "mutex = 'gpu0'"));
    scratch.write("q.toml", stage("c", "touch begun; while ! [ -e go ]; do sleep 0.01; done", "mutex = 'gpu0'"));
    let mut holder = scratch.start(&["run", "q.toml"]);
    wait_until("the holder", || scratch.path().join("begun").exists());
    let said = scratch.path().join("said");
    let mut waits = scratch.command(&["run", "p.toml"]).stderr(fs::File::create(&said).unwrap()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the word", || fs::read_to_string(&said).is_ok_and(|said| said.contains("another run has what its `mutex` names")));
    scratch.write("go", "");
    assert!(holder.wait().unwrap().success() && waits.wait().unwrap().success());
}

#[test]
fn wrong_limits_are_told_before_anything_runs() {
    let scratch = scratch(&format!(
        "limits = {{ comand = 1 }}\n{}",
        stage("a", "true", "cores = 0\nmemory = 'much'\ntimeout = 5\nretry = { time = 2 }\nmutex = 'a b'\nat_once = 'x'")
    ));
    scratch.episteme(&["check", "p.toml"]).fails(
        2,
        &[
            "did you mean `command`?",
            "cores = 2",
            "memory = \"2 GB\"",
            "\"90s\"",
            "retry = { times = 2",
            "mutex = [\"gpu0\"]",
            "at_once = 2",
        ],
    );
}

#[test]
fn a_variable_is_used_only_where_it_is_declared() {
    let scratch = scratch(&format!("env = ['WHO']\n{}", stage("a", "echo ${env.WHO} > ${output}/o", "")));
    let mut command = scratch.command(&["run", "p.toml", "--json"]);
    let said = finish({
        command.env("WHO", "me");
        command
    });
    assert_eq!(made(&scratch, &said.ok(), "a"), "me\n");
    scratch.episteme(&["check", "p.toml"]).fails(2, &["WHO is not set"]);
}
