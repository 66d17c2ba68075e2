//! Any program as a stage: what it is given, what it must leave, what is remembered, and how it is ended.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use episteme_tests::{Said, Scratch, finish, wait_until, workspace};

/// A scratch folder with this pipeline.
fn scratch(pipeline: &str) -> Scratch {
    let scratch = Scratch::new();
    scratch.write("p.toml", pipeline);
    scratch
}

fn run(scratch: &Scratch) -> Said {
    scratch.episteme(&["run", "p.toml", "--json"])
}

#[track_caller]
fn status(said: &Said, stage: &str) -> String {
    said.stages()[stage].0.clone()
}

/// A file of a stage's artifact.
#[track_caller]
fn made(scratch: &Scratch, said: &Said, stage: &str, file: &str) -> String {
    let digest = said.stages()[stage].1.clone();
    fs::read_to_string(scratch.store().join("objects").join(&digest[..2]).join(&digest).join(file)).unwrap()
}

/// Every file of a folder that holds this text.
fn holding(folder: &Path, text: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = entries.flat_map(|path| match path.is_dir() {
        true => holding(&path, text),
        false => fs::read(&path)
            .is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
            .then_some(path)
            .into_iter()
            .collect(),
    });
    found.collect()
}

// --- what it is given, what it leaves ------------------------------------------------------------------------------------

#[test]
fn a_table_that_a_program_makes_goes_into_the_store_like_any_other() {
    let scratch = scratch(
        "[stages.made]\nuses = 'command'\nrun = 'printf \"a,b\\n1,2\\n3,4\\n\" > ${output}/t.csv'\noutputs = ['t.csv']\n\
         [stages.rows]\nuses = 'store.csv'\ninput = 'made'\n",
    );
    let first = run(&scratch).ok();
    assert_eq!((status(&first, "made"), status(&first, "rows")), ("ran".into(), "ran".into()));
    let again = run(&scratch).ok();
    assert_eq!((status(&again, "made"), status(&again, "rows")), ("cached".into(), "cached".into()));
    scratch.sound();
}

#[test]
fn inputs_are_found_by_name_in_the_text_in_the_environment_and_as_words() {
    let scratch = Scratch::new();
    scratch.write(
        "a b/p.toml",
        "[stages.one]\nuses = 'command'\nrun = 'echo 1 > ${output}/n'\n[stages.two]\nuses = 'command'\nrun = 'echo 2 > \"${output}/n\"'\n\
         [stages.text]\nuses = 'command'\ninputs = { first = 'one', all = ['one', 'two'] }\n\
         run = 'cat ${inputs.first}/n \"$EPISTEME_INPUT_FIRST/n\" > $EPISTEME_OUTPUT/got; ls -d ${inputs.all} | wc -l >> ${output}/got'\n\
         [stages.words]\nuses = 'command'\ninputs = { all = ['one', 'two'] }\noutputs = ['got']\n\
         run = ['sh', '-c', 'cat \"$1/n\" \"$2/n\" > got', 'sh', '${inputs.all}']\n",
    );
    let said = finish(scratch.command(&["run", "a b/p.toml", "--json", "--store", "a b/store"])).ok();
    let store = scratch.path().join("a b/store/objects");
    let read =
        |stage: &str| fs::read_to_string(store.join(&said.stages()[stage].1[..2]).join(&said.stages()[stage].1).join("got")).unwrap();
    let lines = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        (lines(read("text")), lines(read("words"))),
        (["1", "1", "2"].map(String::from).to_vec(), ["1", "2"].map(String::from).to_vec())
    );
    assert!(!scratch.path().join("a b/got").exists(), "what was made in the working directory has been moved");
}

#[test]
fn an_output_that_is_not_made_fails_the_stage_and_says_where_it_was_looked_for() {
    let scratch = scratch("[stages.made]\nuses = 'command'\nrun = 'touch ${output}/here'\noutputs = ['here', 'there', 'stale']\n");
    scratch.write("stale", "of yesterday");
    let said = scratch.episteme(&["run", "p.toml"]);
    said.fails(1, &["did not make `there`, `stale`", "was there before", "${output}"]);
    assert_eq!(fs::read_to_string(scratch.path().join("stale")).unwrap(), "of yesterday");
}

