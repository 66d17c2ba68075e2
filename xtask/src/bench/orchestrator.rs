//! What the orchestrator costs: starts, runs with nothing to do, trivial stages, many small files. Beside DVC and Snakemake on the
//! same chain, where `EPISTEME_PEERS` names the folder of `pipelines.sh` and PATH has both.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Done, episteme, median, output, remove, root, scratch, timed};

/// How many small files are looked at.
const FILES: usize = 10_000;

pub(super) fn bench() -> Done {
    let folder = scratch("orchestrator")?;
    let store = folder.join("store");
    let digits = root().join("pipelines/digits.toml");
    println!("episteme_version {:.1} ms", 1000.0 * median(|| Ok(timed(episteme(&store).arg("--version"))?.0))?);
    println!("episteme_digits_first {:.2} s", timed(&mut run(&store, &digits))?.0);
    println!("episteme_digits_noop {:.1} ms", 1000.0 * noop(&store, &digits)?);
    for stages in [20, 100, 1000] {
        let chain = chain(&folder, stages)?;
        println!("episteme_first_{stages} {:.2} s", timed(&mut run(&store, &chain))?.0);
        println!("episteme_noop_{stages} {:.1} ms", 1000.0 * noop(&store, &chain)?);
    }
    println!("shell_loop_100 {:.2} s", timed(Command::new("sh").arg("-c").arg(LOOP).current_dir(&folder))?.0);
    files(&folder, &store)?;
    ["20", "100"].iter().try_for_each(|stages| peers(stages))?;
    remove(&folder)
}

/// The same work without any orchestrator: a shell and a copy for each stage.
const LOOP: &str = "echo seed > o0; i=0; while [ $i -lt 100 ]; do sh -ec \"cp o$i o$((i+1))\"; i=$((i+1)); done";

fn run(store: &Path, pipeline: &Path) -> Command {
    let mut command = episteme(store);
    command.args(["run", "--quiet"]).arg(pipeline);
    command
}

/// Seconds of a run with nothing to do.
fn noop(store: &Path, pipeline: &Path) -> Result<f64, u8> {
    median(|| Ok(timed(&mut run(store, pipeline))?.0))
}

/// A pipeline of so many stages, each a copy of the one before.
fn chain(folder: &Path, stages: usize) -> Result<PathBuf, u8> {
    let mut text = "[stages.s0]\nuses = 'command'\nrun = 'echo seed > ${output}/o'\noutputs = ['o']\n".to_owned();
    for stage in 1..stages {
        let before = stage - 1;
        // Each adds its number: a copy of the same would be one artifact.
        let _ = write!(
            text,
            "[stages.s{stage}]\nuses = 'command'\nrun = 'cp ${{inputs.i}}/o ${{output}}/o; echo {stage} >> ${{output}}/o'\n\
             inputs = {{ i = 's{before}' }}\noutputs = ['o']\n"
        );
    }
    written(&folder.join(format!("chain{stages}.toml")), &text)
}

/// Ten thousand files of a kilobyte: taken, looked at, and looked at again when all were touched.
fn files(folder: &Path, store: &Path) -> Done {
    let data = folder.join("files");
    fs::create_dir_all(&data).map_err(|_| 1)?;
    for file in 0..FILES {
        written(&data.join(file.to_string()), &format!("{file:>1024}"))?;
    }
    let text = "[stages.count]\nuses = 'command'\nrun = 'ls files | wc -l > ${output}/o'\nfiles = ['files']\n";
    let pipeline = written(&folder.join("files.toml"), text)?;
    println!("episteme_files_first {:.1} ms", 1000.0 * timed(&mut run(store, &pipeline))?.0);
    println!("episteme_files_noop {:.1} ms", 1000.0 * noop(store, &pipeline)?);
    let touched = median(|| {
        output(Command::new("find").arg(&data).args(["-type", "f", "-exec", "touch", "{}", "+"]))?;
        Ok(timed(&mut run(store, &pipeline))?.0)
    })?;
    println!("episteme_files_touched {:.1} ms", 1000.0 * touched);
    dvc_files(&data)
}

/// `dvc add` and `dvc status` of the same files, if there is a DVC.
fn dvc_files(data: &Path) -> Done {
    if Command::new("dvc").arg("--version").output().is_err() {
        println!("# dvc is not on PATH: only ours is measured");
        return Ok(());
    }
    let folder = data.parent().unwrap_or(data);
    let dvc = |args: &[&str]| timed(Command::new("dvc").args(args).current_dir(folder));
    output(Command::new("git").args(["init", "-q", "."]).current_dir(folder))?;
    dvc(&["init", "-q"])?;
    println!("dvc_files_first {:.1} ms", 1000.0 * dvc(&["add", "-q", "files"])?.0);
    println!("dvc_files_noop {:.1} ms", 1000.0 * dvc(&["status", "-q"])?.0);
    output(Command::new("find").arg(data).args(["-type", "f", "-exec", "touch", "{}", "+"]))?;
    println!("dvc_files_touched {:.1} ms", 1000.0 * dvc(&["status", "-q"])?.0);
    Ok(())
}

/// DVC and Snakemake on a chain of so many stages.
fn peers(stages: &str) -> Done {
    let script = env::var_os("EPISTEME_PEERS").map(|folder| PathBuf::from(folder).join("pipelines.sh")).filter(|path| path.is_file());
    let Some(script) = script else {
        println!("# pipelines.sh is not in a folder named by EPISTEME_PEERS: only ours is measured");
        return Ok(());
    };
    print!("{}", output(Command::new("bash").arg(script).arg(stages))?);
    Ok(())
}

fn written(path: &Path, text: &str) -> Result<PathBuf, u8> {
    fs::write(path, text).map_err(|error| {
        eprintln!("{}: {error}", path.display());
        1
    })?;
    Ok(path.to_owned())
}
