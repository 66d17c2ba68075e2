//! Looking at what was done: the record of runs, tags, the health of the store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use episteme_tests::Scratch;
use serde_json::Value;

/// Raw digits and their dataset: two stages, a moment.
const TWO: &str =
    "name = 'two'\n[stages.raw]\nuses = 'collect.synthetic'\ntrain = 60\ntest = 20\n[stages.images]\nuses = 'store.idx'\ninput = 'raw'\n";

fn two() -> Scratch {
    let scratch = Scratch::new();
    scratch.write("two.toml", TWO);
    scratch.episteme(&["run", "two.toml"]).ok();
    scratch
}

#[track_caller]
fn json(said: &episteme_tests::Said) -> Value {
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {}\n{}", said.stdout, said.stderr))
}

/// Changes a byte of a file that is read-only, as a failing disk would.
fn damage(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let mut bytes = fs::read(path).expect("it is there");
    bytes[0] ^= 1;
    fs::write(path, bytes).expect("it can be written");
}

fn object(scratch: &Scratch, digest: &str) -> std::path::PathBuf {
    scratch.store().join("objects").join(&digest[..2]).join(digest)
}

#[test]
fn verify_names_damage_and_no_run_uses_it_any_more() {
    let scratch = two();
    scratch.episteme(&["verify"]).ok();
    let before = scratch.episteme(&["run", "two.toml", "--json"]).ok().stages();
    let raw = object(&scratch, &before["raw"].1);
    let file = fs::read_dir(&raw).expect("it is there").flatten().map(|entry| entry.path()).find(|path| !path.ends_with("artifact.json"));
    damage(&file.expect("an artifact has files"));
    scratch.write("store/objects/stray.txt", "?");

    let found = scratch.episteme(&["verify", "--json", "--dry-run"]);
    assert_eq!(found.code, 1, "{}", found.stderr);
    assert!(raw.is_dir(), "a dry run moves nothing");
    let found = scratch.episteme(&["verify"]);
    assert_eq!(found.code, 1);
    for text in ["has changed", "made by collect.synthetic", "store.idx", "moved to", "stray.txt", "1 damaged, 0 missing, 1 stray", "help:"]
    {
        assert!(found.stdout.contains(text), "`{text}` is not in\n{}", found.stdout);
    }
    let after = scratch.episteme(&["run", "two.toml", "--json"]).ok().stages();
    assert_eq!(after["raw"], ("ran".to_owned(), before["raw"].1.clone()), "it was made anew, to the same bytes");
    assert_eq!(after["images"].0, "cached", "what was made from it is as it was");
    fs::remove_file(scratch.store().join("objects/stray.txt")).expect("it is there");
    scratch.episteme(&["verify"]).ok();
    scratch.episteme(&["gc"]).ok();
    assert_eq!(fs::read_dir(scratch.store().join("damaged")).expect("it is there").count(), 0, "gc removes what was moved aside");
}

#[test]
fn log_lists_runs_newest_first_and_show_tells_what_stages_used() {
    let scratch = two();
    scratch.write("other.toml", TWO.replace("'two'", "'other'"));
    scratch.episteme(&["run", "other.toml"]).ok();
    let log = json(&scratch.episteme(&["log", "--json"]).ok());
    let runs: Vec<&str> = log["runs"].as_array().expect("runs").iter().map(|run| run["pipeline"].as_str().expect("a name")).collect();
    assert_eq!(runs, ["other", "two"]);
    assert_eq!(json(&scratch.episteme(&["log", "two", "--json"]).ok())["runs"].as_array().map(Vec::len), Some(1));
    assert!(scratch.episteme(&["log", "-n", "1"]).ok().stdout.contains("and 1 before them"));

    let run = log["runs"][1]["run"].as_str().expect("a name");
    let shown = scratch.episteme(&["show", run]).ok().stdout;
    for text in ["cpu", "peak", "read", "wrote", "two.toml"] {
        assert!(shown.contains(text), "`{text}` is not in\n{shown}");
    }
    let record = json(&scratch.episteme(&["show", "last~1", "--json"]).ok());
    assert_eq!((record["run"].as_str(), record["ok"].as_bool()), (Some(run), Some(true)));
    let used = &record["stages"][1]["usage"];
    assert!(used["peak_memory"].as_u64() > Some(1_000_000) && used["written"].as_u64() > Some(10_000), "{record:#}");
    assert_eq!(record["plan"]["stages"][1]["config"]["input"], "raw", "the plan is recorded as it was resolved");
}