#[test]
fn numbers_in_the_metrics_file_are_metrics_and_named_outputs_are_results() {
    let scratch = scratch(
        "[stages.made]\nuses = 'command'\nmetrics = 'm.json'\noutputs = { card = 'card.txt' }\n\
         run = '''echo '{\"test\": {\"cost\": 2.5}}' > ${output}/m.json; echo hello > ${output}/card.txt'''\n",
    );
    let finished = run(&scratch).ok().finished();
    assert_eq!(finished["metrics"]["test.cost"], 2.5);
    assert_eq!(fs::read_to_string(finished["outputs"]["card"].as_str().unwrap()).unwrap(), "hello\n");
}

// --- what is remembered ----------------------------------------------------------------------------------------------------

#[test]
fn a_changed_file_runs_the_program_again_and_a_touched_one_does_not() {
    let scratch = scratch("[stages.made]\nuses = 'command'\nrun = ['sh', 'lib/x.sh']\nfiles = ['lib/*.sh']\noutputs = ['o']\n");
    scratch.write("lib/x.sh", "echo 1 > o");
    assert_eq!(status(&run(&scratch).ok(), "made"), "ran");
    scratch.write("lib/x.sh", "echo 1 > o");
    assert_eq!(status(&run(&scratch).ok(), "made"), "cached");
    scratch.write("lib/y.sh", "");
    assert_eq!(status(&run(&scratch).ok(), "made"), "ran");
    scratch.write("lib/x.sh", "echo 2 > o");
    let last = run(&scratch).ok();
    assert_eq!((status(&last, "made").as_str(), made(&scratch, &last, "made", "o").as_str()), ("ran", "2\n"));
}

#[test]
fn a_program_sees_what_was_declared_of_the_environment_and_nothing_else() {
    let scratch = scratch(
        "[stages.made]\nuses = 'command'\nrun = 'echo $GIVEN $TAKEN $OTHER > ${output}/o'\nenv = { GIVEN = 'g' }\nenv_from = ['TAKEN']\n",
    );
    let run = |taken: &str, other: &str| {
        let mut command = scratch.command(&["run", "p.toml", "--json"]);
        command.env("TAKEN", taken).env("OTHER", other);
        finish(command).ok()
    };
    let first = run("t", "x");
    assert_eq!(made(&scratch, &first, "made", "o"), "g t\n");
    assert_eq!(status(&run("t", "y"), "made"), "cached");
    assert_eq!(made(&scratch, &run("u", "y"), "made", "o"), "g u\n");
    run_without(&scratch).fails(2, &["`env_from` asks for the environment variable TAKEN", "not set"]);
}

fn run_without(scratch: &Scratch) -> Said {
    scratch.episteme(&["run", "p.toml"])
}

#[test]
fn a_secret_is_used_and_neither_stored_nor_shown_nor_part_of_the_key() {
    let scratch = scratch(
        "[stages.made]\nuses = 'command'\nsecrets = ['TOKEN']\nenv = { END = 'sesame' }\n\
         run = '''echo \"the token is $TOKEN\"; test \"$TOKEN\" = \"open-$END\"; echo done > ${output}/o'''\n",
    );
    let with = |name: &str, value: &str| {
        let mut command = scratch.command(&["run", "p.toml"]);
        command.env(name, value);
        finish(command)
    };
    let wrong = with("TOKEN", "a-wrong-one");
    wrong.fails(1, &["the token is [TOKEN]", "exit code 1"]);
    assert!(!wrong.stderr.contains("a-wrong-one"));
    with("TOKEN", "open-sesame").ok();
    for secret in ["open-sesame", "a-wrong-one"] {
        assert_eq!(holding(&scratch.store(), secret), Vec::<PathBuf>::new());
    }
    assert!(with("TOKEN", "another").ok().stdout.contains("1 cached"), "a new token is no reason to run again");
    let file = scratch.write("token.txt", "open-sesame\n");
    with("TOKEN_FILE", &file.to_string_lossy()).ok();
    scratch.episteme(&["run", "p.toml"]).fails(2, &["`secrets`", "TOKEN_FILE"]);
    for verb in ["plan", "status"] {
        scratch.episteme(&[verb, "p.toml"]).ok();
    }
    scratch.episteme(&["why", "made", "p.toml"]).ok();
}

