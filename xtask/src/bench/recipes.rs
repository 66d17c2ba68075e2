//! What the recipes in `pipelines/` reach, over several seeds: test accuracy, seconds and memory of the training. `EPISTEME_MIRROR` has the data.

use std::{env, fs};

use super::{Done, episteme, field, number, output, remove, scratch};

/// What is measured unless pipelines are named, the longest last.
const RECIPES: [&str; 4] =
    ["pipelines/mnist-quick.toml", "pipelines/mnist-best.toml", "pipelines/cifar10.toml", "pipelines/cifar10-best.toml"];

/// How often each is trained, with seeds of its own for the weights and the order of examples; the split stays.
const TRIALS: u32 = 3;

/// Runs each pipeline so often.
pub(super) fn recipes(named: &[String]) -> Done {
    if env::var_os("EPISTEME_MIRROR").is_none() {
        eprintln!("EPISTEME_MIRROR must name a folder that has mnist/ and cifar10-images/");
        return Err(2);
    }
    let store = scratch("recipes")?;
    let all: Vec<String> = if named.is_empty() { RECIPES.map(str::to_owned).to_vec() } else { named.to_vec() };
    for file in &all {
        let name = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".toml");
        let mut accuracies = Vec::new();
        for trial in 1..=TRIALS {
            let set = seeds(file, trial);
            let said = output(episteme(&store).args(["run", file, "--json", "--set", &set]))?;
            let Some(found) = Trial::read(said.lines().last().unwrap_or_default()) else {
                eprintln!("{file}: the run has no stage `model`, or no `test.accuracy`");
                return Err(1);
            };
            println!("{name}_{trial}_accuracy {:.2} percent", found.accuracy);
            println!("{name}_{trial}_training {:.1} s", found.seconds);
            println!("{name}_{trial}_memory {:.0} MB", found.memory / 1e6);
            accuracies.push(found.accuracy);
        }
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        let squares: f64 = accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum();
        println!("{name}_accuracy_mean {mean:.2} percent");
        println!("{name}_accuracy_deviation {:.2} percent", (squares / (accuracies.len() - 1) as f64).sqrt());
    }
    remove(&store)
}

/// The seeds of a trial: 1, 2 and 3; of two models that judge together, 1 and 2, 3 and 4, 5 and 6, so that no model is in two trials.
fn seeds(file: &str, trial: u32) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let listed = text.split("matrix = { seed = [").nth(1).and_then(|rest| rest.split(']').next());
    match listed.map(|seeds| seeds.split(',').count() as u32) {
        Some(models) => format!("stages.model.matrix.seed={:?}", ((trial - 1) * models + 1..=trial * models).collect::<Vec<_>>()),
        None => format!("stages.model.seed={trial}"),
    }
}

/// What one run came to.
struct Trial {
    /// Of the test set, percent.
    accuracy: f64,
    /// Wall clock and peak bytes of the stage `model`; the sum and the largest where it has variants.
    seconds: f64,
    memory: f64,
}

impl Trial {
    /// From the last line of a run.
    fn read(end: &str) -> Option<Self> {
        // A model's own come before those of the stages behind it.
        let models = || end.split("\"name\":\"model").skip(1);
        let own = |key: &str| models().map(|model| number(model.split(key).nth(1)?)).collect::<Option<Vec<f64>>>();
        models().next()?;
        let accuracy = 100.0 * field(end, "\"test.accuracy\":")?;
        let (seconds, memory) = (own("\"seconds\":")?, own("\"peak_memory\":")?);
        Some(Self { accuracy, seconds: seconds.iter().sum(), memory: memory.iter().copied().fold(0.0, f64::max) })
    }
}