#[test]
fn a_tag_stands_wherever_a_digest_can() {
    let scratch = two();
    let digest = scratch.episteme(&["run", "two.toml", "--json"]).ok().stages()["images"].1.clone();
    scratch.episteme(&["tag", "images:best", "images", "--pipeline", "two.toml"]).ok();
    scratch.episteme(&["tag", "keep", "images:best"]).ok();
    assert!(scratch.episteme(&["show", "keep"]).ok().stdout.contains(&digest));
    let tags = json(&scratch.episteme(&["tag", "--json"]).ok());
    assert_eq!(tags["tags"]["images:best"]["artifact"], *digest);
    scratch.episteme(&["tag", "-d", "keep"]).ok();
    scratch.episteme(&["tag", "keep"]).fails(2, &["there is no tag `keep`"]);
    scratch.episteme(&["tag", "beef", "images:best"]).fails(2, &["could be the beginning of a digest"]);
    scratch.episteme(&["tag", "x", "nothing", "--pipeline", "two.toml"]).fails(2, &["`nothing` is no stage"]);
}

#[test]
fn why_speaks_of_each_variant_and_shows_where_long_values_part() {
    let scratch = Scratch::new();
    let long = "echo a text that is so long that its end is not seen when it is cut after some forty characters";
    let text = format!(
        "name = 'v'\n[params]\nx = 1\n[stages.say]\nuses = 'command'\nmatrix = {{ k = [1, 2] }}\nrun = '{long} ${{matrix.k}} ${{params.x}}'\n"
    );
    scratch.write("v.toml", text);
    scratch.episteme(&["run", "v.toml"]).ok();
    let why = |args: &[&str]| scratch.episteme(&[&["why", "say", "v.toml", "--set", "params.x=7"], args].concat()).ok();
    let told = why(&[]).stdout;
    for text in ["say@k=1 would run", "characters 1 1\", is ", "characters 1 7\"", "say@k=2 would run", "characters 2 7\""] {
        assert!(told.contains(text), "`{text}` is not in\n{told}");
    }
    let told = json(&why(&["--json"]));
    assert_eq!((told["stage"].as_str(), told["will"].as_str()), (Some("say"), Some("run")));
    assert_eq!(told["because"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_word_that_means_nothing_is_told_of_as_such() {
    let scratch = two();
    scratch.episteme(&["run", "two.toml"]).ok();
    let said = scratch.episteme(&["log", "--json"]).ok();
    let day = json(&said)["runs"][0]["run"].as_str().expect("a name")[..8].to_owned();
    scratch.episteme(&["show", "nothing"]).fails(2, &["`nothing` is no run, tag or digest", "--pipeline FILE"]);
    scratch.episteme(&["show", "last~9"]).fails(2, &["no run `last~9`", "2 runs are on"]);
    scratch.episteme(&["show", &day]).fails(2, &["2 runs begin with"]);
}

#[test]
fn to_look_at_a_store_makes_none() {
    let scratch = Scratch::new();
    for verb in [&["log"][..], &["show"], &["tag"], &["verify"], &["gc"], &["diff", "last", "last~1"], &["reproduce", "last"]] {
        scratch.episteme(verb).fails(2, &["there is no store at", "--store DIR"]);
    }
    assert!(!scratch.store().exists());
}

#[test]
fn a_sum_counts_what_failed_and_what_was_skipped_and_a_diff_only_what_is_there() {
    let scratch = Scratch::new();
    let stages = "[stages.a]\nuses = 'command'\nrun = 'false'\n[stages.b]\nuses = 'command'\nrun = 'true'\ninputs = { a = 'a' }\n";
    scratch.write("p.toml", stages);
    scratch.write("q.toml", stages);
    let said = scratch.episteme(&["run", "p.toml"]);
    assert!(said.stdout.contains("0 ran, 0 cached, 1 failed, 1 skipped"), "{}", said.stdout);
    assert_eq!(scratch.episteme(&["run", "q.toml"]).code, 1);
    let told = scratch.episteme(&["diff", "last~1", "last"]).ok().stdout;
    assert!(told.contains("two pipelines, `p` and `q`") && !told.contains("the same"), "{told}");
}

#[test]
fn why_names_exactly_what_differs() {
    let scratch = two();
    let why = |args: &[&str]| scratch.episteme(&[&["why"], args].concat()).ok().stdout;
    assert!(why(&["images", "two.toml"]).contains("would not run: nothing differs"), "{}", why(&["images", "two.toml"]));
    let told = why(&["raw", "two.toml", "--set", "stages.raw.train=61"]);
    assert!(told.contains("`train` was 60, is 61 since"), "{told}");
    let told = why(&["images", "two.toml", "--set", "stages.raw.train=61"]);
    assert!(told.contains("images waits") && told.contains("raw would run:") && told.contains("`train` was 60, is 61"), "{told}");
    let told = json(&scratch.episteme(&["why", "raw", "two.toml", "--json", "--set", "stages.raw.seed=9"]).ok());
    assert_eq!(told["because"][0]["differences"][0]["key"], "seed", "{told:#}");
    scratch.episteme(&["why", "rwa", "two.toml"]).fails(2, &["`rwa` is no stage", "did you mean `raw`?"]);
}

#[test]
fn diff_puts_runs_and_artifacts_side_by_side() {
    let scratch = two();
    scratch.episteme(&["run", "two.toml", "--set", "stages.raw.train=61"]).ok();
    let told = scratch.episteme(&["diff", "last~1", "last"]).ok().stdout;
    for text in ["`train` was 60, is 61", "its `input` from `raw` has changed", "artifacts", "images"] {
        assert!(told.contains(text), "`{text}` is not in\n{told}");
    }
    let told = json(&scratch.episteme(&["diff", "last~1", "last", "--json"]).ok());
    assert_eq!((&told["same"], &told["stages"][0]["differences"][0]["now"]), (&Value::Bool(false), &Value::from(61)), "{told:#}");
    assert_eq!(json(&scratch.episteme(&["diff", "last", "last", "--json"]).ok())["same"], true);

    let artifact = |run: &str| json(&scratch.episteme(&["show", run, "--json"]).ok())["stages"][1]["artifact"].as_str().map(str::to_owned);
    let (a, b) = (artifact("last~1").expect("a digest"), artifact("last").expect("a digest"));
    let told = scratch.episteme(&["diff", &a, &b]).ok().stdout;
    for text in ["collect.synthetic train", "rows", "files"] {
        assert!(told.contains(text), "`{text}` is not in\n{told}");
    }
    scratch.episteme(&["diff", "last", &b]).fails(2, &["a run and an artifact"]);
}

#[test]
fn reproduce_gives_the_same_bytes_or_says_where_they_part() {
    let scratch = two();
    let told = scratch.episteme(&["reproduce", "last"]).ok().stdout;
    assert_eq!(told.matches("same bytes").count(), 2, "{told}");

    // A record of other bytes stands for a machine that computed otherwise.
    let run = json(&scratch.episteme(&["log", "--json"]).ok())["runs"][0]["run"].as_str().expect("a name").to_owned();
    let record = scratch.store().join("runs").join(&run).join("run.json");
    let text = fs::read_to_string(&record).expect("it is there");
    let raw = json(&scratch.episteme(&["show", &run, "--json"]).ok())["stages"][0]["artifact"].as_str().expect("a digest").to_owned();
    fs::write(&record, text.replace(&raw, &"0".repeat(64))).expect("it can be written");
    let parted = scratch.episteme(&["reproduce", &run]);
    assert_eq!(parted.code, 1, "{}", parted.stderr);
    assert!(parted.stdout.contains("PARTS HERE"), "{}", parted.stdout);
    let parted = scratch.episteme(&["reproduce", &run, "--json"]);
    let last: Value = serde_json::from_str(parted.stdout.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&last["type"], &last["ok"], &last["stages"][0]["parts_here"]), (&"reproduced".into(), &false.into(), &true.into()));
    scratch.episteme(&["reproduce", "nothing"]).fails(2, &["there is no run `nothing`"]);
}

#[test]
fn what_is_wrong_is_told_to_scripts_too() {
    let scratch = two();
    scratch.write("bad.toml", "nam = 'x'\n[stages.raw]\nuses = 'collect.synthetic'\ntrian = 3\n");
    let said = scratch.episteme(&["check", "bad.toml", "--json"]);
    let told = json(&said);
    assert_eq!((said.code, &told["type"], &told["code"]), (2, &"error".into(), &2.into()), "{told:#}");
    assert_eq!((&told["problems"][1]["line"], &told["problems"][1]["column"]), (&4.into(), &1.into()), "{told:#}");
    assert_eq!(json(&scratch.episteme(&["show", "nothing", "--pipeline", "two.toml", "--json"]))["type"], "error");
}

#[test]
fn a_graph_is_drawn_in_every_form() {
    let scratch = two();
    let drawn = |format: &str| scratch.episteme(&["graph", "two.toml", "--format", format]).ok().stdout;
    assert!(drawn("ascii").is_ascii() && drawn("ascii").lines().all(|line| line.starts_with('*')), "{}", drawn("ascii"));
    let svg = drawn("svg");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.matches("<rect").count() == 2, "{svg}");
    assert!(drawn("mermaid").contains("-- input -->"));
    assert_eq!(json(&scratch.episteme(&["graph", "two.toml", "--json"]).ok())["stages"][1]["inputs"]["input"][0], "raw");
}

#[test]
fn shells_and_man_learn_every_verb() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = scratch.episteme(&["completions", shell]).ok().stdout;
        assert!(["reproduce", "verify", "openlineage"].iter().all(|word| text.contains(word)), "{shell}");
    }
    assert!(scratch.episteme(&["man", "gc"]).ok().stdout.contains("older\\-than"));
    scratch.episteme(&["man", "--to", "pages"]).ok();
    assert!(scratch.path().join("pages/episteme-run.1").is_file());
    scratch.episteme(&["man", "rnu"]).fails(2, &["did you mean `run`?"]);
}