#[test]
fn numbers_of_the_environment_are_the_texts_that_they_look_like() {
    let with =
        |env: &str| format!("[params]\nn = 3\n[stages.made]\nuses = 'command'\nrun = 'echo $N $X $F > ${{output}}/o'\nenv = {env}\n");
    let scratch = scratch(&with("{ N = '${params.n}', X = 0.5, F = true }"));
    let first = run(&scratch).ok();
    assert_eq!(made(&scratch, &first, "made", "o"), "3 0.5 true\n");
    scratch.write("p.toml", with("{ N = '3', X = '0.5', F = 'true' }"));
    assert_eq!(status(&run(&scratch).ok(), "made"), "cached");
    scratch.write("p.toml", with("{ N = [3] }"));
    scratch.episteme(&["run", "p.toml"]).fails(2, &["a text, a number, true or false"]);
}

// --- how it ends -----------------------------------------------------------------------------------------------------------

#[test]
fn a_program_that_fails_is_told_with_its_last_lines_and_its_log() {
    let scratch = scratch("[stages.made]\nuses = 'command'\nrun = '''seq 1 100; echo at last >&2; false; echo never'''\n");
    let said = scratch.episteme(&["run", "p.toml"]);
    said.fails(1, &["`seq 1 100; echo at last", "exit code 1", "because at last", "because 100", "made.log"]);
    assert!(!said.stderr.contains("because 80") && !said.stderr.contains("because never"), "{}", said.stderr);
    scratch.sound();
}

#[test]
fn a_program_that_is_not_there_and_a_folder_that_is_not_there_are_named() {
    let missing = scratch("[stages.made]\nuses = 'command'\nrun = ['no-such-program', 'x']\n");
    missing.episteme(&["run", "p.toml"]).fails(1, &["there is no program `no-such-program`", "list of words"]);
    let nowhere = scratch("[stages.made]\nuses = 'command'\nrun = 'true'\ndirectory = 'nowhere'\n");
    nowhere.episteme(&["run", "p.toml"]).fails(1, &["`directory` is no folder", "nowhere"]);
}

#[test]
fn every_mistake_in_a_command_is_told_before_anything_runs() {
    let scratch = scratch(
        "[stages.raw]\nuses = 'command'\nrun = 3\n[stages.made]\nuses = 'command'\nrun = 'cat ${inputs.rwa}/x'\ninputs = { raw = 'rw' }\n\
         [stages.out]\nuses = 'command'\nrun = 'true'\noutputs = ['../x']\nfile = ['x']\nenv_from = ['A-B']\n[stages.env]\nuses = 'command'\nrun = 'true'\nenv_from = ['A-B']\noutputs = ['../x']\n",
    );
    scratch.episteme(&["run", "p.toml"]).fails(
        2,
        &[
            "a text for the shell, or a list of words",
            "`inputs` has no `rwa`",
            "did you mean `raw`?",
            "`inputs.raw` of `made` names the stage `rw`",
            "`command` has no key `file`",
            "did you mean `files`?",
            "`A-B` cannot name an environment variable",
            "`../x` is no path within the stage's output",
        ],
    );
}

const SLEEPS: &str = "[stages.made]\nuses = 'command'\ndirectory = '.'\nrun = 'sh -c \"echo \\$\\$ > pid; sleep 1000; true\"; true'\n";

/// Whether the program's own child is at work.
fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn whatever_ends_a_run_ends_its_programs_and_what_they_started() {
    for signal in ["-TERM", "-INT", "-KILL"] {
        let scratch = scratch(SLEEPS);
        let mut run = scratch.command(&["run", "p.toml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let file = scratch.path().join("pid");
        wait_until("the program", || fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n')));
        let pid = fs::read_to_string(&file).unwrap();
        assert!(is_alive(&pid));
        std::process::Command::new("kill").args([signal, &run.id().to_string()]).status().unwrap();
        let code = run.wait().unwrap().code();
        assert_eq!(code, (signal != "-KILL").then_some(130));
        wait_until("the program's end", || !is_alive(&pid));
    }
}

#[test]
fn an_interrupted_run_says_that_nothing_finished_is_lost() {
    let scratch = scratch(SLEEPS);
    let run = scratch.command(&["run", "p.toml"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the program", || fs::read_to_string(scratch.path().join("pid")).is_ok_and(|pid| pid.ends_with('\n')));
    std::process::Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    let said = run.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("interrupted: what has finished is kept"));
}

#[test]
fn what_programs_started_ends_even_when_run_and_stage_are_killed_in_the_same_instant() {
    for round in 0..8 {
        let scratch = scratch(SLEEPS);
        let run = scratch.command(&["run", "p.toml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let file = scratch.path().join("pid");
        wait_until("the program", || fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n')));
        let pid = fs::read_to_string(&file).unwrap();
        let stage = stage_of(run.id());
        let mut victims = [run.id().to_string(), stage];
        victims.rotate_left(round % 2);
        let killed = std::process::Command::new("kill").arg("-KILL").args(victims).status().unwrap();
        assert!(killed.success(), "both were alive");
        finish_killed(run);
        wait_until("the program's end", || !is_alive(&pid));
    }
}

/// The process of the stage that a run has at work.
fn stage_of(run: u32) -> String {
    let children = fs::read_to_string(format!("/proc/{run}/task/{run}/children")).unwrap();
    let is_stage = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(".spec.json"));
    children.split_whitespace().find(is_stage).expect("a stage is at work").to_owned()
}

fn finish_killed(mut run: std::process::Child) {
    assert_eq!(run.wait().unwrap().code(), None, "it was killed");
}

/// A program that leaves the session, and with it the group, by which it would be ended.
const LEAVES: &str = "[stages.made]\nuses = 'command'\nrun = '''setsid sh -c \"echo \\$\\$ > pid; sleep 1000; true\" &\n\
                      while ! [ -s pid ]; do sleep 0.01; done\n";

#[test]
fn what_leaves_its_session_ends_with_its_stage_in_whatever_way_that_ends() {
    for (way, then, keys, code) in [
        ("by itself", "echo x > ${output}/o", "", 0),
        ("by a failure", "exit 3", "", 1),
        ("by its timeout", "sleep 1000", "timeout = '0.3s'", 1),
        ("by too much memory", "head -c 300M /dev/zero | tail -c 300M | sleep 1000", "memory = '100 MB'", 1),
        ("killed", "kill -KILL $PPID; sleep 1000", "", 1),
    ] {
        let scratch = scratch(&format!("{LEAVES}{then}'''\n{keys}"));
        let said = scratch.episteme(&["run", "p.toml"]);
        assert_eq!(said.code, code, "{way}: {}", said.stderr);
        let pid = fs::read_to_string(scratch.path().join("pid")).unwrap();
        assert!(!is_alive(&pid), "{way}");
        assert_eq!(then.contains("KILL"), !said.stderr.contains("it left `sh` running"), "{way}: {}", said.stderr);
    }
}

#[test]
fn what_leaves_its_session_ends_with_the_run_in_whatever_way_that_ends() {
    for signal in ["-TERM", "-INT", "-KILL"] {
        let scratch = scratch(&format!("{LEAVES}touch begun; sleep 1000'''"));
        let mut run = scratch.start(&["run", "p.toml"]);
        wait_until("the program", || scratch.path().join("begun").exists());
        let pid = fs::read_to_string(scratch.path().join("pid")).unwrap();
        assert!(is_alive(&pid));
        std::process::Command::new("kill").args([signal, &run.id().to_string()]).status().unwrap();
        run.wait().unwrap();
        wait_until("the program's end", || !is_alive(&pid));
    }
}

#[test]
fn memory_counts_in_whatever_session_it_is_taken() {
    let scratch = scratch(
        "[stages.made]\nuses = 'command'\nmemory = '100 MB'\nrun = 'setsid sh -c \"head -c 300M /dev/zero | tail -c 300M | sleep 1000\" & wait'\n",
    );
    scratch.episteme(&["run", "p.toml"]).fails(1, &["more than its `memory`"]);
}

#[test]
fn children_that_a_run_had_before_it_began_are_none_of_its_business() {
    let scratch = scratch("[stages.made]\nuses = 'command'\nrun = 'kill -KILL $PPID; sleep 1000'\n");
    let run = scratch.command(&[]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "sleep 1000 > /dev/null 2>&1 & echo $! > stranger; exec \"$0\" run p.toml"]).arg(run.get_program());
    shell.current_dir(scratch.path()).env("EPISTEME_STORE", scratch.store());
    finish(shell).fails(1, &["was killed"]);
    let stranger = fs::read_to_string(scratch.path().join("stranger")).unwrap();
    assert!(is_alive(&stranger));
    std::process::Command::new("kill").arg(stranger.trim()).status().unwrap();
}

#[test]
fn what_a_program_leaves_running_is_ended_with_its_stage() {
    let scratch = scratch("[stages.made]\nuses = 'command'\nrun = 'sleep 1000 & echo $! > pid; echo x > ${output}/o'\n");
    let said = scratch.episteme(&["run", "p.toml"]).ok();
    assert!(said.stderr.contains("it left `sleep` running"), "{}", said.stderr);
    let pid = fs::read_to_string(scratch.path().join("pid")).unwrap();
    wait_until("the end of what was left", || !is_alive(&pid));
}

/// Two programs, one after the other. The process of the second is started while the first is at work, and says so in `o`.
fn one_after_the_other(first: &str) -> Scratch {
    scratch(&format!(
        "[stages.first]\nuses = 'command'\nrun = \"\"\"{first}\necho first > ${{output}}/o\"\"\"\n\
         [stages.second]\nuses = 'command'\ninputs = {{ first = 'first' }}\n\
         run = 'echo said by the second; tr \"\\0\" \" \" < /proc/$PPID/cmdline > ${{output}}/o'\n"
    ))
}

#[test]
fn a_process_that_waited_for_its_stage_does_it_like_any_other() {
    let scratch = one_after_the_other("echo said by the first");
    let said = run(&scratch).ok();
    assert!(made(&scratch, &said, "second", "o").contains(" spare "), "it was started ahead");
    let runs = fs::read_dir(scratch.store().join("runs")).unwrap().next().unwrap().unwrap().path();
    for stage in ["first", "second"] {
        assert_eq!(fs::read_to_string(runs.join(format!("{stage}.log"))).unwrap(), format!("said by the {stage}\n"));
    }
    scratch.sound();
}

#[test]
fn where_the_process_that_waited_is_gone_the_stage_starts_its_own() {
    let scratch = one_after_the_other(
        "run=$(cut -d ' ' -f 4 /proc/$PPID/stat)\nkilled=\nwhile [ -z \"$killed\" ]; do for pid in $(cat /proc/$run/task/*/children); do\n\
         if grep -q spare /proc/$pid/cmdline; then kill -KILL $pid; killed=yes; fi; done; done",
    );
    let said = run(&scratch).ok();
    assert!(made(&scratch, &said, "second", "o").contains(" stage "), "it was started for its stage");
    scratch.sound();
}

#[test]
fn the_example_pipeline_runs_and_then_has_nothing_to_do() {
    let scratch = Scratch::new();
    for file in ["command.toml", "command/features.awk"] {
        scratch.write(file, fs::read(workspace().join("pipelines").join(file)).unwrap());
    }
    let first = scratch.episteme(&["run", "command.toml", "--json"]).ok();
    assert!(first.finished()["metrics"]["validation.accuracy"].as_f64().unwrap() > 0.9, "{}", first.finished());
    assert!(first.stages().values().all(|(status, _)| status == "ran"));
    let again = scratch.episteme(&["run", "command.toml", "--json"]).ok();
    assert!(again.stages().values().all(|(status, _)| status == "cached"));
    scratch.write("command/features.awk", fs::read_to_string(scratch.path().join("command/features.awk")).unwrap() + "# no change\n");
    let commented = scratch.episteme(&["run", "command.toml", "--json"]).ok();
    assert_eq!((status(&commented, "features").as_str(), status(&commented, "rows").as_str()), ("ran", "cached"));
    scratch.sound();
}
